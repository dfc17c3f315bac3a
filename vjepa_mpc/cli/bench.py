"""`vjepa-mpc bench`: the closed-loop benchmark, and measurements that choose defaults."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from vjepa_mpc.cli.bench_compare import compare
from vjepa_mpc.cli.bench_data import data
from vjepa_mpc.cli.bench_objectives import objectives
from vjepa_mpc.cli.bench_peers import peers
from vjepa_mpc.cli.bench_planners import planners
from vjepa_mpc.cli.bench_run import bench
from vjepa_mpc.cli.bench_scale import scale
from vjepa_mpc.cli.bench_shortcuts import shortcuts

if TYPE_CHECKING:
    from vjepa_mpc.rollout_bench import RolloutTimes

app = typer.Typer()


app.callback(invoke_without_command=True)(bench)
app.command()(compare)
app.command()(data)
app.command()(objectives)
app.command()(peers)
app.command()(planners)
app.command()(scale)
app.command()(shortcuts)


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
