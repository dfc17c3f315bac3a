"""The reach task, its scripted ceiling, and the frozen manifests."""

from __future__ import annotations

import hashlib
import json
import math
from pathlib import Path

import numpy as np
import pytest

from vjepa_mpc.core.errors import InputError
from vjepa_mpc.core.files import write_json
from vjepa_mpc.robots import tasks
from vjepa_mpc.robots.reacher import Reacher, ReachTask
from vjepa_mpc.robots.tasks import (
    MANIFEST_SEEDS,
    Manifest,
    Pair,
    load_manifest,
    make_manifest,
    manifest_names,
    play_script,
)

SHIPPED = ("reacher-dev", "reacher-dev-varied", "reacher-test", "reacher-test-varied")


def test_manifests_are_shipped_distinct_and_frozen() -> None:
    assert set(SHIPPED) <= set(manifest_names())
    manifests = [load_manifest(name) for name in SHIPPED]
    assert all(len(manifest.pairs) == 100 for manifest in manifests)
    pairs = {(pair.start, pair.goal) for manifest in manifests for pair in manifest.pairs}
    assert len(pairs) == 400
    assert load_manifest("dev") == manifests[0]
    # Committed numbers are compared with results in the docs: a change of these is a new manifest.
    assert [manifest.sha256[:8] for manifest in manifests] == ["42b1eb0e", "8b9b8cfe", "05f1ddf6", "5080ccaf"]


def test_appearance_seeds_are_apart_from_those_of_collection() -> None:
    for name in SHIPPED:
        seeds = [pair.appearance for pair in load_manifest(name).pairs]
        if name.endswith("varied"):
            assert len(set(seeds)) == 100 and min(s for s in seeds if s is not None) >= MANIFEST_SEEDS
        else:
            assert set(seeds) == {None}


def test_manifests_can_be_made_again() -> None:
    assert make_manifest("dev", 100, seed=1) == load_manifest("reacher-dev")
    assert make_manifest("test-varied", 100, seed=4, varied=True) == load_manifest("reacher-test-varied")


def test_every_shipped_goal_is_reached_and_held_by_the_script() -> None:
    task = ReachTask()
    with Reacher(camera_size=8) as robot:
        for name in SHIPPED:
            for pair in load_manifest(name).pairs:
                distances = play_script(robot, task, np.array(pair.start), np.array(pair.goal))
                assert task.hit(distances) and task.held(distances), (name, pair)


def test_pairs_start_outside_the_success_region() -> None:
    task, generator = ReachTask(), np.random.default_rng(0)
    distances = [task.distance(*task.sample_pair(generator)) for _ in range(500)]
    assert min(distances) >= 0.05 > task.success_radius_m


def test_hit_and_held() -> None:
    task = ReachTask()
    far, near = 0.2, 0.01
    assert not task.hit([far] * 25) and not task.held([far] * 25)
    assert task.hit([near] + [far] * 24) and not task.held([near] + [far] * 24)
    assert task.held([far] * 22 + [near] * 3)
    assert not task.held([far] * 23 + [near] * 2)
    assert not task.held([near] * 24)  # ended early: not proven held
    assert task.held([far] * 22 + [0.03] * 3) and not task.held([far] * 22 + [0.0301] * 3)


def test_script_takes_the_shorter_way_round() -> None:
    action = ReachTask().scripted_action(np.array([3.0, 1.0]), np.array([-3.0, 0.9]))
    assert action == pytest.approx([2 * math.pi - 6.0, -0.1])


def written(tmp_path: Path, manifest: Manifest) -> Path:
    path = tmp_path / "pairs.json"
    write_json(path, manifest.to_json())
    return path


def test_an_altered_manifest_is_refused(tmp_path: Path) -> None:
    path = written(tmp_path, make_manifest("mine", 3, seed=9))
    assert load_manifest(path).split == "mine"
    content = json.loads(path.read_text())
    content["pairs"][0]["goal"][0] += 1e-6
    path.write_text(json.dumps(content))
    with pytest.raises(InputError, match="altered"):
        load_manifest(path)


def test_a_folder_of_a_manifest_s_name_is_not_in_the_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "test").mkdir()
    monkeypatch.chdir(tmp_path)
    assert load_manifest("test").split == "test"


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"start": "ab"}, "list of numbers"), ({"goal": [[1.0], 2.0]}, "list of numbers"),
        ({"appearance": -1}, "seed of at least 0"), ({"appearance": "x"}, "seed of at least 0"),
    ],
)  # fmt: skip
def test_pairs_that_are_no_numbers_are_refused(tmp_path: Path, changed: dict[str, object], message: str) -> None:
    content = json.loads(written(tmp_path, make_manifest("mine", 2, seed=9)).read_text())
    content["pairs"][1] |= changed
    body = {key: value for key, value in content.items() if key not in ("schema", "sha256")}
    content["sha256"] = hashlib.sha256(tasks._canonical(body).encode()).hexdigest()
    (tmp_path / "pairs.json").write_text(json.dumps(content))
    with pytest.raises(InputError, match=message):
        load_manifest(tmp_path / "pairs.json")


@pytest.mark.parametrize(
    ("pairs", "message"),
    [
        ((Pair((0.0, 0.0), (0.0, 0.01)),), "inside the success region"),
        ((Pair((0.0, 0.0), (0.0, 3.0)),), "outside"),
        ((Pair((0.0,), (0.0, 1.0)),), "2 values"),
        ((), "no start/goal pairs"),
    ],
)
def test_unusable_pairs_are_refused(tmp_path: Path, pairs: tuple[Pair, ...], message: str) -> None:
    manifest = Manifest("reach", 1, "reacher", "mine", 0, pairs)
    with pytest.raises(InputError, match=message):
        load_manifest(written(tmp_path, manifest))


def test_numbers_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "pairs.json"
    path.write_text('{"schema": "vjepa-mpc-manifest-1", "pairs": [{"start": [0, Infinity]}]}')
    with pytest.raises(InputError, match="not finite"):
        load_manifest(path)


def test_other_tasks_missing_files_and_unknown_names_are_refused(tmp_path: Path) -> None:
    other = Manifest("push", 1, "reacher", "mine", 0, (Pair((0.0, 0.0), (0.0, 1.0)),))
    with pytest.raises(InputError, match="push"):
        load_manifest(written(tmp_path, other))
    with pytest.raises(InputError, match="does not exist"):
        load_manifest(tmp_path / "none.json")
    with pytest.raises(InputError, match="did you mean 'reacher-test'"):
        load_manifest("reacher-tset")
    (tmp_path / "text.json").write_text("[]")
    with pytest.raises(InputError, match="not a vjepa-mpc-manifest-1"):
        load_manifest(tmp_path / "text.json")
    for n, seed in ((0, 1), (5, -1)):
        with pytest.raises(InputError):
            make_manifest("mine", n, seed)
