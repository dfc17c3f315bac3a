"""The table of objectives: what each encoder was worth, from the files of its row, as Markdown and plain values.

A row is one objective (or floor) on one task: an encoder, a predictor on it, probes, offline validation, success.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vjepa_mpc.core.errors import InputError
from vjepa_mpc.core.files import read_json

ROW = "row.json"
HEADINGS = (
    "encoder", "held [95 % Wilson]", "hit", "median end", "rank", "end chosen", "error / copying", "linear R2",
    "attentive R2", "clips/s", "steps: encoder, predictor",
)  # fmt: skip


def read_rows(folder: Path) -> list[dict[str, Any]]:
    """The rows in `folder`, by task and in the order they were begun; `InputError` where there is none."""
    rows = [read_json(path) for path in folder.glob(f"*/*/{ROW}")]
    if not rows:
        raise InputError(f"{folder} holds no rows yet; give the stores to make them from.")
    return sorted(rows, key=lambda row: (row["task"], row["order"]))


def figures(row: Mapping[str, Any]) -> dict[str, Any]:
    """What the table says of a row: numbers by name, None for what is not measured (yet)."""
    found = row["found"]
    encoder, predictor, probes = (found.get(stage, {}) for stage in ("encoder", "predictor", "probes"))
    foreseen = found.get("validation", {}).get("groups", {}).get("all", {})
    played = found.get("success", {}).get("results", {})
    own: dict[str, Any] = next((one for name, one in played.items() if name not in row["floors"]), {})
    told = {name: one["held"]["rate"] for name, one in played.items() if name in row["floors"]}
    return {
        "task": row["task"], "encoder": row["row"], "failed": row["failed"],
        "held": own.get("held"), "hit": own.get("hit"), "pairs": own.get("episodes"),
        "final_distance_median_m": own.get("final_distance_median_m"),
        "rank": foreseen.get("rank"), "end_chosen": foreseen.get("end_chosen", {}).get("median"),
        "unit": found.get("validation", {}).get("unit"),
        "error_over_copy": _over(foreseen.get("error"), foreseen.get("copy")),
        "linear_r2": _explained(probes, "linear"), "attentive_r2": _explained(probes, "attentive"),
        "clips_a_second": encoder.get("clips_a_second"), "encoder_steps": encoder.get("steps"),
        "predictor_steps": predictor.get("steps"), "floors": told,
    }  # fmt: skip


def _over(error: Sequence[float] | None, copy: Sequence[float] | None) -> float | None:
    return error[-1] / copy[-1] if error and copy and copy[-1] else None


def _explained(probes: Mapping[str, Any], kind: str) -> float | None:
    """Mean over targets of the share of the variance that a probe explains, in all looks together."""
    for name, scores in probes.get("scores", {}).items():
        if kind in scores and name != "(mean)":
            shares = [score["r2"] for score in scores[kind]["all"].values() if score["r2"] is not None]
            return sum(shares) / len(shares) if shares else None
    return None


def markdown(rows: Sequence[Mapping[str, Any]]) -> str:
    """One table a task."""
    parts = []
    for task in dict.fromkeys(row["task"] for row in rows):
        own = [row for row in rows if row["task"] == task]
        lines = ["| " + " | ".join(HEADINGS) + " |", "|" + "---|" * len(HEADINGS)]
        lines += ["| " + " | ".join(_cells(figures(row))) + " |" for row in own]
        floors = {name: rate for row in own for name, rate in figures(row)["floors"].items()}
        told = ", ".join(f"{name} {100 * rate:.0f} %" for name, rate in floors.items())
        parts.append(f"### {task}\n\n" + "\n".join(lines) + (f"\n\nHeld by floors and script: {told}." if told else ""))
    return "\n\n".join(parts) + "\n"


def _cells(row: Mapping[str, Any]) -> list[str]:
    held, unit = row["held"], row["unit"] or ""
    if row["failed"]:
        return [row["encoder"], f"none: {row['failed']}", *["-"] * (len(HEADINGS) - 2)]
    success = ["-", "-", "-"]
    if held is not None:
        success = [
            f"{held['count']} of {row['pairs']} [{100 * held['wilson_low']:.0f}, {100 * held['wilson_high']:.0f}]",
            f"{100 * row['hit']['rate']:.0f} %", f"{100 * row['final_distance_median_m']:.1f} cm",
        ]  # fmt: skip
    return [
        row["encoder"], *success, _told(row["rank"]), _told(row["end_chosen"], unit), _told(row["error_over_copy"]),
        _told(row["linear_r2"]), _told(row["attentive_r2"]), _told(row["clips_a_second"], digits=0),
        f"{row['encoder_steps'] or '-'}, {row['predictor_steps'] or '-'}",
    ]  # fmt: skip


def _told(value: float | None, unit: str = "", digits: int = 3) -> str:
    return "-" if value is None else f"{value:.{digits}f} {unit}".strip()
