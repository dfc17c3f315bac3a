"""Whether a task and its world keep what docs/tasks.md says of all: the job of `vjepa-mpc tasks check`.

Everything is measured through the contract (`SimulatedRobot`, `Task`), so that a stranger's task is measured as the
built-in ones are; contacts are looked at where the world is a `MujocoWorld`.
"""

from __future__ import annotations

import hashlib
import math
import statistics
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context

import numpy as np
from jaxtyping import Float

from vjepa_mpc.core.errors import InputError
from vjepa_mpc.intervals import wilson_interval
from vjepa_mpc.robots.base import RobotSpec, SimulatedRobot
from vjepa_mpc.robots.task import Task
from vjepa_mpc.robots.tasks import draw_pair, play_script
from vjepa_mpc.robots.world import MujocoWorld

STILL = 1e-3
"""A world is at rest when the next step, without an action, moves nothing by more (m, rad)."""
DEEP_M = 1e-3
CEILING = 0.95
_PIXEL_LEVELS, _PIXEL_SHARE = 8, 0.01

Build = Callable[[], SimulatedRobot]


@dataclass(frozen=True)
class Sanity:
    """What was measured of one task, and what of it does not hold (`faults`, a sentence each).

    `as_told`: share of steps within `Task.exactness`, None where the state is no sum of actions. `unrest`: share of
    steps after which something still moved, None where it may (`Task.quasi_static`). `deepest_m`: of all contacts, None
    where they cannot be seen. `repeats`: whether another process ran to the same bits. `changed`: share of the picture
    that is another when the world is placed anew in the state it says it is in. `held` of `pairs` that were drawn now.
    """

    steps: int
    as_told: float | None
    unrest: float | None
    deepest_m: float | None
    repeats: bool
    changed: float
    held: int
    pairs: int
    faults: tuple[str, ...]

    @property
    def interval(self) -> tuple[float, float]:
        """Wilson's, of 95 %, for the share of pairs that the script held."""
        return wilson_interval(self.held, self.pairs)


def check_task(build: Build, task: Task, *, seed: int = 0, steps: int = 1000, pairs: int = 20) -> Sanity:
    """Measure all of it on randomness from `seed`. `build` makes the world, in another process too.

    `steps` are steps with actions kept up for a dozen steps, half of them at the limits, into whatever there is.
    """
    robot = build()
    faults: list[str] = []
    try:
        faults += [*_broken_contract(robot, task, seed), *_unrefused(robot, task, seed)]
        as_told = _as_told(robot, task, seed, min(steps, 200))
        unrest, deepest, outside = _walk(robot, task, seed, steps)
        changed, refused = _changed(robot, task, seed)
        held = _held(robot, task, seed, pairs)
    finally:
        robot.close()
    mine = run_digest(build, seed)
    with ProcessPoolExecutor(1, get_context("spawn")) as other:
        repeats = mine == other.submit(run_digest, build, seed).result()
    faults += [*outside, *refused]
    if as_told is not None and as_told < 0.5:
        faults.append(f"only {as_told:.0%} of random steps move as the returned action says: its units are not true")
    if unrest is not None and unrest > 0.05:
        faults.append(f"after {unrest:.0%} of steps something moves on: give them time, or say quasi_static = False")
    if deepest is not None and deepest > DEEP_M:
        faults.append(f"bodies sink {1e3 * deepest:.1f} mm into each other")
    if not repeats:
        faults.append("another process with the same seed ran differently: draw from generators that are handed in")
    if changed > _PIXEL_SHARE and not refused:
        faults.append(f"{changed:.0%} of the picture is another when the world is placed in the state it says it is in")
    if held < CEILING * pairs:
        faults.append(f"the script holds {held} of {pairs} pairs, under {CEILING:.0%}: better it, or draw easier pairs")
    return Sanity(steps, as_told, unrest, deepest, repeats, changed, held, pairs, tuple(faults))


