"""The contract of a robot, real or simulated, and what it tells about itself."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float, Float32, UInt8

from vjepa_mpc.core.errors import InputError


@dataclass(frozen=True)
class Camera:
    """One camera's picture size in pixels."""

    height: int
    width: int


@dataclass(frozen=True)
class StateSpec:
    """Named numbers with units and bounds that describe a body or a whole world; `owner` is for messages."""

    owner: str
    names: tuple[str, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]
    units: tuple[str, ...]

    def check(self, state: object) -> Float[np.ndarray, "s"]:
        """Return `state` as float64 [s]; refuse a wrong size, NaN, infinity or a value out of range."""
        array = np.asarray(state, dtype=np.float64)
        if array.shape != (len(self.names),):
            raise InputError(
                f"A state of {self.owner} has {len(self.names)} values ({', '.join(self.names)}), "
                f"got {array.size}."
            )
        if not np.isfinite(array).all():
            raise InputError(f"The state {array.tolist()} is not finite; give real numbers.")
        for name, value, low, high, unit in zip(
            self.names, array, self.low, self.high, self.units, strict=True
        ):
            if not low - 1e-6 <= value <= high + 1e-6:
                raise InputError(
                    f"{name} = {value:g} {unit} is outside {self.owner}'s range [{low:.4g}, {high:.4g}] {unit}"
                    + (_radians(value) if unit == "rad" else ".")
                )
        return array


def _radians(value: float) -> str:
    """The end of a sentence on an angle that is out of range: beyond a full turn it may have been meant in degrees."""
    if abs(value) <= 2 * math.pi:
        return "; angles are in radians."
    return f"; angles are in radians: if {value:g} was meant in degrees, give {math.radians(value):.4g}."


@dataclass(frozen=True)
class RobotSpec:
    """What a robot is: everything a world model must agree with before it may steer it.

    Actions are displacements per control step. `state_model` says how proprioception follows from them:
    "joints" (state + action, clipped to the state's bounds, wrapped where `state_periodic`) or "pose"
    (V-JEPA 2-AC's 7-D end-effector pose: xyz in m, extrinsic xyz Euler angles in rad, gripper in [0, 1]).
    """

    name: str
    action_names: tuple[str, ...]
    action_low: tuple[float, ...]
    action_high: tuple[float, ...]
    action_units: tuple[str, ...]
    state_names: tuple[str, ...]
    state_low: tuple[float, ...]
    state_high: tuple[float, ...]
    state_units: tuple[str, ...]
    state_periodic: tuple[bool, ...]
    control_period_s: float
    cameras: Mapping[str, Camera]
    state_model: str = "joints"

    def check_action(self, action: object) -> Float[np.ndarray, "a"]:
        """Return `action` as float64 [a]; refuse a wrong size, NaN or infinity with `InputError`."""
        array = np.asarray(action, dtype=np.float64)
        if array.shape != (len(self.action_names),):
            raise InputError(
                f"{self.name} takes {len(self.action_names)} action values ({', '.join(self.action_names)}), "
                f"got shape {array.shape}."
            )
        if not np.isfinite(array).all():
            raise InputError(f"{self.name} was sent a non-finite action {array.tolist()}; it was stopped.")
        return array

    def check_limits(self, action: object, steps: int = 1) -> Float[np.ndarray, "a"]:
        """`check_action`, refusing also what is outside the limits of so many control steps, with both values."""
        array = self.check_action(action)
        rows = zip(self.action_names, array, self.action_low, self.action_high, self.action_units, strict=True)
        for name, value, low, high, unit in rows:
            if not steps * low - 1e-6 <= value <= steps * high + 1e-6:
                raise InputError(
                    f"{name} = {value:g} {unit} is outside {self.name}'s limits [{steps * low:.4g}, "
                    f"{steps * high:.4g}] {unit}" + (_radians(value) if unit == "rad" else ".")
                )
        return array

    def check_state(self, state: object) -> Float[np.ndarray, "s"]:
        """Return `state` as float64 [s]; refuse a wrong size, NaN, infinity or a value out of range."""
        return self.proprioception.check(state)

    @property
    def proprioception(self) -> StateSpec:
        """The state's names, bounds and units by themselves."""
        return StateSpec(self.name, self.state_names, self.state_low, self.state_high, self.state_units)


@dataclass(frozen=True)
class Observation:
    """What a robot senses at one instant: pictures by camera name, proprioception in the spec's units."""

    images: Mapping[str, UInt8[np.ndarray, "height width 3"]]
    proprioception: Float32[np.ndarray, "s"]
    time_s: float


@runtime_checkable
class Robot(Protocol):
    """A body that can be observed and moved. `apply` blocks for one control period."""

    @property
    def spec(self) -> RobotSpec: ...

    def reset(self, seed: int | None = None) -> Observation: ...

    def observe(self) -> Observation: ...

    def apply(self, action: Float[np.ndarray, "a"]) -> Float[np.ndarray, "a"]:
        """Move for one control period; return the action truly applied after the robot's own limits."""
        ...

    def stop(self) -> None:
        """Hold the present pose: no motion is commanded after this returns."""
        ...

    def close(self) -> None: ...


@runtime_checkable
class SimulatedRobot(Robot, Protocol):
    """A robot in a simulator, which can also be put anywhere and asked for the truth (never by a planner).

    The world's state is that of the robot and of everything it can move: for an arm alone it is the
    proprioception, for a pusher and a block it holds the block's pose as well.
    """

    @property
    def renderer_identity(self) -> str:
        """Which renderer draws the pictures, e.g. "mujoco-egl-2x"."""
        ...

    def place(self, state: Float[np.ndarray, "w"]) -> Observation:
        """Put the world at rest in `state` and return what the robot then observes."""
        ...

    def true_state(self) -> Float[np.ndarray, "w"]:
        """The world's present state, as `place` takes it."""
        ...

    def sample_state(self, generator: np.random.Generator) -> Float[np.ndarray, "w"]:
        """A random state in which the world can rest."""
        ...

    def set_appearance(self, seed: int | None, level: float = 1.0) -> None:
        """Redraw the world in the appearance of `seed` (None = the plain one): colours, light, textures,
        camera pose, scaled by `level` in [0, 1]. Dynamics are not touched."""
        ...

    def end_effector(self) -> Float[np.ndarray, "3"]:
        """The end effector's position in the world frame, m."""
        ...

    def settings(self) -> Mapping[str, Any]:
        """What it was built with, for the records."""
        ...
