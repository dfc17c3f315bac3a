"""Coverage of the state space: counts against known visits, world states preferred, the picture, the command."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from vjepa_mpc.cli.main import build_app
from vjepa_mpc.collect import CollectSettings, collect
from vjepa_mpc.core.errors import InputError
from vjepa_mpc.datasets.coverage import CELLS, coverage, draw_coverage, states_of
from vjepa_mpc.datasets.store import ZarrStore
from vjepa_mpc.exploration import EpisodeSettings
from vjepa_mpc.robots.world import MujocoWorld, vary_world


def test_visits_are_counted_cell_by_cell() -> None:
    centres = (np.arange(CELLS) + 0.5) / CELLS
    grid = np.stack(np.meshgrid(centres, centres), axis=-1).reshape(-1, 2)
    (full,) = coverage(grid, ("a", "b"), (0.0, 0.0), (1.0, 1.0))
    assert full.share == 1.0 and (full.counts == 1).all()
    (half,) = coverage(grid[grid[:, 0] < 0.5], ("a", "b"), (0.0, 0.0), (1.0, 1.0))
    assert half.share == 0.5 and half.counts[: CELLS // 2].all() and not half.counts[CELLS // 2 :].any()
    outside, = coverage(np.array([[9.0, -9.0]]), ("a", "b"), (0.0, 0.0), (1.0, 1.0))
    assert outside.counts[-1, 0] == 1 == outside.counts.sum()
    assert [part.names for part in coverage(np.zeros((2, 3)), ("a", "b", "c"), (0.0,) * 3, (1.0,) * 3)] == [
        ("a", "b"), ("b", "c"),
    ]  # fmt: skip
    (alone,) = coverage(np.full((1, 1), 0.5), ("a",), (0.0,), (1.0,))
    assert alone.names == ("a", "a") and alone.share == 1 / CELLS**2


def test_a_picture_is_written(tmp_path: Path) -> None:
    found = coverage(np.random.default_rng(0).uniform(size=(50, 5)), tuple("abcde"), (0.0,) * 5, (1.0,) * 5)
    draw_coverage(found, tmp_path / "a.png", "five")
    with Image.open(tmp_path / "a.png") as image:
        assert image.width > 600 and image.height > 500


def test_stats_draws_the_worlds_state_and_collect_varies_named_factors(tmp_path: Path) -> None:
    episode = EpisodeSettings(
        robot="push-t", frames=5, camera_size=16, appearance_fraction=1.0, factors=(("light", 0.5), ("mass", 1.0))
    )
    collect(CollectSettings(tmp_path / "a.zarr", 2, 1, episode))
    store = ZarrStore.open(tmp_path / "a.zarr")
    assert states_of(store).shape == (10, 5)
    assert store.metadata(0)["factors"] == {"light": 0.5, "mass": 1.0}
    assert store.spec.provenance["recipe"]["factors"] == [["light", 0.5], ["mass", 1.0]]
    arguments = ["data", "stats", str(tmp_path / "a.zarr"), "--coverage", str(tmp_path / "c.png"), "--json"]
    result = CliRunner().invoke(build_app(), arguments)
    assert result.exit_code == 0, result.output
    shares = json.loads(result.stdout)["coverage"]
    assert next(iter(shares)) == "x, y" and "block_y, block_angle" in shares
    assert all(0 < v <= 1 for v in shares.values())
    assert (tmp_path / "c.png").stat().st_size > 1000


def test_levels_are_parsed_and_refused() -> None:
    from vjepa_mpc.cli.building import parse_levels
    from vjepa_mpc.robots.dynamics import FACTORS

    assert parse_levels(["light=0.5", "mass"]) == {"light": 0.5, "mass": 1.0}
    assert parse_levels(["0.3"]) == dict.fromkeys(FACTORS, 0.3) and parse_levels([]) == {}
    for bad, message in (
        ("lihgt=1", "did you mean 'light'"), ("light=x", "write it as"), ("light=", "write it as"),
        ("1.5", r"outside \[0, 1\]"),
    ):  # fmt: skip
        with pytest.raises(InputError, match=message):
            parse_levels([bad])
    with pytest.raises(InputError, match="no factors of variation"):
        vary_world(object(), 0, {"light": 1.0})
    with pytest.raises(InputError, match="appearance"):
        EpisodeSettings(appearance="plain", factors=(("light", 1.0),))
    assert not isinstance(object(), MujocoWorld)
