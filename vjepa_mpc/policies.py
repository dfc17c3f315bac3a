"""Who chooses actions in closed loop: a world model with its planner, and the floors and ceilings beside it."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from vjepa_mpc.controller import Controller, ControllerState, ControlSettings
from vjepa_mpc.core.errors import InputError
from vjepa_mpc.costs import latent_distance
from vjepa_mpc.fixed_rate import FixedRate, Metronome
from vjepa_mpc.governors import Guards
from vjepa_mpc.planners.base import Planner
from vjepa_mpc.robots.base import Observation, RobotSpec, SimulatedRobot
from vjepa_mpc.robots.task import Task
from vjepa_mpc.robots.world import MujocoWorld
from vjepa_mpc.world_model import WorldModel


@runtime_checkable
class Policy(Protocol):
    """Chooses actions towards a goal. Told the goal's state only for privileged ceilings."""

    name: str

    def begin(
        self, goal: UInt8[np.ndarray, "height width 3"], goal_state: Float[np.ndarray, "s"], seed: int
    ) -> None: ...

    def act(self, observation: Observation) -> Float[np.ndarray, "a"]: ...

    def note(self, applied: Float[np.ndarray, "a"]) -> Mapping[str, float]:
        """Told the action truly applied; answers with figures of the step."""
        ...


@runtime_checkable
class Turning(Policy, Protocol):
    """A policy that is to be told a new goal within an episode from a new episode: what it sent last still counts."""

    def turn(
        self, goal: UInt8[np.ndarray, "height width 3"], goal_state: Float[np.ndarray, "s"], seed: int
    ) -> None: ...


class PlannedPolicy:
    """A world model and a planner in closed loop."""

    def __init__(
        self,
        model: WorldModel,
        planner: Planner,
        settings: ControlSettings,
        name: str = "planner",
        guards: Guards | None = None,
    ) -> None:
        self.model, self.planner, self.settings, self.name, self.guards = model, planner, settings, name, guards
        self._state = ControllerState()
        self._figures: dict[str, float] = {}

    def begin(
        self, goal: UInt8[np.ndarray, "height width 3"], goal_state: Float[np.ndarray, "s"], seed: int
    ) -> None:
        self._controller = self.controller(goal, seed)
        self._state = ControllerState()

    def turn(
        self, goal: UInt8[np.ndarray, "height width 3"], goal_state: Float[np.ndarray, "s"], seed: int
    ) -> None:
        sent = self._state.sent
        self.begin(goal, goal_state, seed)
        self._state = ControllerState(sent=sent)

    def controller(self, goal: UInt8[np.ndarray, "height width 3"], seed: int) -> Controller:
        """Whoever decides towards a goal picture."""
        generator = torch.Generator(self.model.device).manual_seed(seed)
        return Controller(self.model, self.planner, goal, self.settings, generator, self.guards)

    def act(self, observation: Observation) -> Float[np.ndarray, "a"]:
        decision, self._state = self._controller.step(observation, self._state)
        self._figures = decision.figures()
        return decision.action

    def note(self, applied: Float[np.ndarray, "a"]) -> Mapping[str, float]:
        self._state = self._controller.applied(applied, self._state)
        return self._figures


class FixedRatePolicy(PlannedPolicy):
    """The same at a fixed rate: an action every `period_s` of wall time, whether or not a plan is done. What it
    does depends on the machine."""

    def __init__(
        self,
        model: WorldModel,
        planner: Planner,
        settings: ControlSettings,
        period_s: float,
        name: str = "planner",
        guards: Guards | None = None,
    ) -> None:
        super().__init__(model, planner, settings, name, guards)
        self.period_s = period_s
        self._pool: ThreadPoolExecutor | None = None

    def begin(
        self, goal: UInt8[np.ndarray, "height width 3"], goal_state: Float[np.ndarray, "s"], seed: int
    ) -> None:
        super().begin(goal, goal_state, seed)
        if self._pool is not None:
            self._pool.shutdown()  # the last episode's plan is not wanted any more, but it holds the generator
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="plan")
        self._loop, self._metronome = FixedRate(self._controller, self._pool.submit), Metronome(self.period_s)

    def turn(
        self, goal: UInt8[np.ndarray, "height width 3"], goal_state: Float[np.ndarray, "s"], seed: int
    ) -> None:
        sent = self._loop.state.sent
        self.begin(goal, goal_state, seed)
        self._loop.state = ControllerState(sent=sent)

    def act(self, observation: Observation) -> Float[np.ndarray, "a"]:
        self._metronome.wait()
        tick = self._loop.tick(observation)
        spent = tick.decision.plan.evaluations if tick.decision is not None and tick.executed == "planned" else 0
        self._figures = {
            "latent_cost": tick.view.latent_cost,
            "evaluations": spent,
            "reached": float(tick.reached),
        }
        return tick.action

    def note(self, applied: Float[np.ndarray, "a"]) -> Mapping[str, float]:
        self._loop.applied(applied)
        return self._figures


def actor_steps(model: WorldModel, asked: int | None) -> int:
    """Control steps that the model's actor does before it looks again. `InputError` for more than it says."""
    search = model.config.search
    steps = asked or (search.actor_steps if search else None) or 1
    if model.actor is not None and steps > model.actor.config.ahead:
        raise InputError(
            f"The actor says {model.actor.config.ahead} control steps ahead: it cannot do {steps} before it looks "
            "again; ask for fewer, or train one with more --ahead."
        )
    return steps


def actor_drawn(model: WorldModel, asked: bool | None) -> bool:
    """Whether the model's actor does what it draws, not what it holds likeliest."""
    search = model.config.search
    return bool(search and search.actor_drawn) if asked is None else asked


