"""Any simulated robot and its task as a Gymnasium environment."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
from jaxtyping import Float, UInt8

from vjepa_mpc.robots.base import Observation, SimulatedRobot
from vjepa_mpc.robots.task import Task


class RobotEnv(gymnasium.Env[dict[str, np.ndarray], np.ndarray]):
    """Reach the goal state shown in a picture; the reward is minus the distance in m after each step.

    Observation: one uint8 [H, W, 3] picture for each camera, `proprioception` float32 [s], and the goal's
    pictures as `goal_<camera>`. Actions are the robot's own, in its units. Nothing terminates an episode:
    it is truncated after the task's step budget, and `info` has `distance_m`, `is_success` and
    `applied_action` (what was left of the action after the robot's limits).
    `reset(options={"start": state, "goal": state})` sets the pair by hand.
    """

    def __init__(self, robot: SimulatedRobot, task: Task, render_mode: str | None = "rgb_array") -> None:
        # An own dictionary: Gymnasium's is shared by all classes.
        frames_per_s = round(1.0 / robot.spec.control_period_s)
        self.metadata = {"render_modes": ["rgb_array"], "render_fps": frames_per_s}
        self.render_mode = render_mode
        self._robot, self._task = robot, task
        spec = robot.spec
        self.action_space = gymnasium.spaces.Box(_float32(spec.action_low), _float32(spec.action_high))
        spaces: dict[str, gymnasium.Space[Any]] = {}
        for name, camera in spec.cameras.items():
            picture = gymnasium.spaces.Box(0, 255, (camera.height, camera.width, 3), np.uint8)
            spaces |= {name: picture, f"goal_{name}": picture}
        spaces["proprioception"] = gymnasium.spaces.Box(_float32(spec.state_low), _float32(spec.state_high))
        self.observation_space = gymnasium.spaces.Dict(spaces)  # type: ignore[assignment]
        self._steps = 0

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        super().reset(seed=seed)
        start, goal = self._task.sample_pair(self.np_random)
        given = options or {}
        start, self._goal = np.asarray(given.get("start", start)), np.asarray(given.get("goal", goal))
        pictures = self._robot.place(self._goal).images
        self._goal_pictures = {f"goal_{name}": picture for name, picture in pictures.items()}
        self._observation = self._robot.place(start)
        self._steps = 0
        return self._observed(), self._info(np.zeros(len(self._robot.spec.action_names)))

    def step(
        self, action: Float[np.ndarray, "a"]
    ) -> tuple[dict[str, np.ndarray], float, bool, bool, dict[str, Any]]:
        applied = self._robot.apply(action)
        self._observation = self._robot.observe()
        self._steps += 1
        info = self._info(applied)
        return self._observed(), -info["distance_m"], False, self._steps >= self._task.step_budget, info

    def render(self) -> UInt8[np.ndarray, "height width 3"] | None:
        """The first camera's present picture, or None when built with `render_mode=None`."""
        if self.render_mode is None:
            return None
        return next(iter(self._robot.observe().images.values()))

    def close(self) -> None:
        self._robot.close()

    def _observed(self) -> dict[str, np.ndarray]:
        now: Observation = self._observation
        goal = {
            name: picture.copy() for name, picture in self._goal_pictures.items()
        }  # users keep what they get
        return {**now.images, **goal, "proprioception": now.proprioception.copy()}

    def _info(self, applied: np.ndarray) -> dict[str, Any]:
        distance = self._task.distance(self._robot.true_state(), self._goal)
        return {
            "distance_m": distance,
            "is_success": distance <= self._task.success_radius_m,
            "applied_action": applied,
        }


def _float32(values: tuple[float, ...]) -> np.ndarray:
    return np.array(values, dtype=np.float32)
