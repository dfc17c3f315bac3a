"""A first pass over a log's numbers: rates, ranges, lengths and what cannot be read, before any picture is."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float64

from vjepa_mpc.core.errors import InputError, first_line
from vjepa_mpc.datasets.conversion import Converter
from vjepa_mpc.datasets.episode import StoreSpec
from vjepa_mpc.datasets.logs import Log, damage
from vjepa_mpc.datasets.mapping import POSE_NAMES

_RATE_SAMPLE = 20  # episodes whose time stamps tell the log's rate
_LEAST_SPAN = 1e-3  # bounds of a value that never moved are this far apart: features divide by the span


@dataclass(frozen=True)
class Survey:
    """What a log holds under a mapping. `frames`: rows kept of each readable episode, one number a stretch.
    `reasons`: why others cannot be read. Ranges are of the numbers as the store will hold them."""

    frames: Mapping[str, tuple[int, ...]]
    reasons: Mapping[str, str]
    state_low: Float64[np.ndarray, "s"]
    state_high: Float64[np.ndarray, "s"]
    action_low: Float64[np.ndarray, "a"]
    action_high: Float64[np.ndarray, "a"]

    @property
    def total(self) -> int:
        """Frames in all."""
        return sum(sum(parts) for parts in self.frames.values())


def log_period(log: Log, names: Sequence[str]) -> tuple[float, str]:
    """Seconds between a log's rows (median over its first readable episodes), and a note when the time stamps
    disagree with the rate the log claims. `InputError` when no episode tells."""
    medians, reason = [], "it has no episodes"
    for name in names:
        try:
            with damage("its numbers cannot be read"):
                times = log.rows(name, list(log.vectors)[:1]).times
        except InputError as error:
            reason = first_line(error)
            continue
        if len(times) > 1:
            medians.append(float(np.median(np.diff(times))))
        if len(medians) == _RATE_SAMPLE:
            break
    if not medians:
        raise InputError(f"No episode of the log can be read: {reason}.")
    period = float(np.median(medians))
    claimed = log.rate_hz
    if claimed is None:
        return period, ""
    if abs(period * claimed - 1) < 0.01:  # float32 time stamps: the claim is the exact number
        return 1 / claimed, ""
    return period, f"the log claims {claimed:g} rows a second, its time stamps {1 / period:.4g}; these are used"


def store_period(log_period_s: float, rate_hz: float | None) -> float:
    """The store's control period; `InputError` when the log is slower than what is asked."""
    if rate_hz is None:
        return log_period_s
    if not 0 < rate_hz <= 1.02 / log_period_s:
        raise InputError(
            f"The log has {1 / log_period_s:.4g} rows a second and cannot be brought to {rate_hz:g}: pictures "
            "would have to be invented; ask for less, or leave --rate out."
        )
    return 1 / rate_hz


def survey(
    converter: Converter, names: Sequence[str], progress: Callable[[int, int], None] | None = None
) -> Survey:
    """Read the numbers of every episode, one at a time."""
    frames: dict[str, tuple[int, ...]] = {}
    reasons: dict[str, str] = {}
    ranges = [_Range(len(converter.mapping.state_axes)), _Range(len(converter.mapping.action_axes))]
    for done, name in enumerate(names, 1):
        try:
            parts = converter.numbers(name)
        except InputError as error:
            reasons[name] = first_line(error)
        else:
            frames[name] = tuple(len(part.rows) for part in parts)
            for part in parts:
                ranges[0].add(part.states)
                ranges[1].add(part.actions)
        if progress is not None:
            progress(done, len(names))
    return Survey(frames, reasons, ranges[0].low, ranges[0].high, ranges[1].low, ranges[1].high)


class _Range:
    """Least and greatest values seen."""

    def __init__(self, width: int) -> None:
        self.low, self.high = np.full(width, np.inf), np.full(width, -np.inf)

    def add(self, values: Float64[np.ndarray, "n w"]) -> None:
        self.low = np.minimum(self.low, values.min(axis=0))
        self.high = np.maximum(self.high, values.max(axis=0))


def describe_store(
    found: Survey, converter: Converter, robot: str, chunk_frames: int, provenance: Mapping[str, object]
) -> StoreSpec:
    """The description of the store an import makes. Bounds are what the log was seen to reach: states as they
    are, actions the same both ways; angles that wrap have [-pi, pi], a pose its natural ones. Of an export of ours
    all is as it was, but for bounds that the log goes beyond."""
    mapping = converter.mapping
    if mapping.exported is not None:
        return _as_it_was(mapping.exported, found, converter, robot, chunk_frames, provenance)
    low, high = _spanned(found.state_low, found.state_high)
    for i, axis in enumerate(mapping.state_axes):
        if axis.wraps:
            low[i], high[i] = -np.pi, np.pi
    if mapping.state_model == "pose":
        pitch, gripper = POSE_NAMES.index("pitch"), POSE_NAMES.index("gripper")
        low[pitch], high[pitch], low[gripper], high[gripper] = -np.pi / 2, np.pi / 2, 0.0, 1.0
    reach = np.maximum(np.abs(found.action_low), np.abs(found.action_high))
    reach = np.maximum(reach, _LEAST_SPAN / 2)
    return StoreSpec(
        robot=robot,
        cameras=dict(converter.sizes),
        state_names=tuple(axis.name for axis in mapping.state_axes),
        state_units=tuple(axis.unit for axis in mapping.state_axes),
        state_low=tuple(low.tolist()),
        state_high=tuple(high.tolist()),
        state_periodic=tuple(axis.wraps for axis in mapping.state_axes),
        action_names=tuple(axis.name for axis in mapping.action_axes),
        action_units=tuple(axis.unit for axis in mapping.action_axes),
        action_low=tuple((-reach).tolist()),
        action_high=tuple(reach.tolist()),
        control_period_s=converter.period_s,
        state_model=mapping.state_model,
        renderer="",
        provenance=provenance,
        chunk_frames=chunk_frames,
    )


def _as_it_was(
    spec: StoreSpec,
    found: Survey,
    converter: Converter,
    robot: str,
    chunk_frames: int,
    provenance: Mapping[str, object],
) -> StoreSpec:
    """The exported store's description, of what was imported again: other cameras or sizes, another rate. A log's rate
    is rounded: the exact period is the store's."""
    same = abs(converter.period_s / spec.control_period_s - 1) < 1e-3
    return replace(
        spec,
        robot=robot,
        cameras=dict(converter.sizes),
        state_low=_least(spec.state_low, found.state_low),
        state_high=tuple(map(max, spec.state_high, found.state_high.tolist())),
        action_low=_least(spec.action_low, found.action_low),
        action_high=tuple(map(max, spec.action_high, found.action_high.tolist())),
        control_period_s=spec.control_period_s if same else converter.period_s,
        provenance=provenance,
        chunk_frames=chunk_frames,
        shard_frames=0,
    )


def _least(bounds: tuple[float, ...], seen: Float64[np.ndarray, "w"]) -> tuple[float, ...]:
    return tuple(map(min, bounds, seen.tolist()))


def _spanned(
    low: Float64[np.ndarray, "w"], high: Float64[np.ndarray, "w"]
) -> tuple[Float64[np.ndarray, "w"], Float64[np.ndarray, "w"]]:
    """Bounds at least `_LEAST_SPAN` apart."""
    widen = np.maximum(_LEAST_SPAN - (high - low), 0.0) / 2
    return low - widen, high + widen


