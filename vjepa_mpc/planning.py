"""Planning to a goal picture: the job of `vjepa-mpc plan`, usable from Python.

`load_goal` reads the picture, `doubt` says whether it is like those of the training, `reach` drives a robot
in closed loop, `plan_once` plans from two pictures without any robot. `vjepa_mpc.plan_files` writes the results.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float, UInt8

from vjepa_mpc.controller import (
    Controller,
    ControllerState,
    ControlSettings,
    Decision,
    View,
)
from vjepa_mpc.core.errors import InputError
from vjepa_mpc.costs import latent_distance
from vjepa_mpc.familiarity import Likeness
from vjepa_mpc.fixed_rate import run_at_fixed_rate
from vjepa_mpc.governors import Guards
from vjepa_mpc.images import load_image
from vjepa_mpc.loop import StepRecord, Watcher, run_episode
from vjepa_mpc.planners.base import Planner
from vjepa_mpc.robots.base import Observation, Robot, RobotSpec, SimulatedRobot, StateSpec
from vjepa_mpc.robots.factory import find_task, task_names
from vjepa_mpc.world_model import Calibration, WorldModel

START_TRIES = 50
CLEARLY_AWAY = 2.0
"""A drawn start is preferably this many times `reached_cost` from the goal, or more."""

End = Literal["reached", "max_steps", "stalled", "interrupted", "failed"]


@dataclass(frozen=True)
class Goal:
    """A goal picture and the file it came from; `sha256` is of the file's bytes."""

    path: Path
    image: UInt8[np.ndarray, "height width 3"]
    sha256: str


def load_goal(path: Path | str) -> Goal:
    """Read a goal picture. `InputError` for one that is missing, damaged or too large (see `load_image`)."""
    path = Path(path)
    image = load_image(path)
    return Goal(path, image, hashlib.sha256(path.read_bytes()).hexdigest())


def world_of(spec: RobotSpec) -> StateSpec:
    """What a state of the world of this robot consists of: its task's, or the robot's own."""
    return find_task(spec.name).world if spec.name in task_names() else spec.proprioception


def known_goal_state(picture: Path, spec: RobotSpec) -> tuple[Float[np.ndarray, "s"] | None, str | None]:
    """The goal's state from `{"state": [...]}` in `<picture>.json` beside it (goal.png: goal.json), and a note.

    It is for reporting distances; a plan never sees it. (None, None) without such a file, (None, why) for
    one that cannot be used.
    """
    sidecar = picture.with_suffix(".json")
    if sidecar == picture or not sidecar.is_file():
        return None, None
    try:
        content = json.loads(sidecar.read_text(encoding="utf-8"))
        if not isinstance(content, dict) or "state" not in content:
            return None, None
        return world_of(spec).check(content["state"]), None
    except (json.JSONDecodeError, UnicodeDecodeError):
        return None, (
            f"{sidecar} beside the goal picture is no JSON and is not used for distances; a file of that name may say "
            'where the goal is, as {"state": [...]}.'
        )
    except (OSError, ValueError, TypeError) as error:  # InputError is a ValueError
        return None, f"{sidecar} beside the goal picture is not used for distances: {error}"


def trained(model: WorldModel, name: str) -> Calibration:
    """The model's calibration; `InputError` when it has none, for then it was never trained to the end."""
    calibration = model.config.calibration
    if calibration is None:
        raise InputError(
            f"{name} has no calibration: its training was never finished, and untrained weights are not planned "
            "with; finish it with `vjepa-mpc train`."
        )
    return calibration


def other_renderer(robot: SimulatedRobot, model: WorldModel) -> str | None:
    """A warning when another renderer draws than drew the pictures that `model` was trained on, else None."""
    trained_on = model.config.renderer
    if not trained_on or robot.renderer_identity == trained_on:
        return None
    return (
        f"Pictures come from {robot.renderer_identity}, but the model was trained on {trained_on}: it may plan worse."
    )


def doubt(picture: str, likeness: Likeness, calibration: Calibration) -> str | None:
    """A warning when a picture is unlike those of training, or shows next to nothing, else None."""
    if likeness.contrast < calibration.contrast:
        return (
            f"{picture} shows hardly anything (contrast {likeness.contrast:.3g}; 99.9 % of the pictures the model was "
            f"trained on have more than {calibration.contrast:.3g}): the plan means little; take the picture in the "
            "light of the training, with the robot in view."
        )
    if calibration.grain is not None and likeness.grain > calibration.grain:
        return (
            f"{picture} looks like noise (grain {likeness.grain:.3g}; 99.9 % of the pictures the model was trained on "
            f"have less than {calibration.grain:.3g}): the plan means little; take the picture with the robot's own "
            "camera."
        )
    score, limit = likeness.score, calibration.goal_score
    if score is None or limit is None or score <= limit:
        return None
    return (
        f"{picture} lies far from anything the model was trained on (score {score:.3g}; 99 % of such pictures stay "
        f"below {limit:.3g}): the plan means little; take the picture with the robot's own camera."
    )


