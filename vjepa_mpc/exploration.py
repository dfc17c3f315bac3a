"""How a robot moves while data is collected, and one whole episode of it.

An episode is a function of (settings, index) alone. It starts in a random state of the world and runs
through segments of random length, each of one behaviour drawn by the task's mixture (`MIXTURE` for a robot
without a task):

- `smooth`: temporally correlated random actions, a first-order autoregressive process;
- `reach`: towards a random goal pose at a random speed, with noise; a new goal when it is reached (`smooth` for a
  robot whose state is not the sum of its actions);
- `script`: the task's own script to a random goal of the task, at a random speed, with noise;
- `demonstration`: the same at full speed, with less noise, until the goal picture is true (`Task.shown`); with hardly
  any where the world is in motion between steps, for a motion that was begun is carried out as it was meant;
- `actor`: an apprentice, a world model's actor say, drives towards a goal of the task, with as much noise; some time
  on the way a demonstration takes over to the same goal. It shows what to do where the apprentice comes to, which by
  itself no demonstration does (Ross et al. 2011, "A reduction of imitation learning and structured prediction to
  no-regret online learning"; taking over: Kelly et al. 2019, arXiv:1810.02890, where a human says when);
- `full_speed`: every component at its limit, up or down, or still;
- `hold`: no action at all.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float

from vjepa_mpc.core.errors import InputError, unknown_name
from vjepa_mpc.datasets.episode import Episode
from vjepa_mpc.robots.base import Observation, RobotSpec, SimulatedRobot
from vjepa_mpc.robots.dynamics import check_factors
from vjepa_mpc.robots.factory import find_task, task_names
from vjepa_mpc.robots.task import Task
from vjepa_mpc.robots.world import MujocoWorld, vary_world

MIXTURE = {"smooth": 0.40, "reach": 0.40, "full_speed": 0.12, "hold": 0.08}
SEGMENT_STEPS = {
    "smooth": (6, 30), "reach": (8, 30), "script": (12, 40), "demonstration": (90, 90), "actor": (1, 60),
    "full_speed": (2, 8), "hold": (1, 4),
}  # fmt: skip
BY_SCRIPT = ("script", "demonstration", "actor")
"""Behaviours that need a task with a script."""
WITH_A_GOAL = ("reach", "script", "demonstration", "actor")
"""Behaviours that go somewhere: what comes after one is no way to its goal."""
NO_EXAMPLE = ("actor",)
"""Behaviours of which nothing is to be learned by imitation."""
SHOWN_NOISE, SHOWN_NOISE_IN_MOTION = 0.15, 0.02
"""The most that a demonstration is disturbed by, as a share of the step limits."""
APPEARANCE_SEEDS = 1_000_000  # collected looks have seeds below this; benchmark manifests use those above
APPEARANCES = ("varied", "plain")

Act = Callable[[Observation], Float[np.ndarray, "a"]]


@runtime_checkable
class Apprentice(Protocol):
    """Who drives in the behaviour `actor`: its actions towards a goal depend on what it is shown alone."""

    def look(self, paint: Callable[[SimulatedRobot], None]) -> None:
        """Goal pictures look from now on as `paint` makes a world look."""
        ...

    def begin(self, goal: Float[np.ndarray, "w"]) -> None:
        """Towards this state of the world from now on."""
        ...

    def act(self, observation: Observation) -> Float[np.ndarray, "a"]: ...


@dataclass(frozen=True)
class EpisodeSettings:
    """What the content of an episode depends on, besides its index.

    `task` (a name or module:Class; None: the one named as the robot, where there is one) says which behaviours
    are mixed. `frames` observations each. `appearance` "varied": with probability `appearance_fraction` an episode
    draws an appearance seed below `APPEARANCE_SEEDS`, shown at `appearance_level` in [0, 1]; the others, and
    all of "plain", look plain. `factors` (name, level): these vary instead, friction and mass among them, each at
    its own level. `camera_size`: square pictures of so many pixels (None = the robot's own). `behaviours` (name,
    share): these are mixed instead of the task's. `actor`: the folder of a world model whose actor drives in the
    behaviour of that name, `actor_weights` the hash of what it holds, `actor_steps` the control steps that it does
    before it looks again, `actor_drawn` whether it does what it draws of its mixture.
    """

    robot: str = "reacher"
    task: str | None = None
    frames: int = 41
    seed: int = 0
    appearance: str = "varied"
    appearance_level: float = 1.0
    appearance_fraction: float = 0.8
    camera_size: int | None = None
    factors: tuple[tuple[str, float], ...] = ()
    behaviours: tuple[tuple[str, float], ...] = ()
    actor: str | None = None
    actor_weights: str | None = None
    actor_steps: int = 1
    actor_drawn: bool = False

    def __post_init__(self) -> None:
        check_factors(dict(self.factors))
        check_behaviours(dict(self.behaviours))
        if len({self.actor is None, self.actor_weights is None, "actor" not in dict(self.behaviours)}) > 1:
            raise InputError(
                "The behaviour 'actor' and a model with an actor belong together: --actor MODEL --behaviour actor=0.8."
            )
        if self.factors and self.appearance != "varied":
            raise InputError("Factors of variation need the appearance 'varied'; leave --appearance or --vary out.")
        if self.appearance not in APPEARANCES:
            raise unknown_name("appearance", self.appearance, APPEARANCES)
        if self.frames < 2:
            raise InputError(f"An episode needs at least 2 frames to hold an action, got {self.frames}.")
        if self.seed < 0:
            raise InputError(f"The seed must not be negative, got {self.seed}.")
        for name in ("appearance_level", "appearance_fraction"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise InputError(f"{name} must lie in [0, 1], got {getattr(self, name):g}.")
        if self.camera_size is not None and not 8 <= self.camera_size <= 1024:
            raise InputError(f"The camera size must lie in [8, 1024] pixels, got {self.camera_size}.")

    def find_task(self) -> Task | None:
        """The task whose goals and behaviours are collected; None for a robot without one."""
        if self.task is not None:
            task = find_task(self.task)
            if task.robot != self.robot:
                raise InputError(f"Task {self.task} is played by {task.robot}, not {self.robot}; leave --robot out.")
            return task
        return find_task(self.robot) if self.robot in task_names() else None


def check_behaviours(shares: Mapping[str, float]) -> None:
    """`InputError` for behaviours that are not known, and shares that do not sum to one but for rounding."""
    for kind, share in shares.items():
        if kind not in SEGMENT_STEPS:
            raise unknown_name("behaviour", kind, SEGMENT_STEPS)
        if not 0 < share <= 1:
            raise InputError(f"The share of {kind} is {share:g}; it must be above 0 and at most 1.")
    if shares and abs(sum(shares.values()) - 1) > 0.011:
        raise InputError(f"The shares of behaviours must sum to 1, these to {sum(shares.values()):g}.")


def mixture_of(settings: EpisodeSettings) -> Mapping[str, float]:
    """The share of each behaviour, by its name. `InputError` for a script without a task."""
    task = settings.find_task()
    mixture = MIXTURE if task is None else task.mixture
    if settings.behaviours:
        total = sum(share for _, share in settings.behaviours)
        mixture = {kind: share / total for kind, share in settings.behaviours}
    check_behaviours(mixture)
    if task is None and (set(BY_SCRIPT) & mixture.keys()):
        raise InputError(f"What goes by a script needs the task whose script it is: name it beside {settings.robot}.")
    return mixture


def simulate_episode(
    robot: SimulatedRobot, settings: EpisodeSettings, index: int, apprentice: Apprentice | None = None
) -> Episode:
    """Episode `index`: place the robot, act by the mixture, record. The robot's own seed is not used. `apprentice`: who
    drives in the behaviour `actor`."""
    spec, generator = robot.spec, np.random.default_rng([settings.seed, index])
    task = settings.find_task()
    varied = settings.appearance == "varied" and generator.random() < settings.appearance_fraction
    appearance = int(generator.integers(APPEARANCE_SEEDS)) if varied else None
    start = robot.sample_state(generator)

    def paint(world: SimulatedRobot) -> None:
        if settings.factors:
            vary_world(world, appearance, dict(settings.factors))
        else:
            world.set_appearance(appearance, settings.appearance_level)

    paint(robot)
    if apprentice is not None:
        apprentice.look(paint)
    observation = robot.place(start)
    steps = settings.frames
    images = {name: np.empty((steps, c.height, c.width, 3), np.uint8) for name, c in spec.cameras.items()}
    states = np.empty((steps, len(spec.state_names)), np.float32)
    actions = np.empty((steps - 1, len(spec.action_names)), np.float32)
    times = np.empty(steps, np.float64)
    world: list[list[float]] = []
    contacts: list[bool] = []
    unfelt = task is not None and task.world.names != spec.state_names  # the world is more than the robot itself feels
    segments: list[tuple[int, str]] = []
    draw = _Drawing(robot, task, mixture_of(settings), generator, apprentice, segments)
    act, until = draw(0)
    for step in range(steps):
        for name, frames in images.items():
            frames[step] = observation.images[name]
        states[step], times[step] = observation.proprioception, observation.time_s
        if unfelt:
            world.append([round(float(value), 6) for value in robot.true_state()])
        touching = robot.touching() if isinstance(robot, MujocoWorld) else None
        if touching is not None:
            contacts.append(touching)
        if step == steps - 1:
            break
        arrived = isinstance(act, _Shown) and act.done()
        if isinstance(act, _Driven) and step == until and not arrived:
            act, until = draw.taken_over(act, step)
        elif step == until or arrived:
            act, until = draw(step)
        actions[step] = robot.apply(act(observation))
        observation = robot.observe()
    metadata: dict[str, Any] = {
        "index": index,
        "seed": settings.seed,
        "appearance_seed": appearance,
        "appearance_level": settings.appearance_level if varied else 0.0,
        "behaviours": [list(segment) for segment in segments],
    }
    if settings.factors:
        metadata["factors"] = dict(settings.factors) if varied else {}
    if unfelt:
        metadata["world_states"] = world
    if contacts:
        metadata["contacts"] = contacts
    return Episode(images, states, actions, times - times[0], metadata)


@dataclass(frozen=True)
class _Drawing:
    """Draws an episode's segments and notes them as (first step, behaviour) in `segments`."""

    robot: SimulatedRobot
    task: Task | None
    mixture: Mapping[str, float]
    generator: np.random.Generator
    apprentice: Apprentice | None
    segments: list[tuple[int, str]]

    def __call__(self, step: int) -> tuple[Act, int]:
        """A behaviour from `step` on, and the step it lasts until."""
        spec, generator = self.robot.spec, self.generator
        kind = str(generator.choice(list(self.mixture), p=list(self.mixture.values())))
        if kind == "reach" and spec.state_model != "joints":
            kind = "smooth"  # no telling which action leads to a drawn state
        low, high = SEGMENT_STEPS[kind]
        self.segments.append((step, kind))
        until = step + int(generator.integers(low, high + 1))
        if kind in BY_SCRIPT:
            assert self.task is not None, "mixture_of refuses it"
            if kind == "script":
                return _Scripted(self.robot, self.task, generator), until
            if kind == "demonstration":
                return _Demonstrated(self.robot, self.task, generator), until
            assert self.apprentice is not None, "who drives in the behaviour 'actor' is to be given"
            return _Driven(self.robot, self.task, generator, self.apprentice), until
        makers: dict[str, Callable[[RobotSpec, np.random.Generator], Act]]
        makers = {"smooth": _Smooth, "reach": _Reach, "full_speed": _full_speed, "hold": _hold}
        return makers[kind](spec, generator), until

    def taken_over(self, driven: _Driven, step: int) -> tuple[Act, int]:
        """A demonstration of what was being driven to."""
        assert self.task is not None
        kind = "demonstration"
        self.segments.append((step, kind))
        low, high = SEGMENT_STEPS[kind]
        until = step + int(self.generator.integers(low, high + 1))
        return _Demonstrated(self.robot, self.task, self.generator, driven.goal), until


