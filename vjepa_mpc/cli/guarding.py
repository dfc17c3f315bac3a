"""Guardrails from the options of `plan` and `evaluate`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vjepa_mpc.core.errors import InputError

if TYPE_CHECKING:
    from vjepa_mpc.governors import Governor, Guards
    from vjepa_mpc.guardrails import Guardrail, Place
    from vjepa_mpc.thresholds import Thresholds
    from vjepa_mpc.world_model import WorldModel

KEEP_OUT_HELP = 'Region "x,y,radius" in m that the end effector must stay out of; may be repeated.'
MARGIN_HELP = "How far to stay clear of those regions, m."
WORKSPACE_HELP = 'Box "x,y,...,x,y,..." in m, low corner then high, that the end effector must stay in.'
POSE_BOX_HELP = 'Box "q1,q2,...,q1,q2,..." in the state\'s units, low then high, that every pose must stay in.'
AVOID_HELP = "Picture of what must not be approached; may be repeated. Needs thresholds (`vjepa-mpc calibrate`)."
CHANGE_HELP = 'Largest change "a1,a2,..." of the action sent from one control step to the next.'
BEND_HELP = 'Largest change "a1,a2,..." of that change.'
WATCHDOG_HELP = "Stop after so many control steps without progress towards the goal."
SURPRISE_HELP = "Slow down, or stop, where views are not what the model expected. Needs thresholds."
LEGS_HELP = "Displacements, one after the other, that a model step is planned as: ways that bend."
LEG_STEPS_HELP = "Control steps that each of the --legs, or a model step alone, may take (default: the model step's)."
THRESHOLDS_HELP = "File of `vjepa-mpc calibrate` (default: guardrails.json beside the model, but for the shipped one)."


@dataclass(frozen=True)
class GuardOptions:
    """What the command line says of guardrails."""

    keep_out: tuple[str, ...] = ()
    margin: float = 0.01
    workspace: str | None = None
    pose_box: str | None = None
    avoid: tuple[Path, ...] = ()
    change: str | None = None
    bend: str | None = None
    watchdog: int | None = None
    surprise: bool = False
    thresholds: Path | None = None

    @property
    def any(self) -> bool:
        """Whether any guardrail was asked for."""
        asked = (self.keep_out, self.workspace, self.pose_box, self.avoid, self.change, self.bend, self.watchdog)
        return self.surprise or any(part not in (None, ()) for part in asked)

    def record(self) -> dict[str, Any]:
        """For results: what was asked for."""
        return {key: str(value) if isinstance(value, Path) else value for key, value in asdict(self).items()
                if value not in (None, (), False)} | {"avoid": [str(path) for path in self.avoid]}  # fmt: skip


def numbers(option: str, text: str, count: int | None = None) -> tuple[float, ...]:
    """Numbers separated by commas or blanks."""
    try:
        values = tuple(float(part) for part in text.replace(",", " ").split())
    except ValueError as error:
        raise InputError(f'{option} {text!r} is not a list of numbers; write it as "0.5,-1.2".') from error
    if count is not None and len(values) != count:
        raise InputError(f"{option} {text!r} has {len(values)} numbers; it takes {count}.")
    return values


def make_guards(options: GuardOptions, world: WorldModel, folder: Path, task: Any = None) -> Guards:
    """The guardrails asked for, for this model; `task` (else the robot's own) says where its end effector is."""
    from vjepa_mpc.governors import Guards

    rails = [*_places(options, world, task), *_poses(options, world), *_pictures(options, world, folder)]
    return Guards(tuple(rails), tuple(_governors(options, world, folder)))


def place_of(world: WorldModel, task: Any = None) -> Place:
    """The map from robot states to where the end effector is, m."""
    from vjepa_mpc.robots.factory import find_task, task_names

    robot = world.config.robot
    if robot.state_model == "pose":
        return _xyz
    if task is None and robot.name in task_names():
        task = find_task(robot.name)
    if task is None:
        raise InputError(f"Where {robot.name}'s end effector is, is not known here; leave out guardrails for places.")
    place: Place = task.place
    return place


def _xyz(states: Any) -> Any:
    return states[..., :3]


def _places(options: GuardOptions, world: WorldModel, task: Any) -> list[Guardrail]:
    from vjepa_mpc.guardrails import KeepOut, Workspace

    rails: list[Guardrail] = []
    if not options.keep_out and options.workspace is None:
        return rails
    import torch

    place = place_of(world, task)
    size = place(torch.zeros(len(world.config.robot.state_names))).shape[-1]
    for index, text in enumerate(options.keep_out):
        *centre, radius = _placed("--keep-out", text, size + 1, "the region's centre, then its radius")
        name = "keep_out" if len(options.keep_out) == 1 else f"keep_out_{index + 1}"
        rails.append(KeepOut(place, tuple(centre), radius, options.margin, name))
    if options.workspace is not None:
        corners = _placed("--workspace", options.workspace, 2 * size, "the low corner, then the high one")
        rails.append(Workspace(place, corners[:size], corners[size:]))
    return rails


def _placed(option: str, text: str, count: int, what: str) -> tuple[float, ...]:
    """Numbers in m that say where something is."""
    values = numbers(option, text)
    if len(values) != count:
        raise InputError(f"{option} {text!r} has {len(values)} of {count} numbers: {what}, in m.")
    return values


def _poses(options: GuardOptions, world: WorldModel) -> list[Guardrail]:
    from vjepa_mpc.guardrails import PoseBox

    if options.pose_box is None:
        return []
    low, high = _halves("--pose-box", options.pose_box)
    if len(low) != len(world.config.robot.state_names):
        raise InputError(f"--pose-box takes {2 * len(world.config.robot.state_names)} numbers, got {2 * len(low)}.")
    return [PoseBox(low, high)]


def _halves(option: str, text: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
    values = numbers(option, text)
    if len(values) % 2:
        raise InputError(f"{option} {text!r} has {len(values)} numbers; it takes the low corner, then the high one.")
    return values[: len(values) // 2], values[len(values) // 2 :]


def _pictures(options: GuardOptions, world: WorldModel, folder: Path) -> list[Guardrail]:
    if not options.avoid:
        return []
    import torch

    from vjepa_mpc.guardrails import AvoidPictures
    from vjepa_mpc.images import load_image

    known = _thresholds(options, world, folder)
    latents = torch.cat([world.encode(load_image(path)[None]) for path in options.avoid])
    return [AvoidPictures(latents, known.same_place)]


def _thresholds(options: GuardOptions, world: WorldModel, folder: Path) -> Thresholds:
    """What latent distances are compared with: of the file given, or of the one beside the model."""
    from vjepa_mpc.cli.building import is_shipped
    from vjepa_mpc.thresholds import FILE, load_thresholds

    place = options.thresholds or folder
    if place == folder and is_shipped(folder) and not (folder / FILE).is_file():
        raise InputError(
            "The shipped model comes without thresholds; measure them on logs of yours with `vjepa-mpc calibrate "
            f"LOGS --out {FILE}`, and give --thresholds {FILE}."
        )
    return load_thresholds(place, world)


def _governors(options: GuardOptions, world: WorldModel, folder: Path) -> list[Governor]:
    from vjepa_mpc.governors import ChangeLimits, Surprise, Watchdog

    made: list[Governor] = []
    if options.surprise:
        known = _thresholds(options, world, folder)
        made.append(Surprise(known.surprise_slow, known.surprise_stop))
    if options.watchdog is not None:
        made.append(Watchdog(options.watchdog))
    if options.change is not None or options.bend is not None:
        size = len(world.config.robot.action_names)
        free = (float("inf"),) * size
        rate = free if options.change is None else numbers("--change-limit", options.change, size)
        bend = free if options.bend is None else numbers("--acceleration-limit", options.bend, size)
        made.append(ChangeLimits(rate, bend))
    return made


def task_regions(task: Any) -> Sequence[str]:
    """A task's forbidden regions as `--keep-out` takes them."""
    return [f"{disc.centre[0]},{disc.centre[1]},{disc.radius}" for disc in task.forbidden]
