"""Our controller as a policy of stable-worldmodel's evaluation loop, and the floors beside it.

Its `World` steps several environments at once and asks `get_action(info)` for all their actions. What `info` holds is
an array [environments, time, ...] a name, with one instant of time; goals are pictures in it. Written against version
0.1.1 of the package, which is not needed to import this module: `World.set_policy` wants `set_env` and `get_action`,
nothing more.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Bool, Float, UInt8

from vjepa_mpc.controller import Controller, ControllerState, ControlSettings, fitting_chunk
from vjepa_mpc.core.errors import InputError
from vjepa_mpc.governors import Guards
from vjepa_mpc.lockstep import decide_together, see_together
from vjepa_mpc.planners.base import Planner
from vjepa_mpc.robots.base import Observation
from vjepa_mpc.world_model import WorldModel


@runtime_checkable
class PeerPolicy(Protocol):
    """What stable-worldmodel's `World` asks of a policy."""

    def set_env(self, env: Any) -> None:
        """Told the environments (`num_envs`, `single_action_space`) before the first action."""
        ...

    def get_action(self, info: Mapping[str, Any], **_: Any) -> Float[np.ndarray, "n a"]:
        """An action for every environment, in its own units."""
        ...


@dataclass(frozen=True)
class InfoNames:
    """What a world calls the picture, the goal's picture, and the numbers that are a model's state, in its order."""

    picture: str = "pixels"
    goal: str = "goal"
    state: tuple[str, ...] = ("proprio",)


class RandomPeer:
    """Uniform actions inside the environments' bounds: a floor."""

    def __init__(self, seed: int) -> None:
        self._rng = np.random.default_rng(seed)

    def set_env(self, env: Any) -> None:
        low, high = _box(env.single_action_space)
        self._low, self._high = np.tile(low, (env.num_envs, 1)), np.tile(high, (env.num_envs, 1))

    def get_action(self, info: Mapping[str, Any], **_: Any) -> Float[np.ndarray, "n a"]:
        return self._rng.uniform(self._low, self._high).astype(np.float32)


class NoOpPeer:
    """Actions of zero: a floor. What it reaches was reached at the start, or comes by itself."""

    def set_env(self, env: Any) -> None:
        self._shape = env.num_envs, len(_box(env.single_action_space)[0])

    def get_action(self, info: Mapping[str, Any], **_: Any) -> Float[np.ndarray, "n a"]:
        return np.zeros(self._shape, np.float32)


@dataclass
class _Player:
    """One environment's episode: who decides, what it remembers, and the world's count of steps when last asked."""

    controller: Controller
    goal: UInt8[np.ndarray, "height width 3"]
    step: int
    state: ControllerState = field(default_factory=ControllerState)
    asked: int = 0

    def goes_on(self, goal: UInt8[np.ndarray, "height width 3"], step: int) -> bool:
        """Whether what is seen now comes next. The world's own sign of a new episode (`_needs_flush`) is not gone by:
        it is raised once and never taken back. An episode from a data set is first shown with the data's count."""
        counted = step == self.step + 1 or (self.asked == 1 and step == 1)
        return counted and np.array_equal(goal, self.goal)


