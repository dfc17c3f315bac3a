"""What is wrong with one episode, or with a whole store, as numbers and pictures show it."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, UInt8

from vjepa_mpc.datasets.episode import Episode, StoreSpec

_GAP = 1.5  # periods
_RATE = 0.05  # by how much of itself a rate may be off
_DEGREES = 4 * np.pi  # no joint is mostly turned twice round: larger "radians" are degrees
_JUMP = 10.0  # times what 99 of 100 steps are
_BLACK = 12  # of 255: no pixel brighter
_STILL = 2  # of 255: no pixel differs by more (what a video codec makes of equal frames)
_FROZEN = 3  # frames in a row
_MOVES = 0.05  # of the largest step: the robot moves


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong. `check` names what (the keys of `REMEDIES`), `episode` and `rows` (first,
    end exclusive) where; None is the whole store, or the whole episode. `columns`: which values."""

    check: str
    text: str
    episode: int | None = None
    rows: tuple[int, int] | None = None
    columns: tuple[int, ...] = ()
    amount: float = 0.0

    def __str__(self) -> str:
        where = "the store" if self.episode is None else f"episode {self.episode}"
        rows = f", rows {self.rows[0]} to {self.rows[1] - 1}" if self.rows is not None else ""
        return f"{self.check}: {where}{rows}: {self.text}"


# What `--fix` does about each check.
REMEDIES = {
    "damaged": "left out",
    "duplicate": "left out",
    "gap": "cut in two",
    "jump": "cut in two",
    "out of range": "rows left out",
    "action out of range": "cut in two",
    "black": "rows left out",
    "frozen": "rows left out",
    "degrees": "turned into radians",
    "misaligned": "actions shifted",
    "wrong rate": "control period corrected",
    "motionless": "kept",
    "not followed": "kept",
}


@dataclass(frozen=True)
class Scale:
    """What is usual in a store: `step` the 99th percentile of each state value's change in a step, `degrees` the
    columns of states (and of additive actions) that are said to be radians and look like degrees,
    `period_s` the median time of a step."""

    step: Float[np.ndarray, "s"]
    degrees: tuple[int, ...]
    period_s: float


def steps_of(spec: StoreSpec, states: Float[np.ndarray, "t s"]) -> Float[np.ndarray, "t_minus_1 s"]:
    """The change from each state to the next, the short way round where a value wraps."""
    change = np.diff(states.astype(np.float64), axis=0)
    wraps = np.array(spec.state_periodic)
    change[:, wraps] = (change[:, wraps] + np.pi) % (2 * np.pi) - np.pi
    return change


def measure(
    spec: StoreSpec, states: Sequence[Float[np.ndarray, "_ s"]], times: Sequence[Float[np.ndarray, "_"]]
) -> Scale:
    """What is usual, from the states and times of all episodes."""
    changes = np.concatenate([np.abs(steps_of(spec, values)) for values in states])
    usual = np.quantile(changes, 0.99, axis=0) if len(changes) else np.zeros(len(spec.state_names))
    large = np.quantile(np.abs(np.concatenate(states)), 0.9, axis=0) > _DEGREES
    angular = np.array([unit == "rad" for unit in spec.state_units])
    # A joint that hardly turns looks the same in both: when one is in degrees, all are.
    degrees = tuple(np.flatnonzero(angular).tolist()) if (large & angular).any() else ()
    medians = [float(np.median(np.diff(values))) for values in times if len(values) > 1]
    return Scale(usual, degrees, float(np.median(medians)) if medians else spec.control_period_s)


def of_numbers(spec: StoreSpec, scale: Scale, index: int, episode: Episode) -> Iterator[Finding]:
    """Gaps, jumps, values out of range and missing motion of one episode."""
    between = np.diff(episode.times)
    # A wrong rate is one finding, not a gap at every step.
    period = scale.period_s if wrong_rate(spec, scale) else spec.control_period_s
    for row in np.flatnonzero(between > _GAP * period):
        text = f"{between[row]:.3g} s between two observations, the period is {period:.3g} s"
        yield Finding("gap", text, index, (int(row), int(row) + 2), amount=float(between[row]))
    yield from _jumps(spec, scale, index, episode)
    known = np.ones(len(spec.state_names), bool)
    known[list(scale.degrees)] = False
    outside = _outside(episode.states, spec.state_low, spec.state_high) & known
    for first, end in runs(np.any(outside, axis=1)):
        columns = tuple(np.flatnonzero(outside[first:end].any(axis=0)).tolist())
        text = f"{_named(spec.state_names, columns)} beyond the store's bounds"
        yield Finding("out of range", text, index, (first, end), columns)
    beyond = _outside(episode.actions, spec.action_low, spec.action_high)
    for first, end in runs(np.any(beyond, axis=1)):
        columns = tuple(np.flatnonzero(beyond[first:end].any(axis=0)).tolist())
        text = f"{_named(spec.action_names, columns)} beyond the store's bounds"
        yield Finding("action out of range", text, index, (first, end), columns)
    if len(episode) > 2 and not steps_of(spec, episode.states).any():
        yield Finding("motionless", "the state never changes", index)


