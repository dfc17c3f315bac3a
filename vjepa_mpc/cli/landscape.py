"""`vjepa-mpc landscape`: what a world model says of a grid of actions, from pictures or from a log."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from vjepa_mpc.cli.building import MODEL_HELP
from vjepa_mpc.core.errors import InputError

if TYPE_CHECKING:
    from vjepa_mpc.landscape import Moment
    from vjepa_mpc.world_model import WorldModel

PICTURES, LOG = "From pictures", "From a log"


def landscape(
    model: str | None = typer.Option(None, help=MODEL_HELP),
    observation: Path | None = typer.Option(None, help="Picture of now.", rich_help_panel=PICTURES),
    state: str | None = typer.Option(None, help="The robot's state in it, in its units.", rich_help_panel=PICTURES),
    goal: Path | None = typer.Option(None, help="Picture one model step later.", rich_help_panel=PICTURES),
    action: str | None = typer.Option(
        None, help="The action that led there, to be marked (robot units).", rich_help_panel=PICTURES
    ),
    logs: Path | None = typer.Option(None, help="Trajectory store (logs.zarr).", rich_help_panel=LOG),
    episode: int | None = typer.Option(None, help="Its episode (default: 0).", rich_help_panel=LOG),
    frame: int | None = typer.Option(
        None, help="Frame of now (default: 0); the goal is one model step later.", rich_help_panel=LOG
    ),
    axes: str | None = typer.Option(None, help="One to three actions, by name, with commas (default: the first two)."),
    points: int = typer.Option(9, min=2, help="Values along each axis."),
    device: str = typer.Option("auto", help="auto, cpu or cuda."),
    threads: int | None = typer.Option(None, min=1, help="Torch threads (default: the cores this process may use)."),
    out: Path = typer.Option(Path("landscape-out"), help="Folder for landscape.png and landscape.json."),
    json_output: bool = typer.Option(False, "--json", help="Print landscape.json, and only that."),
) -> None:
    """The energy of a grid of actions: how far what the model imagines one step on is from the goal picture.

    In float32. The action that truly led there is marked; a valley around it is what planning lives on.
    """
    from vjepa_mpc.cli.building import choose_device, limit_threads, model_folder
    from vjepa_mpc.core.files import write_json
    from vjepa_mpc.core.settings import provenance
    from vjepa_mpc.energy import plot_energy
    from vjepa_mpc.landscape import plain, study
    from vjepa_mpc.plan_files import check_writable
    from vjepa_mpc.world_model import WorldModel

    check_writable(out)
    limit_threads(threads)
    world = WorldModel.from_pretrained(model_folder(model), choose_device(device))
    if world.config.calibration is None:
        typer.echo("Warning: this model has no calibration: its training was never finished, or never begun.", err=True)
    if logs is not None:
        for name, value in (("--observation", observation), ("--state", state), ("--goal", goal), ("--action", action)):
            if value is not None:
                raise InputError(f"{name} is what --logs has already; leave one out.")
        moment, used = _from_log(world, logs, episode or 0, frame or 0)
    else:
        for name, number in (("--episode", episode), ("--frame", frame)):
            if number is not None:
                raise InputError(f"{name} is of a log; give that with --logs, or leave it out.")
        moment, used = _from_pictures(world, observation, state, goal, action)
    found = study(world, moment, [name.strip() for name in axes.split(",")] if axes else [], points)
    record = {**plain(found), "source": {"model": model or "shipped", **used}, "provenance": provenance()}
    plot_energy(found, out / "landscape.png")
    write_json(out / "landscape.json", record)
    if json_output:
        typer.echo(json.dumps(record, indent=2))
        return
    for key in ("lowest", "logged"):
        if record[key] is not None:
            where = ", ".join(
                f"{name} {value:+.4g} {unit}"
                for name, value, unit in zip(found.names, record[key]["action"], found.units, strict=True)
            )
            typer.echo(f"{key}: energy {record[key]['energy']:.4f} at {where}")
    typer.echo(f"Written to {out}: landscape.png, landscape.json")


def _from_log(world: WorldModel, logs: Path, episode: int, frame: int) -> tuple[Moment, dict[str, Any]]:
    """The moment, and what it was made of, for the record."""
    from vjepa_mpc.datasets.store import ZarrStore
    from vjepa_mpc.landscape import logged_moment

    moment = logged_moment(world, ZarrStore.open(logs), episode, frame)
    return moment, {"logs": str(logs), "episode": episode, "frame": frame}


def _from_pictures(
    world: WorldModel, observation: Path | None, state: str | None, goal: Path | None, action: str | None
) -> tuple[Moment, dict[str, Any]]:
    """The moment, and what it was made of, for the record."""
    from vjepa_mpc.cli.guarding import numbers
    from vjepa_mpc.landscape import Moment
    from vjepa_mpc.planning import load_goal

    if observation is None or state is None or goal is None:
        raise InputError("A landscape needs --observation, --state and --goal, or --logs; give what is missing.")
    robot = world.config.robot
    led = None if action is None else robot.check_limits(numbers("--action", action), world.config.stride)
    now, later = load_goal(observation), load_goal(goal)
    where = robot.check_state(numbers("--state", state))
    used = {
        "observation": {"file": str(now.path), "sha256": now.sha256},
        "goal": {"file": str(later.path), "sha256": later.sha256},
        "state": where.tolist(),
        "action": None if led is None else led.tolist(),
    }
    return Moment(now.image, where, later.image, led), used
