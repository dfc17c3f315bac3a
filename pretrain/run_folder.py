"""The folder of a run: what it was asked for, written once, and held against whoever goes on in it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from vjepa_mpc.core.errors import InputError
from vjepa_mpc.core.files import read_json, write_json
from vjepa_mpc.core.settings import provenance
from vjepa_mpc.pretrain import ranks

UNNAMED = {"name": "vjepa", "context_weight": 0.0, "inverse_weight": 0.0, "sigreg_on": "tokens"}
"""What a run did whose settings are older than the objectives' names, and may be older than the other three."""

ONE_EACH = {"keep": 1, "accumulate": 1}
OF_ALL_BEHAVIOURS: dict[str, Any] = {"object": False, "behaviours": []}
"""Checkpoints that every training kept, and batches of its steps, before there was a choice."""

ONE_RATIO = {"mlp_ratio": 4.0}
"""What every encoder's hidden layers were before other encoders could be gone on from."""

OF_ONE_FAMILY = {"conditioning": "tokens", "rotary": "tiled", "proprioception": "integrated"}
"""What every predictor was before there were others."""


def begin(folder: Path, kind: str, settings: dict[str, Any]) -> None:
    """Write `settings.json` of a new run; for a run that is there already, refuse other settings. One that
    was refused before its first step (it has no log) leaves nothing to protect."""
    path = folder / "settings.json"
    record = json.loads(json.dumps({"kind": kind, "settings": settings}))
    if path.is_file() and any(folder.glob("*.jsonl")):
        before = read_json(path)
        if not isinstance(before, dict):
            raise InputError(f"{path} was altered; restore it, or choose another --out.")
        before = {key: before.get(key) for key in record}
        _fill_in(before["settings"])
        if before != record:
            changed = _differences(before, record).replace("settings.", "")
            raise InputError(
                f"{folder} holds a run with other settings ({changed}); resume it with those, or choose another --out."
            )
        return
    if ranks.first():
        write_json(path, {**record, "directory": str(Path.cwd()), "provenance": provenance()})


def note_version(folder: Path) -> None:
    """Note the version that goes on with a run, where it is not the one before."""
    if not ranks.first():
        return
    content = read_json(folder / "settings.json")
    if commits(folder)[-1] != (now := provenance())["commit"]:
        write_json(folder / "settings.json", {**content, "resumed": [*content.get("resumed", []), now]})


def commits(folder: Path) -> list[str | None]:
    """The commits of this code that a run went through, the last one last; None where none is known."""
    content = read_json(folder / "settings.json")
    return [one.get("commit") for one in (content.get("provenance") or {}, *content.get("resumed", []))]


def _fill_in(settings: Any) -> None:
    """Fill in what runs of earlier versions did not write down."""
    if not isinstance(settings, dict):
        return
    objective, predictor, training = (settings.get(part) for part in ("objective", "predictor", "training"))
    if isinstance(training, dict):
        settings["training"] = {**ONE_EACH, **training}
    if isinstance(objective, dict) and "name" not in objective:
        settings["objective"] = objective = {**UNNAMED, **objective}
    if isinstance(objective, dict) and isinstance(objective.get("size"), dict):
        settings["objective"] = {**objective, "size": {**ONE_RATIO, **objective["size"]}}
    if isinstance(actor := settings.get("actor"), dict):
        settings["actor"] = {**OF_ALL_BEHAVIOURS, **actor}
    if isinstance(predictor, dict):
        settings["predictor"] = {**OF_ONE_FAMILY, **predictor}


def _differences(before: Any, now: Any, name: str = "") -> str:
    if isinstance(before, dict) and isinstance(now, dict):
        parts = (
            _differences(before.get(key), now.get(key), f"{name}.{key}" if name else key)
            for key in sorted({*before, *now})
        )
        return ", ".join(part for part in parts if part)
    return "" if before == now else f"{name}: {before} there, {now} asked for"
