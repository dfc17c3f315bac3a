"""Merging, splitting, statistics and exports keep every number, and a copy is whole or absent."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import av
import numpy as np
import pytest
from test_data_command import run
from toy_trajectories import toy_episode, toy_spec

from vjepa_mpc.core.errors import InputError
from vjepa_mpc.datasets import importing
from vjepa_mpc.datasets.copying import held_out, merge, recording, split
from vjepa_mpc.datasets.episode import Episode, StoreSpec
from vjepa_mpc.datasets.importing import ImportSettings, prepare
from vjepa_mpc.datasets.mending import _of_rows, mend
from vjepa_mpc.datasets.store import ZarrStore
from vjepa_mpc.datasets.validation import validate


@pytest.fixture(autouse=True)
def no_flushing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Flushing to disk is most of the time here, and tested elsewhere."""
    monkeypatch.setattr(os, "fsync", lambda _: None)


def written(path: Path, seeds: range, spec: StoreSpec | None = None, **metadata: object) -> ZarrStore:
    with ZarrStore.create(path, spec or toy_spec()) as writer:
        writer.extend([replace(toy_episode(seed, 5), metadata={"seed": seed, **metadata}) for seed in seeds])
    return ZarrStore.open(path)


def test_merging_takes_equal_episodes_once_and_widens_bounds(tmp_path: Path) -> None:
    wider = replace(toy_spec(), state_high=(4.0, 1.0), chunk_frames=7)
    stores = [written(tmp_path / "a.zarr", range(3)), written(tmp_path / "b.zarr", range(2, 5), wider)]
    assert merge(stores, tmp_path / "c.zarr") == (5, 1)
    merged = ZarrStore.open(tmp_path / "c.zarr")
    for index in range(5):
        np.testing.assert_array_equal(merged.read(index).images["top"], toy_episode(index, 5).images["top"])
    assert merged.spec.state_high == (4.0, 2.0)
    assert merged.metadata(4)["merged_from"] == {"store": str(tmp_path / "b.zarr"), "episode": 2}
    assert [s["content_hash"] for s in merged.spec.provenance["sources"]] == [s.content_hash() for s in stores]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"state_units": ("deg", "rad")}, "state_units"),
        ({"control_period_s": 0.2}, "5 a second|observations a second"),
        ({"robot": "other"}, "robot 'toy'"),
    ],
)
def test_stores_that_mean_different_things_are_not_merged(
    tmp_path: Path, change: dict[str, object], words: str
) -> None:
    stores = [
        written(tmp_path / "a.zarr", range(1)),
        written(tmp_path / "b.zarr", range(1, 2), replace(toy_spec(), **change)),  # type: ignore[arg-type]
    ]
    with pytest.raises(InputError, match=words):
        merge(stores, tmp_path / "c.zarr")
    assert not (tmp_path / "c.zarr").exists()


def test_an_interrupted_copy_leaves_nothing(tmp_path: Path) -> None:
    stores = [written(tmp_path / "a.zarr", range(2)), written(tmp_path / "b.zarr", range(2, 4))]

    def stop(done: int, total: int) -> None:
        if done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        merge(stores, tmp_path / "c.zarr", stop)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.zarr", "b.zarr"]


