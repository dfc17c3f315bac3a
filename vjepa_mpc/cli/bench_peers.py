"""`vjepa-mpc bench peers`: others' protocols with our controller, apart from our own tables."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from vjepa_mpc.cli.building import PLANNER_HELP, SET_HELP
from vjepa_mpc.core.errors import InputError, unknown_name

if TYPE_CHECKING:
    from vjepa_mpc.peer_protocols import DatasetProtocol, TaskProtocol
    from vjepa_mpc.world_model import WorldModel

_PROTOCOLS = {"stable-worldmodel": "swm/TwoRoom-v1", "ogbench": "cube-single-v0"}
_PLANNING = "Planner"


def peers(
    protocol: str = typer.Option("stable-worldmodel", help="stable-worldmodel or ogbench."),
    env: str | None = typer.Option(
        None, help="The environment, by its Gymnasium id (swm/TwoRoom-v1; ogbench: cube-single-v0)."
    ),
    model: str | None = typer.Option(
        None, help="World model: a folder, a run of train or a Hugging Face id. Floors alone, if left out."
    ),
    data: str | None = typer.Option(
        None, help="stable-worldmodel: the data set to take starts and goals from; recorded here, if left out."
    ),
    pairs: int = typer.Option(50, min=1, help="stable-worldmodel: starts and goals."),
    goal_offset: int = typer.Option(25, min=1, help="stable-worldmodel: steps from a start to its goal in the data."),
    budget: int = typer.Option(50, min=1, help="stable-worldmodel: steps an episode."),
    episodes: int = typer.Option(10, min=1, help="ogbench: episodes of each of the environment's tasks."),
    state: list[str] = typer.Option(
        [], help="Entries of the environment's info that are the model's state; may be repeated."
    ),
    batch: int = typer.Option(10, min=1, help="stable-worldmodel: environments stepped, and planned for, at once."),
    planner: str = typer.Option("cem", help=PLANNER_HELP, rich_help_panel=_PLANNING),
    horizon: int | None = typer.Option(None, help="Model steps planned ahead.", rich_help_panel=_PLANNING),
    samples: int | None = typer.Option(None, help="Candidates an iteration.", rich_help_panel=_PLANNING),
    iterations: int | None = typer.Option(None, help="Iterations of a plan.", rich_help_panel=_PLANNING),
    elites: int | None = typer.Option(None, help="Candidates that are kept.", rich_help_panel=_PLANNING),
    settings: list[str] = typer.Option([], "--set", help=SET_HELP, rich_help_panel=_PLANNING),
    seed: int = typer.Option(0, min=0, help="Of starts, environments, floors and planners."),
    threads: int = typer.Option(1, min=1, help="Torch threads."),
    device: str = typer.Option("auto", help="auto, cpu or cuda."),
    out: Path = typer.Option(Path("bench-peers"), help="Folder for a file a protocol and environment."),
    json_output: bool = typer.Option(False, "--json", help="Print the results as JSON."),
) -> None:
    """Play another project's protocol, as it is: a world model under our controller, and the floors.

    Success is what that project calls so, and its figures are no neighbours of `bench`'s. The project's package has to
    be installed.
    """
    from vjepa_mpc.cli.building import check_planner, choose_device, limit_threads, load_model
    from vjepa_mpc.core.files import write_json
    from vjepa_mpc.core.settings import provenance
    from vjepa_mpc.peer_policy import NoOpPeer, RandomPeer
    from vjepa_mpc.peer_protocols import OGBENCH_STATE, DatasetProtocol, TaskProtocol, installed
    from vjepa_mpc.plan_files import check_writable
    from vjepa_mpc.planning import trained

    if protocol not in _PROTOCOLS:
        raise unknown_name("protocol", protocol, _PROTOCOLS)
    check_planner(planner)
    installed("ogbench" if protocol == "ogbench" else "stable_worldmodel", protocol)
    check_writable(out)
    limit_threads(threads)
    which, world, size = env or _PROTOCOLS[protocol], None, 64
    if model is not None:
        world = load_model(model, choose_device(device))
        trained(world, model)
        size = _side(world)
    played: DatasetProtocol | TaskProtocol
    if protocol == "ogbench":
        played, read = TaskProtocol(which, episodes, seed, size), OGBENCH_STATE
    else:
        played = DatasetProtocol(which, pairs, goal_offset, budget, data, seed, size, batch)
        read = played.setters().state
    policies: dict[str, Any] = {"random": lambda: RandomPeer(seed), "no-op": NoOpPeer}
    record: dict[str, Any] = {"protocol": played.told()}
    if world is not None:
        make, told = _planned(
            world, tuple(state) or read, planner, seed, horizon=horizon, samples=samples, iterations=iterations,
            elites=elites, settings=settings,
        )  # fmt: skip
        policies[planner] = make
        record["model"] = {"source": model, **told}
        typer.echo(f"That {which} takes the actions of {world.config.robot.name} is taken on trust.", err=True)
    record["rows"] = _watched(played, policies)
    record["provenance"] = provenance()
    path = out / f"{protocol}_{which.replace('/', '-')}.json"
    write_json(path, record)
    _print(record, path, json_output)


def _side(world: WorldModel) -> int:
    camera = world.config.robot.cameras[world.config.camera]
    if camera.height != camera.width:
        raise InputError(
            f"This model looks at {camera.height} x {camera.width} pixels, and these protocols draw square pictures; "
            "use one trained on square ones."
        )
    return camera.height


def _planned(world: WorldModel, read: tuple[str, ...], planner: str, seed: int, **options: Any) -> tuple[Any, Any]:
    """Who builds the policy of a world model, and what is kept of it."""
    from dataclasses import asdict

    from vjepa_mpc.cli.building import planner_and_control
    from vjepa_mpc.encoder import weights_hash
    from vjepa_mpc.peer_policy import InfoNames, PlannedPeer

    optimiser, control = planner_and_control(world, None, planner, **options)
    names = InfoNames(state=read)
    made: Any = getattr(optimiser, "settings", None)
    told = {
        "robot": world.config.robot.name, "weights": weights_hash(world), "state": list(read),
        "planner": asdict(made), "control": asdict(control),
    }  # fmt: skip
    return lambda: PlannedPeer(world, optimiser, control, names, seed=seed), told


def _watched(played: Any, policies: dict[str, Any]) -> list[dict[str, Any]]:
    from rich.console import Console

    with Console(stderr=True).status("begins") as status:
        rows: list[dict[str, Any]] = played.play(
            policies, lambda name, done: status.update(f"{name}: {done} episodes")
        )
    return rows


def _print(record: dict[str, Any], path: Path, as_json: bool) -> None:
    if as_json:
        import json

        typer.echo(json.dumps(record, indent=2))
        return
    from rich.console import Console
    from rich.table import Table

    told, screen = record["protocol"], Console()
    table = Table(title=f"{told['name']} {told['version']}: {told['env']}")
    for column in ("policy", "n", "success"):
        table.add_column(column)
    for row in record["rows"]:
        rate = row["success"]
        bounds = f"[{100 * rate['wilson_low']:.0f}, {100 * rate['wilson_high']:.0f}]"
        table.add_row(row["policy"], str(row["episodes"]), f"{100 * rate['rate']:.0f} % {bounds}")
    screen.print(table)
    screen.print(f"Success: {told['success']}; 95 % Wilson intervals. Not comparable with `bench`.")
    if "starts" in told:
        screen.print(f"Starts and goals: {told['starts']}.", soft_wrap=True)
    screen.print(str(path), soft_wrap=True)
