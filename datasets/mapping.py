"""The declared mapping of a log to a store: which of its vectors are the state, the action and the cameras.

A state is a list of parts `FIELD[START:STOP]:KIND`, for example `observation.state[0:6]:deg`. The kinds say what
the numbers are, so that a store always holds radians, metres and V-JEPA 2-AC's pose:

    plain (default) no unit    rad, deg  angles that do not wrap    angle, angle-deg  angles that wrap at +-pi
    m, mm  lengths             gripper=ZERO..ONE  the numbers that become 0 and 1 (without them: it is 0 to 1)
    xyz, xyz-mm  a position and   euler, euler-deg (extrinsic xyz)   quat (x y z w)   quat-wxyz   rotvec

A position and a rotation, with or without a gripper, make the state model "pose"; anything else "joints".
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float64

from vjepa_mpc.core.errors import InputError, unknown_name
from vjepa_mpc.core.poses import (
    euler_to_matrix,
    matrix_to_euler,
    pose_difference,
    quaternion_to_matrix,
    rotation_vector_to_matrix,
)
from vjepa_mpc.datasets.episode import StoreSpec
from vjepa_mpc.datasets.logs import Origin, VectorInfo

# Kinds of single numbers: the unit they have in the store, the factor to it, and whether they wrap.
SCALARS = {
    "plain": ("1", 1.0, False),
    "rad": ("rad", 1.0, False),
    "deg": ("rad", math.pi / 180, False),
    "angle": ("rad", 1.0, True),
    "angle-deg": ("rad", math.pi / 180, True),
    "m": ("m", 1.0, False),
    "mm": ("m", 1e-3, False),
    "gripper": ("1", 1.0, False),
}
POSITIONS = {"xyz": 1.0, "xyz-mm": 1e-3}
ROTATIONS = {"euler": 3, "euler-deg": 3, "quat": 4, "quat-wxyz": 4, "rotvec": 3}
ACTION_KINDS = ("recorded", "displacement", "target")
POSE_NAMES = ("x", "y", "z", "roll", "pitch", "yaw", "gripper")
POSE_UNITS = ("m", "m", "m", "rad", "rad", "rad", "1")

_PART = re.compile(
    r"(?P<field>[^\[\]=]+?)(\[((?P<start>\d*):(?P<stop>\d*)|(?P<one>\d+))\])?"
    r"(:(?P<kind>[a-z0-9-]+)(=(?P<low>[-+.\deE]+?)\.\.(?P<high>[-+.\deE]+))?)?"
)

_MOST_NUMBERS = 10_000  # of a state: more is damage, or pictures laid flat


@dataclass(frozen=True)
class Part:
    """`field[start:stop]` of a log's vectors, and what its numbers are. `low`, `high`: a gripper's values at
    0 and at 1."""

    field: str
    start: int = 0
    stop: int | None = None
    kind: str = "plain"
    low: float = 0.0
    high: float = 1.0

    @classmethod
    def parse(cls, text: str, kinds: Sequence[str], default: str) -> Part:
        """Read `FIELD[START:STOP]:KIND`; `InputError` when it is not of this form or the kind unknown."""
        match = _PART.fullmatch(text.strip())
        if match is None:
            raise InputError(f"{text!r} is no mapping; write FIELD, FIELD[START:STOP] or FIELD[START:STOP]:KIND.")
        kind = match["kind"] or default
        if kind not in kinds:
            raise unknown_name("kind of numbers", kind, kinds)
        start = int(match["one"] or match["start"] or 0)
        stop = start + 1 if match["one"] else int(match["stop"]) if match["stop"] else None
        try:
            low, high = float(match["low"] or 0), float(match["high"] or 1)
        except ValueError as error:
            raise InputError(f"{text!r}: a gripper's range is written ZERO..ONE, for example 0.04..0.") from error
        if low == high or (match["low"] and kind != "gripper"):
            raise InputError(f"{text!r}: a range is for a gripper, and its two ends differ.")
        return cls(match["field"], start, stop, kind, low, high)

    def width(self, vectors: Mapping[str, VectorInfo]) -> int:
        """How many numbers it picks; `InputError` when the log has no such field or it is too short."""
        if self.field not in vectors:
            raise unknown_name("vector in the log", self.field, vectors)
        width = vectors[self.field].width
        stop = width if self.stop is None else self.stop
        if not 0 <= self.start < stop <= width:
            raise InputError(f"{self.field} has {width} numbers; [{self.start}:{stop}] is not in it.")
        return stop - self.start

    def take(self, vectors: Mapping[str, np.ndarray]) -> Float64[np.ndarray, "n w"]:
        """Its numbers, in the store's units."""
        values = np.asarray(vectors[self.field][:, self.start : self.stop], np.float64)
        if self.kind == "gripper":
            return np.clip((values - self.low) / (self.high - self.low), 0.0, 1.0)
        return values * SCALARS[self.kind][1] if self.kind in SCALARS else values

    def __str__(self) -> str:
        cut = "" if (self.start, self.stop) == (0, None) else f"[{self.start}:{'' if self.stop is None else self.stop}]"
        ends = f"={self.low:g}..{self.high:g}" if self.kind == "gripper" and (self.low, self.high) != (0, 1) else ""
        return f"{self.field}{cut}:{self.kind}{ends}"