def long_way(spec: RobotSpec, actions: Float[np.ndarray, "h a"]) -> str | None:
    """A note when displacements turn a joint by more than half its circle, else None. The model may imagine either way
    round, for the poses are the same."""
    if spec.action_units != spec.state_units:
        return None
    total = actions.sum(axis=0)
    turned = [
        f"{name} by {turn:+.2f} rad, where {turn - math.copysign(2 * math.pi, turn):+.2f} leads to the same pose"
        for name, turn, free in zip(spec.state_names, total, spec.state_periodic, strict=True)
        if free and abs(turn) > math.pi
    ]
    return f"This plan goes the long way round: it turns {', and '.join(turned)}." if turned else None


class GoalController(Controller):
    """A controller that keeps its first decision (whose cost is drawn as the energy landscape), and refuses
    a state that is not a number before anything is planned from it."""

    def __init__(
        self,
        model: WorldModel,
        planner: Planner,
        goal: UInt8[np.ndarray, "height width 3"],
        settings: ControlSettings,
        generator: torch.Generator,
        guards: Guards | None = None,
    ) -> None:
        super().__init__(model, planner, goal, settings, generator, guards)
        self.first: Decision | None = None

    def see(self, observation: Observation, state: ControllerState) -> tuple[View, ControllerState]:
        if not np.isfinite(observation.proprioception).all():
            raise InputError(
                f"{self.model.config.robot.name} reports the state {observation.proprioception.tolist()}, which is "
                "not finite; check its sensors."
            )
        return super().see(observation, state)

    def decide(self, view: View, state: ControllerState) -> tuple[Decision, ControllerState]:
        decision, state = super().decide(view, state)
        if self.first is None:
            self.first = decision
        return decision, state


@dataclass(frozen=True)
class Outcome:
    """What a closed loop came to: its records, how it ended, and the error if it failed.

    The last record of an `ended` "reached", "max_steps" or "stalled" (the watchdog's) is of the final view: its
    action was not sent.
    """

    records: tuple[StepRecord, ...]
    ended: End
    error: Exception | None = None

    @property
    def actions(self) -> int:
        """How many actions the robot was sent."""
        return len(self.records) - (self.ended in ("reached", "max_steps", "stalled"))


class _Log:
    """Keeps the records and hands them on; a Ctrl-C waits until every watcher has the whole record."""

    def __init__(self, watchers: Sequence[Watcher]) -> None:
        self.records: list[StepRecord] = []
        self.watchers = watchers

    def step(self, record: StepRecord) -> None:
        with interrupt_held():
            self.records.append(record)
            for watcher in self.watchers:
                watcher.step(record)


def reach(
    controller: GoalController,
    robot: Robot,
    *,
    max_steps: int,
    watchers: Sequence[Watcher] = (),
    distance: Callable[[], float] | None = None,
    period_s: float | None = None,
) -> Outcome:
    """Drive `robot` until the model judges the goal reached and held, for `max_steps` actions, or to Ctrl-C.

    With `period_s` an action goes out that often, and no plan is waited for (`vjepa_mpc.fixed_rate`).

    The robot is stopped in any case. An error ends the loop like Ctrl-C does, so that what was recorded can
    be saved; it is in the outcome, to be raised after that. `distance` (m to the goal) is for the records only.
    """
    log = _Log(watchers)
    ended: End = "failed"
    error: Exception | None = None
    try:
        if period_s is None:
            run_episode(controller, robot, max_steps=max_steps, watchers=[log], distance=distance)
        else:
            run_at_fixed_rate(
                controller, robot, period_s=period_s, max_steps=max_steps, watchers=[log], distance=distance
            )
        last = log.records[-1]
        ended = "reached" if last.reached else "stalled" if "watchdog" in last.held_by else "max_steps"
    except KeyboardInterrupt:
        ended = "interrupted"
    except Exception as caught:
        error = caught
    return Outcome(tuple(log.records), ended, error)


def plan_once(
    controller: GoalController, image: UInt8[np.ndarray, "height width 3"], state: Float[np.ndarray, "s"]
) -> Decision:
    """One plan from a picture of now and the state in it (the robot's units); nothing is moved."""
    camera = controller.model.config.camera
    observation = Observation({camera: image}, np.asarray(state, dtype=np.float32), 0.0)
    return controller.step(observation, ControllerState())[0]


def plan_through(
    controllers: Sequence[GoalController],
    image: UInt8[np.ndarray, "height width 3"],
    state: Float[np.ndarray, "s"],
) -> list[Decision]:
    """One plan to each of several goals in order, each from where the model imagines the one before to end."""
    decisions = [plan_once(controllers[0], image, state)]
    for controller in controllers[1:]:
        before = decisions[-1]
        with torch.no_grad():
            problem = torch.zeros(1, dtype=torch.long, device=controller.model.device)
            future = before.cost.imagine(before.plan.actions[:, None], problem)
        there = controller.look(future.latents[:, 0, -1], future.states[:, 0, -1], ControllerState())
        decisions.append(controller.decide(*there)[0])
    return decisions


