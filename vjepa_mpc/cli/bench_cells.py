"""What `vjepa-mpc bench` plays: from its options to the cells of its table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import typer

from vjepa_mpc.core.errors import InputError, unknown_name

if TYPE_CHECKING:
    from vjepa_mpc.benchmark import Cell, Suite
    from vjepa_mpc.cli.contenders import Contender, PlannerOptions

NO_MODEL = "none"


@dataclass(frozen=True)
class Asked:
    """The options that say what is played."""

    tasks: tuple[str, ...]
    models: dict[str, list[str]]
    manifests: dict[str, list[str]]
    planners: tuple[str, ...]
    seeds: int
    pairs: int
    greedy: bool
    guarded: bool
    variations: tuple[tuple[str, float], ...]
    varied_pairs: int
    backend: str
    split: str
    batch: int = 1


def chosen_tasks(names: Sequence[str], models: Sequence[str]) -> tuple[str, ...]:
    """The tasks asked for, or all that can be had here; what cannot is told."""
    from vjepa_mpc.robots.factory import available_tasks, find_task, task_names, why_missing

    if not names:
        here = available_tasks()
        for name in task_names():
            if name not in here:
                typer.echo(f"{name} is left out: {why_missing(name)}", err=True)
        return here
    unique = tuple(dict.fromkeys(part for name in names for part in name.split(",")))
    for name in unique:
        missing = find_task(name).missing
        if missing:
            raise InputError(f"{name} cannot be played here: {missing}")
    for text in models:
        if text.partition("=")[0] not in unique:
            raise InputError(f"--models {text} is for a task that is not played; add it to --tasks.")
    return unique


def by_task(texts: Sequence[str], option: str, *, alone: bool = False) -> dict[str, list[str]]:
    """TASK=VALUE options as a table; a value `alone` is filed under ""."""
    table: dict[str, list[str]] = {}
    for text in texts:
        task, found, value = text.partition("=")
        if (not found and not alone) or (found and not (task and value)):
            raise InputError(f"{option} {text} does not name a task; write it as TASK=VALUE, as in reacher=VALUE.")
        table.setdefault(task if found else "", []).append(value if found else text)
    return table


def chosen_variations(factors: Sequence[str], levels: Sequence[float], suite: Suite) -> tuple[tuple[str, float], ...]:
    """Factors and levels to be played besides the plain world."""
    from vjepa_mpc.benchmark import ALL, levels_of
    from vjepa_mpc.robots.dynamics import FACTORS, check_factors

    names = tuple(dict.fromkeys(part for name in factors for part in name.split(","))) or suite.factors
    if "none" in names:
        if len(names) > 1 or levels:
            raise InputError("--factors none leaves no others and no --levels; leave one of them out.")
        return ()
    for name in names:
        if name not in (*FACTORS, ALL):
            raise unknown_name("factor", name, (*FACTORS, ALL, "none"))
    found = [(name, level) for name in names for level in levels or suite.levels]
    for name, level in found:
        check_factors(levels_of(name, level))
        if level == 0:
            raise InputError("A level of 0 is the plain world, which is played in any case; leave it out.")
    return tuple(dict.fromkeys(found))


def cells_of(
    asked: Asked, options: PlannerOptions, device: Any, chunk: int | None, sharers: int, threads: int
) -> list[Cell]:
    """Every cell of the table: first all tasks in the plain world, then the variations."""
    from vjepa_mpc.cli.building import load_model, shipped_models
    from vjepa_mpc.cli.contenders import floors_of, shared_chunk
    from vjepa_mpc.robots.factory import find_task
    from vjepa_mpc.robots.tasks import load_manifest

    found = {name: find_task(name) for name in asked.tasks}
    sources = {
        name: asked.models.get(name, [task.robot] if task.robot in shipped_models() else [])
        for name, task in found.items()
    }
    sources = {name: [source for source in some if source != NO_MODEL] for name, some in sources.items()}
    worlds: dict[str, Any] = {}
    for source in dict.fromkeys(source for some in sources.values() for source in some):
        worlds[source] = load_model(source, device)
    at_a_time = chunk or shared_chunk(worlds, options.horizon, sharers)
    plain: list[Cell] = []
    varied: list[Cell] = []
    for name, task in found.items():
        (split,) = asked.manifests.get(name, asked.manifests.get("", [asked.split]))[-1:]
        frozen = load_manifest(split, task)
        contenders = _planning(task, {s: worlds[s] for s in sources[name]}, asked, options, at_a_time, threads, device)
        contenders |= {label: (one, None) for label, one in floors_of(task, asked.backend, greedy=asked.greedy).items()}
        new = _variants(name, task, frozen, contenders, asked)
        plain += [cell for cell in new if not cell.factor]
        varied += [cell for cell in new if cell.factor]
    return plain + varied


def _planning(
    task: Any, worlds: dict[str, Any], asked: Asked, options: PlannerOptions, chunk: int, threads: int, device: Any
) -> dict[str, tuple[Contender, Any]]:
    """Every planner on every world model of a task, with what its arithmetic comes to."""
    from dataclasses import replace

    from vjepa_mpc.cli import guarding
    from vjepa_mpc.cli.building import ACTOR, model_folder
    from vjepa_mpc.cli.contenders import acting, planning, stage_of
    from vjepa_mpc.flops import count_flops

    rails = guarding.GuardOptions(tuple(guarding.task_regions(task)) if asked.guarded else ())
    contenders: dict[str, tuple[Contender, Any]] = {}
    for source, world in worlds.items():
        stage = stage_of(world, source, task, asked.backend)
        counted = count_flops(world, options.horizon or world.default_horizon)
        folder = model_folder(source)
        for name in asked.planners or _players(world, asked, options):
            if name == ACTOR:
                one = acting(world, stage, f"{source}, {ACTOR}")
                one.played.update(threads=threads, device=device.type)
                contenders[f"{source}, {ACTOR}"] = (one, None)
                continue
            for guarded in (False, True)[: 1 + rails.any]:
                label = f"{source}, {name}" + ", guarded" * guarded
                guards = guarding.make_guards(rails, world, folder, task) if guarded else None
                chosen = replace(options, planner=name)
                one = planning(world, stage, label, chosen, chunk, guards=guards, batch=asked.batch)
                one.played.update(threads=threads, device=device.type, optimiser=name)
                if guarded:
                    one.played["guards"] = rails.record()
                contenders[label] = (one, counted)
    return contenders


def _players(world: Any, asked: Asked, options: PlannerOptions) -> tuple[str, ...]:
    """Who plays a model where nobody is named: the default planner, and its actor by itself where it has one; the actor
    alone where that is what it is best at, unless something was said of plans."""
    from vjepa_mpc.cli.building import ACTOR, own_planner
    from vjepa_mpc.cli.contenders import PlannerOptions

    said = options != PlannerOptions(options.planner) or asked.guarded or asked.batch > 1
    first = own_planner([world], None, said)
    return (first,) if first == ACTOR or world.actor is None else (first, ACTOR)


def _variants(
    name: str, task: Any, frozen: Any, contenders: dict[str, tuple[Contender, Any]], asked: Asked
) -> list[Cell]:
    """A task's cells: every contender in the plain world and in each variation that the world has."""
    from contextlib import closing

    from vjepa_mpc.benchmark import Cell, levels_of
    from vjepa_mpc.cli.building import ACTOR
    from vjepa_mpc.evaluation import ArenaSetup
    from vjepa_mpc.robots.factory import make_robot
    from vjepa_mpc.robots.world import MujocoWorld

    variations: list[tuple[str, float, int]] = [("", 0.0, asked.pairs)]
    if asked.variations:
        with closing(make_robot(task.robot)) as robot:
            if isinstance(robot, MujocoWorld):
                variations += [(factor, level, asked.varied_pairs) for factor, level in asked.variations]
            else:
                typer.echo(f"{name} has no factors of variation: its plain world alone is played.", err=True)
    cells = []
    for factor, level, pairs in variations:
        for label, (one, counted) in contenders.items():
            plain = "ceiling" if "ceiling" in label else "floor"
            kind = "planner" if counted else "actor" if one.played.get("planner") == ACTOR else plain
            drawn = kind == "planner" or one.played.get("actor_drawn") or label in ("random", "greedy-pixel")
            for seed in range(asked.seeds if drawn else 1):
                setup = ArenaSetup(one.robot, one.policy, task, seed, levels_of(factor, level))
                cells.append(
                    Cell(name, label, kind, setup, frozen, pairs, factor, level, one.played, counted, one.batch)  # type: ignore[arg-type]
                )
    return cells
