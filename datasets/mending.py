"""A mended copy of a store: what `validate` found is left out, cut away or corrected. Never in place."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Int64

from vjepa_mpc.core.errors import InputError
from vjepa_mpc.datasets.copying import RECORDING, recording, whole_store
from vjepa_mpc.datasets.episode import Episode, StoreSpec
from vjepa_mpc.datasets.findings import REMEDIES, Finding, runs
from vjepa_mpc.datasets.store import ZarrStore
from vjepa_mpc.datasets.validation import Validation

_LEFT_OUT = {"damaged", "duplicate"}
_ROWS = {"black", "frozen", "out of range"}
_CUTS = {"gap", "jump", "action out of range"}

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Mended:
    """What a mended copy holds, and how often each remedy was used, by check."""

    out: Path
    episodes: int
    frames: int
    remedies: dict[str, int]


def mend(store: ZarrStore, found: Validation, out: Path, progress: Progress | None = None) -> Mended:
    """Write a mended copy of `store` to `out`. `InputError` when nothing is left, or `out` exists."""
    shift = int(sum(finding.amount for finding in found.of("misaligned")))
    degrees = [column for finding in found.of("degrees") for column in finding.columns]
    spec = _spec(store.spec, found, degrees)
    used = Counter(finding.check for finding in found.findings if REMEDIES[finding.check] != "kept")
    left_out = {finding.episode for finding in found.findings if finding.check in _LEFT_OUT}
    with whole_store(out, spec) as writer:
        for index in range(len(store)):
            if index not in left_out:
                episode = store.read(index)
                own = [finding for finding in found.findings if finding.episode == index]
                parts = [_corrected(spec, p, degrees) for p in _parts(episode, own, shift)]
                writer.extend([_noted(part, store, index, number) for number, part in enumerate(parts)])
            if progress is not None:
                progress(index + 1, len(store))
        if not len(writer):
            raise InputError(f"Nothing of {store.path} is left after mending; {out} is not written.")
        return Mended(out, len(writer), int(writer.lengths().sum()), dict(used))


def _spec(spec: StoreSpec, found: Validation, degrees: list[int]) -> StoreSpec:
    """The mended store's description: bounds in radians, the period that the time stamps have, its origin."""
    factor = np.ones(len(spec.state_names))
    factor[degrees] = math.pi / 180
    moves = factor if spec.state_model == "joints" else np.ones(len(spec.action_names))
    period = next((finding.amount for finding in found.of("wrong rate")), spec.control_period_s)
    remedies = sorted({finding.check for finding in found.findings})
    provenance: dict[str, Any] = {**spec.provenance, "mended": remedies}
    return replace(
        spec,
        state_low=tuple((np.array(spec.state_low) * factor).tolist()),
        state_high=tuple((np.array(spec.state_high) * factor).tolist()),
        action_low=tuple((np.array(spec.action_low) * moves).tolist()),
        action_high=tuple((np.array(spec.action_high) * moves).tolist()),
        control_period_s=period,
        provenance=provenance,
    )


def _parts(episode: Episode, findings: list[Finding], shift: int) -> Iterator[Episode]:
    """The stretches of an episode that nothing speaks against, of two observations at least."""
    length = len(episode)
    good, joined = np.ones(length, bool), np.ones(length - 1, bool)
    for finding in findings:
        if finding.rows is None:
            continue
        first, end = finding.rows
        if finding.check in _ROWS:
            good[first:end] = False
        elif finding.check == "action out of range":
            joined[max(first + shift, 0) : max(end + shift, 0)] = False  # logged there, done `shift` later
        elif finding.check in _CUTS:
            joined[first] = False
    actions = np.zeros_like(episode.actions)
    steps = np.arange(max(shift, 0), length - 1 + min(shift, 0))
    actions[steps] = episode.actions[steps - shift]
    known = np.zeros(length - 1, bool)
    known[steps] = True
    for rows in _stretches(good, joined & known):
        yield Episode(
            {camera: frames[rows] for camera, frames in episode.images.items()},
            episode.states[rows],
            actions[rows[:-1]],
            episode.times[rows],
            _of_rows(episode.metadata, rows, length),
        )


def _of_rows(metadata: Mapping[str, Any], rows: Int64[np.ndarray, "n"], length: int) -> dict[str, Any]:
    """What an episode's metadata says of a stretch: lists of one entry a frame are cut, the frames that `behaviours`
    begin at counted anew."""
    told = {
        name: [value[row] for row in rows] if isinstance(value, list) and len(value) == length else value
        for name, value in metadata.items()
    }
    pieces = metadata.get("behaviours")
    if isinstance(pieces, list):
        try:
            begun = [(int(first) - int(rows[0]), name) for first, name in pieces if first <= rows[-1]]
        except (TypeError, ValueError):  # of another form, whose frames nobody knows
            return {name: value for name, value in told.items() if name != "behaviours"}
        before = [piece for piece in begun if piece[0] <= 0]
        told["behaviours"] = [[max(first, 0), name] for first, name in begun[max(len(before) - 1, 0) :]]
    return told


def _stretches(good: Bool[np.ndarray, "t"], joined: Bool[np.ndarray, "t_minus_1"]) -> Iterator[Int64[np.ndarray, "_"]]:
    """Rows of each longest stretch whose observations are good and joined to the next."""
    for first, end in runs(joined & good[:-1] & good[1:]):
        yield np.arange(first, end + 1)


def _corrected(spec: StoreSpec, episode: Episode, degrees: list[int]) -> Episode:
    """Values in degrees turned into radians; of joint states, their displacements too."""
    if not degrees:
        return episode
    states, actions = episode.states.copy(), episode.actions.copy()
    states[:, degrees] *= np.float32(math.pi / 180)
    if spec.state_model == "joints":
        actions[:, degrees] *= np.float32(math.pi / 180)
    return replace(episode, states=states, actions=actions)


def _noted(episode: Episode, store: ZarrStore, index: int, part: int) -> Episode:
    """The episode with a word on where it comes from."""
    origin = {"store": store.path.name, "episode": index, "part": part}
    return replace(episode, metadata={**episode.metadata, RECORDING: recording(store, index), "mended_from": origin})
