"""Read a store whole and name everything that would spoil training: `vjepa-mpc data validate`."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float

from vjepa_mpc.core.errors import InputError, first_line
from vjepa_mpc.core.poses import pose_difference
from vjepa_mpc.datasets.episode import StoreSpec
from vjepa_mpc.datasets.findings import (
    Finding,
    Scale,
    measure,
    of_numbers,
    of_pictures,
    of_rate,
    of_units,
    steps_of,
)
from vjepa_mpc.datasets.store import ZarrStore

_LAGS = 5  # steps by which actions may be early or late
_BETTER = 0.05  # by how much more of the motion a shift must explain to be believed
_STEPS = 30, 50_000  # steps needed to judge, and steps enough to
_FOLLOWED = 0.5  # of the motion must follow from the actions

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Numbers:
    """An episode without its pictures: states [t, s], actions [t-1, a], times [t]."""

    states: np.ndarray
    actions: np.ndarray
    times: np.ndarray


@dataclass(frozen=True)
class Validation:
    """What was found. `scale`: what is usual in the store. `alignment`: the share of the motion that the actions
    explain when those of step t are taken for step t + k, by k."""

    episodes: int
    frames: int
    findings: tuple[Finding, ...]
    scale: Scale
    alignment: Mapping[int, float]

    def of(self, check: str) -> list[Finding]:
        """The findings of one check."""
        return [finding for finding in self.findings if finding.check == check]


def validate(store: ZarrStore, progress: Progress | None = None) -> Validation:
    """Read every episode, compare it with the hash taken when it was written, check numbers and pictures.

    One episode's pictures are in memory at a time. `InputError` when there is no episode, or none can be read.
    """
    if not len(store):
        raise InputError(f"{store.path} holds no episodes yet; make some with `vjepa-mpc collect` or `data import`.")
    numbers, reason = _numbers(store)
    if not numbers:
        raise InputError(f"No episode of {store.path} can be read: {reason}.")
    spec, known = store.spec, list(numbers.values())
    scale = measure(spec, [episode.states for episode in known], [episode.times for episode in known])
    shares = alignment(spec, known)
    found = [*of_units(spec, scale), *of_rate(spec, scale)]
    found += _of_actions(spec, known, shares)
    seen: dict[bytes, int] = {}
    for index in range(len(store)):
        found += _of_episode(store, scale, index, seen)
        if progress is not None:
            progress(index + 1, len(store))
    return Validation(len(store), int(store.lengths().sum()), tuple(found), scale, shares)


def _of_episode(store: ZarrStore, scale: Scale, index: int, seen: dict[bytes, int]) -> list[Finding]:
    """The findings of one episode; `seen` holds earlier episodes by a hash of their numbers."""
    try:
        episode = store.read(index)
        store.compare(index, episode)
    except InputError as error:
        return [Finding("damaged", first_line(error), index)]
    value = hashlib.sha256(episode.states.tobytes() + episode.actions.tobytes()).digest()
    first = seen.setdefault(value, index)
    if first != index and steps_of(store.spec, episode.states).any():
        return [Finding("duplicate", f"its states and actions are those of episode {first}", index)]
    spec = store.spec
    return [*of_numbers(spec, scale, index, episode), *of_pictures(spec, scale, index, episode)]


def alignment(spec: StoreSpec, episodes: list[Numbers]) -> dict[int, float]:
    """The share of the motion (R^2 of a linear fit, over the values that move) that actions explain when the
    action of step t is taken for step t + k, for k from -5 to 5; {} with too few steps to judge.

    It is the cross-correlation of the actions with the changes of state, for any number of actions: a log's
    own commands need not be displacements, so a recorded action may be fitted together with the state it
    was given in.
    """
    moves = [_moves(spec, episode.states) for episode in episodes]
    shares = {}
    for lag in range(-_LAGS, _LAGS + 1):
        inputs, outputs = [], []
        for episode, change in zip(episodes, moves, strict=True):
            steps = np.arange(max(-lag, 0), len(change) - max(lag, 0))
            parts = [episode.actions[steps], np.ones((len(steps), 1))]
            if spec.state_model == "recorded":
                parts.append(episode.states[:-1][steps + lag])
            inputs.append(np.concatenate(parts, axis=1, dtype=np.float64))
            outputs.append(change[steps + lag])
        x, y = np.concatenate(inputs)[: _STEPS[1]], np.concatenate(outputs)[: _STEPS[1]]
        if len(y) < _STEPS[0]:
            return {}
        deviation = y.std(axis=0)
        y = (y - y.mean(axis=0))[:, deviation > 1e-9] / deviation[deviation > 1e-9]
        if not y.shape[1]:
            return {}
        rest = y - x @ np.linalg.lstsq(x, y, rcond=None)[0]
        shares[lag] = 1 - float((rest**2).sum() / (y**2).sum())
    return shares


def _of_actions(spec: StoreSpec, episodes: list[Numbers], shares: Mapping[int, float]) -> Iterator[Finding]:
    """Actions that belong to other steps, or that do not lead where they should."""
    if not shares:
        return
    best = max(shares, key=lambda lag: shares[lag])
    if shares[best] > shares[0] + _BETTER:
        when = f"{abs(best)} {'step' if abs(best) == 1 else 'steps'} {'early' if best > 0 else 'late'}"
        text = (
            f"actions are {when}: taken for the step {abs(best)} {'later' if best > 0 else 'before'} they explain "
            f"{shares[best]:.0%} of the motion, as they are {shares[0]:.0%}"
        )
        yield Finding("misaligned", text, amount=float(best))
        return
    if spec.state_model == "recorded":
        return
    motion = [_moves(spec, episode.states) for episode in episodes]
    total = sum(float((change**2).sum()) for change in motion)
    rest = sum(float(((c - e.actions) ** 2).sum()) for c, e in zip(motion, episodes, strict=True))
    if total and 1 - rest / total < _FOLLOWED:
        text = f"the states do not follow the actions: these account for {max(1 - rest / total, 0):.0%} of the motion"
        yield Finding("not followed", text)


def _moves(spec: StoreSpec, states: np.ndarray) -> Float[np.ndarray, "t_minus_1 s"]:
    """The displacements between states, as actions are counted."""
    if spec.state_model == "pose":
        poses = torch.from_numpy(states.astype(np.float64))
        return np.asarray(pose_difference(poses[:-1], poses[1:]).numpy())
    return steps_of(spec, states)


def _numbers(store: ZarrStore) -> tuple[dict[int, Numbers], str]:
    """The numbers of the episodes whose numbers can be read, and why the last other one cannot."""
    found, reason = {}, ""
    for index in range(len(store)):
        try:
            values = store.read_numbers(index)
        except InputError as error:
            reason = first_line(error)
            continue
        if all(np.isfinite(part).all() for part in values):
            found[index] = Numbers(*values)
        else:
            reason = f"episode {index} holds NaN or infinity"
    return found, reason
