"""`vjepa-mpc data info` and `data validate` say what is there."""

from __future__ import annotations

import json
from dataclasses import replace
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
    spec = replace(toy_spec(), state_low=(-9.0, -9.0), state_high=(9.0, 9.0))
    with ZarrStore.create(tmp_path / "a.zarr", spec) as writer:
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
    text = run("validate", str(path))
    assert "all 2 episodes (14 frames)" in text and "Nothing is wrong" in text
    (path / "times" / "c.2").unlink()
    shown = CliRunner().invoke(app, ["validate", str(path)])
    assert shown.exit_code == 3 and "1 of 2 episodes" in shown.stdout
    assert "damaged: episode 1" in shown.stdout and "chunk times/c.2 is missing" in shown.stdout


def test_validate_lists_findings_and_mends_a_copy(path: Path, tmp_path: Path) -> None:
    with ZarrStore.append_to(path) as writer:
        dark = toy_episode(2, 6)
        dark.images["top"][2:4] = 0
        writer.extend([dark, toy_episode(1, 9)])
    shown = CliRunner().invoke(app, ["validate", str(path), "--json"])
    found = json.loads(shown.stdout)["findings"]
    assert shown.exit_code == 3
    assert [(f["check"], f["episode"], f["rows"]) for f in found] == [("black", 2, [2, 4]), ("duplicate", 3, None)]
    text = run("validate", str(path), "--fix", str(tmp_path / "b.zarr"))
    assert "black: episode 2, rows 2 to 3: camera top shows nothing" in text and "with --fix: left out" in text
    assert ZarrStore.open(tmp_path / "b.zarr").lengths().tolist() == [5, 9, 2, 2]
    assert "Nothing is wrong" in run("validate", str(tmp_path / "b.zarr"))
