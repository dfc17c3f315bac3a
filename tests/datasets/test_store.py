"""What is read is what was appended; what is not a whole store is refused by name."""

from __future__ import annotations

import json
import shutil
import tempfile
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from toy_trajectories import assert_same, toy_episode, toy_spec

from vjepa_mpc.core.errors import InputError
from vjepa_mpc.datasets.episode import Episode, StoreSpec
from vjepa_mpc.datasets.store import ZarrStore


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A store of three episodes of 5, 1 and 9 observations, in chunks of 4."""
    with ZarrStore.create(tmp_path / "a.zarr", toy_spec()) as writer:
        writer.extend([toy_episode(0, 5), toy_episode(1, 1)])
        writer.append(toy_episode(2, 9))
    return tmp_path / "a.zarr"


@settings(max_examples=12)
@given(
    lengths=st.lists(st.integers(1, 11), min_size=1, max_size=5),
    chunk=st.integers(1, 7),
    together=st.integers(1, 3),
    data=st.data(),
)
def test_any_slice_reads_as_it_was_appended(lengths: list[int], chunk: int, together: int, data: st.DataObject) -> None:
    episodes = [toy_episode(100 * i + length, length) for i, length in enumerate(lengths)]
    # Flushing to disk is most of the time here, and tested elsewhere.
    with tempfile.TemporaryDirectory() as folder, mock.patch("os.fsync"):
        path = Path(folder) / "a.zarr"
        ZarrStore.create(path, toy_spec(chunk)).close()
        for first in range(0, len(episodes), together):
            with ZarrStore.append_to(path) as writer:
                writer.extend(episodes[first : first + together])
        store = ZarrStore.open(path)
        np.testing.assert_array_equal(store.lengths(), lengths)
        for index, episode in enumerate(episodes):
            assert_same(store.read(index), episode)
            assert store.metadata(index) == episode.metadata
            start = data.draw(st.integers(0, len(episode) - 1))
            stop = data.draw(st.integers(start + 1, len(episode)))
            part = Episode(
                {name: frames[start:stop] for name, frames in episode.images.items()},
                episode.states[start:stop],
                episode.actions[start : stop - 1],
                episode.times[start:stop],
                episode.metadata,
            )
            assert_same(store.read(index, start, stop), part)
        states, actions = store.states_and_actions()
        np.testing.assert_array_equal(states, np.concatenate([e.states for e in episodes]))
        rows = np.delete(np.arange(sum(lengths)), np.cumsum(lengths) - 1)
        np.testing.assert_array_equal(actions[rows], np.concatenate([e.actions for e in episodes]))


def test_content_hash_follows_content_not_the_way_it_was_written(tmp_path: Path, path: Path) -> None:
    with ZarrStore.create(tmp_path / "b.zarr", toy_spec(chunk_frames=16)) as writer:
        for seed, length in enumerate((5, 1)):
            writer.append(toy_episode(seed, length))
        shorter = writer.content_hash()
        writer.append(toy_episode(2, 9))
        assert writer.content_hash() == ZarrStore.open(path).content_hash() != shorter


def test_all_zero_rows_are_stored_and_a_missing_chunk_is_not_read_as_zeros(tmp_path: Path) -> None:
    path = tmp_path / "a.zarr"
    still = toy_episode(0, 8)
    still = Episode(still.images, np.zeros_like(still.states), np.zeros_like(still.actions), still.times)
    with ZarrStore.create(path, toy_spec()) as writer:
        writer.append(still)
    np.testing.assert_array_equal(ZarrStore.open(path).read(0).states, 0)
    (path / "states" / "c.1.0").unlink()
    assert len(ZarrStore.open(path).read(0, 0, 4)) == 4
    with pytest.raises(InputError, match=r"truncated: chunk states/c\.1\.0 is missing"):
        ZarrStore.open(path).read(0)


@pytest.mark.parametrize("keep", [0, 10, 100])
def test_a_short_chunk_is_named(path: Path, keep: int) -> None:
    chunk = path / "images" / "top" / "c.4.0.0.0"
    chunk.write_bytes(chunk.read_bytes()[:keep])
    store = ZarrStore.open(path)
    store.read(0)
    with pytest.raises(InputError, match=r"chunk images/top/c\.4\.0\.0\.0 is short or broken"):
        store.read(2)


def test_a_changed_byte_is_noticed(path: Path) -> None:
    chunk = path / "states" / "c.0.0"
    data = bytearray(chunk.read_bytes())
    data[len(data) // 2] ^= 1
    chunk.write_bytes(bytes(data))
    with pytest.raises(InputError, match="damaged"):
        ZarrStore.open(path).verify(0)


def test_verify_notices_a_valid_chunk_of_another_episode(path: Path) -> None:
    ZarrStore.open(path).verify(0)
    shutil.copy(path / "states" / "c.3.0", path / "states" / "c.0.0")
    with pytest.raises(InputError, match="episode 0 is not what was written"):
        ZarrStore.open(path).verify(0)


def test_damaged_bookkeeping_is_refused(path: Path) -> None:
    def damaged(file: str, keep: float, message: str) -> None:
        whole = (path / file).read_bytes()
        (path / file).write_bytes(whole[: int(keep * len(whole))])
        with pytest.raises(InputError, match=message):
            ZarrStore.open(path).metadata(2)
        (path / file).write_bytes(whole)

    damaged("meta/episode_ends.npy", 0.9, "damaged")
    damaged("meta/episode_ends.npy", 0.0, "damaged")
    damaged("meta/episodes.jsonl", 0.9, "cut short")
    damaged("zarr.json", 0.5, "not readable JSON")
    damaged("states/zarr.json", 0.5, "array states cannot be opened")
    (path / "meta" / "episode_ends.npy").unlink()
    with pytest.raises(InputError, match="lost meta/episode_ends"):
        ZarrStore.open(path)


def test_arrays_shorter_than_published_are_refused(path: Path) -> None:
    zarr.open_array(str(path / "states"), mode="r+").resize((4, 2))
    with pytest.raises(InputError, match="states has 4 rows of"):
        ZarrStore.open(path)


def test_what_is_not_a_store_is_refused(tmp_path: Path, path: Path) -> None:
    with pytest.raises(InputError, match="does not exist"):
        ZarrStore.open(tmp_path / "nothing.zarr")
    (tmp_path / "empty.zarr").mkdir()
    with pytest.raises(InputError, match="is empty"):
        ZarrStore.open(tmp_path / "empty.zarr")
    (tmp_path / "file.zarr").write_text("hello")
    with pytest.raises(InputError, match="is a file"):
        ZarrStore.open(tmp_path / "file.zarr")
    zarr.create_group(str(tmp_path / "other.zarr"))
    with pytest.raises(InputError, match="another schema"):
        ZarrStore.append_to(tmp_path / "other.zarr")
    value = json.loads((path / "zarr.json").read_text())
    value["attributes"]["schema_version"] = 7
    (path / "zarr.json").write_text(json.dumps(value))
    with pytest.raises(InputError, match="schema version 7"):
        ZarrStore.open(path)
    with pytest.raises(InputError, match="already exists"):
        ZarrStore.create(path, toy_spec())


def test_ranges_and_indices_outside_are_refused(path: Path) -> None:
    store = ZarrStore.open(path)
    for start, stop in ((0, 6), (-1, 2), (3, 3), (4, 2)):
        with pytest.raises(InputError, match="Episode 0 has 5 observations"):
            store.read(0, start, stop)
    for index in (3, -1):
        with pytest.raises(IndexError, match="holds 3"):
            store.read(index)


def test_episodes_that_disagree_are_refused(path: Path) -> None:
    good = toy_episode(0, 5)
    images, states, actions, times = dict(good.images), good.states, good.actions, good.times
    nan = np.full_like(states, np.nan)
    wrong: list[tuple[str, tuple]] = [
        ("5 states need 4 actions", (images, states, actions[:-1], times)),
        ("5 states need 5 times", (images, states, actions, times[:-1])),
        ("NaN", (images, nan, actions, times)),
        ("must increase", (images, states, actions, times[::-1].copy())),
        ("5 frames but there are 4", (images, states[:-1], actions[:-1], times[:-1])),
        ("one camera", ({}, states, actions, times)),
        ("plain JSON", (images, states, actions, times, {"a": float("nan")})),
    ]
    for message, parts in wrong:
        with pytest.raises(InputError, match=message):
            Episode(*parts)
    with ZarrStore.append_to(path) as writer:
        with pytest.raises(InputError, match="cameras"):
            writer.append(Episode({"top": images["top"]}, states, actions, times))
        with pytest.raises(InputError, match=r"states have 2 values \(q1, q2\), got 1"):
            writer.append(Episode(images, states[:, :1], actions, times))
        assert len(writer) == 3


def test_the_spec_survives_json_and_refuses_nonsense() -> None:
    spec = toy_spec()
    assert StoreSpec.from_json(json.loads(json.dumps(spec.to_json()))) == spec
    for change, message in (
        ({"state_low": [0.0]}, "state_low has 1 entries"),
        ({"cameras": {"../up": [4, 4]}}, "becomes a folder"),
        ({"cameras": {}}, "at least one camera"),
        ({"control_period_s": 0.0}, "positive"),
    ):
        with pytest.raises(InputError, match=message):
            StoreSpec.from_json({**spec.to_json(), **change})
    with pytest.raises(InputError, match="schema"):
        StoreSpec.from_json({"robot": "toy"})


def test_a_plain_zarr_reader_finds_the_rows_the_table_names(path: Path) -> None:
    """The layout as documented: a stranger needs only zarr and numpy."""
    table = np.load(path / "meta" / "episode_ends.npy")
    np.testing.assert_array_equal(table[:, :2], [[0, 5], [8, 9], [12, 21]])
    group = zarr.open_group(str(path), mode="r")
    for index, length in enumerate((5, 1, 9)):
        first, end, _ = table[index]
        np.testing.assert_array_equal(group["images/top"][first:end], toy_episode(index, length).images["top"])
    lines = (path / "meta" / "episodes.jsonl").read_bytes()
    assert len(lines) == table[-1, 2] and json.loads(lines.splitlines()[2])["metadata"] == {"seed": 2}
