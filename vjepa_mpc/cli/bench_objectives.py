"""`vjepa-mpc bench objectives`: encoders by their objective, on equal terms, from pixels to success.

A row's stages are this program's own commands, each of which goes on where it was cut short; what they found is kept in
the row's file after each stage.
"""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import typer

from vjepa_mpc.cli.workers import INTERRUPTED, OK, passed_on
from vjepa_mpc.core.errors import InputError, unknown_name

ROWS: dict[str, tuple[str, ...] | None] = {
    "vjepa-ema": ("--sigreg", "0"),
    "vjepa-sigreg": (),
    "vjepa-sigreg-content": ("--sigreg-on", "content"),
    "vjepa-inverse": ("--inverse", "1"),
    "lejepa": ("--objective", "lejepa"),
    "ijepa": ("--objective", "ijepa"),
    "vicreg-inverse": ("--objective", "vicreg"),
    "untrained": None,
    "pixels": None,
}
"""Encoders by name: what `pretrain` is asked for, or None for one that `train --encoder` knows by its name."""

WITH_FLOORS = "untrained"  # floors and script are the same for every row of a task: played beside one of them
FLOORS = ("random", "no-op", "scripted (ceiling)")
STAGES = ("encoder", "predictor", "probes", "validation", "success")


@dataclass(frozen=True)
class Terms:
    """What all rows have in common: minutes of the two trainings, pairs of a manifest, seed, further options."""

    minutes_encoder: float
    minutes_predictor: float
    manifest: str
    pairs: int
    seed: int
    pretrain_with: tuple[str, ...] = ()
    train_with: tuple[str, ...] = ()
    probe_with: tuple[str, ...] = ()
    validate_with: tuple[str, ...] = ()
    evaluate_with: tuple[str, ...] = ()


def objectives(
    stores: list[Path] | None = typer.Argument(
        None, metavar="STORE", help="A store of each task's trajectories; none to print the table of what is in --out."
    ),
    row: list[str] = typer.Option([], help=f"Encoders: {', '.join(ROWS)}; may be repeated. All if none."),
    minutes_encoder: float = typer.Option(25.0, help="Minutes of pretraining a row."),
    minutes_predictor: float = typer.Option(15.0, help="Minutes of the predictor a row."),
    manifest: str = typer.Option("dev", help="Start/goal pairs of each task."),
    pairs: int = typer.Option(50, min=1, help="So many pairs of it."),
    seed: int = typer.Option(0, min=0, max=2**32, help="Seed of everything."),
    pretrain_with: str = typer.Option("", help="Further options of `pretrain`, for all rows alike, in one string."),
    train_with: str = typer.Option("", help="The same for `train`; --steps there replaces the minutes."),
    probe_with: str = typer.Option("", help="The same for `probe`."),
    validate_with: str = typer.Option("", help="The same for `validate-model`."),
    evaluate_with: str = typer.Option("", help="The same for `evaluate`."),
    out: Path = typer.Option(Path("bench-objectives"), help="Folder of rows and table; rows in it are gone on with."),
    json_output: bool = typer.Option(False, "--json", help="Print the table as JSON."),
) -> None:
    """Encoders by their objective on equal terms: probes, offline validation, success, clips a second.

    A row is pretrained, gets a predictor, is probed, validated and played; one that is cut short goes on there when the
    command is run again, and rows may be added one by one. OUT/table.md and OUT/table.json hold all rows there are.
    """
    from vjepa_mpc.core.files import write_json, write_text
    from vjepa_mpc.objective_table import figures, markdown, read_rows

    for name in row:
        if name not in ROWS:
            raise unknown_name("row", name, ROWS)
    given = (pretrain_with, train_with, probe_with, validate_with, evaluate_with)
    terms = Terms(minutes_encoder, minutes_predictor, manifest, pairs, seed, *(tuple(shlex.split(s)) for s in given))
    for store in stores or []:
        for name in row or ROWS:
            make_row(name, store, terms, out)
    rows = read_rows(out)
    told = [figures(one) for one in rows]
    write_json(out / "table.json", told)
    write_text(out / "table.md", markdown(rows))
    typer.echo(json.dumps(told, indent=2) if json_output else markdown(rows), nl=json_output)


