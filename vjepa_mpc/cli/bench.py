"""`vjepa-mpc bench`: the closed-loop benchmark, and measurements that choose defaults."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import typer

from vjepa_mpc.cli.bench_compare import compare
from vjepa_mpc.cli.bench_data import data
from vjepa_mpc.cli.bench_objectives import objectives
from vjepa_mpc.cli.bench_planners import planners
from vjepa_mpc.cli.bench_run import bench

app = typer.Typer()


app.callback(invoke_without_command=True)(bench)
app.command()(compare)
app.command()(data)
app.command()(objectives)
app.command()(planners)


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
    repeats: int = typer.Option(3, min=1, help="The least time of so many counts; one before is not counted."),
    threads: int | None = typer.Option(None, min=1, help="Torch threads (default: the cores this process may use)."),
    out: Path = typer.Option(Path("bench-rollout"), help="Folder for rollout.json."),
    json_output: bool = typer.Option(False, "--json", help="Print the results as JSON."),
) -> None:
    """Time to judge candidates on V-JEPA 2-AC's kind of predictor: cached, not cached, and as published.

    On CPUs, all in turn in one run on the same weights; the ratio is what counts. bfloat16: our weights are, the
    published code runs under autocast.
    """
    import json
    from dataclasses import asdict

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
    times, screen = [], Console(stderr=True)
    for case in cases:
        with screen.status(f"{case.precision}, horizon {case.horizon}"):
            times.append(measure(case, repeats, reference))
    record: dict[str, Any] = {
        "rows": [{**asdict(one), "ratio": one.ratio()} for one in times],
        "geometric_mean_ratio": summary(times), "repeats": repeats, "provenance": provenance(),
    }  # fmt: skip
    write_json(out / "rollout.json", record)
    if json_output:
        typer.echo(json.dumps(record, indent=2))
    else:
        _print_rollouts(record, out)


def _print_rollouts(record: dict[str, Any], out: Path) -> None:
    from rich.console import Console
    from rich.table import Table

    published = record["rows"][0]["reference"] is not None
    table = Table(title="Seconds to judge all candidates once")
    for column in ("precision", "horizon", "cached", "not cached", *(["published"] if published else []), "ratio"):
        table.add_column(column, justify="right")
    for row in record["rows"]:
        theirs = [f"{row['reference']:.3f}"] if published else []
        table.add_row(
            row["case"]["precision"], str(row["case"]["horizon"]), f"{row['cached']:.3f}", f"{row['plain']:.3f}",
            *theirs, f"{row['ratio']:.2f}",
        )  # fmt: skip
    screen = Console()
    screen.print(table)
    if published:
        gap = max(row["difference"] for row in record["rows"])
        screen.print(f"First predictions of the two differ by {gap:.2g} at most (float32, layer-normed).")
    screen.print(f"Ratio: {'published' if published else 'not cached'} / cached. {out / 'rollout.json'}")