def test_splitting_keeps_recordings_together(tmp_path: Path) -> None:
    def cut(seed: int) -> Episode:
        return replace(toy_episode(seed, 5), metadata={"source": {"episode": f"run{seed // 3}", "part": seed % 3}})

    with ZarrStore.create(tmp_path / "a.zarr", toy_spec()) as writer:
        writer.extend([cut(seed) for seed in range(12)])
    store, outs = ZarrStore.open(tmp_path / "a.zarr"), (tmp_path / "train.zarr", tmp_path / "test.zarr")
    sides = split(store, outs, 0.25, seed=1)
    assert sorted(sides[0] + sides[1]) == list(range(12)) and len(sides[1]) == 3
    assert len({index // 3 for index in sides[1]}) == 1
    for out, indices in zip(outs, sides, strict=True):
        copy = ZarrStore.open(out)
        assert [copy.metadata(i)["split_from"]["episode"] for i in range(len(copy))] == indices
        for number, index in enumerate(indices):
            assert copy.digest(number) == store.digest(index)
    with pytest.raises(InputError, match="between 0 and 1"):
        split(store, outs, 1.0, seed=0)


def test_recordings_are_known_through_merging_and_mending(tmp_path: Path) -> None:
    """Two logs name their episodes alike; one of them was imported twice, at different rates."""

    def imported(name: str, fingerprint: str, period_s: float) -> ZarrStore:
        spec = replace(toy_spec(), provenance={"recipe": {"fingerprint": fingerprint}}, control_period_s=period_s)
        with ZarrStore.create(tmp_path / name, spec) as writer:
            for seed in range(2):
                episode = toy_episode(10 * len(name) + seed, 5)
                writer.append(replace(episode, metadata={"source": {"episode": f"run{seed}"}}))
        return ZarrStore.open(tmp_path / name)

    stores = [imported("a.zarr", "one", 0.1), imported("bb.zarr", "one", 0.1), imported("ccc.zarr", "other", 0.1)]
    merge(stores[:2], tmp_path / "ab.zarr")
    merge([ZarrStore.open(tmp_path / "ab.zarr"), stores[2]], tmp_path / "all.zarr")
    store = ZarrStore.open(tmp_path / "all.zarr")
    names = [recording(store, index) for index in range(6)]
    assert names == ["one run0", "one run1", "one run0", "one run1", "other run0", "other run1"]
    mend(store, validate(store), tmp_path / "mended.zarr")
    mended = ZarrStore.open(tmp_path / "mended.zarr")
    assert {recording(mended, index) for index in range(len(mended))} == set(names)
    plain = written(tmp_path / "plain.zarr", range(2))
    merge([plain, written(tmp_path / "more.zarr", range(2, 4))], tmp_path / "both.zarr")
    both = ZarrStore.open(tmp_path / "both.zarr")
    assert recording(both, 0) == recording(plain, 0) == plain.digest(0) != recording(both, 1)


def test_splitting_looks_at_both_places_first(tmp_path: Path) -> None:
    store = written(tmp_path / "a.zarr", range(4))
    (tmp_path / "test.zarr").mkdir()
    with pytest.raises(InputError, match=r"test.zarr already exists"):
        split(store, (tmp_path / "train.zarr", tmp_path / "test.zarr"), 0.5, seed=0)
    with pytest.raises(InputError, match="name two"):
        split(store, (tmp_path / "b.zarr", tmp_path / "b.zarr"), 0.5, seed=0)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.zarr", "test.zarr"]


def test_which_side_depends_on_the_seed_alone() -> None:
    assert held_out(40, 0.25, 1) == held_out(40, 0.25, 1) != held_out(40, 0.25, 2)
    assert len(held_out(40, 0.25, 1)) == 10 and len(held_out(5, 0.01, 0)) == 1 and len(held_out(5, 0.99, 0)) == 4


def test_statistics_are_those_of_the_arrays(tmp_path: Path) -> None:
    store = written(tmp_path / "a.zarr", range(3), task="push")
    value = json.loads(run("stats", str(store.path), "--json"))
    episodes = [toy_episode(seed, 5) for seed in range(3)]
    states = np.concatenate([e.states for e in episodes])
    assert value["states"]["q1"]["mean"] == pytest.approx(states[:, 0].mean(), rel=1e-5)
    assert value["states"]["q2"]["q99"] == pytest.approx(np.quantile(states[:, 1], 0.99), rel=1e-5)
    actions = np.concatenate([e.actions for e in episodes])
    assert value["actions"]["d2"]["std"] == pytest.approx(actions[:, 1].std(), rel=1e-5)
    pixels = np.concatenate([e.images["top"].reshape(-1, 3) for e in episodes]) / 255
    np.testing.assert_allclose(value["images"]["top"]["mean"], pixels.mean(axis=0))
    np.testing.assert_allclose(value["images"]["top"]["std"], pixels.std(axis=0))
    assert value["tasks"] == {"push": 3} and value["lengths"]["max"] == 5
    text = run("stats", str(store.path))
    assert "q1" in text and "camera top" in text and "task push: 3 episodes" in text


def round_trip(source: Path, out: Path, state: str, action: str, cameras: tuple[str, ...]) -> ZarrStore:
    plan = prepare(ImportSettings(source, out, state=(state,), action=action, cameras=cameras))
    importing.run(plan, lambda names: map(plan.converter.convert, names))
    return ZarrStore.open(out)


def test_hdf5_comes_back_exactly(tmp_path: Path) -> None:
    store = written(tmp_path / "a.zarr", range(11), task="push")
    assert "11 episodes, 55 frames" in run("export", str(store.path), str(tmp_path / "a.hdf5"))
    cameras = ("obs/top_image", "obs/wrist_image")
    back = round_trip(tmp_path / "a.hdf5", tmp_path / "b.zarr", "obs/state:rad", "actions:displacement", cameras)
    assert back.spec.control_period_s == pytest.approx(0.1) and back.spec.cameras == store.spec.cameras
    for index in range(11):
        ours, theirs = store.read(index), back.read(index)
        np.testing.assert_array_equal(ours.states, theirs.states)
        np.testing.assert_allclose(ours.actions, theirs.actions, atol=1e-6)
        for camera in store.spec.cameras:
            np.testing.assert_array_equal(ours.images[camera], theirs.images[camera])
        assert theirs.metadata["task"] == "push"


@pytest.mark.parametrize(("codec", "size"), [("h264", (32, 48)), ("h264", (33, 47)), ("av1", (64, 64))])
def test_lerobot_comes_back_up_to_the_codec(tmp_path: Path, codec: str, size: tuple[int, int]) -> None:
    spec = replace(toy_spec(), cameras={"top": size})

    def smooth(seed: int) -> Episode:
        episode = toy_episode(seed, 5)
        frames = np.empty((5, *size, 3), np.uint8)
        frames[:] = (50 + 30 * np.arange(5))[:, None, None, None]
        frames[..., 1] = 40 * seed + 60
        return replace(episode, images={"top": frames}, metadata={"task": f"task {seed % 2}"})

    with ZarrStore.create(tmp_path / "a.zarr", spec) as writer:
        writer.extend([smooth(seed) for seed in range(3)])
    run("export", str(tmp_path / "a.zarr"), str(tmp_path / "lerobot"), "--codec", codec)
    names = ("observation.images.top",)
    back = round_trip(
        tmp_path / "lerobot", tmp_path / "b.zarr", "observation.state:rad", "action:displacement", names
    )
    info = json.loads((tmp_path / "lerobot/meta/info.json").read_text())
    told = info["features"]["observation.images.top"]["info"]
    with av.open(str(next((tmp_path / "lerobot/videos").rglob("*.mp4")))) as container:
        assert told["video.pix_fmt"] == container.streams.video[0].pix_fmt
    assert info["fps"] == 10 and info["features"]["action"]["names"] == ["d1", "d2"]
    for seed in range(3):
        ours, theirs = smooth(seed), back.read(seed)
        np.testing.assert_array_equal(ours.states, theirs.states)
        np.testing.assert_allclose(ours.actions, theirs.actions, atol=1e-6)
        difference = np.abs(ours.images["top"].astype(int) - theirs.images["top"])
        assert difference.mean() < 4 and theirs.metadata["task"] == f"task {seed % 2}"


def poses(seed: int) -> Episode:
    """States of V-JEPA 2-AC's form beyond where Euler angles are unique, with actions of their own."""
    rng = np.random.default_rng(seed)
    states = rng.uniform(-3, 3, (6, 7)).astype(np.float32)
    actions = rng.uniform(-0.1, 0.1, (5, 7)).astype(np.float32)
    pictures = rng.integers(1, 256, (6, 32, 32, 3), dtype=np.uint8)
    return Episode({"top_rgb": pictures}, states, actions, np.arange(6) / 7.0, {"task": "lift"})


def pose_spec() -> StoreSpec:
    names = ("x", "y", "z", "roll", "pitch", "yaw", "gripper")
    return StoreSpec(
        robot="arm", cameras={"top_rgb": (32, 32)}, state_names=names, state_units=("m",) * 3 + ("rad",) * 3 + ("1",),
        state_low=(-4.0,) * 7, state_high=(4.0,) * 7, state_periodic=(False,) * 3 + (True, False, True, False),
        action_names=tuple(f"{name}_delta" for name in names), action_units=("m",) * 3 + ("rad",) * 3 + ("1",),
        action_low=(-0.1,) * 7, action_high=(0.1,) * 7, control_period_s=1 / 7, state_model="pose", renderer="none",
    )  # fmt: skip


@pytest.mark.parametrize("state_model", ["joints", "pose", "recorded"])
@pytest.mark.parametrize("form", ["lerobot", "a.hdf5"])
def test_an_export_comes_back_with_nothing_said(tmp_path: Path, form: str, state_model: str) -> None:
    spec, make = replace(toy_spec(state_model=state_model), state_high=(20.0, 20.0)), toy_pictures
    if state_model == "pose":
        spec, make = pose_spec(), poses
    with ZarrStore.create(tmp_path / "a.zarr", spec) as writer:
        writer.extend([make(seed) for seed in range(2)])
    run("export", str(tmp_path / "a.zarr"), str(tmp_path / form))
    told = json.loads(run("import", str(tmp_path / form), str(tmp_path / "b.zarr"), "--json"))
    assert told["episodes"] == 2 and not told["skipped"]
    back = ZarrStore.open(tmp_path / "b.zarr")
    assert replace(back.spec, provenance={}, chunk_frames=spec.chunk_frames) == replace(spec, provenance={})
    for seed in range(2):
        ours, theirs = make(seed), back.read(seed)
        np.testing.assert_array_equal(ours.states, theirs.states)
        np.testing.assert_array_equal(ours.actions, theirs.actions)
        assert theirs.metadata["task"] == "lift" and set(theirs.images) == set(ours.images)


def test_an_hdf5_export_comes_back_to_the_bit_with_its_time_stamps(tmp_path: Path) -> None:
    times = 5 + 0.1 * np.arange(6) + 0.0005 * np.sin(np.arange(6))
    uneven = [replace(toy_pictures(seed), times=times) for seed in (0, 1)]
    with ZarrStore.create(tmp_path / "a.zarr", replace(toy_spec(), state_high=(20.0, 20.0))) as writer:
        writer.extend(uneven)
    run("export", str(tmp_path / "a.zarr"), str(tmp_path / "a.hdf5"))
    run("import", str(tmp_path / "a.hdf5"), str(tmp_path / "b.zarr"))
    back = ZarrStore.open(tmp_path / "b.zarr")
    np.testing.assert_array_equal(back.read(0).times, times)
    assert back.content_hash() == ZarrStore.open(tmp_path / "a.zarr").content_hash()


def toy_pictures(seed: int) -> Episode:
    """`toy_episode` with pictures that a video encoder takes, and a joint that has gone round more than once."""
    episode = toy_episode(seed, 6)
    states = episode.states + np.float32([7.0, 0.0])
    return replace(episode, states=states, metadata={"task": "lift"})


def test_an_export_at_another_rate_keeps_units_and_names(tmp_path: Path) -> None:
    with ZarrStore.create(tmp_path / "a.zarr", toy_spec()) as writer:
        writer.append(toy_pictures(0))
    run("export", str(tmp_path / "a.zarr"), str(tmp_path / "out"))
    slower = ("--rate", "5", "--camera", "mine=observation.images.top")
    run("import", str(tmp_path / "out"), str(tmp_path / "b.zarr"), *slower)
    back, ours = ZarrStore.open(tmp_path / "b.zarr"), toy_pictures(0)
    assert back.spec.state_units == ("rad", "rad") and back.spec.action_names == ("d1", "d2")
    assert back.spec.control_period_s == pytest.approx(0.2) and list(back.spec.cameras) == ["mine"]
    assert back.spec.state_high[0] == pytest.approx(float(ours.states[::2, 0].max())), "beyond the store's own bound"
    np.testing.assert_allclose(back.read(0).actions, ours.actions[:4].reshape(2, 2, 2).sum(1), atol=1e-6)
    with ZarrStore.create(tmp_path / "c.zarr", pose_spec()) as writer:
        writer.append(poses(0))
    run("export", str(tmp_path / "c.zarr"), str(tmp_path / "poses"))
    run("import", str(tmp_path / "poses"), str(tmp_path / "d.zarr"), "--rate", "3.5")
    slow = ZarrStore.open(tmp_path / "d.zarr")
    between = slow.read(0).states
    np.testing.assert_allclose(slow.read(0).actions[:, :3], np.diff(between[:, :3], axis=0), atol=1e-5)


def test_an_export_that_was_changed_is_not_taken_for_what_it_was(tmp_path: Path) -> None:
    store = written(tmp_path / "a.zarr", range(1))
    run("export", str(store.path), str(tmp_path / "out"))
    described = tmp_path / "out/meta/vjepa_mpc.json"
    value = json.loads(described.read_text())
    described.write_text(json.dumps({**value, "state_names": ["q2", "q1"]}))
    with pytest.raises(InputError, match=r"the exported store had 2 \(q2, q1\); the log was changed .* with --state"):
        prepare(ImportSettings(tmp_path / "out", tmp_path / "b.zarr"))
    described.write_text("{}")
    with pytest.raises(InputError, match=r"vjepa_mpc.json is damaged; take it away, or say with --state"):
        prepare(ImportSettings(tmp_path / "out", tmp_path / "b.zarr"))
    said = prepare(ImportSettings(tmp_path / "out", tmp_path / "b.zarr", state=("observation.state:m",)))
    assert said.spec.state_units == ("m", "m")


def test_exports_refuse_what_they_cannot_write(tmp_path: Path) -> None:
    store = written(tmp_path / "a.zarr", range(1))
    with pytest.raises(InputError, match="AV1 needs pictures of 64 pixels"):
        run("export", str(store.path), str(tmp_path / "b"), "--codec", "av1")
    odd = replace(toy_spec(), cameras={"top": (65, 66)})
    ZarrStore.create(tmp_path / "odd.zarr", odd).close()
    with ZarrStore.append_to(tmp_path / "odd.zarr") as writer:
        writer.append(replace(toy_episode(0, 2), images={"top": np.zeros((2, 65, 66, 3), np.uint8)}))
    with pytest.raises(InputError, match="even sides, these are 66 x 65"):
        run("export", str(tmp_path / "odd.zarr"), str(tmp_path / "b"), "--codec", "av1")
    with pytest.raises(InputError, match="no codec named 'h265'"):
        run("export", str(store.path), str(tmp_path / "b"), "--codec", "h265")
    with pytest.raises(InputError, match="no export format named 'zarr'"):
        run("export", str(store.path), str(tmp_path / "b"), "--format", "zarr")
    (tmp_path / "b").mkdir()
    with pytest.raises(InputError, match="already exists"):
        run("export", str(store.path), str(tmp_path / "b"))


def test_what_metadata_says_of_frames_is_cut_with_them() -> None:
    frames = [[float(frame)] for frame in range(6)]
    told = {"world_states": frames, "contacts": [True] * 6, "index": 3, "colours": [1, 2]}
    pieces = [[0, "smooth"], [1, "script"], [3, "hold"], [5, "reach"]]
    cut = _of_rows({**told, "behaviours": pieces}, np.arange(2, 5), 6)
    assert cut["world_states"] == frames[2:5] and cut["contacts"] == [True] * 3
    assert cut["index"] == 3 and cut["colours"] == [1, 2] and cut["behaviours"] == [[0, "script"], [1, "hold"]]
    assert _of_rows({"behaviours": pieces}, np.arange(6), 6)["behaviours"] == pieces
    for other in (["smooth", "hold"], [{"first": 0}], [[None, "hold"]]):
        assert "behaviours" not in _of_rows({"behaviours": other, "seed": 1}, np.arange(2), 6), "frames unknown"
    assert _of_rows({"behaviours": "all smooth"}, np.arange(2), 6) == {"behaviours": "all smooth"}
