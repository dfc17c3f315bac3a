"""Who plays a task in `evaluate` and `bench`: planners on world models, floors and the ceiling."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import typer

from vjepa_mpc.cli.building import (
    ACTOR,
    by_knots,
    check_draft,
    control_settings,
    leg_bounds,
    make_planner,
    own_search,
    plan_numbers,
    plan_steps,
)
from vjepa_mpc.cli.limiting import step_limits
from vjepa_mpc.core.errors import InputError

if TYPE_CHECKING:
    from vjepa_mpc.governors import Guards
    from vjepa_mpc.world_model import WorldModel


@dataclass(frozen=True)
class PlannerOptions:
    """What the command line says of a planner; None leaves a setting at its default."""

    planner: str = "cem"
    horizon: int | None = None
    samples: int | None = None
    iterations: int | None = None
    elites: int | None = None
    settings: tuple[str, ...] = ()
    running: float | None = None
    nearest: float | None = None
    deadline: float | None = None
    draft: int = 0
    critic: float | None = None
    remember: float | None = None
    knots: str | None = None
    fix: tuple[str, ...] = ()
    ball: tuple[str, ...] = ()
    rate_limit: tuple[str, ...] = ()
    propose: int | None = None


@dataclass(frozen=True)
class Contender:
    """Builds its robot and its policy in a worker. `played`: what its episodes depend on. `batch`: episodes that are
    decided together."""

    robot: Callable[[], Any]
    policy: Callable[[], Any]
    played: dict[str, Any]
    batch: int = 1


@dataclass(frozen=True)
class Stage:
    """A world model's robot, drawn as the model was trained to see it."""

    robot: Callable[[], Any]
    renderer: str


def stage_of(world: WorldModel, name: str, task: Any, backend: str) -> Stage:
    """The robot of `task` for a trained model; `InputError` where they do not fit. Another renderer than the
    training's is told."""
    from vjepa_mpc.planning import other_renderer, trained
    from vjepa_mpc.robots.factory import make_robot

    trained(world, name)
    world.check_fits(task.spec)
    size = world.config.robot.cameras[world.config.camera].height  # the pictures it was trained on
    body: Any = partial(make_robot, task.robot, backend=backend, camera_size=size)
    with closing(body()) as robot:
        renderer, note = robot.renderer_identity, other_renderer(robot, world)
    if note is not None:
        typer.echo(f"{name}: {note}", err=True)
    return Stage(body, renderer)


def planning(
    world: WorldModel,
    stage: Stage,
    label: str,
    options: PlannerOptions,
    chunk: int,
    *,
    legs: int = 1,
    leg_steps: int | None = None,
    guards: Guards | None = None,
    rate: float | None = None,
    batch: int = 1,
) -> Contender:
    """A planner on a world model, `legs` displacements a model step, guarded, at a fixed rate, or for `batch` episodes
    at once."""
    from vjepa_mpc.encoder import weights_hash
    from vjepa_mpc.policies import FixedRatePolicy, PlannedPolicy

    limits = step_limits(world.config.robot, options.fix, options.ball, options.rate_limit)
    if guards is not None:
        guards.check_limits(limits)
    control = control_settings(
        world, horizon=options.horizon, running=options.running, nearest=options.nearest,
        critic=options.critic, remember=options.remember, legs=legs, leg_steps=leg_steps, deadline_s=options.deadline,
        draft=options.draft, limits=limits, propose=options.propose,
    )
    control = replace(control, chunk=chunk)
    optimiser: Any = make_planner(
        options.planner, leg_bounds(world, legs, leg_steps, limits), samples=options.samples,
        iterations=options.iterations, elites=options.elites, settings=options.settings,
        numbers=plan_numbers(world, options.horizon, legs, options.knots), own=own_search(world, legs),
    )  # fmt: skip
    optimiser = by_knots(optimiser, options.knots, plan_steps(world, options.horizon, legs))
    check_draft(options.draft, optimiser)
    policy: Any = partial(PlannedPolicy, world, optimiser, control, label, guards)
    played: dict[str, Any] = {
        "weights": weights_hash(world), "control": _control(control), "planner": asdict(optimiser.settings),
        "renderer": stage.renderer,
    }  # fmt: skip
    for name, said in (("fix", options.fix), ("ball", options.ball), ("rate_limit", options.rate_limit)):
        if said:
            played[name] = list(said)
    if rate is not None:
        policy = partial(FixedRatePolicy, world, optimiser, control, 1 / rate, label, guards)
        played["rate"] = rate
    if batch > 1:  # in the last bits: matrix products differ in them with how much is computed at once
        played["batch"] = batch
    return Contender(stage.robot, policy, played, batch)


