"""`vjepa-mpc plan`: move a robot until its camera shows what the goal picture shows."""

from __future__ import annotations

import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from vjepa_mpc.cli import guarding
from vjepa_mpc.cli.building import (
    ACTOR,
    ACTOR_HELP,
    DRAFT_HELP,
    KNOTS_HELP,
    MODEL_HELP,
    OWN_HELP,
    PLANNER_HELP,
    PROPOSE_HELP,
    SET_HELP,
)
from vjepa_mpc.cli.limiting import BALL_HELP, FIX_HELP, RATE_LIMIT_HELP, step_limits
from vjepa_mpc.cli.plan_screen import Screen
from vjepa_mpc.core.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Callable

    from vjepa_mpc.loop import StepRecord
    from vjepa_mpc.plan_files import Setting
    from vjepa_mpc.planning import Goal, GoalController, OrderedOutcome
    from vjepa_mpc.robots.base import Robot, RobotSpec
    from vjepa_mpc.world_model import Calibration, WorldModel

REACHED, NOT_REACHED, INTERRUPTED = 0, 3, 130
PLANNING, SIMULATION, PICTURES, OUTPUT = "Planning", "Simulation", "One plan from two pictures", "Output"
GUARDRAILS = "Guardrails"
MAX_STEPS = 50