class _Scripted:
    """The task's script to one of its goals, slowed down and disturbed; it is told the truth."""

    def __init__(self, robot: SimulatedRobot, task: Task, generator: np.random.Generator) -> None:
        self._robot, self._generator = robot, generator
        self._centre, self._half = _box(robot.spec)
        self._speed, self._noise = generator.uniform(0.3, 1.0), generator.uniform(0.0, 0.3)
        self._script = task.script(task.sample_pair(generator)[1])

    def __call__(self, observation: Observation) -> Float[np.ndarray, "a"]:
        wanted = self._speed * self._script(self._robot.true_state())
        noise = self._generator.normal(size=self._half.shape) * self._noise * self._half
        return _clip(self._robot.spec, wanted + noise)


class _Shown:
    """On the way to a goal picture, one of the task's, hardly disturbed."""

    def __init__(
        self, robot: SimulatedRobot, task: Task, generator: np.random.Generator,
        goal: Float[np.ndarray, "w"] | None = None,
    ) -> None:  # fmt: skip
        self._robot, self._task, self._generator = robot, task, generator
        self._half = _box(robot.spec)[1]
        self._noise = generator.uniform(0.0, SHOWN_NOISE if task.quasi_static else SHOWN_NOISE_IN_MOTION)
        self.goal = task.sample_pair(generator)[1] if goal is None else goal

    def done(self) -> bool:
        """Whether the goal picture is true."""
        return self._task.shown(self._robot.true_state(), self.goal)

    def _disturbed(self, wanted: Float[np.ndarray, "a"]) -> Float[np.ndarray, "a"]:
        noise = self._generator.normal(size=self._half.shape) * self._noise * self._half
        return _clip(self._robot.spec, wanted + noise)