@dataclass(frozen=True)
class Axis:
    """One number of a state or an action: its name, unit and whether it wraps at +-pi."""

    name: str
    unit: str
    wraps: bool = False


@dataclass(frozen=True)
class LogMapping:
    """What becomes of a log, checked against what it holds. Made by `declare`.

    `action` None: displacements between the measured states, as V-JEPA 2-AC's are made. `cameras`: the store's
    name to the log's. `state_model`: "joints", "pose", or "recorded" when the actions are the log's own numbers,
    of which nothing is known: such a store can be looked at, but no model here can be trained on it.
    """

    state: tuple[Part, ...]
    action: Part | None
    cameras: Mapping[str, str]
    state_axes: tuple[Axis, ...]
    action_axes: tuple[Axis, ...]
    state_model: str
    widths: tuple[int, ...]  # numbers of each part of the state
    exported: StoreSpec | None = None  # the store that the log was exported from: its numbers are taken as they are

    def fields(self) -> list[str]:
        """The vectors of the log that are needed."""
        parts = [*self.state, *([self.action] if self.action is not None else [])]
        return sorted({part.field for part in parts})

    def states(self, vectors: Mapping[str, np.ndarray]) -> Float64[np.ndarray, "n s"]:
        """States in the store's units, from the log's rows."""
        if not _is_pose(self.state):
            values = np.concatenate([part.take(vectors) for part in self.state], axis=1)
            if self.exported is None:
                wraps = [axis.wraps for axis in self.state_axes]
                values[:, wraps] = wrapped(values[:, wraps])
            return values
        position, rotation, gripper = _pose_parts(self.state)
        xyz = position.take(vectors) * POSITIONS[position.kind]
        euler = _euler(rotation.take(vectors), rotation.kind)
        grip = np.zeros((len(xyz), 1)) if gripper is None else gripper.take(vectors)
        return np.concatenate([xyz, euler, grip], axis=1)

    def deltas(self, states: Float64[np.ndarray, "n s"]) -> Float64[np.ndarray, "n_minus_1 s"]:
        """The displacements that lead from each state to the next; angles that wrap the short way round."""
        if _is_pose(self.state) or self.state_model == "pose":
            poses = torch.from_numpy(states)
            return np.asarray(pose_difference(poses[:-1], poses[1:]).numpy())
        steps = np.diff(states, axis=0)
        wraps = [axis.wraps for axis in self.state_axes]
        steps[:, wraps] = wrapped(steps[:, wraps])
        return steps

    def actions(
        self, vectors: Mapping[str, np.ndarray], states: Float64[np.ndarray, "n s"], rows: np.ndarray
    ) -> Float64[np.ndarray, "m a"]:
        """The actions between the chosen `rows` of an episode, whose states at all rows are `states`.

        Displacements add up over the rows between two chosen ones (a pose's, which do not, are then taken between the
        states); a target is the one last in force before
        the next row, minus the state; both are logged in the units the state is logged in. Recorded numbers are
        those in force at the row.
        """
        if self.action is None:
            return self.deltas(states[rows])
        values = self.action.take(vectors)
        scale, offset = self._units()
        if self.action.kind == "displacement":
            if (np.diff(rows) == 1).all():
                return values[rows[:-1]] * scale
            if self.state_model == "pose":
                return self.deltas(states[rows])
            total = np.concatenate([np.zeros((1, values.shape[1])), np.cumsum(values * scale, axis=0)])
            return total[rows[1:]] - total[rows[:-1]]
        if self.action.kind == "target":
            difference = values[rows[1:] - 1] * scale + offset - states[rows[:-1]]
            wraps = [axis.wraps for axis in self.state_axes]
            difference[:, wraps] = wrapped(difference[:, wraps])
            return difference
        return values[rows[:-1]]

    def _units(self) -> tuple[Float64[np.ndarray, "s"], Float64[np.ndarray, "s"]]:
        """Factor and offset from logged to stored joint states: what an action of the same kind needs too."""
        ends = [(part.low, part.high) if part.kind == "gripper" else (0.0, 1.0) for part in self.state]
        parts = list(zip(self.state, self.widths, ends, strict=True))
        scale = [SCALARS[part.kind][1] / (high - low) for part, width, (low, high) in parts for _ in range(width)]
        offset = [-low / (high - low) for _, width, (low, high) in parts for _ in range(width)]
        return np.array(scale), np.array(offset)

    def describe(self) -> dict[str, object]:
        """The mapping in words, for the dry run and the store's provenance."""
        if self.exported is not None:
            return {
                "state": [f"{part.field} as exported" for part in self.state],
                "action": f"{self.action.field if self.action else ''} as exported",
                "cameras": dict(self.cameras),
                "state_model": self.state_model,
            }
        return {
            "state": [str(part) for part in self.state],
            "action": "displacements between states" if self.action is None else str(self.action),
            "cameras": dict(self.cameras),
            "state_model": self.state_model,
        }