def plan(
    goal: list[Path] = typer.Option(..., help="Picture of the goal, of any size; several are sub-goals in order."),
    model: str | None = typer.Option(None, help=MODEL_HELP),
    max_steps: int | None = typer.Option(
        None, min=1, help="Give up a goal after so many actions.", show_default=str(MAX_STEPS)
    ),
    preset: str | None = typer.Option(
        None, help="vjepa2-ac: V-JEPA 2-AC's planner as published (for models of poses).", rich_help_panel=PLANNING
    ),
    planner: str | None = typer.Option(
        None, help=f"{PLANNER_HELP} {ACTOR_HELP} {OWN_HELP}", rich_help_panel=PLANNING
    ),
    horizon: int | None = typer.Option(None, help="Model steps planned ahead.", rich_help_panel=PLANNING),
    samples: int | None = typer.Option(
        None, help="Candidates an iteration (starts of gradient and lbfgs).", rich_help_panel=PLANNING
    ),
    iterations: int | None = typer.Option(None, help="Iterations of a plan.", rich_help_panel=PLANNING),
    elites: int | None = typer.Option(
        None, help="Candidates that make the next distribution (cem, icem, discrete).", rich_help_panel=PLANNING
    ),
    settings: list[str] = typer.Option([], "--set", help=SET_HELP, rich_help_panel=PLANNING),
    seed: int = typer.Option(
        0, min=0, max=2**32, help="Of the planner, and of a start that is drawn.", rich_help_panel=PLANNING
    ),
    device: str = typer.Option("auto", help="auto, cpu or cuda.", rich_help_panel=PLANNING),
    threads: int | None = typer.Option(
        None, min=1, help="Torch threads (default: the cores this process may use).", rich_help_panel=PLANNING
    ),
    rate: float | None = typer.Option(
        None, help="Actions a second: no plan is waited for, the last one is gone on with.", rich_help_panel=PLANNING
    ),
    deadline: float | None = typer.Option(
        None, help="Seconds a plan may take (results then depend on the machine).", rich_help_panel=PLANNING
    ),
    draft: int = typer.Option(0, min=0, help=DRAFT_HELP, rich_help_panel=PLANNING),
    knots: str | None = typer.Option(None, help=KNOTS_HELP, rich_help_panel=PLANNING),
    fix: list[str] = typer.Option([], help=FIX_HELP, rich_help_panel=PLANNING),
    ball: list[str] = typer.Option([], help=BALL_HELP, rich_help_panel=PLANNING),
    rate_limit: list[str] = typer.Option([], help=RATE_LIMIT_HELP, rich_help_panel=PLANNING),
    propose: int | None = typer.Option(None, min=0, help=PROPOSE_HELP, rich_help_panel=PLANNING),
    legs: int = typer.Option(1, min=1, help=guarding.LEGS_HELP, rich_help_panel=GUARDRAILS),
    leg_steps: int | None = typer.Option(None, min=1, help=guarding.LEG_STEPS_HELP, rich_help_panel=GUARDRAILS),
    keep_out: list[str] = typer.Option([], help=guarding.KEEP_OUT_HELP, rich_help_panel=GUARDRAILS),
    margin: float = typer.Option(0.01, help=guarding.MARGIN_HELP, rich_help_panel=GUARDRAILS),
    workspace: str | None = typer.Option(None, help=guarding.WORKSPACE_HELP, rich_help_panel=GUARDRAILS),
    pose_box: str | None = typer.Option(None, help=guarding.POSE_BOX_HELP, rich_help_panel=GUARDRAILS),
    avoid: list[Path] = typer.Option([], help=guarding.AVOID_HELP, rich_help_panel=GUARDRAILS),
    change_limit: str | None = typer.Option(None, help=guarding.CHANGE_HELP, rich_help_panel=GUARDRAILS),
    acceleration_limit: str | None = typer.Option(None, help=guarding.BEND_HELP, rich_help_panel=GUARDRAILS),
    watchdog: int | None = typer.Option(None, min=1, help=guarding.WATCHDOG_HELP, rich_help_panel=GUARDRAILS),
    surprise: bool = typer.Option(False, "--surprise", help=guarding.SURPRISE_HELP, rich_help_panel=GUARDRAILS),
    thresholds: Path | None = typer.Option(None, help=guarding.THRESHOLDS_HELP, rich_help_panel=GUARDRAILS),
    memory_budget: str | None = typer.Option(
        None, help="Memory that candidates may fill at a time, as 24GB (default: half of what is free).",
        rich_help_panel=PLANNING,
    ),
    start: str | None = typer.Option(
        None, help='Where the world starts, "q1,q2" in its units (default: drawn from --seed).',
        rich_help_panel=SIMULATION,
    ),
    robot: str | None = typer.Option(
        None, help="Robot name or module:Class (default: the model's).", rich_help_panel=SIMULATION
    ),
    backend: str = typer.Option(
        "auto", help="Renderer: auto, egl, osmesa or rays (no GL).", rich_help_panel=SIMULATION
    ),
    appearance: int | None = typer.Option(
        None, min=0, help="Seed of the simulator's look (default: the plain one).", rich_help_panel=SIMULATION
    ),
    goal_state: str | None = typer.Option(
        None, help="The goal's state, for the distance column only; goal.json beside goal.png does as well.",
        rich_help_panel=SIMULATION,
    ),
    observation: Path | None = typer.Option(
        None, help="Picture of now: plan once, without simulator or GL; needs --state.", rich_help_panel=PICTURES
    ),
    state: str | None = typer.Option(
        None, help='The robot\'s state in that picture, "q1,q2" in its units.', rich_help_panel=PICTURES
    ),
    out: Path = typer.Option(Path("plan-out"), help="Folder for what is left behind.", rich_help_panel=OUTPUT),
    json_output: bool = typer.Option(False, "--json", help="Print plan.json, and only that.", rich_help_panel=OUTPUT),
    quiet: bool = typer.Option(False, "--quiet", "-q", help="No progress and no table.", rich_help_panel=OUTPUT),
) -> None:
    """Plan to a goal picture and go there, until the model judges the goal reached and held.

    Leaves plan.json, episode.mp4 and energy.png in --out. Exit status: 0 reached (or planned, with
    --observation), 3 not reached, 1 numbers stopped being finite, 2 bad input, 130 Ctrl-C (what was recorded is kept).
    """  # fmt: skip
    started = time.perf_counter()
    screen = Screen(json_output, quiet)
    job = _Job(
        goal, model, preset, planner, horizon, samples, iterations, elites, settings, seed, device, out, screen,
        memory_budget,
        {"max_steps": max_steps or MAX_STEPS, "device": device, "backend": backend, "appearance": appearance,
         "threads": threads, "rate": rate, "deadline": deadline},
        started,
        guarding.GuardOptions(
            tuple(keep_out), margin, workspace, pose_box, tuple(avoid), change_limit, acceleration_limit, watchdog,
            surprise, thresholds,
        ),
        legs, leg_steps, draft, knots, fix, ball, rate_limit, propose,
    )  # fmt: skip
    if observation is not None:
        given = {
            "--start": start, "--robot": robot, "--appearance": appearance, "--goal-state": goal_state,
            "--backend": None if backend == "auto" else backend, "--max-steps": max_steps, "--rate": rate,
            "--watchdog": watchdog, "--surprise": surprise or None,
        }  # fmt: skip
        for name, value in given.items():
            if value is not None:
                raise InputError(f"{name} is for driving a robot, and --observation plans only once; leave one out.")
        if state is None:
            raise InputError('--observation needs --state "q1,q2": the robot\'s state in that picture.')
        code = _from_pictures(job, observation, guarding.numbers("--state", state))
    else:
        if state is not None:
            raise InputError("--state goes with --observation; for the simulator's start use --start.")
        wanted = None if start is None else guarding.numbers("--start", start)
        known = None if goal_state is None else guarding.numbers("--goal-state", goal_state)
        code = _closed_loop(job, robot, wanted, known)
    raise typer.Exit(code)


