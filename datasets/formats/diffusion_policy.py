"""diffusion_policy's replay buffers (Chi et al. 2023, arXiv:2303.04137): a Zarr v2 group, in a folder or zipped.

`data/` holds arrays of all episodes one after the other, `meta/episode_ends` where each one ends. Pictures are uint8,
or floats of 0 to 255 or 0 to 1. There are no time stamps: the rate is the user's to say (--log-rate).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import ClassVar

import numpy as np
from jaxtyping import Int64, UInt8

from vjepa_mpc.core.errors import InputError
from vjepa_mpc.datasets.formats.zarr_v2 import ArrayV2, Files
from vjepa_mpc.datasets.logs import CameraInfo, LogOptions, Rows, VectorInfo

_ENDS = "meta/episode_ends"
_MAX_BYTES = 1 << 30  # of the vectors of one episode
_SUGGESTIONS = (
    ("robot0_eef_pos:xyz", "robot0_eef_rot_axis_angle:rotvec"),
    ("robot0_eef_pos:xyz", "robot0_eef_quat:quat"),
    ("state",),
    ("agent_pos",),
)


class DiffusionPolicyLog:
    """One replay buffer. See the contract in `logs.py`."""

    format: ClassVar[str] = "diffusion-policy"
    robot = ""

    def __init__(self, path: Path, options: LogOptions) -> None:
        self._files = Files.of(path, f"{_ENDS}/.zarray", options)
        ends = ArrayV2.open(self._files, _ENDS)
        if len(ends.shape) != 1 or ends.shape[0] > 100_000_000 or not ends.shape[0]:
            raise InputError(f"{path} has episode ends of shape {ends.shape}; it holds no episodes, or is damaged.")
        self._ends = np.concatenate([[0], ends.rows(0, ends.shape[0]).astype(np.int64)])
        if (np.diff(self._ends) <= 0).any():
            raise InputError(f"The episode ends of {path} do not increase; it is damaged.")
        self.rate_hz = options.rate_hz
        self.broken: Mapping[str, str] = {}
        self._arrays: dict[str, ArrayV2] = {}
        self.vectors: dict[str, VectorInfo] = {}
        self.cameras: dict[str, CameraInfo] = {}
        for name in self._files.names():
            if name.startswith("data/") and name.endswith("/.zarray"):
                self._take(name.removesuffix("/.zarray"))
        if not self._arrays:
            raise InputError(f"{path} has no array below data/ that can be read.")
        self.suggestion = next((s for s in _SUGGESTIONS if all(p.split(":")[0] in self.vectors for p in s)), ())

    def _take(self, place: str) -> None:
        """Note an array as vector or camera; what cannot be read becomes one that says why when it is asked for."""
        short = place.removeprefix("data/")
        array = ArrayV2.open(self._files, place)
        if len(array.shape) == 4 and array.shape[-1] == 3:
            self.cameras[short] = CameraInfo(array.shape[1], array.shape[2])
        elif len(array.shape) in (1, 2):
            self.vectors[short] = VectorInfo(array.shape[1] if len(array.shape) == 2 else 1)
        else:
            return
        self._arrays[short] = array

    @classmethod
    def recognises(cls, path: Path) -> bool:
        if path.is_dir():
            return (path / _ENDS / ".zarray").is_file()
        return path.name.lower().endswith(".zarr.zip") and path.is_file()

    @classmethod
    def open(cls, path: Path, options: LogOptions) -> DiffusionPolicyLog:
        return cls(path, options)

    def episodes(self) -> Sequence[str]:
        return [str(number) for number in range(len(self._ends) - 1)]

    def files(self) -> Sequence[Path]:
        root = self._files.root
        return [root / name for name in self._files.names()] if root.is_dir() else [root]

    def rows(self, episode: str, names: Sequence[str]) -> Rows:
        if self.rate_hz is None:
            raise InputError("a replay buffer does not say its rate; give it with --log-rate")
        start, stop = self._span(episode)
        absent = [name for name in names if name not in self.vectors]
        if absent:
            raise InputError(f"it lacks {', '.join(absent)}")
        if 8 * (stop - start) * sum(self.vectors[name].width for name in names) > _MAX_BYTES:
            raise InputError("it claims more than a gigabyte of numbers; it is damaged")
        vectors = {name: self._vector(name, start, stop) for name in names}
        return Rows(np.arange(stop - start) / self.rate_hz, vectors)

    def frames(self, episode: str, camera: str, rows: Int64[np.ndarray, "n"]) -> Iterator[UInt8[np.ndarray, "_ _ 3"]]:
        if camera not in self.cameras:
            raise InputError(f"it has no camera {camera}")
        start, stop = self._span(episode)
        array = self._arrays[camera]
        self._check_long_enough(camera, stop)
        factor = None if array.dtype == np.uint8 else self._factor(camera)
        for frame in array.each(rows + start):
            if factor is not None and not np.isfinite(frame).all():
                raise InputError(f"{camera} holds NaN")
            yield frame if factor is None else np.clip(np.round(frame * factor), 0, 255).astype(np.uint8)

    def _span(self, episode: str) -> tuple[int, int]:
        number = int(episode)
        return int(self._ends[number]), int(self._ends[number + 1])

    def _check_long_enough(self, name: str, stop: int) -> None:
        if self._arrays[name].shape[0] < stop:
            raise InputError(f"{name} has {self._arrays[name].shape[0]} rows, the episode ends at {stop}")

    def _vector(self, name: str, start: int, stop: int) -> np.ndarray:
        self._check_long_enough(name, stop)
        return self._arrays[name].rows(start, stop).astype(np.float64).reshape(stop - start, self.vectors[name].width)

    def _factor(self, camera: str) -> float:
        """255 for pictures of floats from 0 to 1, 1 for those up to 255, by the brightest of the first frames."""
        array = self._arrays[camera]
        return 255.0 if np.nanmax(array.rows(0, min(8, array.shape[0])), initial=0.0) <= 1.0 else 1.0