def bold(spec: RobotSpec, generator: np.random.Generator, steps: int) -> Iterator[Float[np.ndarray, "a"]]:
    """Actions that drive a robot into whatever there is: kept up for a dozen steps, half of them at the limits."""
    low, high = np.array(spec.action_low), np.array(spec.action_high)
    action = low
    for step in range(steps):
        if step % 12 == 0:
            action = generator.uniform(low, high)
            if generator.random() < 0.5:
                action = np.where(action < (low + high) / 2, low, high)
        yield action


def run_digest(build: Build, seed: int) -> str:
    """A hash of the pictures, proprioception and true states of a short random run, drawn from `seed`."""
    robot = build()
    try:
        digest = hashlib.sha256()
        low, high = robot.spec.action_low, robot.spec.action_high
        seen = robot.reset(seed)
        for action in np.random.default_rng(seed).uniform(low, high, (15, len(low))):
            digest.update(b"".join(np.ascontiguousarray(image).tobytes() for image in seen.images.values()))
            digest.update(seen.proprioception.tobytes() + robot.true_state().tobytes())
            robot.apply(action)
            seen = robot.observe()
        return digest.hexdigest()
    finally:
        robot.close()


def _broken_contract(robot: SimulatedRobot, task: Task, seed: int) -> Iterator[str]:
    generator = np.random.default_rng(seed)
    for mine, theirs, what in (
        (robot.spec.action_names, task.spec.action_names, "action names"),
        (robot.spec.action_high, task.spec.action_high, "upper action bounds"),
        (robot.spec.action_low, task.spec.action_low, "lower action bounds"),
        (robot.spec.control_period_s, task.spec.control_period_s, "control periods"),
    ):
        if mine != theirs:
            yield f"robot and task differ in their {what}: {mine} and {theirs}"
    for _ in range(5):
        state = robot.sample_state(generator)
        try:
            seen = robot.place(task.world.check(state))
        except InputError as error:
            yield f"a state that it draws itself, {state.tolist()}, is refused: {error}"
            continue
        if not np.allclose(robot.true_state(), state, rtol=0.0, atol=1e-6):
            yield f"placed in {state.tolist()} it is in {robot.true_state().tolist()}"
        if not abs(task.distance(state, state)) < 1e-9:
            yield f"a state's distance to itself is {task.distance(state, state)}, not 0"
        for name, camera in robot.spec.cameras.items():
            if name not in seen.images:
                yield f"there is no picture of {name}, a camera of its spec"
            elif seen.images[name].shape != (camera.height, camera.width, 3):
                yield f"the picture of {name} has shape {seen.images[name].shape}, not as its camera says"
    before = robot.observe().time_s
    robot.apply(np.zeros(len(robot.spec.action_names)))
    if not math.isclose(robot.observe().time_s - before, robot.spec.control_period_s, abs_tol=1e-9):
        yield f"a step takes {robot.observe().time_s - before:g} s, and the spec says {robot.spec.control_period_s:g}"


def _unrefused(robot: SimulatedRobot, task: Task, seed: int) -> Iterator[str]:
    count = len(robot.spec.action_names)
    robot.reset(seed)
    before = robot.true_state()
    for bad in (np.zeros(count + 1), np.full(count, math.nan), np.full(count, math.inf)):
        try:
            robot.apply(bad)
        except InputError:
            continue
        except Exception as error:  # whatever a stranger's robot makes of it
            yield f"an action {bad.tolist()} raises {type(error).__name__}: call spec.check_action first"
        else:
            yield f"an action {bad.tolist()} is not refused with an InputError: call spec.check_action first"
        robot.reset(seed)
    robot.apply(np.zeros(count))
    if task.quasi_static and np.abs(_apart(task, robot.true_state(), before)).max() > STILL:
        yield "it moves after an action that it refused"