@dataclass(frozen=True)
class _Job:
    """The options that both ways of planning share."""

    goals: list[Path]
    model: str | None
    preset: str | None
    planner: str | None
    horizon: int | None
    samples: int | None
    iterations: int | None
    elites: int | None
    settings: list[str]
    seed: int
    device: str
    out: Path
    screen: Screen
    memory_budget: str | None
    options: dict[str, Any]
    started: float
    guards: guarding.GuardOptions
    legs: int
    leg_steps: int | None
    draft: int
    knots: str | None
    fix: list[str]
    ball: list[str]
    rate_limit: list[str]
    propose: int | None

    @property
    def of_plans(self) -> bool:
        """Whether anything is said that only a search can follow."""
        numbers = self.horizon, self.samples, self.iterations, self.elites, self.leg_steps, self.propose, self.knots
        return (
            any(value is not None for value in (*numbers, self.preset, self.options["deadline"], self.options["rate"]))
            or self.legs > 1
            or bool(self.settings or self.draft or self.fix or self.ball or self.rate_limit) or self.guards.any
        )  # fmt: skip


@dataclass
class _Ready:
    """What is loaded and checked before anything moves or is written."""

    goals: list[Goal]
    folder: Path
    world: WorldModel
    calibration: Calibration
    controllers: list[GoalController]
    warnings: list[str | None]
    load_s: float
    load_processor_s: float
    notes: list[str] = field(default_factory=list)

    @property
    def goal(self) -> Goal:
        """The last one; those before are sub-goals."""
        return self.goals[-1]


def _prepare(job: _Job, check: Callable[[RobotSpec], object]) -> _Ready:
    """Check everything that can be checked, cheap things first; `check` the states that were given."""
    from vjepa_mpc.cli.building import check_planner

    if job.planner not in (None, ACTOR):
        check_planner(job.planner)
    if job.planner == ACTOR and job.of_plans:
        raise InputError(
            f"--planner {ACTOR} searches nothing: leave out --samples, --horizon, --preset, --rate and whatever else "
            "is said of plans and guardrails."
        )
    _period(job.options["rate"])
    with job.screen.busy("Loading the world model"):
        import torch

        from vjepa_mpc.acting import following
        from vjepa_mpc.cli.building import (
            choose_device,
            crowded,
            limit_threads,
            load_model,
            model_folder,
            own_planner,
            planner_and_control,
            tell_planner,
        )
        from vjepa_mpc.memory import parse_bytes
        from vjepa_mpc.plan_files import check_writable
        from vjepa_mpc.planning import GoalController, doubt, load_goal, trained

        goals = [load_goal(path) for path in job.goals]
        check_writable(job.out)
        asked = job.options["threads"]
        job.options["threads"] = limit_threads(asked)
        busy = crowded(job.options["threads"]) if asked is None else None
        device = choose_device(job.device)
        job.options["device"] = str(device)
        folder = model_folder(job.model)
        world = load_model(str(folder), device)
        limits = step_limits(world.config.robot, job.fix, job.ball, job.rate_limit)
        chosen = own_planner([world], job.planner, job.of_plans)
        notes: list[str] = []
        tell_planner(chosen, [world], notes.append)
        if chosen == ACTOR:
            optimiser, settings = following(world)
        else:
            optimiser, settings = planner_and_control(
                world, job.preset, chosen, horizon=job.horizon, samples=job.samples, iterations=job.iterations,
                elites=job.elites, settings=job.settings, legs=job.legs, leg_steps=job.leg_steps,
                deadline_s=job.options["deadline"], draft=job.draft, knots=job.knots, limits=limits,
                propose=job.propose,
            )  # fmt: skip
        if job.memory_budget is not None:
            settings = replace(settings, memory_budget=parse_bytes(job.memory_budget))
        calibration = trained(world, str(folder))
        check(world.config.robot)
        generator = torch.Generator(device).manual_seed(job.seed)
        guards = guarding.make_guards(job.guards, world, folder)
        if job.guards.any:
            job.options["guards"] = job.guards.record()
        controllers = [GoalController(world, optimiser, goal.image, settings, generator, guards) for goal in goals]
    for note in [*notes, *([] if busy is None else [busy])]:
        job.screen.note(note)
    warnings = []
    for path, controller in zip(job.goals, controllers, strict=True):
        warnings.append(doubt(f"The goal {path}", controller.likeness, calibration))
        if warnings[-1] is not None:
            job.screen.warn(warnings[-1])
    return _Ready(
        goals, folder, world, calibration, controllers, warnings, time.perf_counter() - job.started,
        time.process_time(), notes,
    )  # fmt: skip


