"""A benchmark's folder: written as JSON and CSV, and read back."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vjepa_mpc.benchmark import EPISODES
from vjepa_mpc.core.errors import InputError
from vjepa_mpc.core.files import read_json, write_json, write_text
from vjepa_mpc.episodes import EpisodeResult
from vjepa_mpc.results import read_log

RESULTS, TABLE, EPISODE_TABLE, PAGE = "results.json", "results.csv", "episodes.csv", "report.html"
SCHEMA = "vjepa-mpc-bench-1"
_NOT_IN_TABLE = ("played", "cells", "held_by_seed")


@dataclass(frozen=True)
class Run:
    """A benchmark as its folder has it; `rows` as `benchmark.rows` made them."""

    folder: Path
    record: dict[str, Any]

    @property
    def rows(self) -> list[dict[str, Any]]:
        return list(self.record["rows"])

    def episodes(self, row: Mapping[str, Any]) -> dict[int, list[EpisodeResult]]:
        """A row's episodes by seed, in the order of the pairs; `InputError` where files are gone."""
        found = {}
        for seed, key in row["cells"].items():
            done = read_log(self.folder / EPISODES / f"{key}.jsonl")
            found[int(seed)] = [done[index] for index in sorted(done)][: row["wanted"] // len(row["cells"])]
        if sum(map(len, found.values())) != row["episodes"]:
            raise InputError(
                f"{self.folder / EPISODES} has other episodes of {row['task']}, {row['policy']} than {RESULTS} says; "
                "run the same `vjepa-mpc bench` again."
            )
        return found


def save(folder: Path, record: dict[str, Any]) -> Run:
    """Write the results as JSON, the table and all episodes as CSV."""
    run = Run(folder, {"schema": SCHEMA, **record})
    write_json(folder / RESULTS, run.record)
    short = ({key: value for key, value in row.items() if key not in _NOT_IN_TABLE} for row in run.rows)
    write_text(folder / TABLE, _csv([_flat(row) for row in short]))
    write_text(folder / EPISODE_TABLE, _csv([line for row in run.rows for line in _lines(run, row)]))
    return run


def load(folder: Path) -> Run:
    """Read a benchmark's folder; `InputError` for any other."""
    record = read_json(folder / RESULTS)
    if not isinstance(record, dict) or record.get("schema") != SCHEMA or not isinstance(record.get("rows"), list):
        raise InputError(f"{folder / RESULTS} is no benchmark of this version; give a folder of `vjepa-mpc bench`.")
    return Run(folder, record)


def _lines(run: Run, row: Mapping[str, Any]) -> list[dict[str, Any]]:
    """A line an episode."""
    names = ("task", "policy", "kind", "factor", "level", "manifest")
    return [
        {
            **{name: row[name] for name in names}, "seed": seed, "pair": one.index, "held": int(one.held),
            "hit": int(one.hit), "start_distance_m": one.start_distance, "final_distance_m": one.distances[-1],
            "milliseconds_median": sorted(one.milliseconds)[len(one.milliseconds) // 2], "together": one.together,
            "evaluations": one.evaluations, "intrusion_m": one.intrusion,
        }
        for seed, episodes in run.episodes(row).items() for one in episodes
    ]  # fmt: skip


def _flat(row: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested tables as one, names joined by dots."""
    flat: dict[str, Any] = {}
    for key, value in row.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return flat


def _csv(lines: Sequence[Mapping[str, Any]]) -> str:
    columns = list(dict.fromkeys(name for line in lines for name in line))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    return text.getvalue()