def declare(
    vectors: Mapping[str, VectorInfo],
    state: Sequence[str],
    action: str | None,
    cameras: Mapping[str, str],
) -> LogMapping:
    """Check the texts of a mapping against a log's vectors; `InputError` names what does not fit."""
    kinds = [*SCALARS, *POSITIONS, *ROTATIONS]
    parts = tuple(Part.parse(text, kinds, "plain") for text in state)
    widths = tuple(part.width(vectors) for part in parts)
    if sum(widths) > _MOST_NUMBERS:
        raise InputError(f"The state would have {sum(widths)} numbers; choose fewer with --state FIELD[START:STOP].")
    if _is_pose(parts):
        _check_pose(parts, widths)
        named = zip(POSE_NAMES, POSE_UNITS, strict=True)
        axes = tuple(Axis(name, unit, name in ("roll", "yaw")) for name, unit in named)
        model = "pose"
    else:
        names = [name for part, width in zip(parts, widths, strict=True) for name in _names(part, width, vectors)]
        units = [SCALARS[part.kind] for part, width in zip(parts, widths, strict=True) for _ in range(width)]
        axes = tuple(
            Axis(name, unit, wraps) for name, (unit, _, wraps) in zip(_distinct(names), units, strict=True)
        )
        model = "joints"
    moves = tuple(Axis(f"d_{axis.name}", axis.unit) for axis in axes)
    if action is None:
        return LogMapping(parts, None, dict(cameras), axes, moves, model, widths)
    given = Part.parse(action, ACTION_KINDS, "recorded")
    width = given.width(vectors)
    if given.kind == "recorded":
        names = _distinct(_names(given, width, vectors))
        return LogMapping(
            parts, given, dict(cameras), axes, tuple(Axis(name, "1") for name in names), "recorded", widths
        )
    if model == "pose" or width != len(axes):
        raise InputError(
            f"{given}: a {given.kind} needs joint states of the same {width} numbers; leave --action out to take "
            "the displacements between measured states, or map it as recorded."
        )
    return LogMapping(parts, given, dict(cameras), axes, moves, model, widths)


