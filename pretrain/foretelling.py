"""How well offline figures of a run's checkpoints foretell their success in closed loop.

Each figure of `validation` orders the checkpoints, and so does success; the rank correlation of the two orders says
whether checkpoints can be chosen without playing them. Training steps are a figure too, the one to beat.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vjepa_mpc.core.errors import InputError
from vjepa_mpc.core.files import read_json
from vjepa_mpc.intervals import RankCorrelation, spearman
from vjepa_mpc.pretrain.validation import Figures

LEAST = 4
"""Checkpoints that a correlation takes."""

FIGURES: dict[str, tuple[int, Callable[[int, Figures], float]]] = {
    "steps": (1, lambda step, _: float(step)),
    "error / copying": (-1, lambda _, of: of.error[-1] / max(of.copy[-1], 1e-12)),
    "rank": (-1, lambda _, of: of.rank),
    "contrast": (1, lambda _, of: of.contrast.median),
    "end chosen": (-1, lambda _, of: of.end_chosen.median),
}
"""By name: 1 where more is better, -1 where less is; and the figure, of the training step and all clips."""

OUTCOMES: dict[str, tuple[int, Callable[[Mapping[str, Any]], float]]] = {
    "held": (1, lambda row: float(row["held"]["rate"])),
    "hit": (1, lambda row: float(row["hit"]["rate"])),
    "end": (-1, lambda row: float(row["final_distance_median_m"])),
}
"""The same of a row of `evaluate`'s results."""


@dataclass(frozen=True)
class Played:
    """Closed-loop results by training step, rows of `evaluate`; of `manifest`, whose content has this hash."""

    manifest: str
    sha256: str
    rows: dict[int, dict[str, Any]]


@dataclass(frozen=True)
class Foretelling:
    """`figures` and `outcomes` by training step; `correlations` by figure and outcome, None where one of the two is the
    same for all. Both are turned so that better counts as more: 1 is the same order, -1 the reverse."""

    figures: dict[int, dict[str, float]]
    outcomes: dict[int, dict[str, float]]
    correlations: dict[str, dict[str, RankCorrelation | None]]


def foretelling(offline: Mapping[int, Figures], played: Played, generator: np.random.Generator) -> Foretelling:
    """Correlate what both are known of. `InputError` where these are fewer than `LEAST` checkpoints."""
    steps = sorted(offline.keys() & played.rows.keys())
    if len(steps) < LEAST:
        raise InputError(
            f"A rank correlation takes at least {LEAST} checkpoints that were validated and played, got {len(steps)}; "
            "play more of the run's models."
        )
    figures = {step: {name: of(step, offline[step]) for name, (_, of) in FIGURES.items()} for step in steps}
    outcomes = {step: {name: of(played.rows[step]) for name, (_, of) in OUTCOMES.items()} for step in steps}

    def better(table: Mapping[int, Mapping[str, float]], kinds: Mapping[str, tuple[int, Any]], name: str) -> Any:
        return kinds[name][0] * np.array([table[step][name] for step in steps])

    return Foretelling(
        figures,
        outcomes,
        {
            figure: {
                outcome: spearman(better(figures, FIGURES, figure), better(outcomes, OUTCOMES, outcome), generator)
                for outcome in OUTCOMES
            }
            for figure in FIGURES
        },
    )


def read_played(files: Sequence[Path], models: Mapping[int, Path]) -> Played:
    """What `evaluate` found of these models, in one results.json or several. `InputError`: files of other models, of
    several manifests or settings, of different numbers of pairs, or a model found twice."""
    own = {path.resolve(): step for step, path in models.items()}
    last = max(models)
    own[models[last].resolve().parent] = last  # the run's folder stands for its last model
    rows: dict[int, dict[str, Any]] = {}
    kinds: dict[str, str] = {}
    for file in files:
        record = read_json(file)
        if not isinstance(record, dict) or not isinstance(record.get("results"), dict):
            raise InputError(f"{file} is no results.json of `vjepa-mpc evaluate`; give one.")
        kinds[repr((record.get("sha256"), record.get("settings")))] = str(file)
        places = {name: Path(name).resolve() for name in record["results"]}
        here = {own[place]: record["results"][name] for name, place in places.items() if place in own}
        if not here:
            raise InputError(f"{file} holds none of this run's models; it has {', '.join(places)}.")
        if twice := here.keys() & rows.keys():
            raise InputError(f"The model of step {min(twice)} is in several of the files; give one result of each.")
        rows |= here
    if len(kinds) > 1:
        several = " and ".join(kinds.values())
        raise InputError(f"{several} were played on other manifests or with other settings; play all models alike.")
    if len(counts := {row["episodes"] for row in rows.values()}) > 1:
        raise InputError(f"The models were played on {min(counts)} to {max(counts)} pairs; play all on the same.")
    return Played(str(record["manifest"]), str(record["sha256"]), dict(sorted(rows.items())))
