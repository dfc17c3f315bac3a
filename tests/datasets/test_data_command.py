"""`vjepa-mpc data info` and `data validate` say what is there."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from toy_trajectories import toy_episode, toy_spec
from typer.testing import CliRunner

from vjepa_mpc.cli.data import app
from vjepa_mpc.core.errors import InputError
from vjepa_mpc.datasets.store import ZarrStore


def run(*arguments: str) -> str:
    result = CliRunner().invoke(app, list(arguments))
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == 0
    return result.stdout


@pytest.fixture
def path(tmp_path: Path) -> Path:
    with ZarrStore.create(tmp_path / "a.zarr", toy_spec()) as writer:
        writer.extend([toy_episode(0, 5), toy_episode(1, 9)])
    return tmp_path / "a.zarr"


def test_info_counts_and_describes(path: Path) -> None:
    value = json.loads(run("info", str(path), "--json"))
    assert (value["episodes"], value["frames"]) == (2, 14)
    assert value["episode_lengths"] == {"min": 5, "max": 9}
    assert value["cameras"] == {"top": [6, 5], "wrist": [4, 4]}
    assert value["duration_s"] == pytest.approx(12 * 0.1)
    assert value["bytes_on_disk"] == sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
    assert value["being_written_by"] is None and value["provenance"]["recipe"] == {"seed": 1}
    episodes = [toy_episode(0, 5), toy_episode(1, 9)]
    for kind in ("states", "actions"):
        seen = np.concatenate([getattr(episode, kind) for episode in episodes])
        for column, row in enumerate(value[kind]):
            assert (row["min"], row["max"]) == (seen[:, column].min(), seen[:, column].max())
    assert [row["unit"] for row in value["actions"]] == ["rad", "rad"]


def test_info_prints_a_table_and_who_is_writing(path: Path) -> None:
    with ZarrStore.append_to(path):
        text = run("info", str(path))
    for part in ("toy", "top 5x6", "q1", "rad", "being written", "by process", "seed 1"):
        assert part in text


def test_info_of_a_store_without_episodes(tmp_path: Path) -> None:
    ZarrStore.create(tmp_path / "a.zarr", toy_spec()).close()
    value = json.loads(run("info", str(tmp_path / "a.zarr"), "--json"))
    assert (value["episodes"], value["frames"], value["states"][0]["min"]) == (0, 0, None)
    assert "0" in run("info", str(tmp_path / "a.zarr"))
    with pytest.raises(InputError, match="no episodes"):
        run("validate", str(tmp_path / "a.zarr"))


def test_validate_passes_a_whole_store_and_names_what_is_broken(path: Path) -> None:
    assert "all 2 episodes (14 frames)" in run("validate", str(path))
    (path / "times" / "c.2").unlink()
    with pytest.raises(InputError, match=r"chunk times/c\.2 is missing"):
        run("validate", str(path))
