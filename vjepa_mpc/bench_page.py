"""A benchmark as one HTML page that opens from disk: tables, plots, films of successes and failures, settings."""

from __future__ import annotations

import base64
import json
import statistics
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from vjepa_mpc.bench_files import PAGE, Run
from vjepa_mpc.benchmark import films_of, plans_of
from vjepa_mpc.core.files import write_text
from vjepa_mpc.datasets.html_page import COLOURS, document, film_figure, line_plot, picture_figure

_READING = """
<p><b>held</b>: within the task's radius after each of the last steps of the budget; the number to compare.
<b>hit</b>: within it after any step. Brackets: 95 % Wilson intervals (repeats of a pair under several seeds count
as episodes, which makes them too narrow). <b>end</b>: median final distance. <b>steps</b>: median steps to the
first hit, and to the last entry of those that held. <b>late</b>: decisions that took longer than the control
period. <b>entered</b>: episodes that entered a forbidden region. <b>MFLOP</b>: of matrix products in a control
step's forward passes. The ceiling is told the true state; floors and planners are not. Films: the goal on the left,
the view on the right. First plans: each imagined frame is shown by the picture nearest to it in latent space, of 256
places of the world; the numbers are latent distances: from the goal, and of that picture from what was imagined.</p>
"""
_HEAD = (
    "policy", "n", "held", "hit", "end, cm", "steps", "ms", "95 % ms", "late", "evaluations a step", "MFLOP a step",
    "entered",
)  # fmt: skip
_BAR = (260, 18)  # pixels of an interval's row


def write_report(run: Run, out: Path | None = None) -> Path:
    """Write the page beside the results (or to `out`); it holds everything it shows."""
    parts = [_head(run), _READING]
    for task in dict.fromkeys(row["task"] for row in run.rows):
        parts.append(_task(run, [row for row in run.rows if row["task"] == task]))
    parts.append(_settings(run))
    target = out or run.folder / PAGE
    write_text(target, document(f"Benchmark: {run.record['suite']}", parts))
    return target


def _head(run: Run) -> str:
    record = run.record
    machine, origin = record["hardware"], record["provenance"]
    packages = ", ".join(f"{name} {version}" for name, version in origin["packages"].items())
    rows = {
        "suite": record["suite"],
        "complete": _complete(record),
        "price": record["price"],
        "workers": f"{record['workers']} with {record['threads']} torch thread(s) each",
        "machine": f"{machine['processor']}, {machine['cores']} cores, GPU: {machine['gpu'] or 'none'}",
        "software": f"vjepa-mpc {origin['vjepa_mpc']} {origin['commit']}, Python {origin['python']}, {packages}",
        "platform": origin["platform"],
        "command": " ".join(origin["command"]),
    }
    cells = "".join(f"<tr><td>{escape(key)}</td><td>{escape(str(text))}</td></tr>" for key, text in rows.items())
    return f"<h1>Benchmark: {escape(record['suite'])}</h1><table class='facts'>{cells}</table>"


def _complete(record: Mapping[str, Any]) -> str:
    if record["complete"]:
        return "yes"
    lost = [f"{one['task']}: {one['policy']}, pair {one['pair']} ({one['reason']})" for one in record["failures"]]
    return f"no: {len(lost)} failed: {'; '.join(lost)}" if lost else "no: what was finished when it was stopped"


def _task(run: Run, rows: Sequence[Mapping[str, Any]]) -> str:
    """Everything of one task: its plain world first, then the variations, then films."""
    first = rows[0]
    plain = [row for row in rows if not row["factor"]]
    text = f"<section><h2>{escape(first['task'])}</h2><p>Manifest {escape(first['manifest'])}, sha256 "
    text += f"{escape(first['sha256'][:16])}, task version {first['task_version']}</p>"
    text += _table(plain) + f'<div class="row">{_intervals(plain)}{_ways(run, plain)}</div>'
    text += _variations([row for row in rows if row["factor"]])
    films = "".join(_films(run, row) for row in rows if row["kind"] != "floor")
    plans = "".join(_plans(run, row) for row in plain if row["kind"] == "planner")
    return f'{text}<div class="row">{films}</div><div class="row">{plans}</div></section>'


def _percent(rate: Mapping[str, Any]) -> str:
    low, high = 100 * rate["wilson_low"], 100 * rate["wilson_high"]
    return f"{100 * rate['rate']:.0f} % [{low:.0f}, {high:.0f}]"


def _table(rows: Sequence[Mapping[str, Any]]) -> str:
    lines = "".join("<tr>" + "".join(f"<td>{escape(text)}</td>" for text in _texts(row)) + "</tr>" for row in rows)
    return f"<table class='numbers'><tr>{''.join(f'<th>{name}</th>' for name in _HEAD)}</tr>{lines}</table>"


