"""`vjepa-mpc collect`: fill a trajectory store from a simulated robot."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import typer

from vjepa_mpc.cli.building import VARY_HELP
from vjepa_mpc.core.errors import InputError


def collect(
    robot: str | None = typer.Option(None, help="Which robot: a name, or module:Class (default: the task's)."),
    task: str | None = typer.Option(
        None, help="Whose goals and behaviours: a name, or module:Class (default: as the robot, or the reacher's)."
    ),
    episodes: int = typer.Option(1000, help="Episodes the store shall hold in the end."),
    out: Path = typer.Option(..., help="The store (a folder, by custom *.zarr); an existing one is continued."),
    frames: int = typer.Option(41, help="Observations in an episode; one action fewer."),
    seed: int = typer.Option(0, help="Episode i is a function of this seed and i only."),
    workers: int | None = typer.Option(None, help="Simulating processes; all CPU cores when left out."),
    size: int | None = typer.Option(
        None, help="Width and height of the pictures in pixels; the robot's own if left out."
    ),
    appearance: str = typer.Option("varied", help="varied (colours, light, textures, camera pose) or plain."),
    level: float = typer.Option(1.0, help="How far a varied appearance departs from the plain one, 0 to 1."),
    fraction: float = typer.Option(0.8, help="The share of episodes whose appearance is varied, 0 to 1."),
    vary: list[str] = typer.Option([], help=f"Instead of the appearance: {VARY_HELP}"),
    behaviour: list[str] = typer.Option(
        [],
        help="Instead of the task's own mixture: a behaviour and its share of the segments, as demonstration=0.8; may "
        "be given several times, the shares summing to 1.",
    ),
    actor: str | None = typer.Option(
        None, help="World model (a folder, a run, a shipped one's name) whose actor drives in the behaviour 'actor'."
    ),
    json_output: bool = typer.Option(False, "--json", help="Print the summary as JSON."),
) -> None:
    """Collect simulated trajectories into a store, with several processes.

    Run again with the same settings to continue an interrupted collection, or with more --episodes to
    extend it. Ctrl-C keeps every finished episode.
    """

    from vjepa_mpc.cli.building import parse_levels, usable_cores
    from vjepa_mpc.collect import CollectSettings
    from vjepa_mpc.collect import collect as run
    from vjepa_mpc.exploration import EpisodeSettings
    from vjepa_mpc.robots.factory import find_task

    if robot is None:
        robot = "reacher" if task is None else find_task(task).robot
    episode = EpisodeSettings(
        robot=robot,
        task=None if task == robot else task,
        frames=frames,
        seed=seed,
        appearance=appearance,
        appearance_level=level,
        appearance_fraction=fraction,
        camera_size=size,
        factors=tuple(sorted(parse_levels(vary).items())),
        behaviours=tuple(sorted(_shares(behaviour).items())),
        **({} if actor is None else _actor(actor)),
    )
    settings = CollectSettings(out, episodes, usable_cores() if workers is None else workers, episode)
    with _progress(frames) as show:
        report = run(settings, show)
    if json_output:
        import json

        typer.echo(json.dumps({**vars(report), "out": str(report.out)}, indent=2))
    else:
        done = f"{report.out}: {report.episodes} episodes, {report.frames} frames"
        speed = f"{report.added} added in {report.seconds:.1f} s, {report.frames_per_s:.0f} frames/s"
        typer.echo(f"{done} ({speed if report.added else 'nothing to add'}).")
    if report.interrupted:
        typer.echo("Interrupted: finished episodes are kept; run the same command to continue.", err=True)
        raise typer.Exit(130)


def _actor(source: str) -> dict[str, Any]:
    """Which model's actor drives: its folder, the hash of what it holds, and how it plays."""
    from vjepa_mpc.cli.building import model_folder
    from vjepa_mpc.encoder import weights_hash
    from vjepa_mpc.policies import actor_drawn, actor_steps
    from vjepa_mpc.world_model import WorldModel

    folder = model_folder(source)
    model = WorldModel.from_pretrained(folder)
    if model.actor is None:
        raise InputError(f"{source} has no actor that could drive; `vjepa-mpc train-actor {source} ...` gives it one.")
    how = {"actor_steps": actor_steps(model, None), "actor_drawn": actor_drawn(model, None)}
    return {"actor": str(folder.resolve()), "actor_weights": weights_hash(model), **how}


def _shares(texts: list[str]) -> dict[str, float]:
    """`demonstration=0.8`: behaviours and their shares."""
    shares: dict[str, float] = {}
    for text in texts:
        name, _, share = (part.strip() for part in text.partition("="))
        try:
            number = float(share)
        except ValueError as error:
            raise InputError(f"--behaviour {text} is no behaviour and its share; write demonstration=0.8.") from error
        if name in shares:
            raise InputError(f"--behaviour {name} is given twice; give each behaviour one share.")
        shares[name] = number
    return shares


class _progress:
    """A bar on stderr with episodes, frames a second and the time left; hands out its update function."""

    def __init__(self, frames: int) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        self._frames = frames
        self._bar = Progress(
            TextColumn("collecting"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("episodes, {task.fields[rate]} frames/s, left:"),
            TimeRemainingColumn(),
            console=Console(stderr=True),
        )
        self._first: tuple[float, int] | None = None
        self._task: Any = None

    def __enter__(self) -> _progress:
        return self

    def __exit__(self, *_: object) -> None:
        if self._first is not None:
            self._bar.stop()

    def __call__(self, done: int, total: int) -> None:
        import time

        now = time.perf_counter()
        if self._first is None:
            self._first = (now, done)
            self._bar.start()
            self._task = self._bar.add_task("", total=total, completed=done, rate="-")
            return
        rate = (done - self._first[1]) * self._frames / max(now - self._first[0], 1e-9)
        self._bar.update(self._task, completed=done, rate=f"{rate:,.0f}")
