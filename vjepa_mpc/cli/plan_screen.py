"""What `vjepa-mpc plan` shows: progress and warnings on stderr, the result on stdout."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from vjepa_mpc.loop import StepRecord

TABLE_ROWS = 20


class Screen:
    """What the user sees: progress and warnings on stderr, the result on stdout."""

    def __init__(self, as_json: bool, quiet: bool) -> None:
        from rich.console import Console

        self.as_json, self.quiet = as_json, quiet
        self.errors = Console(stderr=True, highlight=False, soft_wrap=True)
        self.results = Console(highlight=False, soft_wrap=True)

    def warn(self, sentence: str) -> None:
        self.errors.print(f"Warning: {sentence}", style="yellow", markup=False)

    def note(self, sentence: str) -> None:
        if not self.quiet:
            self.errors.print(f"Note: {sentence}", style="dim", markup=False)

    def busy(self, doing: str) -> Progress:
        return Progress(self, doing)

    def episode(self, record: dict[str, Any], records: Sequence[StepRecord], out: Path) -> None:
        """The table of an episode and a sentence on how it ended, or plan.json."""
        if self.as_json:
            return self._json(record)
        if self.quiet:
            return None
        self.results.print(_table(records))
        ends = {
            "reached": f"Reached and held after {record['actions']} actions, as the model judges.",
            "max_steps": f"Not reached within {record['actions']} actions{_how_near(record)} (more: --max-steps).",
            "stalled": f"Stopped after {record['actions']} actions: the watchdog saw no progress.",
            "interrupted": f"Interrupted after {record['actions']} actions; the robot was stopped.",
        }
        self.results.print(ends[record["exit_reason"]], markup=False)
        return self._files(record, out)

    def single(self, record: dict[str, Any], out: Path) -> None:
        """The actions of one plan and what they cost, or plan.json."""
        if self.as_json:
            return self._json(record)
        if self.quiet:
            return None
        from rich.table import Table

        robot = record["robot"]
        pairs = zip(robot["action_names"], robot["action_units"], strict=True)
        span = robot["control_steps_a_planned_step"]
        each = "control step" if span == 1 else f"{span} control steps"
        table = Table(each, *(f"{name} ({unit})" for name, unit in pairs))
        for step, action in enumerate(record["actions"]):
            table.add_row(str(step), *(f"{value:+.4f}" for value in action))
        self.results.print(table)
        self.results.print(f"To be sent now: {', '.join(f'{value:+.4f}' for value in record['wanted'])}.")
        cost = record["planned_cost"]
        predicted = "rejected" if cost is None else f"{cost:.4f}"
        self.results.print(f"Latent cost now {record['latent_cost']:.4f}, predicted {predicted}.", markup=False)
        if record["looks_reached"]:
            self.results.print("To the model the goal looks reached already.")
        return self._files(record, out)

    def _files(self, record: dict[str, Any], out: Path) -> None:
        if record["files"]:
            self.results.print(f"Written to {out}: {', '.join(record['files'])}", markup=False)

    def _json(self, record: dict[str, Any]) -> None:
        import json

        typer.echo(json.dumps(record, indent=2, allow_nan=False))


class Progress:
    """A live line on a terminal; elsewhere one line a step. As a watcher of the loop it shows every step."""

    def __init__(self, screen: Screen, doing: str) -> None:
        self.screen, self.live = screen, screen.errors.is_terminal and not screen.quiet
        self.status = screen.errors.status(f"{doing} ...")

    def __enter__(self) -> Progress:
        if self.live:
            self.status.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.status.stop()

    def step(self, record: StepRecord) -> None:
        if self.screen.quiet:
            return
        away = "" if record.distance is None else f"   distance {100 * record.distance:.1f} cm"
        line = f"step {record.step}   latent cost {record.latent_cost:.4f}{away}   {record.milliseconds:.0f} ms"
        if self.live:
            self.status.update(line)
        else:
            self.screen.errors.print(line, markup=False)


_SIZES = (("goal", "pixels"), ("model", "camera_pixels"))


def _how_near(record: dict[str, Any]) -> str:
    """What the last view costs, beside what would have been judged reached."""
    if not record["steps"]:
        return ""
    last, limit = record["steps"][-1]["latent_cost"], record["model"]["reached_cost"]
    near = f": the last view's latent cost is {last:.2f}, and below {limit:.2f} counts as reached"
    (goal, own) = (" x ".join(map(str, record[part][key])) for part, key in _SIZES)
    if goal == own or record["goal_warning"] is not None:  # then it is not the size that keeps it away
        return near
    return near + f", which a goal of {own} pixels, as the camera sees, may be where this one of {goal} is not"


def _table(records: Sequence[StepRecord]) -> Any:
    """Step, latent cost, distance where known, time: at most `TABLE_ROWS` rows, first and last among them, and how
    many are left out."""
    from rich.table import Table

    known = any(record.distance is not None for record in records)
    count = min(TABLE_ROWS, len(records))
    left_out = f"{count} of {len(records)} steps; all are in plan.json" if count < len(records) else None
    table = Table(caption=left_out, caption_justify="left")
    for name in ("step", "latent cost", *(["distance (cm)"] if known else []), "ms"):
        table.add_column(name, justify="right")
    last = len(records) - 1
    chosen = sorted({round(i * last / max(1, count - 1)) for i in range(count)})
    for index in chosen:
        record = records[index]
        away = [] if not known else ["" if record.distance is None else f"{100 * record.distance:.1f}"]
        table.add_row(str(record.step), f"{record.latent_cost:.4f}", *away, f"{record.milliseconds:.0f}")
    return table
