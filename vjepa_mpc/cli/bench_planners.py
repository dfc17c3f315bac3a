"""`vjepa-mpc bench planners`: every planner on frozen problems, course by course."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from vjepa_mpc.cli.building import FEW_NUMBERS, MODEL_HELP, cem_defaults
from vjepa_mpc.core.errors import InputError, unknown_name

if TYPE_CHECKING:
    from vjepa_mpc.planner_batches import Gain
    from vjepa_mpc.planner_courses import Course
    from vjepa_mpc.planner_problems import Problems
    from vjepa_mpc.planners.base import Bounds, Planner

MODEL_PROBLEMS, FEW = "model", "default-few"


def planners(
    on: list[str] = typer.Option(
        [], help="What to solve: ellipsoid-20, rosenbrock-20, rastrigin-20, the same with -50, or model (start/goal "
        "pairs through world models); may be repeated. All functions if none.",
    ),
    planner: list[str] = typer.Option([], help="Planners to measure; may be repeated. All if none."),
    budget: int = typer.Option(2000, min=8, help="Evaluations a problem (the published setting takes its own 8,000)."),
    problems: int | None = typer.Option(
        None, min=1, help="Drawn versions of each function (10 if not given); pairs with --on model (50)."
    ),
    manifest: str = typer.Option("dev", help="Start/goal pairs for --on model."),
    model: list[str] = typer.Option([], help=f"{MODEL_HELP} For --on model; may be repeated."),
    horizon: int | None = typer.Option(
        None, help="Model steps planned ahead (default: as far as the model sees, and 5 at least)."
    ),
    peer: bool = typer.Option(False, "--peer", help="Also stable-worldmodel's solvers, where that is installed."),
    seed: int = typer.Option(0, min=0, max=2**32, help="Seed of functions and planners."),
    one_by_one: bool = typer.Option(
        False, "--one-by-one", help="Also solve the problems one after the other: what a batch of them gains."
    ),
    overhead: bool = typer.Option(True, "--overhead/--no-overhead", help="Also each planner's own time an iteration."),
    backend: str = typer.Option("auto", help="Renderer for --on model: auto, egl, osmesa or rays (no GL)."),
    out: Path = typer.Option(
        Path("bench-planners"), help="Folder for planners.json and planners.png; what was measured in it is kept."
    ),
    json_output: bool = typer.Option(False, "--json", help="Print the results as JSON."),
) -> None:
    """Cost reached against evaluations and wall time, for every planner, `cma` used directly among them.

    One torch thread; own times are processor time, without the cost function's. Each planner's course is kept in
    --out as it is measured: run again, the command measures what is missing. Bars say whether the default is as good
    as the published setting at a quarter of its evaluations, and each algorithm as the peer's of its name: by the
    median difference over problems, beside the medians of both.
    """  # fmt: skip
    import torch

    from vjepa_mpc.core.files import write_json
    from vjepa_mpc.core.settings import provenance
    from vjepa_mpc.plan_files import check_writable
    from vjepa_mpc.planner_bench import overheads
    from vjepa_mpc.planner_courses import bars, summary
    from vjepa_mpc.planner_figure import save_courses
    from vjepa_mpc.planner_problems import FUNCTIONS

    torch.set_num_threads(1)
    for name in on:
        if name not in (*FUNCTIONS, MODEL_PROBLEMS):
            raise unknown_name("set of problems", name, (*FUNCTIONS, MODEL_PROBLEMS))
    entries = _entries(budget, peer)
    for name in planner:
        if name not in entries:
            if name.startswith("swm-") and not peer:
                raise InputError(f"{name} is the peer's; say --peer, too.")
            raise unknown_name("planner", name, entries)
    if model and MODEL_PROBLEMS not in on:
        raise InputError("A --model is for start/goal pairs; say --on model, too.")
    check_writable(out)
    wanted = [*planner] or list(entries)
    asked = _Asked(tuple(on) or FUNCTIONS, problems, manifest, tuple(model), horizon, seed, backend)
    courses: list[Course] = []
    gains: list[Gain] = []
    for what, work in asked.sets():
        these = {name: entries[name] for name in wanted}
        courses += _measured(what, work, these, out, seed)
        gains += _gained(what, work, these, out, seed) if one_by_one else []
    record: dict[str, Any] = {
        "settings": {**asdict(asked), "budget": budget, "peer": peer},
        "rows": summary(courses, budget),
        "bars": [asdict(bar) for bar in bars(courses, budget)],
        "batches": [{**asdict(gain), "times": gain.times} for gain in gains],
        "own_ms_an_iteration_at_300x5x7": overheads() if overhead else {},
        "provenance": provenance(),
    }
    write_json(out / "planners.json", record)
    save_courses(courses, out / "planners.png")
    if json_output:
        import json

        typer.echo(json.dumps(record, indent=2))
    else:
        _print(record, out)


@dataclass(frozen=True)
class _Entry:
    """A contender: what it is told, how it solves a set of problems with a seed, and, of our own, the planner."""

    settings: dict[str, Any]
    solve: Callable[[Problems, int], Course]
    make: Callable[[Bounds], Planner] | None = None


def _entries(budget: int, peer: bool) -> dict[str, _Entry]:
    """All contenders by name; ours make their settings from the budget alone."""
    import torch

    from vjepa_mpc.planner_bench import PYCMA, contenders, measure, measure_pycma
    from vjepa_mpc.planner_courses import DEFAULT, PUBLISHED, PUBLISHED_EVALUATIONS
    from vjepa_mpc.planners import CEM, CEMSettings
    from vjepa_mpc.planners.base import Bounds

    few, many = (_filling(cem_defaults(numbers), budget) for numbers in (FEW_NUMBERS, FEW_NUMBERS + 1))
    makers: dict[str, Any] = {
        DEFAULT: lambda bounds: CEM(bounds, CEMSettings(**many)),
        FEW: lambda bounds: CEM(bounds, CEMSettings(**few)), **contenders(budget),
    }  # fmt: skip
    one = Bounds(-torch.ones(1), torch.ones(1))
    entries = {}
    for name, make in makers.items():
        limit = PUBLISHED_EVALUATIONS if name == PUBLISHED else budget

        def solve(work: Problems, seed: int, name: str = name, make: Any = make, limit: int = limit) -> Course:
            return measure(name, make(work.bounds), work, limit, seed)

        entries[name] = _Entry({"evaluations": limit, **asdict(make(one).settings)}, solve, make)
    entries[PYCMA] = _Entry({"evaluations": budget}, lambda work, seed: measure_pycma(work, budget, seed))
    if peer:
        from vjepa_mpc.planner_peers import SOLVERS, installed, measure_peer

        installed()
        for name, solver in SOLVERS.items():

            def solve_peer(work: Problems, seed: int, name: str = name) -> Course:
                return measure_peer(name, work, budget, seed)

            entries[name] = _Entry({"evaluations": budget, **asdict(solver)}, solve_peer)
    return entries


def _filling(settings: dict[str, Any], budget: int) -> dict[str, Any]:
    """These settings with as many iterations as the budget allows."""
    return {**settings, "iterations": max(1, -(-budget // settings["samples"]))}


def _measured(
    what: dict[str, Any], work: Problems, entries: dict[str, _Entry], out: Path, seed: int
) -> list[Course]:
    """The courses of these contenders on a set of problems: those of an earlier run, and the others now."""
    from rich.console import Console

    from vjepa_mpc.planner_courses import load_course, save_course

    courses, screen = [], Console(stderr=True)
    for name, entry in entries.items():
        of = {**what, "problems": work.name, "planner": name, "settings": entry.settings, "seed": seed}
        course = load_course(out, of)
        if course is None:
            with screen.status(f"{work.name}: {name}"):
                course = entry.solve(work, seed)
            save_course(out, of, course)
            screen.print(f"{work.name}: {name}, {course.seconds:.0f} s", highlight=False)
        courses.append(course)
    return courses


def _gained(what: dict[str, Any], work: Problems, entries: dict[str, _Entry], out: Path, seed: int) -> list[Gain]:
    """What a batch gains each of our planners: of an earlier run, or measured now."""
    from rich.console import Console

    from vjepa_mpc.planner_batches import load_gain, measure_gain, save_gain

    gains, screen = [], Console(stderr=True)
    for name, entry in entries.items():
        if entry.make is None:
            continue
        of = {**what, "problems": work.name, "planner": name, "settings": entry.settings, "seed": seed}
        gain = load_gain(out, of)
        if gain is None:
            with screen.status(f"{work.name}: {name}, one by one and together"):
                gain = measure_gain(name, entry.make, work, entry.settings["evaluations"], seed)
            save_gain(out, of, gain)
        gains.append(gain)
    return gains


@dataclass(frozen=True)
class _Asked:
    """What is to be solved."""

    on: Sequence[str]
    problems: int | None
    manifest: str
    model: Sequence[str]
    horizon: int | None
    seed: int
    backend: str

    def sets(self) -> Iterator[tuple[dict[str, Any], Problems]]:
        """Sets of problems, each with what it is made of."""
        from vjepa_mpc.planner_problems import drawn

        names: set[str] = set()
        for name in self.on:
            if name != MODEL_PROBLEMS:
                count = self.problems or 10
                yield {"count": count}, drawn(name, count, self.seed)
                continue
            for source in self.model or (None,):
                what, work = self._pairs(source)
                if work.name in names:  # another model of the same robot
                    work = replace(work, name=f"{work.name} ({source})")
                names.add(work.name)
                yield what, work

    def _pairs(self, source: str | None) -> tuple[dict[str, Any], Problems]:
        """The first pairs of a manifest as one batch of planning problems."""
        import torch

        from vjepa_mpc.cli.building import load_model
        from vjepa_mpc.encoder import weights_hash
        from vjepa_mpc.planner_problems import pairs_through_model
        from vjepa_mpc.planning import trained
        from vjepa_mpc.robots.factory import find_task, make_robot
        from vjepa_mpc.robots.tasks import load_manifest

        world = load_model(source, torch.device("cpu"))
        trained(world, source or "the shipped model")
        task: Any = find_task(world.config.robot.name)
        frozen = load_manifest(self.manifest, task)
        world.check_fits(task.spec)
        size = world.config.robot.cameras[world.config.camera].height
        robot: Any = make_robot(task.robot, backend=self.backend, camera_size=size)
        pairs = frozen.pairs[: self.problems or 50]
        what = {
            "weights": weights_hash(world), "manifest": frozen.sha256, "pairs": len(pairs), "answers": "float32",
        }  # fmt: skip
        try:
            work = pairs_through_model(world, robot, pairs, self.horizon)
            return {**what, "renderer": robot.renderer_identity}, work
        finally:
            robot.close()


def _print(record: dict[str, Any], out: Path) -> None:
    from rich.console import Console
    from rich.table import Table

    from vjepa_mpc.planner_courses import PUBLISHED, PUBLISHED_EVALUATIONS

    budget = record["settings"]["budget"]
    screen = Console()
    screen = screen if screen.is_terminal else Console(width=160)  # a file or a pipe has no width
    for name in dict.fromkeys(row["problems"] for row in record["rows"]):
        rows = [row for row in record["rows"] if row["problems"] == name]
        table = Table(title=f"{name} ({rows[0]['count']} problems): median best cost after evaluations")
        columns = (str(budget // 4), str(budget // 2), str(budget), "to published", "s/problem", "own ms/iteration")
        for column in ("planner", *columns):
            table.add_column(column, no_wrap=True)
        measured = any(row["planner"] == PUBLISHED for row in rows)
        if measured:
            table.caption = (
                f"{PUBLISHED} is the published setting; its last cost is that after its own {PUBLISHED_EVALUATIONS:,} "
                "evaluations. To published: evaluations until the median is as low as that."
            )
        for row in rows:
            reached = row["evaluations_to_published"] if measured else "-"
            table.add_row(
                row["planner"], *(_cost(row[key]) for key in ("median_quarter", "median_half", "median")),
                "never" if reached is None else str(reached), f"{row['wall_s_a_problem']:.3g}",
                f"{row['own_ms_an_iteration']:.2f}",
            )  # fmt: skip
        screen.print(table)
    for bar in record["bars"]:
        held, lower = "yes" if bar["met"] else "NO", f"lower on {bar['lower_on']} of {bar['count']}"
        screen.print(
            f"{held:>3}: {bar['what']}, {bar['problems']}: medians {_cost(bar['ours'])} to {_cost(bar['theirs'])}; "
            f"problem by problem {_cost(bar['difference'])} in the median, {lower}",
            highlight=False,
        )
    for gain in record["batches"]:
        screen.print(
            f"{gain['count']} problems in one call, {gain['problems']}: {gain['planner']} takes {gain['times']:.2f} "
            f"times less processor time than one by one; costs differ by {gain['apart']:.1g} at most",
            highlight=False,
        )
    own = record["own_ms_an_iteration_at_300x5x7"]
    if own:
        told = "; ".join(f"{name} {value:.2f}" for name, value in own.items())
        screen.print(f"Own time an iteration, 300 samples (or starts as told) x 5 steps x 7 actions, ms: {told}")
    screen.print(f"{out / 'planners.json'}, {out / 'planners.png'}")


def _cost(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"
