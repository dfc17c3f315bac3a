"""Imports give the right episodes, go on after an interruption, and leave out what is broken, with the reason."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from toy_logs import LENGTHS, RATE, WRITERS, assert_shows, picture, state, write_lerobot_v2, write_pictures, write_video
from toy_trajectories import assert_same
from typer.testing import CliRunner

from vjepa_mpc.cli.data import app
from vjepa_mpc.core.errors import InputError
from vjepa_mpc.datasets import importing
from vjepa_mpc.datasets.importing import REPORT, ImportPlan, ImportReport, ImportSettings, prepare
from vjepa_mpc.datasets.logs import LogOptions
from vjepa_mpc.datasets.store import ZarrStore


@pytest.fixture(autouse=True)
def no_flushing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Flushing to disk is most of the time here, and tested elsewhere."""
    monkeypatch.setattr(os, "fsync", lambda _: None)


def settings(source: Path, out: Path, **given: Any) -> ImportSettings:
    return ImportSettings(source, out, **given)


def run(plan: ImportPlan) -> ImportReport:
    return importing.run(plan, lambda names: map(plan.converter.convert, names))


def command(*arguments: str) -> str:
    result = CliRunner().invoke(app, ["import", *arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == 0
    return result.stdout


@pytest.mark.parametrize("name", list(WRITERS))
def test_every_format_becomes_the_same_store(tmp_path: Path, name: str) -> None:
    write, field, camera = WRITERS[name]
    source, out = write(tmp_path / "log"), tmp_path / "a.zarr"
    given = LogOptions(rate_hz=RATE)
    plan = prepare(settings(source, out, state=(f"{field}[0:2]:rad",), cameras=(f"top={camera}",), options=given))
    report = run(plan)
    assert (report.added, report.skipped, report.split) == (3, {}, ())
    store = ZarrStore.open(out)
    np.testing.assert_array_equal(store.lengths(), LENGTHS)
    assert store.spec.control_period_s == pytest.approx(1 / RATE) and store.spec.state_units == ("rad", "rad")
    for index, length in enumerate(LENGTHS):
        episode = store.read(index)
        np.testing.assert_allclose(episode.states, state(index, length)[:, :2], atol=1e-6)
        np.testing.assert_allclose(episode.actions, np.diff(episode.states, axis=0), atol=1e-6)
        np.testing.assert_allclose(np.diff(episode.times), 1 / RATE, atol=1e-6)
        for row in range(length):
            assert_shows(episode.images["top"][row], index, row)
        assert episode.metadata["source"]["rows"] == [0, length]
    # Bounds hold what was seen, so that a model trained on it accepts its own data.
    states, _ = store.states_and_actions()
    assert (states >= np.array(store.spec.state_low) - 1e-6).all()
    assert (states <= np.array(store.spec.state_high) + 1e-6).all()


def test_rates_and_sizes(tmp_path: Path) -> None:
    source = write_pictures(tmp_path / "log")
    run(prepare(settings(source, tmp_path / "a.zarr", rate_hz=RATE / 3, size=16, episodes=1)))
    store = ZarrStore.open(tmp_path / "a.zarr")
    assert store.spec.cameras == {"top": (16, 24)} and len(store) == 1
    episode = store.read(0)
    np.testing.assert_allclose(episode.states, state(0, LENGTHS[0])[::3], atol=1e-6)
    for index, row in enumerate(range(0, LENGTHS[0], 3)):
        assert_shows(episode.images["top"][index], 0, row, tolerance=1)
    with pytest.raises(InputError, match="pictures would have to be invented"):
        prepare(settings(source, tmp_path / "b.zarr", rate_hz=2 * RATE))


def test_gaps_cut_episodes_and_are_reported(tmp_path: Path) -> None:
    source = write_pictures(tmp_path / "log")
    table = (source / "run9/states.csv").read_text().splitlines()
    late = [table[0], *table[1:4], *(f"{float(line.split(',')[0]) + 3},{line.partition(',')[2]}" for line in table[4:])]
    (source / "run9/states.csv").write_text("\n".join(late))
    report = run(prepare(settings(source, tmp_path / "a.zarr")))
    store = ZarrStore.open(tmp_path / "a.zarr")
    assert report.split == ("run9",) and store.lengths().tolist() == [9, 3, 3, 12]
    assert store.metadata(2)["source"] == {"episode": "run9", "rows": [3, 6], "part": 1, "parts": 2}
    assert_shows(store.read(2).images["top"][0], 1, 3)
    # All parts are there or none: running again adds nothing.
    assert run(prepare(settings(source, tmp_path / "a.zarr"))).added == 0


def test_an_interrupted_import_goes_on_to_the_same_store(tmp_path: Path) -> None:
    source = write_lerobot_v2(tmp_path / "log")
    plan = prepare(settings(source, tmp_path / "a.zarr"))

    def stopped(names: Any) -> Any:
        yield plan.converter.convert(next(iter(names)))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        importing.run(plan, stopped)
    assert len(ZarrStore.open(tmp_path / "a.zarr")) == 1
    assert json.loads((tmp_path / "a.zarr" / REPORT).read_text())["added"] == 1
    report = run(plan)
    assert (report.added, report.already) == (2, 1)
    run(prepare(settings(source, tmp_path / "straight.zarr")))
    stores = [ZarrStore.open(tmp_path / name) for name in ("a.zarr", "straight.zarr")]
    assert stores[0].content_hash() == stores[1].content_hash()


def test_another_mapping_into_the_same_store_is_refused(tmp_path: Path) -> None:
    source = write_pictures(tmp_path / "log")
    run(prepare(settings(source, tmp_path / "a.zarr")))
    with pytest.raises(InputError, match=r"imported differently \(rate_hz 10.0 there, 5.0 asked\)"):
        run(prepare(settings(source, tmp_path / "a.zarr", rate_hz=5.0)))


def test_a_log_that_grew_is_continued(tmp_path: Path) -> None:
    source = write_pictures(tmp_path / "log")
    (source / "run10").rename(tmp_path / "later")
    run(prepare(settings(source, tmp_path / "a.zarr")))
    (tmp_path / "later").rename(source / "run10")
    report = run(prepare(settings(source, tmp_path / "a.zarr")))
    assert (report.added, report.already) == (1, 2) and "changed since" in report.notes[0]
    assert any("beyond the bounds" in note for note in report.notes)
    with pytest.raises(InputError, match="robot"):
        run(prepare(replace(settings(source, tmp_path / "a.zarr"), robot="another")))
    assert_shows(ZarrStore.open(tmp_path / "a.zarr").read(2).images["top"][7], 2, 7)


def test_the_command_shows_imports_and_reports(tmp_path: Path) -> None:
    source, out = write_lerobot_v2(tmp_path / "log"), tmp_path / "a.zarr"
    (source / "videos/chunk-000/observation.images.top/episode_000001.mp4").unlink()
    shown = command(str(source), str(out), "--dry-run", "--preview", str(tmp_path / "p.png"))
    assert "observation.state:plain" in shown and not out.exists()
    assert (tmp_path / "p.png").read_bytes().startswith(b"\x89PNG")
    value = json.loads(command(str(source), str(out), "--dry-run", "--json"))
    assert (value["episodes"], value["frames"], value["cameras"]) == (3, sum(LENGTHS), {"top": [64, 96]})
    assert 0 < value["bytes_estimate"] < sum(LENGTHS) * 64 * 96 * 3
    report = json.loads(command(str(source), str(out), "--workers", "2", "--json"))
    assert report["added"] == 2 and report["skipped"] == {"1": "episode_000001.mp4 is missing"}
    again = command(str(source), str(out))
    assert "2 episodes, 21 frames; 0 added (2 were there)" in again


def test_several_workers_make_the_same_store(tmp_path: Path) -> None:
    source = write_pictures(tmp_path / "log")
    command(str(source), str(tmp_path / "a.zarr"))
    command(str(source), str(tmp_path / "b.zarr"), "--workers", "2")
    first, second = ZarrStore.open(tmp_path / "a.zarr"), ZarrStore.open(tmp_path / "b.zarr")
    for index in range(3):
        assert_same(first.read(index), second.read(index))


def test_a_disk_too_small_is_told_beforehand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = write_pictures(tmp_path / "log")
    plan = prepare(settings(source, tmp_path / "a.zarr"))
    monkeypatch.setattr(importing.shutil, "disk_usage", lambda _: SimpleNamespace(free=plan.bytes_estimate - 1))
    with pytest.raises(InputError, match="GB free; make pictures smaller with --size"):
        run(plan)
    assert not (tmp_path / "a.zarr").exists()


def test_memory_does_not_grow_with_the_log(tmp_path: Path) -> None:
    """450 frames of 640 x 480 are 415 MB unpacked; brought to 16 pixels they are imported in far less."""
    write_video(tmp_path / "log/top.mp4", [picture(0, 1, (480, 640))] * 450, "mpeg4")
    rows = "\n".join(f"{i / RATE},{i}" for i in range(450))
    (tmp_path / "log/states.csv").write_text(f"time,a\n{rows}\n")
    script = """
import resource, sys
import av, torch, zarr
from vjepa_mpc.cli.main import main
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
try:
    main(sys.argv[1:])
except SystemExit as left:
    assert left.code == 0
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""
    arguments = ["data", "import", str(tmp_path / "log"), str(tmp_path / "a.zarr"), "--size", "16"]
    done = subprocess.run([sys.executable, "-c", script, *arguments], capture_output=True, text=True, check=True)
    assert int(done.stdout.splitlines()[-1]) < 200_000  # kilobytes
    assert ZarrStore.open(tmp_path / "a.zarr").lengths().tolist() == [450]