def _jumps(spec: StoreSpec, scale: Scale, index: int, episode: Episode) -> Iterator[Finding]:
    change = np.abs(steps_of(spec, episode.states))
    far = (change > _JUMP * scale.step) & (scale.step > 0)
    far &= np.array(["grip" not in name.lower() for name in spec.state_names])  # a gripper may snap
    for row in np.flatnonzero(far.any(axis=1)):
        column = int(np.argmax(np.where(far[row], change[row], 0)))
        text = (
            f"{spec.state_names[column]} changes by {change[row, column]:.3g} {spec.state_units[column]} in one step, "
            f"99 of 100 steps by less than {scale.step[column]:.3g}"
        )
        yield Finding("jump", text, index, (int(row), int(row) + 2), (column,), float(change[row, column]))


def of_pictures(spec: StoreSpec, scale: Scale, index: int, episode: Episode) -> Iterator[Finding]:
    """Black frames, and frames that stand still while the robot moves."""
    change = np.abs(steps_of(spec, episode.states))
    usual = np.where(scale.step > 0, scale.step, np.inf)
    moving = (change > _MOVES * usual).any(axis=1)
    for camera, frames in episode.images.items():
        dark = np.array([bool(frame.max() <= _BLACK) for frame in frames], bool)
        for first, end in runs(dark):
            yield Finding("black", f"camera {camera} shows nothing", index, (first, end))
        same = _unchanged(frames) & ~dark[1:]
        for first, end in runs(same & moving):
            if end - first + 1 >= _FROZEN:
                text = f"camera {camera} shows one picture while the robot moves"
                yield Finding("frozen", text, index, (first + 1, end + 1))


def wrong_rate(spec: StoreSpec, scale: Scale) -> bool:
    """Whether the time stamps do not bear out the control period."""
    return abs(scale.period_s / spec.control_period_s - 1) > _RATE


def of_rate(spec: StoreSpec, scale: Scale) -> Iterator[Finding]:
    """A control period that the time stamps do not bear out."""
    if wrong_rate(spec, scale):
        text = f"the store says {1 / spec.control_period_s:.4g} a second, the time stamps say {1 / scale.period_s:.4g}"
        yield Finding("wrong rate", text, amount=scale.period_s)


def of_units(spec: StoreSpec, scale: Scale) -> Iterator[Finding]:
    """Angles that cannot be radians."""
    if scale.degrees:
        text = f"{_named(spec.state_names, scale.degrees)} are said to be in rad, but larger than any joint turns"
        yield Finding("degrees", text, columns=scale.degrees)


def runs(mask: Bool[np.ndarray, "n"]) -> list[tuple[int, int]]:
    """First and end (exclusive) of each stretch of True."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], mask, [False]]).astype(np.int8)))
    return [(int(first), int(end)) for first, end in edges.reshape(-1, 2)]


def _unchanged(frames: UInt8[np.ndarray, "t h w 3"]) -> Bool[np.ndarray, "t_minus_1"]:
    """Whether each frame is the one before, up to what a video codec adds; a pair at a time, for memory."""
    return np.array(
        [
            bool((np.maximum(a, b) - np.minimum(a, b)).max() <= _STILL)
            for a, b in itertools.pairwise(frames)
        ],
        bool,
    )


def _outside(
    values: Float[np.ndarray, "t w"], low: Sequence[float], high: Sequence[float]
) -> Bool[np.ndarray, "t w"]:
    """Beyond the bounds by more than rounding."""
    least, most = np.array(low), np.array(high)
    slack = 1e-4 * (most - least) + 1e-6
    return (values < least - slack) | (values > most + slack)


def _named(names: Sequence[str], columns: Sequence[int]) -> str:
    return ", ".join(names[column] for column in columns)
