"""The contract of a log format: what a recording offers, and how its episodes are read one at a time.

A format is one small file in `formats/` with a class that implements `Log`. It says which vectors and cameras
there are and hands them out by row; what they mean is the mapping's business (`mapping.py`), and rates, gaps,
sizes, resuming and the report are the importer's (`importing.py`).
"""

from __future__ import annotations

import contextlib
import hashlib
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float64, Int64, UInt8

from vjepa_mpc.core.errors import InputError, first_line
from vjepa_mpc.datasets.episode import StoreSpec


@dataclass(frozen=True)
class VectorInfo:
    """One vector a log holds at every row: how many numbers, and their names (empty when it has none)."""

    width: int
    names: tuple[str, ...] = ()


@dataclass(frozen=True)
class CameraInfo:
    """One camera of a log: its picture size in pixels."""

    height: int
    width: int


@dataclass(frozen=True)
class LogOptions:
    """What a user may have to add to a log.

    `rate_hz`: rows a second of a log that has no time stamps. `follow_links`: read symbolic links that lead
    out of the log's folder. `states`: a folder's table of states, when it cannot be found by its name.
    """

    rate_hz: float | None = None
    follow_links: bool = False
    states: Path | None = None

    def __post_init__(self) -> None:
        if self.rate_hz is not None and not 0 < self.rate_hz < math.inf:
            raise InputError(f"A log cannot have {self.rate_hz:g} rows a second; give --log-rate a positive number.")


@dataclass(frozen=True)
class Rows:
    """The numbers of one episode: `times` [n] in seconds, `vectors` [n, width] by name, the task in words, and other
    `texts` by name: what was said from which second on."""

    times: Float64[np.ndarray, "n"]
    vectors: Mapping[str, Float64[np.ndarray, "_ _"]]
    task: str = ""
    texts: Mapping[str, Sequence[tuple[float, str]]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not np.isfinite(self.times).all():
            raise InputError(f"{np.count_nonzero(~np.isfinite(self.times))} of its time stamps are NaN or infinite")
        if (np.diff(self.times) <= 0).any():
            raise InputError("its time stamps do not increase")
        for name, values in self.vectors.items():
            if len(values) != len(self.times):
                raise InputError(f"{name} has {len(values)} rows, the time stamps {len(self.times)}")


@runtime_checkable
class Log(Protocol):
    """A recording, opened for reading. Errors that concern one episode are `InputError`s of `rows` and
    `frames`, worded so that they read on after "episode 3: "; the others go on. Must survive cloudpickle."""

    format: ClassVar[str]  # the format's name for the user

    @property
    def robot(self) -> str:
        """The robot's name, "" if the log does not say."""
        ...

    @property
    def vectors(self) -> Mapping[str, VectorInfo]: ...

    @property
    def cameras(self) -> Mapping[str, CameraInfo]: ...

    @property
    def rate_hz(self) -> float | None:
        """Rows a second by the log's own word; None = read it off the time stamps."""
        ...

    @property
    def suggestion(self) -> tuple[str, ...]:
        """The parts of the state to use when none are given; () when they must be given."""
        ...

    @property
    def broken(self) -> Mapping[str, str]:
        """Episodes known from the start to be unreadable, with the reason."""
        ...

    @classmethod
    def recognises(cls, path: Path) -> bool:
        """Whether `path` looks like a log of this format; a look at names, without reading."""
        ...

    @classmethod
    def open(cls, path: Path, options: LogOptions) -> Log:
        """Open the log; `InputError` when nothing of it can be read."""
        ...

    def episodes(self) -> Sequence[str]:
        """The names of its episodes in order; the same ones each time."""
        ...

    def rows(self, episode: str, names: Sequence[str]) -> Rows:
        """The time stamps and the vectors `names` of an episode, whole."""
        ...

    def frames(self, episode: str, camera: str, rows: Int64[np.ndarray, "n"]) -> Iterator[UInt8[np.ndarray, "_ _ 3"]]:
        """The RGB pictures of the increasing `rows`, one after the other: no more than a few in memory."""
        ...

    def files(self) -> Sequence[Path]:
        """The files the log consists of."""
        ...


@dataclass(frozen=True)
class Origin:
    """The store that a log was exported from: its description, and where its states, actions and cameras (the store's
    names to the log's) are in the log."""

    spec: StoreSpec
    state: str
    action: str
    cameras: Mapping[str, str]


@runtime_checkable
class Exported(Log, Protocol):
    """A log that may be one of our own exports, and then needs no mapping."""

    def origin(self) -> Origin | None:
        """The store it was exported from; None for any other log. `InputError` when the description is damaged."""
        ...


def own_spec(value: object, place: str) -> StoreSpec:
    """A store's description that an export holds at `place`; `InputError` with the way out when it is damaged."""
    try:
        return StoreSpec.from_json(value if isinstance(value, Mapping) else {})
    except InputError as error:
        raise InputError(f"{place} is damaged; take it away, or say with --state what the log holds.") from error


def fingerprint(log: Log, root: Path) -> str:
    """SHA-256 of the names and sizes of a log's files below `root`: tells another log, not a changed byte."""
    value = hashlib.sha256()
    for file in sorted(log.files()):
        size = file.stat().st_size if file.exists() else -1
        value.update(os.fsencode(f"{os.path.relpath(file, root)} {size}\n"))
    return value.hexdigest()


def inside(root: Path, relative: str, options: LogOptions) -> Path:
    """`root / relative`, refused when it leads out of `root` (by "..", an absolute path or a symbolic link), or to what
    is neither file nor folder: opening a named pipe would wait forever."""
    path = Path(os.path.normpath(root / relative))
    if not path.is_relative_to(os.path.normpath(root)):
        raise InputError(f"the log names the file {relative!r}, which lies outside of it; such a log is not read")
    if not options.follow_links and not path.resolve().is_relative_to(root.resolve()):
        raise InputError(f"{relative} is a link that leads out of the log; --follow-links reads it all the same")
    if path.exists() and not (path.is_file() or path.is_dir()):
        raise InputError(f"{relative} is no file, but a pipe or a device, which is not read")
    return path


@contextlib.contextmanager
def damage(what: str) -> Iterator[None]:
    """Whatever the reading of a log stumbles over becomes an `InputError` that begins with `what`: what a damaged or
    hostile file makes a library raise cannot be foreseen one by one, and must not cost the other episodes."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        why = f"{type(error).__name__}: {first_line(error)}"
        raise InputError(f"{what} ({why}); it is damaged, or of another layout") from error


def only(path: Path) -> str:
    """A path's name, or the path itself when it has none (`.`)."""
    return path.resolve().name or str(path)
