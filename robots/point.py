"""A ball that slides between walls, and going somewhere with it: what the point maze and the two rooms share."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from functools import cached_property, partial
from typing import Any

import numpy as np
from jaxtyping import Float

from vjepa_mpc.core.errors import InputError
from vjepa_mpc.robots.base import Camera, RobotSpec
from vjepa_mpc.robots.stage import CAMERA, HALF_WIDTH_M, add_slider, add_wall, new_stage
from vjepa_mpc.robots.task import Script, Task
from vjepa_mpc.robots.visibility import VisibilityGraph, free, gap
from vjepa_mpc.robots.world import MujocoWorld

CONTROL_PERIOD_S = 0.2
RADIUS_M = 0.015
STEP_M = 0.04
REACH_M = HALF_WIDTH_M - RADIUS_M
_TIMESTEP_S = 0.004
_MASS_KG, _FORCE_N, _RATE = 0.1, 4.0, 80.0
_RAMP = 10
_CLEARANCE_M = 0.002  # a pressed ball sinks into a wall by up to 1.2 mm

Wall = tuple[tuple[float, float], tuple[float, float]]
"""Centre and half widths of a box, m."""


def point_spec(name: str, camera_size: int = 64) -> RobotSpec:
    """A ball on the board under displacements of its place, m."""
    return RobotSpec(
        name=name,
        action_names=("x_delta", "y_delta"),
        action_low=(-STEP_M, -STEP_M),
        action_high=(STEP_M, STEP_M),
        action_units=("m", "m"),
        state_names=("x", "y"),
        state_low=(-REACH_M, -REACH_M),
        state_high=(REACH_M, REACH_M),
        state_units=("m", "m"),
        state_periodic=(False, False),
        control_period_s=CONTROL_PERIOD_S,
        cameras={CAMERA: Camera(camera_size, camera_size)},
        state_model="joints",
    )


class PointWorld(MujocoWorld):
    """A ball (radius 15 mm) that slides on the board between `walls`, seen from above.

    Action [x_delta, y_delta] in m per control step of 0.2 s: the target becomes measured place + delta, kept on
    the board. A force-limited servo goes there and has settled within the step; walls stop the ball, which
    slides along them. The state is the measured place in m.
    """

    def __init__(
        self, name: str, walls: Sequence[Wall], camera_size: int = 64, seed: int = 0, backend: str = "auto"
    ) -> None:
        self._walls = np.array(walls, dtype=np.float64).reshape(-1, 2, 2)
        super().__init__(
            point_spec(name, camera_size), _build(walls), {"camera_size": camera_size, "seed": seed}, backend
        )
        self._put(self.sample_state(np.random.default_rng(0)))

    def _check(self, state: Float[np.ndarray, "w"]) -> Float[np.ndarray, "w"]:
        place = self._spec.check_state(state)
        if gap(place, self._walls) < RADIUS_M - _CLEARANCE_M:
            raise InputError(f"A ball at {place.tolist()} m would stand in a wall of {self._spec.name}.")
        return place

    def _rest(self, state: Float[np.ndarray, "w"]) -> None:
        self._data.qpos[:] = state
        self._data.ctrl[:] = state

    def sample_state(self, generator: np.random.Generator) -> Float[np.ndarray, "w"]:
        """A place clear of the walls, uniform."""
        return sample_free(generator, self._walls)

    def true_state(self) -> Float[np.ndarray, "w"]:
        return np.clip(self._data.qpos, -REACH_M, REACH_M)

    def _measure(self) -> Float[np.ndarray, "s"]:
        return self.true_state()

    def _move(self, wanted: Float[np.ndarray, "a"]) -> Float[np.ndarray, "a"]:
        before = self._data.qpos.copy()
        target = np.clip(before + wanted, -REACH_M, REACH_M)
        self._glide(before, target, _RAMP)
        return target - before

    def stop(self) -> None:
        self._data.ctrl[:] = self._data.qpos
        self._data.qvel[:] = 0.0

    def end_effector(self) -> Float[np.ndarray, "3"]:
        return np.array([*self._data.qpos, RADIUS_M])


def _build(walls: Sequence[Wall]) -> Any:
    spec = new_stage(_TIMESTEP_S)
    for index, (center, half) in enumerate(walls):
        add_wall(spec, f"wall_{index}", center, half)
    add_slider(spec, "point", RADIUS_M, _MASS_KG, _FORCE_N, _RATE)
    return spec.compile()


class PointTask(Task):
    """Bring the ball to its place in the goal picture; distances are straight lines, in m.

    The script goes by the visibility graph of `nodes`: straight on where nothing is between, else by the node
    in sight from which the way is shortest.
    """

    @property
    @abstractmethod
    def walls(self) -> Sequence[Wall]: ...

    @property
    @abstractmethod
    def nodes(self) -> Float[np.ndarray, "n 2"]:
        """Places [m] to go by; every free place sees one of them."""

    @property
    def spec(self) -> RobotSpec:
        return point_spec(self.robot)

    def distance(self, state: Float[np.ndarray, "2"], goal: Float[np.ndarray, "2"]) -> float:
        return float(np.linalg.norm(np.asarray(state) - goal))

    def place(self, states: Any) -> Any:
        """The ball's own coordinates, m."""
        return states

    def script(self, goal: Float[np.ndarray, "2"]) -> Script:
        return partial(self._towards, goal=np.asarray(goal, dtype=np.float64))

    def _towards(self, state: Float[np.ndarray, "2"], goal: Float[np.ndarray, "2"]) -> Float[np.ndarray, "2"]:
        target = self.graph.next_place(state, goal)
        if target is None:  # pressed into a wall: back to the nearest node
            target = self.nodes[int(np.argmin(np.linalg.norm(self.nodes - state, axis=1)))]
        delta = target - state
        return delta * min(1.0, STEP_M / max(float(np.abs(delta).max()), 1e-9))

    @cached_property
    def graph(self) -> VisibilityGraph:
        """The ways between the walls."""
        return VisibilityGraph(self.nodes, np.array(self.walls).reshape(-1, 2, 2), RADIUS_M - _CLEARANCE_M)


def sample_free(generator: np.random.Generator, walls: Float[np.ndarray, "k 2 2"]) -> Float[np.ndarray, "2"]:
    """A place on the board [m], uniform over where the ball touches no wall."""
    while True:
        place = generator.uniform(-REACH_M, REACH_M, 2)
        if free(place, walls, RADIUS_M):
            return place