def _texts(row: Mapping[str, Any]) -> list[str]:
    steps = [row["steps_to_hit_median"], row["steps_to_hold_median"]]
    flops = row.get("flops")
    missing = f" of {row['wanted']}" if row["episodes"] < row["wanted"] else ""
    return [
        row["policy"], f"{row['episodes']}{missing}", _percent(row["held"]), _percent(row["hit"]),
        f"{100 * row['final_distance_median_m']:.1f}", ", ".join("-" if one is None else f"{one:g}" for one in steps),
        f"{row['milliseconds_median']:.3g}", f"{row['milliseconds_p95']:.3g}",
        f"{100 * row['deadline_misses']['rate']:.0f} %", f"{row['evaluations_per_step']:.0f}",
        "-" if flops is None else f"{flops['step'] / 1e6:,.0f}", str(row["violations"]["count"]),
    ]  # fmt: skip


def _intervals(rows: Sequence[Mapping[str, Any]]) -> str:
    """Held, with its interval, of every policy, on one scale from 0 to 100 %."""
    width, height = _BAR
    marks = "".join(
        f'<line x1="{width * share}" x2="{width * share}" y1="0" y2="{height * len(rows)}" stroke="#ddd"/>'
        for share in (0.25, 0.5, 0.75)
    )
    for place, row in enumerate(rows):
        held, y, colour = row["held"], height * (place + 0.5), COLOURS[place % len(COLOURS)]
        low, rate, high = (f"{width * held[name]:.1f}" for name in ("wilson_low", "rate", "wilson_high"))
        marks += f'<line x1="{low}" x2="{high}" y1="{y}" y2="{y}" stroke="{colour}" stroke-width="3"/>'
        marks += f'<circle cx="{rate}" cy="{y}" r="5" fill="{colour}"/>'
    names = " ".join(
        f'<span style="color:{COLOURS[place % len(COLOURS)]}">{escape(row["policy"])}</span>'
        for place, row in enumerate(rows)
    )
    svg = f'<svg width="{width}" height="{height * len(rows)}" style="overflow:visible">{marks}</svg>'
    return f"<figure>{svg}<figcaption>held, 0 to 100 %: {names}</figcaption></figure>"


def _ways(run: Run, rows: Sequence[Mapping[str, Any]]) -> str:
    """The median distance to the goal after every step, a line a policy."""
    lines, names = [], []
    for row in rows:
        ways = [one.distances for episodes in run.episodes(row).values() for one in episodes]
        lines.append([statistics.median(step) for step in zip(*ways, strict=True)])
        names.append(row["policy"])
    values = np.array(lines, np.float64).T
    return line_plot("median distance, m, against steps", np.arange(1.0, len(values) + 1), values, names)


def _variations(rows: Sequence[Mapping[str, Any]]) -> str:
    """Held in every variation: a row each, a column a policy."""
    if not rows:
        return ""
    policies = list(dict.fromkeys(row["policy"] for row in rows))
    head = "".join(f"<th>{escape(policy)}</th>" for policy in policies)
    lines = ""
    for factor, level in dict.fromkeys((row["factor"], row["level"]) for row in rows):
        here = {row["policy"]: row for row in rows if (row["factor"], row["level"]) == (factor, level)}
        cells = "".join(f"<td>{_held_of(here.get(policy))}</td>" for policy in policies)
        lines += f"<tr><td>{escape(factor)} {level:g}</td>{cells}</tr>"
    return f"<h3>Robustness: held</h3><table><tr><th>factor and level</th>{head}</tr>{lines}</table>"


def _held_of(row: Mapping[str, Any] | None) -> str:
    return "-" if row is None else f"{row['held']['count']} of {row['episodes']}: {_percent(row['held'])}"


def _films(run: Run, row: Mapping[str, Any]) -> str:
    world = f", {row['factor']} {row['level']:g}" if row["factor"] else ""
    return "".join(
        film_figure(
            base64.b64encode(path.read_bytes()).decode(),
            f"{escape(row['policy'])}{escape(world)}: pair {index}, "
            f'<span class="{"good" if held else "bad"}">{"held" if held else "lost"}</span>',
        )
        for key in list(row["cells"].values())[:1]
        for index, held, path in films_of(key, run.folder)
    )


def _plans(run: Run, row: Mapping[str, Any]) -> str:
    return "".join(
        picture_figure(
            base64.b64encode(path.read_bytes()).decode(), f"{escape(row['policy'])}: the first plan of pair {index}"
        )
        for key in list(row["cells"].values())[:1]
        for index, path in plans_of(key, run.folder)
    )


def _settings(run: Run) -> str:
    """What every planner and actor was played with, in full."""
    told = {f"{row['task']}: {row['policy']}": row["played"] for row in run.rows if row["kind"] in ("planner", "actor")}
    shown = escape(json.dumps({**told, "measured ms a step, before the run": run.record["step_ms"]}, indent=2))
    return f"<section><details><summary>Settings</summary><pre>{shown}</pre></details></section>"