class _Demonstrated(_Shown):
    """The task's demonstration."""

    def __init__(
        self, robot: SimulatedRobot, task: Task, generator: np.random.Generator,
        goal: Float[np.ndarray, "w"] | None = None,
    ) -> None:  # fmt: skip
        super().__init__(robot, task, generator, goal)
        self._show = task.demonstration(self.goal)
        self._wanted = np.ones(0)

    def done(self) -> bool:
        """Whether the goal picture is true, or nothing was left to do for it."""
        nothing = len(self._wanted) > 0 and bool((self._wanted == 0).all())
        return nothing or super().done()

    def __call__(self, observation: Observation) -> Float[np.ndarray, "a"]:
        self._wanted = self._show(self._robot.true_state())
        return self._disturbed(self._wanted)


class _Driven(_Shown):
    """The apprentice's way."""

    def __init__(
        self, robot: SimulatedRobot, task: Task, generator: np.random.Generator, apprentice: Apprentice
    ) -> None:
        super().__init__(robot, task, generator)
        self._apprentice = apprentice
        apprentice.begin(self.goal)

    def __call__(self, observation: Observation) -> Float[np.ndarray, "a"]:
        return self._disturbed(self._apprentice.act(observation))


class _Smooth:
    """a' = r a + sqrt(1 - r^2) noise, with r and the noise's size drawn once a segment."""

    def __init__(self, spec: RobotSpec, generator: np.random.Generator) -> None:
        self._spec, self._generator = spec, generator
        self._centre, half = _box(spec)
        self._correlation = generator.uniform(0.5, 0.95)
        self._size = generator.uniform(0.2, 1.0) * half
        self._value = self._noise()

    def __call__(self, observation: Observation) -> Float[np.ndarray, "a"]:
        r = self._correlation
        self._value = r * self._value + np.sqrt(1.0 - r**2) * self._noise()
        return _clip(self._spec, self._centre + self._value)

    def _noise(self) -> Float[np.ndarray, "a"]:
        return self._generator.normal(size=self._size.shape) * self._size