def stages_of(name: str, store: Path, terms: Terms, folder: Path) -> dict[str, list[str]]:
    """The command line of every stage of a row."""
    asked = ROWS[name]
    seed, where = ["--seed", str(terms.seed)], str(store)
    encoder = name if asked is None else str(folder / "encoder")
    lines = {
        "predictor": ["train", where, "--encoder", encoder, "--out", str(folder / "predictor"),
                      *_minutes(terms.minutes_predictor, terms.train_with), *seed, *terms.train_with],
        "probes": ["probe", encoder, where, "--out", str(folder / "probes"), *seed, *terms.probe_with],
        "validation": ["validate-model", str(folder / "predictor"), where, "--out", str(folder / "validation"), *seed,
                       *terms.validate_with],
        "success": ["evaluate", "--model", str(folder / "predictor"), "--manifest", terms.manifest, "--pairs",
                    str(terms.pairs), "--out", str(folder / "success"), *seed,
                    "--floors" if name == WITH_FLOORS else "--no-floors", *terms.evaluate_with],
    }  # fmt: skip
    if asked is None:
        return lines
    first = ["pretrain", where, "--out", encoder, *_minutes(terms.minutes_encoder, terms.pretrain_with), *seed]
    return {"encoder": [*first, *asked, *terms.pretrain_with], **lines}


def _minutes(minutes: float, options: tuple[str, ...]) -> list[str]:
    return [] if "--steps" in options else ["--minutes", f"{minutes:g}"]


def make_row(name: str, store: Path, terms: Terms, out: Path) -> None:
    """Go through the stages of a row that its file does not have yet. An encoder that collapses ends it."""
    from vjepa_mpc.core.files import read_json, write_json
    from vjepa_mpc.core.settings import provenance
    from vjepa_mpc.datasets.store import ZarrStore
    from vjepa_mpc.objective_table import ROW
    from vjepa_mpc.robots.factory import find_task

    opened = ZarrStore.open(store)
    task = find_task(opened.spec.robot).name
    folder = out / task / name
    lines = stages_of(name, store, terms, folder)
    record: dict[str, Any] = {
        "task": task, "row": name, "order": list(ROWS).index(name), "data": opened.content_hash(), "stages": lines,
        "floors": list(FLOORS), "failed": None, "found": {}, "provenance": provenance(),
    }  # fmt: skip
    if (folder / ROW).is_file():
        before = read_json(folder / ROW)
        if any(before.get(key) != record[key] for key in ("data", "stages")):
            raise InputError(
                f"{folder / ROW} was made on other terms or data; go on with those, or choose another --out."
            )
        record = before
    for stage, line in lines.items():
        if stage in record["found"] or record["failed"]:
            continue
        typer.echo(f"{task}, {name}: {stage}", err=True)
        code, said = run_stage(line)
        if code == INTERRUPTED:
            raise typer.Exit(INTERRUPTED)
        if code != OK and not (stage == "encoder" and (folder / "encoder" / "health.png").is_file()):
            raise InputError(f"{task}, {name}: `vjepa-mpc {shlex.join(line)}` ended with code {code}: {said}")
        if code != OK:
            record["failed"] = said.removeprefix("Error: ")
        else:
            record["found"][stage] = finding(stage, folder)
        write_json(folder / ROW, record)


def run_stage(line: list[str]) -> tuple[int, str]:
    """Run a command of ours to its end; its exit code and the last line it said. Ctrl-C is passed on to it."""
    with tempfile.TemporaryFile("w+") as said:
        process = subprocess.Popen(
            [sys.executable, "-m", "vjepa_mpc", *line], stdout=subprocess.DEVNULL, stderr=said, start_new_session=True
        )
        with passed_on([process]):
            code = process.wait()
        said.seek(0)
        lines = [text.strip() for text in said.read().splitlines() if text.strip()]
    return code, lines[-1] if lines else ""


def finding(stage: str, folder: Path) -> dict[str, Any]:
    """What a stage left in its folder, as far as the table and its readers need it."""
    from vjepa_mpc.core.files import read_json

    if stage in ("probes", "validation", "success"):
        name = {"probes": "probe.json", "validation": "validation.json", "success": "results.json"}[stage]
        found: dict[str, Any] = read_json(folder / stage / name)
        return {key: value for key, value in found.items() if key != "ranks"}
    if stage == "encoder":
        notes: Mapping[str, Any] = read_json(folder / "encoder" / "encoder" / "vjepa_mpc.json")["training"]
    else:
        notes = read_json(folder / "predictor" / "model" / "config.json")["training"]
    last = json.loads((folder / stage / "log.jsonl").read_text(encoding="utf-8").splitlines()[-1])
    steps, seconds, batch = notes["steps"], notes["seconds"], notes["trainer"]["batch"]
    return {"steps": steps, "seconds": seconds, "clips_a_second": steps * batch / seconds, "last": last, "notes": notes}
