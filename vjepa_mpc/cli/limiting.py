"""Limits of each control step's action from the options of `plan` and `evaluate`."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from vjepa_mpc.core.errors import InputError, unknown_name

if TYPE_CHECKING:
    from vjepa_mpc.planners.limits import Ball, StepLimits
    from vjepa_mpc.robots.base import RobotSpec

FIX_HELP = "Hold an action at a value a control step, NAME=VALUE (its units), as gripper_delta=0; may be repeated."
BALL_HELP = "Largest norm of several actions a control step, NAME,NAME,...=RADIUS (their unit); may be repeated."
RATE_LIMIT_HELP = "Largest change of an action from one control step to the next, NAME=VALUE; may be repeated."


def step_limits(
    robot: RobotSpec, fix: Sequence[str] = (), ball: Sequence[str] = (), rate_limit: Sequence[str] = ()
) -> StepLimits:
    """What `--fix`, `--ball` and `--rate-limit` say of `robot`'s control steps. `InputError` for what it does not have,
    and for what they forbid each other."""
    from vjepa_mpc.planners.limits import StepLimits

    held = _once(robot, "--fix", fix, _fixed)
    if len(held) == len(robot.action_names):
        raise InputError("--fix holds every action: nothing is left to plan.")
    rates = _once(robot, "--rate-limit", rate_limit, _rated)
    for index in held.keys() & rates.keys():
        raise InputError(
            f"{robot.action_names[index]} is held by --fix and does not change; leave its --rate-limit out."
        )
    return StepLimits(_balls(robot, ball, held), tuple(sorted(rates.items())), tuple(sorted(held.items())))


def _once(
    robot: RobotSpec, option: str, texts: Sequence[str], read: Callable[[RobotSpec, str], tuple[int, float]]
) -> dict[int, float]:
    """Values of actions by their index, no action twice."""
    found: dict[int, float] = {}
    for text in texts:
        index, value = read(robot, text)
        if index in found:
            raise InputError(
                f"{option} {text}: {robot.action_names[index]} has a value already; name each action once."
            )
        found[index] = value
    return found


def _number(option: str, text: str, example: str) -> tuple[list[str], float]:
    """The names before the equals sign, and the number after it."""
    names, _, said = text.partition("=")
    try:
        return [name.strip() for name in names.split(",")], float(said)
    except ValueError as error:
        raise InputError(f"{option} {text} has no number; write it as {names}={example}.") from error


def _action(robot: RobotSpec, name: str) -> int:
    if name not in robot.action_names:
        raise unknown_name(f"action of {robot.name}", name, robot.action_names)
    return robot.action_names.index(name)


def _fixed(robot: RobotSpec, text: str) -> tuple[int, float]:
    index = _action(robot, text.partition("=")[0].strip())
    (name,), value = _number("--fix", text, "0")
    low, high, unit = robot.action_low[index], robot.action_high[index], robot.action_units[index]
    if not low <= value <= high:
        raise InputError(f"--fix {text}: {name} lies in {low:g} to {high:g} {unit}".rstrip() + " a control step.")
    return index, value


def _rated(robot: RobotSpec, text: str) -> tuple[int, float]:
    index = _action(robot, text.partition("=")[0].strip())
    _, value = _number("--rate-limit", text, "0.01")
    if not 0 < value < math.inf:
        raise InputError(f"--rate-limit {text}: a change must be positive and finite; to hold an action use --fix.")
    return index, value


def _balls(robot: RobotSpec, texts: Sequence[str], held: dict[int, float]) -> tuple[Ball, ...]:
    from vjepa_mpc.planners.limits import Ball

    balls: list[Ball] = []
    for text in texts:
        names = [name.strip() for name in text.partition("=")[0].split(",")]
        members = tuple(_action(robot, name) for name in names)
        _, radius = _number("--ball", text, "0.05")
        if not 0 < radius < math.inf:
            raise InputError(f"--ball {text}: a radius must be positive and finite; to hold actions use --fix.")
        for name, index in zip(names, members, strict=True):
            if members.count(index) > 1 or any(index in ball.members for ball in balls):
                raise InputError(f"--ball {text}: {name} is in a ball already; name each action once.")
        units = {name: robot.action_units[index] for name, index in zip(names, members, strict=True)}
        if len({unit for unit in units.values() if unit}) > 1:
            told = ", ".join(f"{name} in {unit}" for name, unit in units.items() if unit)
            raise InputError(f"--ball {text}: {told} have no norm in common; make a ball of each unit.")
        stays = math.hypot(*(held.get(index, 0.0) for index in members))
        if stays > radius * (1 + 1e-9):
            raise InputError(f"--ball {text}: what --fix holds of it has a norm of {stays:g} already.")
        balls.append(Ball(members, radius))
    return tuple(balls)
