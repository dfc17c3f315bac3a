"""robomimic's HDF5 (Mandlekar et al. 2021, arXiv:2108.03298): `data/demo_<i>/{obs/<key>, actions, ...}`.

Pictures are `obs` members of shape [n, h, w, 3] and type uint8; everything else with one row a step is a vector,
named by its path in the demonstration (`obs/robot0_eef_pos`, `states`, `actions`). There are no time stamps:
the rate is what the user says, else the `control_freq` of the environment's own settings; robosuite's environments,
whose recordings need not name it, make 20 steps a second by default.
"""

from __future__ import annotations

import contextlib
import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from jaxtyping import Int64, UInt8

from vjepa_mpc.core.errors import InputError
from vjepa_mpc.datasets.formats.hdf5 import kind_of, member, opened, pictures
from vjepa_mpc.datasets.logs import CameraInfo, LogOptions, Origin, Rows, VectorInfo, own_spec

OWN = "vjepa_mpc_spec"
"""The attribute of `data` in which an export keeps the store's description."""
_SUFFIXES = (".hdf5", ".h5")
_MAX_BYTES = 1 << 30  # of the vectors of one demonstration: a larger claim is damage
_BLOCK = 64 << 20  # of pictures read at once
_LEFT_OUT = ("next_obs/", "rewards", "dones")
_ROBOSUITE_TYPE, _ROBOSUITE_HZ = 1, 20.0  # `type` in `env_args`, and robosuite's default `control_freq`
# What robosuite's arms record; the mapping to use when these are there.
_ROBOSUITE = ("obs/robot0_eef_pos:xyz", "obs/robot0_eef_quat:quat", "obs/robot0_gripper_qpos[0]:gripper=0.04..0")


class RobomimicLog:
    """One robomimic file. See the contract in `logs.py`."""

    format: ClassVar[str] = "robomimic"

    def __init__(self, path: Path, options: LogOptions) -> None:
        self._path = path
        self.broken: Mapping[str, str] = {}
        with opened(path) as file:
            data = file.get("data")
            if not hasattr(data, "keys") or not len(data):
                raise InputError(f"{path} has no demonstrations under 'data'; is it a robomimic file?")
            self._demos = sorted(data.keys(), key=_number)
            arguments = _environment(data.attrs.get("env_args"))
            settings = arguments.get("env_kwargs")
            settings = settings if isinstance(settings, dict) else {}
            self.vectors, self.cameras = _contents(path, data, self._demos)
            self._description = data.attrs.get(OWN)
        rate = settings.get("control_freq", _ROBOSUITE_HZ if arguments.get("type") == _ROBOSUITE_TYPE else None)
        self._asked_hz = options.rate_hz
        self.rate_hz = options.rate_hz or (float(rate) if isinstance(rate, int | float) and rate > 0 else None)
        robots = settings.get("robots") or arguments.get("env_name") or ""
        self.robot = "-".join(map(str, robots)) if isinstance(robots, list) else str(robots)
        self.suggestion = _suggest(self.vectors)

    @classmethod
    def recognises(cls, path: Path) -> bool:
        return path.suffix.lower() in _SUFFIXES and path.is_file()

    @classmethod
    def open(cls, path: Path, options: LogOptions) -> RobomimicLog:
        return cls(path, options)

    def origin(self) -> Origin | None:
        if self._description is None:
            return None
        spec = own_spec(_environment(self._description), f"{self._path}'s {OWN}")
        return Origin(spec, "obs/state", "actions", {name: f"obs/{name}_image" for name in spec.cameras})

    def episodes(self) -> Sequence[str]:
        return self._demos

    def files(self) -> Sequence[Path]:
        return [self._path]

    def rows(self, episode: str, names: Sequence[str]) -> Rows:
        if self.rate_hz is None:
            raise InputError(f"{self._path} does not say its rate (no control_freq); give it with --log-rate.")
        with opened(self._path) as file:
            demo = member(file["data"], episode)
            arrays = {name: member(demo, name) for name in names}
            if sum(8 * array.size for array in arrays.values()) > _MAX_BYTES:
                raise InputError("it claims more than a gigabyte of numbers; it is damaged")
            vectors = {name: _two(np.asarray(array[()], np.float64)) for name, array in arrays.items()}
            steps = len(next(iter(vectors.values())))
            task = demo.attrs.get("task", demo.attrs.get("lang", ""))
            times = np.arange(steps) / self.rate_hz
            if self._description is not None and self._asked_hz is None:  # our own export keeps the store's
                times = np.asarray(member(demo, "times")[()], np.float64)
        return Rows(times, vectors, str(task))

    def frames(self, episode: str, camera: str, rows: Int64[np.ndarray, "n"]) -> Iterator[UInt8[np.ndarray, "_ _ 3"]]:
        with opened(self._path) as file:
            size, count = self.cameras[camera], int(rows[-1]) + 1 if len(rows) else 0
            found = pictures(member(file["data"], episode), camera, size, count)
            step = min(max(_BLOCK // (3 * size.height * size.width), 1), 16)  # HDF5 chunks are small: a few at a time
            for start in range(0, len(rows), step):
                part = rows[start : start + step]
                block = found[int(part[0]) : int(part[-1]) + 1] if _dense(part) else found[part.tolist()]
                yield from np.asarray(block if not _dense(part) else block[part - part[0]], np.uint8)


def _dense(rows: Int64[np.ndarray, "n"]) -> bool:
    """Whether reading everything between the first and the last costs little more than the rows."""
    return bool(rows[-1] - rows[0] < 2 * len(rows))


def _two(values: np.ndarray) -> np.ndarray:
    """[n] as [n, 1]; more dimensions laid flat."""
    return values.reshape(len(values), math.prod(values.shape[1:]))


def _number(name: str) -> tuple[int, str]:
    found = re.search(r"([0-9]{1,18})$", name)
    return (int(found[1]) if found else -1, name)


def _environment(text: Any) -> dict[str, Any]:
    """robomimic's `env_args`, {} when there is none."""
    with contextlib.suppress(TypeError, ValueError, RecursionError):
        value = json.loads(text)
        return value if isinstance(value, dict) else {}
    return {}


def _suggest(vectors: Mapping[str, VectorInfo]) -> tuple[str, ...]:
    names = [part.split("[")[0].split(":")[0] for part in _ROBOSUITE]
    return _ROBOSUITE if all(name in vectors for name in names) else ()


def _contents(
    path: Path, data: Any, demos: Sequence[str]
) -> tuple[dict[str, VectorInfo], dict[str, CameraInfo]]:
    """Vectors and cameras of the first demonstration that can be read."""
    import h5py

    vectors: dict[str, VectorInfo] = {}
    cameras: dict[str, CameraInfo] = {}

    def visit(name: str, item: Any) -> None:
        if not isinstance(item, h5py.Dataset) or not kind_of(item) or name.startswith(_LEFT_OUT):
            return
        if item.ndim == 4 and item.dtype == np.uint8 and item.shape[-1] == 3:
            cameras[name] = CameraInfo(int(item.shape[1]), int(item.shape[2]))
        elif item.ndim in (1, 2) and item.dtype.kind in "fiu":
            vectors[name] = VectorInfo(int(np.prod(item.shape[1:], dtype=int)))

    for demo in demos:
        with contextlib.suppress(OSError, RuntimeError, KeyError, AttributeError, InputError):
            member(data, demo).visititems(visit)
            if vectors:
                return vectors, cameras
    raise InputError(f"{path}: no demonstration can be read; the file is damaged.")
