"""Every planted fault is found and named, a clean store is not accused, and the mended copy is clean."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import zarr
from toy_trajectories import toy_episode, toy_spec

from vjepa_mpc.core.errors import InputError
from vjepa_mpc.datasets.episode import Episode, StoreSpec
from vjepa_mpc.datasets.findings import REMEDIES
from vjepa_mpc.datasets.mending import mend
from vjepa_mpc.datasets.store import ZarrStore
from vjepa_mpc.datasets.validation import validate

LENGTH = 40


@pytest.fixture(autouse=True)
def no_flushing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Flushing to disk is most of the time here, and tested elsewhere."""
    monkeypatch.setattr(os, "fsync", lambda _: None)


def spec() -> StoreSpec:
    return replace(toy_spec(16), state_low=(-20.0, -20.0), state_high=(20.0, 20.0), state_periodic=(False, False))


def episodes() -> list[Episode]:
    """Random walks with random pictures; nothing wrong with them. They stay below 4 pi."""
    return [toy_episode(seed, LENGTH) for seed in range(3)]


def written(path: Path, content: list[Episode], described: StoreSpec | None = None) -> ZarrStore:
    with ZarrStore.create(path, described or spec()) as writer:
        writer.extend(content)
    return ZarrStore.open(path)


def frames_of(episode: Episode, camera: str) -> np.ndarray:
    return np.asarray(episode.images[camera])


def gap(content: list[Episode]) -> None:
    times = content[1].times.copy()
    times[20:] += 0.5
    content[1] = replace(content[1], times=times)


def black(content: list[Episode]) -> None:
    frames_of(content[1], "top")[10:13] = 3


def frozen(content: list[Episode]) -> None:
    frames = frames_of(content[1], "wrist")
    frames[10:16] = frames[10]


def duplicate(content: list[Episode]) -> None:
    content.append(replace(content[1], times=content[1].times + 5.0))


def jump(content: list[Episode]) -> None:
    content[1].states[20:, 0] += 6.0


def state_out_of_range(content: list[Episode]) -> None:
    content[1].states[20:22, 1] = 25.0


def action_out_of_range(content: list[Episode]) -> None:
    content[1].actions[7, 1] = 0.8


def early(content: list[Episode]) -> None:
    """Actions logged two steps before they act."""
    for index, episode in enumerate(content):
        content[index] = replace(episode, actions=np.roll(episode.actions, -2, axis=0))


def late(content: list[Episode]) -> None:
    for index, episode in enumerate(content):
        content[index] = replace(episode, actions=np.roll(episode.actions, 1, axis=0))


def slow(content: list[Episode]) -> None:
    for index, episode in enumerate(content):
        content[index] = replace(episode, times=episode.times * 2.0)


def motionless(content: list[Episode]) -> None:
    content[1] = replace(content[1], states=np.ones_like(content[1].states), actions=np.zeros_like(content[1].actions))


def ignored(content: list[Episode]) -> None:
    for index, episode in enumerate(content):
        content[index] = replace(episode, actions=(-0.3 * episode.actions).astype(np.float32))


PLANTED: dict[str, tuple[Callable[[list[Episode]], None], int | None, tuple[int, int] | None, str]] = {
    "gap": (gap, 1, (19, 21), "0.6 s between two observations, the period is 0.1 s"),
    "black": (black, 1, (10, 13), "camera top shows nothing"),
    "frozen": (frozen, 1, (11, 16), "camera wrist shows one picture while the robot moves"),
    "duplicate": (duplicate, 3, None, "those of episode 1"),
    "jump": (jump, 1, (19, 21), "q1 changes by"),
    "out of range": (state_out_of_range, 1, (20, 22), "q2 beyond the store's bounds"),
    "action out of range": (action_out_of_range, 1, (7, 8), "d2 beyond the store's bounds"),
    "misaligned": (early, None, None, "actions are 2 steps early"),
    "wrong rate": (slow, None, None, "the store says 10 a second, the time stamps say 5"),
    "motionless": (motionless, 1, None, "never changes"),
    "not followed": (ignored, None, None, "these account for 0% of the motion"),
}


def test_a_clean_store_is_not_accused(tmp_path: Path) -> None:
    found = validate(written(tmp_path / "a.zarr", episodes()))
    assert found.findings == () and (found.episodes, found.frames) == (3, 3 * LENGTH)
    assert found.alignment[0] > 0.999 and max(v for k, v in found.alignment.items() if k) < 0.5


@pytest.mark.parametrize("check", list(PLANTED))
def test_a_planted_fault_is_found_where_it_is_and_mended(tmp_path: Path, check: str) -> None:
    plant, episode, rows, words = PLANTED[check]
    content = episodes()
    plant(content)
    store = written(tmp_path / "a.zarr", content)
    before = store.content_hash()
    found = validate(store)
    finding = found.of(check)[0]
    assert (finding.episode, finding.rows) == (episode, rows) and words in finding.text
    if check not in ("jump", "out of range"):  # the way there and back are jumps, too
        assert {f.check for f in found.findings} == {check}
    mended = mend(store, found, tmp_path / "b.zarr")
    assert ZarrStore.open(store.path).content_hash() == before
    again = validate(ZarrStore.open(tmp_path / "b.zarr"))
    if REMEDIES[check] == "kept":
        assert [f.check for f in again.findings] == [check]
    else:
        assert again.findings == () and mended.remedies[check] >= 1


