"""`vjepa-mpc bench compare`: which differences between two benchmarks are more than chance."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from vjepa_mpc.bench_compare import Comparison


def compare(
    first: Path = typer.Argument(..., help="Folder A of `vjepa-mpc bench`."),
    second: Path = typer.Argument(..., help="Folder B; may be the same, with two policies named."),
    policy_a: str | None = typer.Option(None, help="The policy of A (default: its planners)."),
    policy_b: str | None = typer.Option(None, help="The policy of B (default: its planners)."),
    alpha: float = typer.Option(0.05, min=0.0, max=1.0, help="Below which p (Holm's) a difference is called one."),
    json_output: bool = typer.Option(False, "--json", help="Print the comparison as JSON."),
) -> None:
    """Compare two benchmarks on the same pairs: McNemar's exact test for held, Wilcoxon's for the final distance."""
    from dataclasses import asdict

    from vjepa_mpc.bench_compare import compare as compared
    from vjepa_mpc.bench_files import load

    rows = compared(load(first), load(second), policy_a=policy_a, policy_b=policy_b)
    if json_output:
        import json

        told = [
            {**asdict(row), "held_differs": row.held_holm < alpha, "distance_differs": row.distance_holm < alpha}
            for row in rows
        ]
        typer.echo(json.dumps({"a": str(first), "b": str(second), "alpha": alpha, "rows": told}, indent=2))
        return
    for row in rows:
        for line in _sentences(row, alpha):
            typer.echo(line)
    typer.echo(f"p-values are Holm's over all {2 * len(rows)} tests; differences are called so below {alpha:g}.")


def _sentences(row: Comparison, alpha: float) -> list[str]:
    world = f", {row.factor} {row.level:g}" if row.factor else ""
    names = ("A", "B") if row.a == row.b else (row.a, row.b)
    better = "no difference shown" if row.held_holm >= alpha else f"{names[row.only_b > row.only_a]} holds more"
    nearer = "no difference shown" if row.distance_holm >= alpha else f"{names[row.farther < 0]} ends nearer"
    return [
        f"{row.task}{world}: {names[0]} against {names[1]}, {row.pairs} pairs",
        f"  held      {100 * row.held_a:.0f} % and {100 * row.held_b:.0f} %; {row.only_a} pairs by the first alone, "
        f"{row.only_b} by the second alone; p = {row.held_holm:.3g}: {better}",
        f"  distance  the second ends {100 * row.farther:+.2f} cm farther [{100 * row.farther_low:.2f}, "
        f"{100 * row.farther_high:.2f}]; p = {row.distance_holm:.3g}: {nearer}",
    ]