def as_exported(origin: Origin, vectors: Mapping[str, VectorInfo], cameras: Mapping[str, str]) -> LogMapping:
    """The mapping of an export back to what was exported; `InputError` when the log is no longer what it was."""
    spec = origin.spec
    kind = "recorded" if spec.state_model == "recorded" else "displacement"
    parts = Part(origin.state), Part(origin.action, kind=kind)
    for part, names in zip(parts, (spec.state_names, spec.action_names), strict=True):
        width, given = part.width(vectors), vectors[part.field].names
        if width != len(names) or (given and given != names):
            raise InputError(
                f"{part.field} has {width} numbers ({', '.join(given) or 'without names'}) and the exported store had "
                f"{len(names)} ({', '.join(names)}); the log was changed since: say with --state what it holds."
            )
    state = map(Axis, spec.state_names, spec.state_units, spec.state_periodic)
    action = map(Axis, spec.action_names, spec.action_units)
    widths = (len(spec.state_names),)
    return LogMapping(
        parts[:1], parts[1], dict(cameras), tuple(state), tuple(action), spec.state_model, widths, exported=spec
    )


def wrapped(angles: Float64[np.ndarray, "*n"]) -> Float64[np.ndarray, "*n"]:
    """Angles (rad) brought into [-pi, pi)."""
    return (angles + math.pi) % (2 * math.pi) - math.pi


def _is_pose(parts: Sequence[Part]) -> bool:
    return any(part.kind in POSITIONS or part.kind in ROTATIONS for part in parts)


def _pose_parts(parts: Sequence[Part]) -> tuple[Part, Part, Part | None]:
    """Position, rotation and gripper of a pose mapping."""
    grippers = [part for part in parts if part.kind == "gripper"]
    positions = [part for part in parts if part.kind in POSITIONS]
    rotations = [part for part in parts if part.kind in ROTATIONS]
    return positions[0], rotations[0], grippers[0] if grippers else None


def _check_pose(parts: Sequence[Part], widths: Sequence[int]) -> None:
    """A pose is one position, one rotation and at most one gripper, each of its width."""
    counts = [sum(part.kind in kinds for part in parts) for kinds in (POSITIONS, ROTATIONS, ("gripper",))]
    if counts[:2] != [1, 1] or counts[2] > 1 or sum(counts) != len(parts):
        raise InputError(
            "A pose is one position (xyz), one rotation (euler, quat, rotvec) and at most one gripper, got "
            f"{', '.join(str(part) for part in parts)}; for a position alone write :m."
        )
    for part, width in zip(parts, widths, strict=True):
        wanted = ROTATIONS.get(part.kind, 3 if part.kind in POSITIONS else 1)
        if width != wanted:
            raise InputError(f"{part} picks {width} numbers, {part.kind} has {wanted}; cut it with [START:STOP].")


def _euler(values: Float64[np.ndarray, "n w"], kind: str) -> Float64[np.ndarray, "n 3"]:
    """Extrinsic xyz Euler angles (rad) of rotations of any kind."""
    tensor = torch.from_numpy(np.ascontiguousarray(values))
    if kind == "rotvec":
        matrix = rotation_vector_to_matrix(tensor)
    elif kind.startswith("quat"):
        matrix = quaternion_to_matrix(tensor[..., [1, 2, 3, 0]] if kind == "quat-wxyz" else tensor)
    else:
        matrix = euler_to_matrix(torch.deg2rad(tensor) if kind == "euler-deg" else tensor)
    return np.asarray(matrix_to_euler(matrix).numpy())


def _names(part: Part, width: int, vectors: Mapping[str, VectorInfo]) -> list[str]:
    """The log's own names of the numbers, or the field's last word with a count."""
    given = vectors[part.field].names
    if given:
        return list(given[part.start : part.start + width])
    short = re.split(r"[./]", part.field)[-1]
    return [short] if width == 1 else [f"{short}_{part.start + i}" for i in range(width)]


def _distinct(names: Sequence[str]) -> list[str]:
    """The names, with a count behind those that appear twice."""
    return [name if names.count(name) == 1 else f"{name}_{i}" for i, name in enumerate(names)]