class _Reach:
    """Towards goals uniform over the state's bounds, on the short way round for periodic components."""

    def __init__(self, spec: RobotSpec, generator: np.random.Generator) -> None:
        if spec.state_model != "joints":
            raise InputError(
                f"Goal-reaching data needs the state model 'joints', {spec.name} has {spec.state_model!r}."
            )
        self._spec, self._generator = spec, generator
        _, self._half = _box(spec)
        self._low, self._high = np.array(spec.state_low), np.array(spec.state_high)
        self._period = np.where(spec.state_periodic, self._high - self._low, np.inf)
        self._speed, self._noise = generator.uniform(0.3, 1.0), generator.uniform(0.0, 0.3)
        self._goal = generator.uniform(self._low, self._high)

    def __call__(self, observation: Observation) -> Float[np.ndarray, "a"]:
        state = observation.proprioception.astype(np.float32).astype(np.float64)  # as it is kept
        if (np.abs(_difference(self._goal, state, self._period)) < 0.5 * self._half).all():
            self._goal = self._generator.uniform(self._low, self._high)
        largest = self._speed * self._half
        wanted = np.clip(_difference(self._goal, state, self._period), -largest, largest)
        noise = self._generator.normal(size=self._half.shape) * self._noise * self._half
        return _clip(self._spec, wanted + noise)


def _difference(
    goal: Float[np.ndarray, "s"], state: Float[np.ndarray, "s"], period: Float[np.ndarray, "s"]
) -> Float[np.ndarray, "s"]:
    """goal - state, wrapped to half a period either way where `period` is finite."""
    difference = goal - state
    turns = np.where(np.isfinite(period), np.round(difference / period), 0.0)
    return difference - turns * np.where(np.isfinite(period), period, 0.0)


def _full_speed(spec: RobotSpec, generator: np.random.Generator) -> Act:
    choice = generator.integers(-1, 2, size=len(spec.action_names))
    action = np.where(choice < 0, spec.action_low, np.where(choice > 0, spec.action_high, _still(spec)))
    return lambda _: action


def _hold(spec: RobotSpec, generator: np.random.Generator) -> Act:
    return lambda _: _still(spec)


def _still(spec: RobotSpec) -> Float[np.ndarray, "a"]:
    """Actions are displacements: zero holds."""
    return np.zeros(len(spec.action_names))


def _clip(spec: RobotSpec, action: Float[np.ndarray, "a"]) -> Float[np.ndarray, "a"]:
    return np.clip(action, spec.action_low, spec.action_high)


def _box(spec: RobotSpec) -> tuple[Float[np.ndarray, "a"], Float[np.ndarray, "a"]]:
    low, high = np.array(spec.action_low), np.array(spec.action_high)
    return (low + high) / 2, (high - low) / 2
