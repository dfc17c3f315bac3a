"""One episode: the physical side, which places, moves, observes and judges, and the diary of whoever decides.

The two sides share nothing but the values below, so that a scene can live in another process than the world model.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, UInt8

from vjepa_mpc.robots.base import Observation, SimulatedRobot
from vjepa_mpc.robots.task import Task, intrusion
from vjepa_mpc.robots.tasks import MANIFEST_SEEDS, Pair
from vjepa_mpc.robots.world import vary_world

Picture = UInt8[np.ndarray, "height width 3"]


@dataclass(frozen=True)
class EpisodeResult:
    """One episode. `distances[i]` [m, as the task judges them] after action i, `latent_costs[i]` of the view
    before it; `milliseconds` of each decision; `model_reached`: after how many steps the model itself first
    judged the goal (the last, where there are sub-goals) reached and held (None: never); `intrusion`: how deep [m] the
    end effector was, at worst, in a region the task forbids (at every physics step where the robot tells its way, else
    after every action). `together`: episodes that were decided at once; `milliseconds` are those of all of them."""

    index: int
    start_distance: float
    distances: tuple[float, ...]
    hit: bool
    held: bool
    model_reached: int | None
    latent_costs: tuple[float, ...]
    milliseconds: tuple[float, ...]
    evaluations: int
    intrusion: float = 0.0
    together: int = 1


@dataclass(frozen=True)
class Stage:
    """A goal as it is shown: its picture and state, from the step after which it holds."""

    begins: int
    picture: Picture
    state: Float[np.ndarray, "w"]


@dataclass(frozen=True)
class Begun:
    """A start: what is seen there (`camera`: in which picture), how far [m] the goal is, and the goals in turn."""

    observation: Observation
    camera: str
    distance: float
    stages: tuple[Stage, ...]


@dataclass(frozen=True)
class Moved:
    """What came of an action: as it was truly applied, what is seen now, how far [m] the goal is, and how deep [m] the
    end effector was in a forbidden region."""

    applied: Float[np.ndarray, "a"]
    observation: Observation
    distance: float
    intrusion: float


class Scene:
    """The physical side: a robot and a task. It knows the truth, and nothing of who decides."""

    def __init__(self, robot: SimulatedRobot, task: Task, levels: Mapping[str, float] | None = None) -> None:
        self.robot, self.task, self.levels = robot, task, levels
        self._goal = np.zeros(0)

    def begin(self, index: int, pair: Pair) -> Begun:
        """Paint and vary the world for pair number `index`, look at its goals, and place its start."""
        robot, task = self.robot, self.task
        start, self._goal = np.asarray(pair.start), np.asarray(pair.goal)
        if self.levels:  # the plain pairs' looks are seeded by their numbers
            vary_world(robot, MANIFEST_SEEDS + index if pair.appearance is None else pair.appearance, self.levels)
        else:
            robot.set_appearance(pair.appearance)
        camera = next(iter(robot.spec.cameras))
        stages, begins = [], 0
        for goal in task.sub_goals(start, self._goal):
            stages.append(Stage(begins, robot.place(goal.state).images[camera], goal.state))
            begins = goal.until
        observation = robot.place(start)
        return Begun(observation, camera, task.distance(robot.true_state(), self._goal), tuple(stages))

    def act(self, action: Float[np.ndarray, "a"]) -> Moved:
        """Move for one control period."""
        applied = self.robot.apply(action)
        observation = self.robot.observe()
        deep = intrusion(self.robot, self.task)
        return Moved(applied, observation, self.task.distance(self.robot.true_state(), self._goal), deep)

    def stop(self) -> None:
        """Hold still: the episode is over."""
        self.robot.stop()

    def close(self) -> None:
        self.robot.close()


class Diary:
    """What the deciding side keeps of one episode. To `film` are added the last goal's picture and every view."""

    def __init__(self, index: int, task: Task, seed: int, begun: Begun, film: list[Picture] | None = None) -> None:
        self.index, self.task, self.stages, self.film = index, task, begun.stages, film
        self.observation, self._camera = begun.observation, begun.camera
        self._start = begun.distance
        self._seeds = np.random.SeedSequence((seed, index)).generate_state(len(begun.stages))
        self._distances: list[float] = []
        self._costs: list[float] = []
        self._times: list[float] = []
        self._evaluations, self._deepest = 0, 0.0
        self._reached: int | None = None
        if film is not None:
            film.append(begun.stages[-1].picture)
            self._view()

    def turn(
        self,
        begin: Callable[[Picture, Float[np.ndarray, "w"], int], None],
        later: Callable[[Picture, Float[np.ndarray, "w"], int], None] | None = None,
    ) -> None:
        """Call `begin` with picture, state and seed of the goal that holds from this step on, if one begins here;
        `later`, where there is one, instead for all goals but the first."""
        for stage, seed in zip(self.stages, self._seeds, strict=True):
            if stage.begins == len(self._distances):
                (later if later and stage.begins else begin)(stage.picture, stage.state, int(seed))

    def note(self, milliseconds: float, moved: Moved, figures: Mapping[str, float]) -> None:
        """A step: what deciding took, what came of it, and the decider's figures."""
        step = len(self._distances)
        self.observation = moved.observation
        self._times.append(round(milliseconds, 2))
        self._distances.append(round(moved.distance, 5))
        self._deepest = max(self._deepest, moved.intrusion)
        self._evaluations += int(figures.get("evaluations", 0))
        if "latent_cost" in figures:
            self._costs.append(round(figures["latent_cost"], 5))
        if self._reached is None and step >= self.stages[-1].begins and figures.get("reached"):
            self._reached = step
        if self.film is not None:
            self._view()

    def result(self, together: int = 1) -> EpisodeResult:
        """The finished episode."""
        distances = tuple(self._distances)
        return EpisodeResult(
            self.index, round(self._start, 5), distances, self.task.hit(distances), self.task.held(distances),
            self._reached, tuple(self._costs), tuple(self._times), self._evaluations, round(self._deepest, 5), together,
        )  # fmt: skip

    def _view(self) -> None:
        if self.film is not None:
            self.film.append(self.observation.images[self._camera])
