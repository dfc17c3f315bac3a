"""Robots and tasks by name, for the command line: built-in ones, installed entry points, and `module:Class`."""

from __future__ import annotations

import importlib
import traceback
from collections.abc import Callable, Mapping
from functools import partial
from importlib.metadata import entry_points
from typing import Any

from vjepa_mpc.core.errors import InputError, first_line, unknown_name
from vjepa_mpc.robots.base import Robot
from vjepa_mpc.robots.task import Task

ROBOT_GROUP, TASK_GROUP = "vjepa_mpc.robots", "vjepa_mpc.tasks"
_ROBOTS = {
    "reacher": "vjepa_mpc.robots.reacher:Reacher",
    "point-maze": "vjepa_mpc.robots.point_maze:PointMaze",
    "two-rooms": "vjepa_mpc.robots.two_rooms:TwoRooms",
    "push-t": "vjepa_mpc.robots.push_t:PushT",
    "ball-in-cup": "vjepa_mpc.robots.ball_in_cup:BallInCup",
    "jaco-reach": "vjepa_mpc.robots.jaco:Jaco",
    "jaco-push": "vjepa_mpc.robots.jaco_push:JacoPush",
    "jaco-place": "vjepa_mpc.robots.jaco_place:JacoPlace",
    "panda-reach": "vjepa_mpc.robots.panda:Panda",
}
_TASKS = {
    "reacher": "vjepa_mpc.robots.reacher:ReachTask",
    "point-maze": "vjepa_mpc.robots.point_maze:PointMazeTask",
    "two-rooms": "vjepa_mpc.robots.two_rooms:TwoRoomsTask",
    "push-t": "vjepa_mpc.robots.push_t:PushTTask",
    "ball-in-cup": "vjepa_mpc.robots.ball_in_cup:BallInCupTask",
    "jaco-reach": "vjepa_mpc.robots.jaco:JacoReachTask",
    "jaco-push": "vjepa_mpc.robots.jaco_push:JacoPushTask",
    "jaco-place": "vjepa_mpc.robots.jaco_place:JacoPlaceTask",
    "panda-reach": "vjepa_mpc.robots.panda:PandaReachTask",
}


def robot_names() -> tuple[str, ...]:
    """Every name `make_robot` knows, without `module:Class`."""
    return tuple(sorted(_known(ROBOT_GROUP, _ROBOTS)))


def task_names() -> tuple[str, ...]:
    """Every name `find_task` knows, without `module:Class`; a built-in task is named as its world."""
    return tuple(sorted(_known(TASK_GROUP, _TASKS)))


def available_tasks() -> tuple[str, ...]:
    """The tasks by name whose worlds can be built on this machine."""
    return tuple(name for name in task_names() if why_missing(name) is None)


def why_missing(task: str) -> str | None:
    """Why the task of this name cannot be had here, with the way to mend that; None where it can. An installed package
    whose entry point does not hold is told here, and so does not stand in the way of the other tasks."""
    try:
        return find_task(task).missing
    except InputError as error:
        return str(error)


def is_built_in(robot: str) -> bool:
    """Whether `robot` is one of this package's worlds, which all take `camera_size` and `backend`."""
    return robot in _ROBOTS


def _known(group: str, built_in: Mapping[str, str]) -> dict[str, str]:
    """Name to `module:Class`; an installed package cannot take a built-in name over."""
    return {entry.name: entry.value for entry in entry_points(group=group)} | dict(built_in)


def make_robot(name: str, **settings: Any) -> Robot:
    """Build the robot called `name`, the class at `module:Class`, or the Gymnasium environment `gymnasium/<id>`.

    Raises `InputError` for an unknown name (with the nearest one), a class that cannot be imported, one
    that lacks a part of the `Robot` contract, settings it does not take, or a stranger's class that fails.
    """
    robot = _built("robot", name, _class_of("robot", name, _known(ROBOT_GROUP, _ROBOTS)), settings)
    if not isinstance(robot, Robot):
        needed = ("spec", "reset", "observe", "apply", "stop", "close")
        missing = ", ".join(part for part in needed if not hasattr(robot, part))
        raise InputError(f"{name} is not a robot: it lacks {missing}; see docs/robots.md.")
    return robot


def find_task(name: str) -> Task:
    """The task called `name`, or the one at `module:Class`, with its default settings.

    Raises `InputError` for an unknown name (with the nearest one), or a class that is no `Task`.
    """
    found = _class_of("task", name, _known(TASK_GROUP, _TASKS))
    if not (isinstance(found, type) and issubclass(found, Task)):
        raise InputError(f"{name} is not a task: derive it from vjepa_mpc.robots.task.Task; see docs/tasks.md.")
    task: Task = _built("task", name, found, {})
    return task


def _built(kind: str, name: str, found: Callable[..., Any], settings: Mapping[str, Any]) -> Any:
    """`found(**settings)`. What goes wrong in a stranger's constructor is one sentence; a defect of ours stays one."""
    try:
        return found(**settings)
    except InputError:
        raise
    except Exception as error:
        ours = name in (_ROBOTS if kind == "robot" else _TASKS)
        inside = error.__traceback__ is not None and error.__traceback__.tb_next is not None
        if isinstance(error, TypeError) and (ours or not inside):  # what it was given, not what it does with it
            given = f" with {settings}" if settings else ""
            why = f"{error}; see docs/{kind}s.md"
            raise InputError(f"{kind.capitalize()} {name!r} cannot be built{given}: {why}.") from error
        if ours:
            raise
        raise InputError(f"{kind.capitalize()} {name!r} cannot be built: {_where(error)}; mend it there.") from error


def _class_of(kind: str, name: str, known: Mapping[str, str]) -> Callable[..., Any]:
    if kind == "robot" and name.startswith("gymnasium/"):
        from vjepa_mpc.robots.gymnasium_robot import PREFIX, GymnasiumRobot

        return partial(GymnasiumRobot, name[len(PREFIX) :])
    if ":" not in name:
        if name.startswith("gymnasium/"):
            raise InputError(
                f"{name} is an environment, of which no goal or success is known: show or collect it (--robot), or "
                "write a task for it; see docs/tasks.md."
            )
        if name not in known:
            raise unknown_name(kind, name, [*known, "module:Class"])
        name, asked = known[name], f"{name!r} ({known[name]})"
    else:
        asked = repr(name)
    module, _, attribute = name.partition(":")
    try:
        built: Callable[..., Any] = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise InputError(
            f"{kind.capitalize()} {asked} cannot be imported ({error}); check module and class."
        ) from error
    except Exception as error:  # whatever goes wrong in a stranger's file
        where = _where(error)
        raise InputError(f"{kind.capitalize()} {asked} cannot be imported: {where}; mend it there.") from error
    if not callable(built):
        raise InputError(f"{name} is not a class; name one that follows the contract of docs/robots.md.")
    return built


def _where(error: Exception) -> str:
    """Kind, message and place of an error in somebody's module."""
    if isinstance(error, SyntaxError):
        return f"{type(error).__name__} in {error.filename}, line {error.lineno}: {error.msg}"
    *_, last = traceback.extract_tb(error.__traceback__)
    return f"{type(error).__name__} in {last.filename}, line {last.lineno}: {first_line(error)}"
