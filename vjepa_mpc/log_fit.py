"""Whether the numbers of a log mean to a world model what those of its own logs did; refused with both if not."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from vjepa_mpc.core.errors import InputError
from vjepa_mpc.datasets.episode import StoreSpec
from vjepa_mpc.robots.base import RobotSpec

SAME_PERIOD = 0.01
"""Relative: measured periods of one rate differ by as much."""
LIMITS = ("state_low", "state_high", "action_low", "action_high")


def check_numbers(own: RobotSpec, log: RobotSpec | StoreSpec, otherwise: str) -> None:
    """Refuse a log with other numbers, units or axes, or in another order, than the model's robot `own`.

    An action that displaces x may be called x_delta (as our robots do) or d_x (as imports do). `otherwise` ends the
    message's sentence with another way out.
    """
    for name in ("state_model", "state_names", "state_units", "state_periodic", "action_names", "action_units"):
        if name == "state_periodic" and own.state_model == "pose":
            continue  # a pose's angles are those of a rotation, whatever is said of their bounds
        mine, theirs = getattr(own, name), getattr(log, name)
        same = _displaced(mine) == _displaced(theirs) if name == "action_names" else mine == theirs
        if not same:
            raise InputError(
                f"The model has {name} = {mine}, and the store {theirs}: import the logs so (`data import --state`, "
                f"`--action`), {otherwise}."
            )


def check_period(own: RobotSpec, log: RobotSpec | StoreSpec, otherwise: str) -> None:
    """Refuse a log of another control period than the model's: its displacements are of other lengths of time."""
    mine, theirs = own.control_period_s, log.control_period_s
    if abs(theirs / mine - 1) > SAME_PERIOD:
        raise InputError(
            f"The model has control_period_s = {mine:.4g}, and the store {theirs:.4g}: import the logs at its rate "
            f"(`data import --rate {1 / mine:.4g}`), {otherwise}."
        )


def with_limits_of(own: RobotSpec, robot: RobotSpec, keep: bool, otherwise: str) -> RobotSpec:
    """`robot` when its limits are `own`'s, which joints' features are scaled by (`JointStates`).

    With `keep` it gets `own`'s limits where its lie within them. Raises `InputError` for others.
    """
    for name in LIMITS:
        mine, theirs = np.array(getattr(own, name)), np.array(getattr(robot, name))
        if np.allclose(mine, theirs, rtol=0, atol=1e-6):
            continue
        beyond = mine - theirs if name.endswith("low") else theirs - mine
        inside = bool((beyond <= 1e-6).all())
        if not (keep and inside):
            way = "say --keep-limits to go on with the model's" if inside else "leave logs beyond the model's out"
            raise InputError(
                f"The model has {name} = {mine.tolist()}, and the store {theirs.tolist()}, and joints are fed to the "
                f"predictor in units of these: {way}, {otherwise}."
            )
    return replace(robot, **{name: getattr(own, name) for name in LIMITS}) if keep else robot


def _displaced(names: Sequence[str]) -> list[str]:
    """What each action displaces: "x" of x_delta as of d_x."""
    return [name.removeprefix("d_").removesuffix("_delta") for name in names]