def test_an_action_out_of_range_is_cut_where_it_acted_not_where_it_was_logged(tmp_path: Path) -> None:
    content = episodes()
    early(content)
    action_out_of_range(content)  # logged in row 7, done in row 9
    store = written(tmp_path / "a.zarr", content)
    mend(store, validate(store), tmp_path / "b.zarr")
    assert ZarrStore.open(tmp_path / "b.zarr").lengths().tolist() == [38, 8, 30, 38]
    assert not validate(ZarrStore.open(tmp_path / "b.zarr")).of("action out of range")


def test_what_mending_keeps_is_what_was_there(tmp_path: Path) -> None:
    content = episodes()
    gap(content)
    black(content)
    early(content)
    store = written(tmp_path / "a.zarr", content)
    mend(store, validate(store), tmp_path / "b.zarr")
    copy = ZarrStore.open(tmp_path / "b.zarr")
    original = episodes()
    # Actions two steps early: the first two steps' are lost. Rows 10 to 12 are black, after 19 is the gap.
    expected = {0: [(2, 40)], 1: [(2, 10), (13, 20), (20, 40)], 2: [(2, 40)]}
    parts = [(index, *span) for index, spans in expected.items() for span in spans]
    assert copy.lengths().tolist() == [end - first for _, first, end in parts]
    for number, (index, first, end) in enumerate(parts):
        episode = copy.read(number)
        np.testing.assert_array_equal(episode.states, original[index].states[first:end])
        np.testing.assert_array_equal(episode.actions, original[index].actions[first : end - 1])
        np.testing.assert_array_equal(episode.images["wrist"], original[index].images["wrist"][first:end])
        assert episode.metadata["mended_from"]["episode"] == index


def test_late_actions_are_called_late(tmp_path: Path) -> None:
    content = episodes()
    late(content)
    (finding,) = validate(written(tmp_path / "a.zarr", content)).findings
    assert "actions are 1 step late" in finding.text and finding.amount == -1


def test_degrees_are_found_and_turned_into_radians(tmp_path: Path) -> None:
    wide = replace(
        spec(), state_low=(-900.0,) * 2, state_high=(900.0,) * 2, action_low=(-30.0,) * 2, action_high=(30.0,) * 2
    )
    factor = np.float32(180 / np.pi)
    content = [replace(e, states=e.states * factor, actions=e.actions * factor) for e in episodes()]
    store = written(tmp_path / "a.zarr", content, wide)
    (finding,) = validate(store).findings
    assert finding.check == "degrees" and finding.columns == (0, 1)
    mend(store, validate(store), tmp_path / "b.zarr")
    copy = ZarrStore.open(tmp_path / "b.zarr")
    np.testing.assert_allclose(copy.read(1).states, episodes()[1].states, rtol=1e-5)
    assert copy.spec.state_high[0] == pytest.approx(5 * np.pi) and validate(copy).findings == ()


def test_the_logs_own_commands_are_aligned_too(tmp_path: Path) -> None:
    """Commands are targets, of another width: what counts is whether they explain the motion."""
    recorded = replace(
        spec(), state_model="recorded", action_names=("a",) * 3, action_units=("1",) * 3, action_low=(-50.0,) * 3,
        action_high=(50.0,) * 3,
    )
    for shift, words in ((0, None), (1, "1 step late")):
        content = []
        for episode in episodes():
            targets = np.concatenate([episode.states[1:], episode.states[:-1, :1] * 0 + 1], axis=1)
            content.append(replace(episode, actions=np.roll(targets, shift, axis=0).astype(np.float32)))
        found = validate(written(tmp_path / f"{shift}.zarr", content, recorded)).findings
        assert [f.check for f in found] == ([] if words is None else ["misaligned"])
        assert words is None or words in found[0].text


def test_damage_and_nan_are_left_out(tmp_path: Path) -> None:
    store = written(tmp_path / "a.zarr", episodes())
    (store.path / "images/top/c.4.0.0.0").unlink()
    array = zarr.open_array(store.path / "states", mode="r+")
    array[100] = np.nan
    found = validate(store)
    assert {f.episode for f in found.of("damaged")} == {1, 2} and len(found.findings) == 2
    assert "chunk images/top/c.4.0.0.0 is missing" in found.of("damaged")[0].text
    assert mend(store, found, tmp_path / "b.zarr").episodes == 1


def test_nothing_left_is_an_error(tmp_path: Path) -> None:
    content = [toy_episode(0, 2)]
    frames_of(content[0], "top")[:] = 0
    store = written(tmp_path / "a.zarr", content)
    with pytest.raises(InputError, match="Nothing of"):
        mend(store, validate(store), tmp_path / "b.zarr")
    with pytest.raises(InputError, match="already exists"):
        mend(store, validate(store), store.path)
