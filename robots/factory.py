"""Robots by name, for the command line: the built-in ones, installed entry points, and `module:Class`."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from importlib.metadata import entry_points
from typing import Any

from vjepa_mpc.core.errors import InputError, unknown_name
from vjepa_mpc.robots.base import Robot

ENTRY_POINT_GROUP = "vjepa_mpc.robots"
_BUILT_IN = {"reacher": "vjepa_mpc.robots.reacher:Reacher"}


def robot_names() -> tuple[str, ...]:
    """Every name `make_robot` knows, without `module:Class`."""
    return tuple(sorted(_known()))


def _known() -> dict[str, str]:
    """Name to `module:Class`; an installed package cannot take a built-in name over."""
    return {entry.name: entry.value for entry in entry_points(group=ENTRY_POINT_GROUP)} | _BUILT_IN


def make_robot(name: str, **settings: Any) -> Robot:
    """Build the robot called `name`, or the class at `module:Class`, with its own `settings`.

    Raises `InputError` for an unknown name (with the nearest one), a class that cannot be imported, one
    that lacks a part of the `Robot` contract, or settings it does not take.
    """
    try:
        robot = _class_of(name)(**settings)
    except TypeError as error:
        raise InputError(f"Robot {name!r} cannot be built with {settings}: {error}.") from error
    if not isinstance(robot, Robot):
        needed = ("spec", "reset", "observe", "apply", "stop", "close")
        missing = ", ".join(part for part in needed if not hasattr(robot, part))
        raise InputError(f"{name} is not a robot: it lacks {missing}; see docs/robots.md.")
    return robot


def _class_of(name: str) -> Callable[..., Any]:
    if ":" not in name:
        found = _known()
        if name not in found:
            raise unknown_name("robot", name, [*found, "module:Class"])
        name = found[name]
    module, _, attribute = name.partition(":")
    try:
        built: Callable[..., Any] = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise InputError(f"Robot {name!r} cannot be imported ({error}); check module and class.") from error
    if not callable(built):
        raise InputError(f"{name} is not a class; name one that follows the contract of docs/robots.md.")
    return built