class ActorPolicy:
    """A world model's actor by itself, nothing imagined: of what it holds likeliest at a view the first `steps` actions
    (None: as many as the model's search says, or one), then it looks again. More than one is action chunking (Zhao et
    al. 2023, arXiv:2304.13705): what moves on between two pictures is not seen, but what was begun is finished. Every
    picture is encoded all the same, for the figures of the step. `drawn` (None: as the model's search says, or not): of
    what it holds possible, one way is drawn at each look, as likely as it is. Where the likeliest leads to and fro
    between two views, that leads on."""

    def __init__(
        self, model: WorldModel, name: str = "actor", steps: int | None = None, drawn: bool | None = None
    ) -> None:
        """`InputError` for more steps than the actor says."""
        self.model, self.name, self.steps = model, name, actor_steps(model, steps)
        self.drawn = actor_drawn(model, drawn)
        self._figures: dict[str, float] = {}

    def begin(
        self, goal: UInt8[np.ndarray, "height width 3"], goal_state: Float[np.ndarray, "s"], seed: int
    ) -> None:
        self._goal, self._left = self.model.encode(goal[None]), list[Tensor]()
        self._there = 0
        self._generators = [torch.Generator(self.model.device).manual_seed(seed)]

    def act(self, observation: Observation) -> Float[np.ndarray, "a"]:
        model = self.model
        latent = model.encode(observation.images[model.config.camera][None])
        pose = torch.as_tensor(observation.proprioception, dtype=torch.float32, device=model.device)[None]
        cost = float(latent_distance(latent, self._goal))
        self._there = self._there + 1 if model.near(latent, self._goal, cost) else 0
        reached = float(self._there >= ControlSettings.hold_steps)
        self._figures = {"latent_cost": cost, "evaluations": 0.0, "reached": reached}
        if not self._left:
            way = model.act(latent, pose, self._goal, self._generators, self.drawn)[0]
            self._left = list(way[: self.steps].double().cpu())
        return self._left.pop(0).numpy()

    def note(self, applied: Float[np.ndarray, "a"]) -> Mapping[str, float]:
        return self._figures


class RandomPolicy:
    """Uniform actions inside the bounds: a floor."""

    name = "random"

    def __init__(self, spec: RobotSpec) -> None:
        self.spec = spec

    def begin(
        self, goal: UInt8[np.ndarray, "height width 3"], goal_state: Float[np.ndarray, "s"], seed: int
    ) -> None:
        self._rng = np.random.default_rng(seed)

    def act(self, observation: Observation) -> Float[np.ndarray, "a"]:
        return self._rng.uniform(self.spec.action_low, self.spec.action_high)

    def note(self, applied: Float[np.ndarray, "a"]) -> Mapping[str, float]:
        return {}


class NoOpPolicy(RandomPolicy):
    """Never moves: a floor."""

    name = "no-op"

    def act(self, observation: Observation) -> Float[np.ndarray, "a"]:
        return np.zeros(len(self.spec.action_names))


@runtime_checkable
class Privileged(Protocol):
    """A policy that is shown the simulator itself, before its first episode: a ceiling or a floor, no more."""

    def watch(self, robot: SimulatedRobot) -> None: ...


class ScriptedPolicy(RandomPolicy):
    """Knows the goal's state and the world's: the ceiling."""

    name = "scripted"

    def __init__(self, task: Task) -> None:
        super().__init__(task.spec)
        self.task = task

    def watch(self, robot: SimulatedRobot) -> None:
        self._robot = robot

    def begin(
        self, goal: UInt8[np.ndarray, "height width 3"], goal_state: Float[np.ndarray, "s"], seed: int
    ) -> None:
        self._script = self.task.script(goal_state)

    def act(self, observation: Observation) -> Float[np.ndarray, "a"]:
        return self._script(self._robot.true_state())


class GreedyPixelPolicy(RandomPolicy):
    """Tries actions in the simulator itself and takes the one whose next picture is most like the goal's: a floor.

    It has a perfect model and looks one step ahead by the mean absolute difference of pixels: what it does
    not reach needs a better distance than pixels, or more foresight than one step. It tries `candidates` - 1
    random actions, a quarter of them of full size, and none.
    """

    name = "greedy-pixel"

    def __init__(self, spec: RobotSpec, candidates: int = 16) -> None:
        super().__init__(spec)
        self.candidates = candidates

    def watch(self, robot: SimulatedRobot) -> None:
        if not isinstance(robot, MujocoWorld):
            raise InputError(f"{robot.spec.name} cannot be set back, which the greedy-pixel floor needs.")
        self._robot = robot

    def begin(
        self, goal: UInt8[np.ndarray, "height width 3"], goal_state: Float[np.ndarray, "s"], seed: int
    ) -> None:
        super().begin(goal, goal_state, seed)
        self._goal = goal.astype(np.int16)

    def act(self, observation: Observation) -> Float[np.ndarray, "a"]:
        low, high = np.array(self.spec.action_low), np.array(self.spec.action_high)
        tried = self._rng.uniform(low, high, (self.candidates, len(low)))
        tried[: self.candidates // 4] = np.where(tried[: self.candidates // 4] < (low + high) / 2, low, high)
        tried[-1] = 0.0
        now = self._robot.snapshot()
        differences = []
        for action in tried:
            self._robot.apply(action)
            (picture,) = self._robot.observe().images.values()
            differences.append(np.abs(picture - self._goal).mean())
            self._robot.restore(now)
        return tried[int(np.argmin(differences))]
