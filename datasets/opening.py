"""Which formats of logs there are, and which one a path is."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path

from vjepa_mpc.core.errors import InputError, unknown_name
from vjepa_mpc.datasets.formats.diffusion_policy import DiffusionPolicyLog
from vjepa_mpc.datasets.formats.droid import DroidLog
from vjepa_mpc.datasets.formats.folders import FolderLog
from vjepa_mpc.datasets.formats.lerobot import LeRobotLog
from vjepa_mpc.datasets.formats.minari import MinariLog
from vjepa_mpc.datasets.formats.ogbench import OgbenchLog
from vjepa_mpc.datasets.formats.robomimic import RobomimicLog
from vjepa_mpc.datasets.logs import Log, LogOptions, damage

# A new format is its file and its name here; the contract suite (tests/datasets/test_formats.py) takes it from here.
# Asked in this order: a folder of episodes is what remains.
FORMATS: tuple[type[Log], ...] = (
    LeRobotLog,
    MinariLog,
    RobomimicLog,
    DiffusionPolicyLog,
    OgbenchLog,
    DroidLog,
    FolderLog,
)


def open_log(path: Path, format: str | None, options: LogOptions) -> Log:
    """Open a log. `format`: a name of `FORMATS`, `module:Class` of one's own, or None to recognise it.

    `InputError` when there is nothing, nothing recognised, or nothing that can be read.
    """
    if not path.exists():
        raise InputError(f"{path} does not exist; check the path.")
    if format is not None and ":" in format:
        return _opened(_own(format).open, format, path, options)
    names = {kind.format: kind for kind in FORMATS}
    if format is not None:
        if format not in names:
            raise unknown_name("format of logs", format, names)
        return _opened(names[format].open, format, path, options)
    for kind in FORMATS:
        if kind.recognises(path):
            return _opened(kind.open, kind.format, path, options)
    raise InputError(
        f"{path} is no log of a known format ({', '.join(names)}); name one with --format, or see docs/data.md."
    )


def _opened(opening: Callable[[Path, LogOptions], Log], format: str, path: Path, options: LogOptions) -> Log:
    with damage(f"{path} cannot be read as {format}"):
        return opening(path, options)


def _own(place: str) -> type[Log]:
    """A format class from `module:Class`."""
    module, _, name = place.partition(":")
    try:
        found = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise InputError(f"The format {place!r} cannot be imported ({error}); write module:Class.") from error
    if not (isinstance(found, type) and all(hasattr(found, part) for part in ("open", "recognises"))):
        raise InputError(f"{place!r} is no log format; it must implement vjepa_mpc.datasets.logs.Log.")
    return found