def _as_told(robot: SimulatedRobot, task: Task, seed: int, steps: int) -> float | None:
    """The share of steps whose measured motion is the action that `apply` returned, as exactly as the task says."""
    spec = robot.spec
    if spec.state_model not in ("joints", "pose") or len(spec.action_names) != len(spec.state_names):
        return None
    generator, right = np.random.default_rng(seed), 0
    limits = np.maximum(np.abs(spec.action_low), np.abs(spec.action_high))
    turns = np.array([unit == "rad" for unit in spec.state_units])
    for step in range(steps):
        if step % 10 == 0:
            robot.reset(seed + step)
        before = robot.observe().proprioception.astype(float)
        applied = np.asarray(robot.apply(generator.uniform(spec.action_low, spec.action_high)), dtype=float)
        after = robot.observe().proprioception.astype(float)
        told = _integrated(before, applied) if spec.state_model == "pose" else before + applied
        error = np.where(turns, _wrapped(after - told), after - told)
        right += bool((np.abs(error) <= task.exactness * limits).all())
    return right / steps


def _integrated(pose: Float[np.ndarray, "7"], delta: Float[np.ndarray, "7"]) -> Float[np.ndarray, "7"]:
    import torch  # seconds, which the other process and worlds of joints need not spend

    from vjepa_mpc.core.poses import integrate_pose

    after: Float[np.ndarray, "7"] = integrate_pose(torch.from_numpy(pose), torch.from_numpy(delta)).numpy()
    return after


def _walk(robot: SimulatedRobot, task: Task, seed: int, steps: int) -> tuple[float | None, float | None, list[str]]:
    """Share of steps that do not end at rest, deepest contact (m), and states that are none."""
    generator, still = np.random.default_rng(seed), np.zeros(len(robot.spec.action_names))
    deepest = 0.0 if isinstance(robot, MujocoWorld) else None
    looked, moving = 0, 0
    for step, action in enumerate(bold(robot.spec, generator, steps)):
        if step % 100 == 0:
            robot.reset(seed + step)
        applied = robot.apply(action)
        state = robot.true_state()
        try:
            inside = np.clip(state, task.world.low, task.world.high)
            task.world.check(np.where(np.abs(state - inside) < STILL, inside, state))  # a joint stop gives way a little
            robot.spec.check_limits(applied)
        except InputError as error:
            return None, deepest, [f"after {step + 1} bold steps: {str(error).rstrip('.')}"]
        if isinstance(robot, MujocoWorld):
            deepest = max(deepest or 0.0, robot.penetration_m())
            if robot.warned():
                return None, deepest, [f"MuJoCo warns of numbers that blow up after {step + 1} bold steps"]
        if task.quasi_static and step % 5 == 4:
            robot.apply(still)
            looked += 1
            moving += bool(np.abs(_apart(task, robot.true_state(), state)).max() > STILL)
    return moving / looked if looked else None, deepest, []


def _changed(robot: SimulatedRobot, task: Task, seed: int) -> tuple[float, list[str]]:
    """Share of pixels that are others when the world is placed anew where it is: picture and state of one instant.
    A state in which it cannot be placed is a fault."""
    shares = []
    for run in range(3):
        robot.reset(seed + run)
        for action in bold(robot.spec, np.random.default_rng([seed, run]), 12):
            robot.apply(action)
        here = np.clip(robot.true_state(), task.world.low, task.world.high)
        try:
            pictures = [robot.observe().images, robot.place(here).images]
        except InputError as error:
            return 1.0, [f"it cannot be placed in the state it says it is in ({str(error).rstrip('.')})"]
        apart = [np.abs(pictures[0][name].astype(int) - pictures[1][name]) for name in pictures[0]]
        shares.append(max(float((one > _PIXEL_LEVELS).mean()) for one in apart))
    return statistics.median(shares), []


def _held(robot: SimulatedRobot, task: Task, seed: int, pairs: int) -> int:
    generator, held = np.random.default_rng([seed, pairs]), 0
    for _ in range(pairs):
        start, goal = draw_pair(task, generator)
        held += task.held(play_script(robot, task, start, goal))
    return held


def _apart(task: Task, one: Float[np.ndarray, "w"], other: Float[np.ndarray, "w"]) -> Float[np.ndarray, "w"]:
    turns = np.array([unit == "rad" for unit in task.world.units])
    return np.where(turns, _wrapped(one - other), one - other)


def _wrapped(angles: Float[np.ndarray, "n"]) -> Float[np.ndarray, "n"]:
    return (angles + np.pi) % (2 * np.pi) - np.pi