def acting(
    world: WorldModel, stage: Stage, label: str, steps: int | None = None, drawn: bool | None = None
) -> Contender:
    """The actor of a world model by itself; `steps` and `drawn` as `ActorPolicy` takes them."""
    from vjepa_mpc.encoder import weights_hash
    from vjepa_mpc.policies import ActorPolicy, actor_drawn, actor_steps

    if world.actor is None:
        raise InputError(f"{label} has no actor to play; `vjepa-mpc train-actor MODEL LOGS` trains one.")
    played: dict[str, Any] = {"weights": weights_hash(world), "planner": ACTOR, "renderer": stage.renderer}
    if (own := actor_steps(world, steps)) > 1:
        played["actor_steps"] = own
    if draws := actor_drawn(world, drawn):
        played["actor_drawn"] = True
    return Contender(stage.robot, partial(ActorPolicy, world, label, own, draws), played)


BATCH_HELP = "Episodes that a planner decides together, in step; results depend on it in the last bits."
PHYSICS_HELP = "With --batch: processes for physics and rendering beside the world model (0: none)."


def check_batch(batch: int, physics: int, *, workers: int, ray: bool, hurried: bool = False) -> None:
    """Refuse with `InputError` what does not go with episodes that are decided together. `hurried`: plans have a
    deadline, or go out at a rate."""
    from vjepa_mpc.executor import LocalExecutor

    if physics and batch == 1:
        raise InputError("--physics-workers is for episodes that are decided together; add --batch.")
    if physics and (ray or workers > 1):
        raise InputError(
            "--physics-workers go with one world model in this process; leave out --workers and Ray, or the physics "
            "workers: each worker then moves the robots of its batch itself."
        )
    if batch > 1 and hurried:
        raise InputError("Episodes that are decided together wait for each other; leave out --batch, or times.")
    if physics:
        LocalExecutor(physics)  # refuses more than this machine can do with


def floors_of(task: Any, backend: str, *, greedy: bool = False, plain: bool = True) -> dict[str, Contender]:
    """Random, no-op and the scripted ceiling (`plain`), and the slow greedy-pixel floor, by name."""
    from vjepa_mpc.policies import GreedyPixelPolicy, NoOpPolicy, RandomPolicy, ScriptedPolicy
    from vjepa_mpc.robots.factory import make_robot

    makers: dict[str, Callable[[], Any]] = {}
    if plain:
        makers = {"random": partial(RandomPolicy, task.spec), "no-op": partial(NoOpPolicy, task.spec)}
        makers["scripted (ceiling)"] = partial(ScriptedPolicy, task)
    if greedy:
        makers["greedy-pixel"] = partial(GreedyPixelPolicy, task.spec)
    robot: Any = partial(make_robot, task.robot, backend=backend)
    return {name: Contender(robot, make, {}) for name, make in makers.items()}


def shared_chunk(worlds: Mapping[Any, WorldModel], horizon: int | None, workers: int) -> int:
    """Candidates imagined at a time by each of `workers` that share this machine's memory. Measured once, where the
    command runs: workers that measured would each find another number."""
    from vjepa_mpc.controller import fitting_chunk
    from vjepa_mpc.memory import CHUNK

    fit = (fitting_chunk(one, horizon or one.default_horizon, None, sharers=workers) for one in worlds.values())
    return min(fit, default=CHUNK)


def _control(settings: Any) -> dict[str, Any]:
    """The controller's settings; legs, a draft, the nearest frame, a critic, a memory, proposals: only where they are
    used."""
    told = asdict(settings)
    del told["limits"]  # which are told as they were said
    if settings.leg_steps is None:
        del told["leg_steps"]
    if not settings.draft:
        del told["draft"]
    for name in ("nearest", "critic", "remember", "propose", "act"):
        if not getattr(settings, name):
            del told[name]
    return told if settings.legs > 1 else {key: told[key] for key in told if key not in ("legs", "way_weight")}
