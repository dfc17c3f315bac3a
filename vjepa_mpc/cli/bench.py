"""`vjepa-mpc bench`: the closed-loop benchmark, and measurements that choose defaults."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from vjepa_mpc.cli.bench_compare import compare
from vjepa_mpc.cli.bench_data import data
from vjepa_mpc.cli.bench_objectives import objectives
from vjepa_mpc.cli.bench_run import bench
from vjepa_mpc.cli.building import MODEL_HELP

if TYPE_CHECKING:
    from vjepa_mpc.planner_bench import Course, Problems
    from vjepa_mpc.rollout_bench import RolloutTimes

app = typer.Typer()
MODEL_PROBLEMS = "model"


app.callback(invoke_without_command=True)(bench)
app.command()(compare)
app.command()(data)
app.command()(objectives)


@app.command()
def planners(
    on: list[str] = typer.Option(
        [], help="What to solve: ellipsoid-20, rosenbrock-20, rastrigin-20, the same with -50, or model (start/goal "
        "pairs through a world model); may be repeated. All functions if none.",
    ),
    planner: list[str] = typer.Option([], help="Planners to measure; may be repeated. All if none."),
    budget: int = typer.Option(2000, min=8, help="Evaluations a problem (the published setting takes its own 8,000)."),
    problems: int = typer.Option(10, min=1, help="Drawn versions of each function; pairs with --on model."),
    manifest: str = typer.Option("dev", help="Start/goal pairs for --on model."),
    model: str | None = typer.Option(None, help=MODEL_HELP),
    horizon: int | None = typer.Option(None, help="Model steps planned ahead (default: as far as the model sees)."),
    seed: int = typer.Option(0, min=0, max=2**32, help="Seed of functions and planners."),
    overhead: bool = typer.Option(True, "--overhead/--no-overhead", help="Also each planner's own time an iteration."),
    backend: str = typer.Option("auto", help="Renderer for --on model: auto, egl, osmesa or rays (no GL)."),
    out: Path = typer.Option(Path("bench-planners"), help="Folder for planners.json and planners.png."),
    json_output: bool = typer.Option(False, "--json", help="Print the results as JSON."),
) -> None:
    """Cost reached against evaluations, for every planner, `cma` used directly among them.

    One torch thread; times are processor time, and the cost function's is told apart from the planner's own.
    """  # fmt: skip
    import torch

    from vjepa_mpc.core.errors import unknown_name
    from vjepa_mpc.core.files import write_json
    from vjepa_mpc.core.settings import provenance
    from vjepa_mpc.plan_files import check_writable
    from vjepa_mpc.planner_bench import FUNCTIONS, PYCMA, contenders, drawn, overheads, summary

    torch.set_num_threads(1)
    for name in on:
        if name not in (*FUNCTIONS, MODEL_PROBLEMS):
            raise unknown_name("set of problems", name, (*FUNCTIONS, MODEL_PROBLEMS))
    names = (*contenders(budget), PYCMA)
    for name in planner:
        if name not in names:
            raise unknown_name("planner", name, names)
    check_writable(out)
    courses: list[Course] = []
    for name in on or FUNCTIONS:
        if name == MODEL_PROBLEMS:
            work = _pairs(model, manifest, problems, horizon, backend)
        else:
            work = drawn(name, problems, seed)
        courses += _measured(work, [*planner] or list(names), budget, seed)
    record: dict[str, Any] = {
        "settings": {
            "on": [*on] or list(FUNCTIONS), "budget": budget, "problems": problems, "seed": seed, "manifest": manifest,
            "model": model or "shipped", "horizon": horizon,
        },
        "rows": summary(courses, budget),
        "own_ms_an_iteration_at_300x5x7": overheads() if overhead else {},
        "provenance": provenance(),
    }  # fmt: skip
    write_json(out / "planners.json", record)
    from vjepa_mpc.planner_figure import save_courses

    save_courses(courses, budget, out / "planners.png")
    if json_output:
        import json

        typer.echo(json.dumps(record, indent=2))
    else:
        _print(record, out)


@app.command()
def rollout(
    reference: Path | None = typer.Option(
        None, help="A clone of facebookresearch/vjepa2, to be timed beside: its predictor, its loop, its poses."
    ),
    horizon: list[int] = typer.Option([], min=1, help="Steps imagined; may be repeated. 1, 2, 3 and 5 if none."),
    precision: list[str] = typer.Option([], help="float32 or bfloat16; may be repeated. Both if none."),
    candidates: int = typer.Option(16, min=2, help="Action sequences judged at once."),
    width: int = typer.Option(384, min=1, help="Predictor width."),
    depth: int = typer.Option(12, min=1, help="Predictor layers."),
    heads: int = typer.Option(6, min=1, help="Predictor heads."),
    grid: int = typer.Option(16, min=1, help="Patches along a side."),
    latent: int = typer.Option(1408, min=1, help="Values a patch."),
    chunk: int = typer.Option(256, min=1, help="Candidates imagined at a time."),
    repeats: int = typer.Option(3, min=1, help="How often both are timed in turn; once before is not counted."),
    threads: int | None = typer.Option(None, min=1, help="Torch threads (default: the cores this process may use)."),
    out: Path = typer.Option(Path("bench-rollout"), help="Folder for rollout.json."),
    json_output: bool = typer.Option(False, "--json", help="Print the results as JSON."),
) -> None:
    """Time to judge candidates on V-JEPA 2-AC's kind of predictor: cached, against not cached or as published.

    On CPUs, both in turn in one run on the same weights; the ratio is what counts. bfloat16: our weights are, the
    published code runs under autocast. rollout.json is written after every row.
    """
    import json

    from rich.console import Console

    from vjepa_mpc.cli.building import limit_threads
    from vjepa_mpc.core.files import write_json
    from vjepa_mpc.core.settings import provenance
    from vjepa_mpc.plan_files import check_writable
    from vjepa_mpc.rollout_bench import RolloutCase, measure, summary

    check_writable(out)
    limit_threads(threads)
    shape = {"width": width, "depth": depth, "heads": heads, "grid": grid, "latent_dim": latent}
    cases = [
        RolloutCase(steps, name, candidates=candidates, chunk=chunk, **shape)
        for name in precision or ("float32", "bfloat16") for steps in horizon or (1, 2, 3, 5)
    ]  # fmt: skip
    screen, record = Console(stderr=True), {}
    times: list[RolloutTimes] = []
    for case in cases:
        with screen.status(f"{case.precision}, horizon {case.horizon}"):
            times.append(measure(case, repeats, reference))
        record = {
            "rows": [_row(one) for one in times], "geometric_mean_ratio": summary(times), "repeats": repeats,
            "provenance": provenance(),
        }  # fmt: skip
        write_json(out / "rollout.json", record)
    if json_output:
        typer.echo(json.dumps(record, indent=2))
    else:
        _print_rollouts(record, out)


def _row(one: RolloutTimes) -> dict[str, Any]:
    from dataclasses import asdict

    return {**asdict(one), "ratio": one.ratio(), "ratio_of_least": one.ratio_of_least(), "bar": one.bar()}


def _print_rollouts(record: dict[str, Any], out: Path) -> None:
    from statistics import median

    from rich.console import Console
    from rich.table import Table

    published = record["rows"][0]["published"]
    other = "published" if published else "not cached"
    table = Table(title="Seconds to judge all candidates once (medians)")
    for column in ("precision", "horizon", "cached", other, "ratio", "of least times", *(["bar"] if published else [])):
        table.add_column(column, justify="right")
    for row in record["rows"]:
        bar = [] if not published else ["-" if row["bar"] is None else f"{row['bar']:.1f}"]
        table.add_row(
            row["case"]["precision"], str(row["case"]["horizon"]), f"{median(row['cached']):.3f}",
            f"{median(row['other']):.3f}", f"{row['ratio']:.2f}", f"{row['ratio_of_least']:.2f}", *bar,
        )  # fmt: skip
    screen = Console()
    screen.print(table)
    if published:
        gap = max(row["difference"] for row in record["rows"])
        screen.print(f"First predictions of the two differ by {gap:.2g} at most (float32, layer-normed).")
    screen.print(f"Ratio: {other} / cached, the median of {record['repeats']} in turn. {out / 'rollout.json'}")


def _measured(work: Problems, names: list[str], budget: int, seed: int) -> list[Course]:
    from rich.console import Console

    from vjepa_mpc.planner_bench import PUBLISHED, PYCMA, contenders, measure, measure_pycma

    makers, courses = contenders(budget), []
    screen = Console(stderr=True)
    for name in names:
        with screen.status(f"{work.name}: {name}"):
            if name == PYCMA:
                courses.append(measure_pycma(work, budget, seed))
            else:
                limit = 8000 if name == PUBLISHED else budget
                courses.append(measure(name, makers[name](work.bounds), work, limit, seed))
    return courses


def _pairs(model: str | None, manifest: str, count: int, horizon: int | None, backend: str) -> Problems:
    """The first pairs of a manifest as one batch of planning problems."""
    import torch

    from vjepa_mpc.cli.building import load_model
    from vjepa_mpc.planner_bench import pairs_through_model
    from vjepa_mpc.planning import trained
    from vjepa_mpc.robots.factory import find_task, make_robot
    from vjepa_mpc.robots.tasks import load_manifest

    world = load_model(model, torch.device("cpu"))
    trained(world, model or "the shipped model")
    task: Any = find_task(world.config.robot.name)
    frozen = load_manifest(manifest, task)
    world.check_fits(task.spec)
    size = world.config.robot.cameras[world.config.camera].height
    robot: Any = make_robot(task.robot, backend=backend, camera_size=size)
    try:
        return pairs_through_model(world, robot, frozen.pairs[:count], horizon or world.longest_horizon)
    finally:
        robot.close()


def _print(record: dict[str, Any], out: Path) -> None:
    from rich.console import Console
    from rich.table import Table

    budget, screen = record["settings"]["budget"], Console()
    for name in dict.fromkeys(row["problems"] for row in record["rows"]):
        table = Table(title=f"{name}: median best cost after evaluations")
        columns = ("planner", str(budget // 4), str(budget // 2), str(budget), "to published", "own ms/iteration")
        for column in columns:
            table.add_column(column, no_wrap=True)
        for row in record["rows"]:
            if row["problems"] == name:
                reached = row["evaluations_to_published"]
                table.add_row(
                    row["planner"], *(_cost(row[key]) for key in ("median_quarter", "median_half", "median")),
                    "never" if reached is None else str(reached), f"{row['own_ms_an_iteration']:.2f}",
                )  # fmt: skip
        screen.print(table)
    own = record["own_ms_an_iteration_at_300x5x7"]
    if own:
        told = ", ".join(f"{name} {value:.2f}" for name, value in own.items())
        screen.print(f"Own time an iteration, 300 samples x 5 steps x 7 actions (gradients: 4 starts), ms: {told}")
    screen.print(f"{out / 'planners.json'}, {out / 'planners.png'}")


def _cost(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"