def _from_pictures(job: _Job, observation: Path, state: tuple[float, ...]) -> int:
    """One plan from two pictures."""
    import torch

    from vjepa_mpc.plan_files import ENERGY, remove_others, save_energy, save_record, single_record
    from vjepa_mpc.planning import doubt, load_goal, long_way, plan_through

    now = load_goal(observation)
    ready = _prepare(job, lambda spec: spec.check_state(state))
    warning = doubt(f"The picture {observation}", ready.world.likeness(now.image), ready.calibration)
    if warning is not None:
        job.screen.warn(warning)
        ready.notes.append(warning)
    with job.screen.busy("Planning"):
        decisions = plan_through(ready.controllers, now.image, ready.world.config.robot.check_state(state))
    steps = [decision.plan.actions[0].double().cpu() for decision in decisions]
    note = long_way(ready.world.config.robot, torch.cat(steps).numpy())
    if note is not None:
        job.screen.note(note)
        ready.notes.append(note)
    setting = _setting(job, ready, None)
    timing = {"load_s": ready.load_s, "total_s": time.perf_counter() - job.started}
    record = single_record(setting, now, state, decisions, timing)
    save_record(record, job.out, [])
    save_energy(ready.controllers[0], decisions[0], job.out)
    save_record(record, job.out, [ENERGY])
    remove_others(job.out, record)
    job.screen.single(record, job.out)
    return REACHED


def _closed_loop(
    job: _Job, name: str | None, start: tuple[float, ...] | None, goal_state: tuple[float, ...] | None
) -> int:
    """Drive the robot to the goal."""
    from vjepa_mpc.planning import distance_to, place_start, reach_in_order, world_of
    from vjepa_mpc.recorders import VideoRecorder

    given = [state for state in (start, goal_state) if state is not None]
    ready = _prepare(job, lambda spec: [world_of(spec).check(state) for state in given])
    config = ready.world.config
    with job.screen.busy("Starting the robot"):
        robot = _make_robot(job, ready, name)
    try:
        known = _goal_state(job, ready, goal_state)
        distance = distance_to(robot, known)
        place_start(robot, ready.controllers[0], ready.calibration, start, job.seed)
        video = VideoRecorder(job.out / "episode.mp4", 1 / config.robot.control_period_s, distance_unit="m")
        video.start(ready.goals[0].image, {})
        first = _FirstPlan(job.started)
        with job.screen.busy("Planning the first action") as progress:
            outcome = reach_in_order(
                ready.controllers, robot, max_steps=job.options["max_steps"], watchers=[first, video, progress],
                distance=distance, period_s=_period(job.options["rate"]),
                turn=lambda goal: video.turn(ready.goals[goal].image),
            )  # fmt: skip
    finally:
        robot.close()
    timing = {
        "load_s": ready.load_s, "load_processor_s": ready.load_processor_s, "first_plan_s": first.seconds,
        "first_plan_processor_s": first.processor_s, "total_s": time.perf_counter() - job.started,
    }  # fmt: skip
    return _finish(job, ready, _setting(job, ready, known), outcome, timing, video)