@dataclass(frozen=True)
class OrderedOutcome(Outcome):
    """Of several goals in order: `stages` says how each that was begun ended, and after how many actions of its own."""

    stages: tuple[tuple[End, int], ...] = ()


def reach_in_order(
    controllers: Sequence[GoalController],
    robot: Robot,
    *,
    max_steps: int,
    watchers: Sequence[Watcher] = (),
    distance: Callable[[], float] | None = None,
    period_s: float | None = None,
    turn: Callable[[int], None] = lambda goal: None,
) -> OrderedOutcome:
    """Drive `robot` to several goals one after the other; `max_steps` actions at most for each.

    A goal that was not reached by then is left for the next one, as V-JEPA 2-AC's sub-goals are. How it ended is
    said of the last goal. A goal's final view is the first one of the next, and is recorded once, as that; watchers
    see what is recorded. `turn` is called with a goal's number before its first view.
    """
    done: list[StepRecord] = []
    stages: list[tuple[End, int]] = []
    for number, controller in enumerate(controllers):
        turn(number)
        numbered = _Renumbered(watchers, len(done), max_steps, last=controller is controllers[-1])
        outcome = reach(
            controller, robot, max_steps=max_steps, watchers=[numbered], distance=distance, period_s=period_s
        )
        stages.append((outcome.ended, outcome.actions))
        own = [replace(record, step=record.step + len(done)) for record in outcome.records]
        if controller is controllers[-1] or outcome.ended not in ("reached", "max_steps", "stalled"):
            numbered.release()
            return OrderedOutcome((*done, *own), outcome.ended, outcome.error, tuple(stages))
        done += own[:-1]
    raise AssertionError("there was no goal")


class _Renumbered:
    """Hands records on with the number of the step since the first goal. The final view of a goal that another one
    follows is that one's first, and is held back, unless Ctrl-C lets nothing follow."""

    def __init__(self, watchers: Sequence[Watcher], first: int, max_steps: int, *, last: bool) -> None:
        self.watchers, self.first, self.max_steps, self.last = watchers, first, max_steps, last
        self.held: StepRecord | None = None

    def step(self, record: StepRecord) -> None:
        if not self.last and (record.reached or record.step == self.max_steps or "watchdog" in record.held_by):
            self.held = record
        else:
            self._hand_on(record)

    def release(self) -> None:
        """Hand on what is held back."""
        if self.held is not None:
            self._hand_on(self.held)

    def _hand_on(self, record: StepRecord) -> None:
        for watcher in self.watchers:
            watcher.step(replace(record, step=record.step + self.first))


def place_start(
    robot: Robot, controller: Controller, calibration: Calibration, start: Sequence[float] | None, seed: int
) -> None:
    """Put a simulated robot at `start` (its units), or at a pose drawn from `seed` that is not at the goal.

    The model itself judges that, by the latent distance of the view. A robot that cannot be placed is reset.
    """
    if not isinstance(robot, SimulatedRobot):
        if start is not None:
            raise InputError(f"{robot.spec.name} is no simulated robot and cannot be put at a start; leave it out.")
        robot.reset(seed)
        return
    if start is not None:
        robot.place(np.asarray(start, dtype=np.float64))
        return
    model, generator = controller.model, np.random.default_rng(seed)
    farthest, away = np.zeros(0), calibration.reached_cost
    for _ in range(START_TRIES):
        state = robot.sample_state(generator)
        view = model.encode(robot.place(state).images[model.config.camera][None])
        distance = float(latent_distance(view, controller.goal))
        if distance > CLEARLY_AWAY * calibration.reached_cost:
            return
        if distance > away:
            farthest, away = state, distance
    if not farthest.size:
        raise InputError(
            f"To this model none of {START_TRIES} drawn starts looks different from the goal; choose one with --start."
        )
    robot.place(farthest)


def distance_to(robot: Robot, goal_state: Float[np.ndarray, "s"] | None) -> Callable[[], float] | None:
    """A function that gives the distance [m] to `goal_state` as the robot's own task judges it, or else the end
    effector's to where it is in `goal_state`; simulation only.

    May move the robot there for a moment: call it before the start is placed.
    """
    if goal_state is None or not isinstance(robot, SimulatedRobot):
        return None
    simulated = robot
    if robot.spec.name in task_names():
        task = find_task(robot.spec.name)
        return lambda: task.distance(simulated.true_state(), goal_state)
    robot.place(goal_state)
    target = robot.end_effector()
    return lambda: float(np.linalg.norm(simulated.end_effector() - target))


@contextlib.contextmanager
def interrupt_held() -> Iterator[None]:
    """Inside the block Ctrl-C waits; it is raised at the end. Nothing changes outside the main thread."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    waiting: list[int] = []

    def note(number: int, frame: FrameType | None) -> Any:
        waiting.append(number)

    before = signal.signal(signal.SIGINT, note)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
    if waiting and callable(before):
        before(signal.SIGINT, None)