class PlannedPeer:
    """A world model and a planner as a policy of several environments, which are planned for in one search.

    The environments' actions are the model's, limit to limit; that these mean the same, and that `names.state` are the
    model's state in its units, is the caller's to know. Actions are held to be applied as they are sent. Each
    episode has its own memory and generator, so that it is what it is alone up to the last bits of matrix products.
    Finished environments are sent the hold action, which nothing steps.
    """

    def __init__(
        self,
        model: WorldModel,
        planner: Planner,
        settings: ControlSettings,
        names: InfoNames = InfoNames(),
        *,
        guards: Guards | None = None,
        seed: int = 0,
    ) -> None:
        if settings.chunk is None:  # one measurement for all: problems are joined only where the chunk is the same
            settings = replace(settings, chunk=fitting_chunk(model, settings.horizon, settings.memory_budget))
        self.model, self.planner, self.settings, self.names, self.guards = model, planner, settings, names, guards
        self.seed = seed
        self._env: Any = None
        self._begun = 0
        self._players: dict[int, _Player] = {}

    def set_seed(self, seed: int) -> None:
        """Of the generators of episodes that begin from now on."""
        self.seed, self._begun = seed, 0

    def set_env(self, env: Any) -> None:
        """`InputError` where the environments' actions are not as many bounded numbers as the model's."""
        low, high = _box(env.single_action_space)
        robot = self.model.config.robot
        if len(low) != len(robot.action_names):
            raise InputError(
                f"The environment takes {len(low)} action values and this model, trained for {robot.name}, gives "
                f"{len(robot.action_names)} ({', '.join(robot.action_names)}); use a model trained on this environment."
            )
        own_low, own_high = np.array(robot.action_low), np.array(robot.action_high)
        self._own_low, self._low = own_low, low
        self._ratio = (high - low) / (own_high - own_low)
        self._env, self._players, self._begun = env, {}, 0

    def get_action(self, info: Mapping[str, Any], **_: Any) -> Float[np.ndarray, "n a"]:
        """Plan for every environment that is not over. Raises `InputError` for pictures, goals or states that are
        missing or of another shape than the model takes."""
        if self._env is None:
            raise InputError("This policy has no environments yet: hand it to World.set_policy before it is asked.")
        count = int(self._env.num_envs)
        wanted = np.zeros((count, len(self._low)))
        rows = np.flatnonzero(~_over(info, count)).tolist()
        if rows:
            pictures = _pictures(info, self.names.picture, self.model, count)
            goals = _pictures(info, self.names.goal, self.model, count)
            states, steps = self._states(info, count), _steps(info, count)
            for row in rows:
                self._turn(row, goals[row], steps[row])
            seen = [Observation({self.model.config.camera: pictures[row]}, states[row], 0.0) for row in rows]
            wanted[rows] = self._decided([self._players[row] for row in rows], seen)
        sent = self._low + (wanted - self._own_low) * self._ratio
        return sent.astype(np.float32)

    def _turn(self, row: int, goal: UInt8[np.ndarray, "height width 3"], step: int) -> None:
        """The player of this environment, a new one where another episode has begun."""
        player = self._players.get(row)
        if player is None or not player.goes_on(goal, step):
            generator = torch.Generator(self.model.device).manual_seed(self.seed + self._begun)
            self._begun += 1
            controller = Controller(self.model, self.planner, goal, self.settings, generator, self.guards)
            player = self._players[row] = _Player(controller, goal.copy(), step)
        player.step, player.asked = step, player.asked + 1

    def _decided(self, players: list[_Player], seen: list[Observation]) -> Float[np.ndarray, "n a"]:
        controllers = [one.controller for one in players]
        looks = see_together(controllers, seen, [one.state for one in players])
        decided = decide_together(controllers, [view for view, _ in looks], [state for _, state in looks])
        for player, (decision, state) in zip(players, decided, strict=True):
            player.state = player.controller.applied(decision.action, state)
        return np.stack([decision.action for decision, _ in decided])

    def _states(self, info: Mapping[str, Any], count: int) -> Float[np.ndarray, "n s"]:
        robot = self.model.config.robot
        parts = [np.reshape(_last(info, name, count), (count, -1)) for name in self.names.state]
        states = np.concatenate(parts, axis=1).astype(np.float32) if parts else np.zeros((count, 0), np.float32)
        if states.shape[1] != len(robot.state_names):
            raise InputError(
                f"{', '.join(self.names.state)} are {states.shape[1]} numbers, and this model's state has "
                f"{len(robot.state_names)} ({', '.join(robot.state_names)}); name what it is read from (InfoNames)."
            )
        if not np.isfinite(states).all():
            raise InputError(f"{', '.join(self.names.state)} hold a number that is not finite: {states.tolist()}.")
        return states


def _box(space: Any) -> tuple[Float[np.ndarray, "a"], Float[np.ndarray, "a"]]:
    """The bounds of a vector of numbers; `InputError` for any other actions."""
    low, high = getattr(space, "low", None), getattr(space, "high", None)
    if low is None or high is None or np.ndim(low) != 1 or not np.isfinite([low, high]).all():
        raise InputError(f"The environment takes actions of {space}; a bounded vector of numbers is needed.")
    return np.asarray(low, dtype=np.float64), np.asarray(high, dtype=np.float64)


def _last(info: Mapping[str, Any], name: str, count: int) -> np.ndarray:
    """The newest instant of an entry [environments, time, ...]."""
    if name not in info:
        way = " (World.evaluate(dataset=...) gives goal pictures)" if name == "goal" else ""
        raise InputError(f"The world's info has no {name!r}{way}; it has {', '.join(sorted(map(str, info)))}.")
    value = np.asarray(info[name])
    if value.ndim < 2 or value.shape[0] != count:
        raise InputError(f"{name!r} is {value.shape}, not an entry [environments, time, ...] of {count} environments.")
    return value[:, -1]


def _pictures(
    info: Mapping[str, Any], name: str, model: WorldModel, count: int
) -> UInt8[np.ndarray, "n height width 3"]:
    pictures, camera = _last(info, name, count), model.config.robot.cameras[model.config.camera]
    if pictures.ndim != 4 or pictures.shape[-1] != 3 or pictures.dtype != np.uint8:
        raise InputError(
            f"{name!r} is {pictures.dtype} {pictures.shape}, not colour pictures of bytes [environments, height, "
            "width, 3]; make the World without image_transform and goal_transform."
        )
    height, width = pictures.shape[1:3]
    if height < camera.height or width < camera.width or height * camera.width != width * camera.height:
        raise InputError(
            f"{name!r} has {height} x {width} pixels, and the model was trained on {camera.height} x {camera.width}; "
            f"make the World with image_shape=({camera.height}, {camera.width})."
        )
    return pictures


def _over(info: Mapping[str, Any], count: int) -> Bool[np.ndarray, "n"]:
    ends = [_last(info, name, count).astype(bool) for name in ("terminated", "truncated") if name in info]
    return np.any(ends, axis=0) if ends else np.zeros(count, dtype=bool)


def _steps(info: Mapping[str, Any], count: int) -> list[int]:
    return [int(step) for step in np.reshape(_last(info, "step_idx", count), count)]
