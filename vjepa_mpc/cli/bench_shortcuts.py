"""`vjepa-mpc bench shortcuts`: what plans lose, and how much quicker they are, with less than the whole model."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from vjepa_mpc.cli.building import MODEL_HELP

if TYPE_CHECKING:
    from vjepa_mpc.cli.contenders import Contender, PlannerOptions
    from vjepa_mpc.shortcut_bench import FirstPlan, Shortcut, Way
    from vjepa_mpc.world_model import WorldModel

PLANS = "plans.jsonl"


def shortcuts(
    model: str | None = typer.Option(None, help=MODEL_HELP),
    row: list[str] = typer.Option(
        [], help="draft-2 (--draft 2), blocks-3 (the first 3 alone), grid-2 (latents averaged to 2 x 2), samples-96 or "
        "iterations-2 (the whole model, searched less); may be repeated. Some of each if none.",
    ),
    manifest: str = typer.Option("dev", help="Start/goal pairs."),
    problems: int = typer.Option(20, min=1, help="Pairs whose first plans are compared."),
    pairs: int = typer.Option(0, min=0, help="Pairs that are also played to the end, every way in turn (0: none)."),
    seed: int = typer.Option(0, min=0, max=2**32, help="Seed of the planner in pairs that are played."),
    threads: int = typer.Option(1, min=1, help="Torch threads."),
    backend: str = typer.Option("auto", help="Renderer: auto, egl, osmesa or rays (no GL)."),
    out: Path = typer.Option(
        Path("bench-shortcuts"), help="Folder for shortcuts.json; what was measured in it is kept."
    ),
    json_output: bool = typer.Option(False, "--json", help="Print the results as JSON."),
) -> None:
    """Quicker and rougher ways to plan, beside the whole model: loss in plans, ranks of candidates, time, success.

    First plans of frozen pairs, judged by the whole model, and whole episodes. All ways in turn, problem by problem, in
    one process on a CPU: their times are ratios within a problem. Run again, the command goes on, with more problems or
    pairs; with a new row problems are planned anew in all rows, and episodes that are there stay as they were timed.
    """  # fmt: skip
    import torch

    from vjepa_mpc.cli.building import limit_threads, load_model
    from vjepa_mpc.cli.contenders import stage_of
    from vjepa_mpc.core.files import write_json
    from vjepa_mpc.core.settings import provenance, to_plain
    from vjepa_mpc.costs import DRAFT_KEEPS
    from vjepa_mpc.encoder import weights_hash
    from vjepa_mpc.pretrain.run_folder import begin
    from vjepa_mpc.robots.factory import find_task
    from vjepa_mpc.robots.tasks import load_manifest
    from vjepa_mpc.shortcut_bench import WHOLE, Shortcut, plan_figures, usual_shortcuts
    from vjepa_mpc.world_model import SearchDefaults

    limit_threads(threads)
    world = load_model(model, torch.device("cpu"))
    task: Any = find_task(world.config.robot.name)
    stage, frozen = stage_of(world, model or "the shipped model", task, backend), load_manifest(manifest, task)
    asked = [Shortcut.named(text) for text in row]
    usual: Any = way_of(world, Shortcut()).planner
    chosen = [Shortcut(), *(asked or usual_shortcuts(world, usual.settings.samples, DRAFT_KEEPS))]
    searched = to_plain(world.config.search or SearchDefaults())  # plans depend on it, and weights do not tell it
    settings = {"model": weights_hash(world), "search": searched, "manifest": frozen.sha256, "seed": seed,
                "threads": threads, "renderer": stage.renderer}  # fmt: skip
    begin(out, "shortcuts", settings)
    plans = _planned({one.name: way_of(world, one) for one in chosen}, stage, frozen.pairs[:problems], out)
    episodes = _played(world, chosen, stage, frozen, task, min(pairs, len(frozen.pairs)), seed, out) if pairs else {}
    rows = [
        {"way": one.name, **plan_figures(one.name, plans), "episodes": episodes.get(one.name)} for one in chosen
    ]
    record = {"settings": {**settings, "split": frozen.split}, "whole": WHOLE, "rows": rows, "provenance": provenance()}
    write_json(out / "shortcuts.json", record)
    if json_output:
        import json

        typer.echo(json.dumps(record, indent=2))
    else:
        _print(record, out)


def options_of(shortcut: Shortcut) -> PlannerOptions:
    """What the command line would say."""
    from vjepa_mpc.cli.contenders import PlannerOptions

    of = {shortcut.kind: shortcut.amount}
    return PlannerOptions(draft=of.get("draft", 0), samples=of.get("samples"), iterations=of.get("iterations"))


def way_of(world: WorldModel, shortcut: Shortcut) -> Way:
    """Who plans by a shortcut, with the planner that `plan` and `evaluate` take for this model."""
    from dataclasses import replace

    from vjepa_mpc.cli.building import planner_and_control
    from vjepa_mpc.memory import CHUNK
    from vjepa_mpc.shortcut_bench import Way

    said, model = options_of(shortcut), shortcut.of(world)
    planner, control = planner_and_control(
        model, None, "cem", horizon=None, samples=said.samples, iterations=said.iterations, elites=None, settings=(),
        draft=said.draft,
    )  # fmt: skip
    return Way(model, planner, replace(control, chunk=CHUNK))


def _planned(ways: Mapping[str, Way], stage: Any, pairs: Any, out: Path) -> list[dict[str, FirstPlan]]:
    """The first plans of all pairs: those of an earlier run where it has every way, and the others now."""
    import json
    from contextlib import closing
    from dataclasses import asdict

    from rich.console import Console

    from vjepa_mpc.core.files import write_text
    from vjepa_mpc.shortcut_bench import FirstPlan, first_plans

    known: dict[int, dict[str, FirstPlan]] = {}
    if (out / PLANS).is_file():
        for line in (out / PLANS).read_text(encoding="utf-8").splitlines():
            told = json.loads(line)
            known[told["pair"]] = {name: FirstPlan(**plan) for name, plan in told["ways"].items()}
    missing = [number for number in range(len(pairs)) if not ways.keys() <= known.get(number, {}).keys()]
    if missing:
        with closing(stage.robot()) as robot, Console(stderr=True).status("") as bar:
            first_plans(ways, robot, pairs[missing[0]], missing[0])  # not counted: weights are laid out
            for number in missing:
                bar.update(f"first plans: {number + 1} of {len(pairs)}")
                known[number] = first_plans(ways, robot, pairs[number], number)
                told = [{"pair": key, "ways": {way: asdict(plan) for way, plan in known[key].items()}} for key in known]
                write_text(out / PLANS, "".join(json.dumps(one) + "\n" for one in told))
    return [known[number] for number in range(len(pairs))]


def _played(
    world: WorldModel, chosen: list[Shortcut], stage: Any, frozen: Any, task: Any, pairs: int, seed: int, out: Path
) -> dict[str, dict[str, Any]]:
    """What the episodes of each way came to; pair by pair, so that all ways find the machine alike."""
    import statistics

    from rich.console import Console

    from vjepa_mpc.cli.contenders import planning
    from vjepa_mpc.evaluation import ArenaSetup, evaluate
    from vjepa_mpc.executor import LocalExecutor
    from vjepa_mpc.memory import CHUNK
    from vjepa_mpc.results import summarise
    from vjepa_mpc.shortcut_bench import WHOLE

    who: dict[str, Contender] = {
        one.name: planning(one.of(world), stage, one.name, options_of(one), CHUNK) for one in chosen
    }
    results: dict[str, Any] = {}
    with Console(stderr=True).status("") as bar:
        for count in range(1, pairs + 1):
            for name, one in who.items():
                bar.update(f"episode {count} of {pairs}: {name}")
                setup = ArenaSetup(one.robot, one.policy, task, seed, {})
                log = out / f"episodes-{name}.jsonl"
                results[name] = evaluate(frozen, setup, LocalExecutor(1), pairs=count, log=log)
    figures = {}
    for name, some in results.items():
        each = zip(some, results[WHOLE], strict=True)
        ratios = [statistics.median(best.milliseconds) / statistics.median(own.milliseconds) for own, best in each]
        figures[name] = {**summarise(some, task), "times_quicker": statistics.median(ratios)}
    return figures


def _print(record: dict[str, Any], out: Path) -> None:
    from rich.console import Console
    from rich.table import Table

    rows = record["rows"]
    played = any(row["episodes"] for row in rows)
    table = Table(title=f"First plans of {rows[0]['problems']} pairs of {record['settings']['split']}")
    columns = ("way", "ms a plan", "times quicker", "gained", "mean [least]", "rank, first", "rank, last")
    for column in (*columns, *(("held [95 % Wilson]", "ms a step", "times quicker") if played else ())):
        table.add_column(column, justify="left" if column == "way" else "right")
    for row in rows:
        table.add_row(*_cells(row))
    screen = Console()
    (screen if screen.is_terminal else Console(width=200)).print(table)  # a file or a pipe has no width
    screen.print(
        "Gained: share of the whole model's gain over the start, as it judges. Rank: how costs of its candidates agree "
        "with its own, in its search's first and last population. Medians [least], where not said.", markup=False,
    )  # fmt: skip
    screen.print(f"{out / 'shortcuts.json'}")


def _cells(row: dict[str, Any]) -> list[str]:
    cells = [row["way"], f"{row['milliseconds']:.0f}", f"{row['times_quicker']:.2f}"]
    cells += ["-" if row["gained"] is None else f"{row['gained']:.3f}"]
    cells += [_of(row, *keys) for keys in (("gained", "gained_mean"), ("rank_first",), ("rank_last",))]
    played = row["episodes"]
    if played:
        held = played["held"]
        low, high = (100 * held[f"wilson_{end}"] for end in ("low", "high"))
        cells += [
            f"{held['count']} of {played['episodes']} [{low:.0f}, {high:.0f}]",
            f"{played['milliseconds_median']:.0f}", f"{played['times_quicker']:.2f}",
        ]  # fmt: skip
    return cells


def _of(row: dict[str, Any], key: str, told: str | None = None) -> str:
    """The median, or what is `told` in its place, and the least."""
    return "-" if row[key] is None else f"{row[told or key]:.2f} [{row[f'{key}_least']:.2f}]"