def _period(rate: float | None) -> float | None:
    """Seconds between actions at so many a second."""
    if rate is None:
        return None
    if not 0 < rate <= 1000:
        raise InputError(f"A rate of {rate} actions a second cannot be kept; give one above 0, at most 1000.")
    return 1 / rate


def _finish(
    job: _Job, ready: _Ready, setting: Setting, outcome: OrderedOutcome, timing: dict[str, float], video: Any
) -> int:
    """Save what there is, say how it ended. plan.json comes first and names what has come after it, so that whatever
    stops this (Ctrl-C, a full disk) leaves a record that is true."""
    from vjepa_mpc.plan_files import ENERGY, VIDEO, episode_record, remove_others, save_energy, save_record
    from vjepa_mpc.planning import interrupt_held

    record = episode_record(setting, outcome, timing)
    if outcome.records:
        with interrupt_held():
            save_record(record, job.out, [])
            video.close()
            save_record(record, job.out, [VIDEO])
        first = ready.controllers[0]
        if first.first is not None:
            save_energy(first, first.first, job.out)
            save_record(record, job.out, [VIDEO, ENERGY])
        remove_others(job.out, record)
    if outcome.error is not None:
        raise outcome.error
    job.screen.episode(record, outcome.records, job.out)
    if outcome.ended == "interrupted":
        return INTERRUPTED
    return REACHED if outcome.ended == "reached" else NOT_REACHED


def _make_robot(job: _Job, ready: _Ready, name: str | None) -> Robot:
    """The robot asked for, or the model's own; refused when the model was trained for another."""
    from vjepa_mpc.planning import other_renderer
    from vjepa_mpc.robots.base import SimulatedRobot
    from vjepa_mpc.robots.factory import is_built_in, make_robot

    config = ready.world.config
    name = name or config.robot.name
    backend, appearance = job.options["backend"], job.options["appearance"]
    settings: dict[str, Any] = {}
    if is_built_in(name):
        settings = {"camera_size": config.robot.cameras[config.camera].height, "backend": backend}
    elif backend != "auto":
        settings = {"backend": backend}
    robot = make_robot(name, **settings)
    try:
        ready.world.check_fits(robot.spec)
        if appearance is not None and not isinstance(robot, SimulatedRobot):
            raise InputError(f"{name} is no simulated robot and has no --appearance; leave it out.")
        if isinstance(robot, SimulatedRobot):
            if appearance is not None:
                robot.set_appearance(appearance)
            job.options["robot_settings"] = dict(robot.settings())
            note = other_renderer(robot, ready.world)
            if note is not None:
                ready.notes.append(note)
                job.screen.warn(note)
    except BaseException:
        robot.close()
        raise
    return robot


def _goal_state(job: _Job, ready: _Ready, given: tuple[float, ...] | None) -> Any:
    """The goal's state for the distance column: given, or known from the file beside the picture."""
    from vjepa_mpc.planning import known_goal_state, world_of

    spec = ready.world.config.robot
    if given is not None:
        return world_of(spec).check(given)
    known, note = known_goal_state(ready.goal.path, spec)
    if known is not None:
        note = f"Distances are measured to the state in {ready.goal.path.with_suffix('.json')}; planning never sees it."
    if note is not None:
        ready.notes.append(note)
        job.screen.note(note)
    return known


def _setting(job: _Job, ready: _Ready, goal_state: Any) -> Setting:
    from vjepa_mpc.plan_files import Setting

    return Setting(
        goals=ready.goals, warnings=ready.warnings, goal_state=goal_state, controller=ready.controllers[-1],
        model=job.model or "shipped", folder=ready.folder, seed=job.seed, options=job.options, notes=ready.notes,
    )  # fmt: skip


class _FirstPlan:
    """Notes how long the command took to its first plan."""

    def __init__(self, started: float) -> None:
        self.started, self.seconds, self.processor_s = started, 0.0, 0.0

    def step(self, record: StepRecord) -> None:
        if not self.seconds:
            self.seconds, self.processor_s = time.perf_counter() - self.started, time.process_time()
