"""DROID's raw folders (Khazatsky et al. 2024, arXiv:2403.12945): `trajectory.h5` beside `recordings/MP4/*.mp4`.

Every folder with a `trajectory.h5` below the source is an episode, named by its path. Cameras are named by their
role (`ext1`, `ext2`, `wrist`): serial numbers differ from laboratory to laboratory. The suggested state is V-JEPA
2-AC's: the measured end-effector pose and gripper in the base frame; actions are then made from these states.
`camera_frame/ext1/cartesian_position` is the same pose in the frame of a camera, from its recorded extrinsics.
"""

from __future__ import annotations

import contextlib
import math
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from jaxtyping import Int64, UInt8

from vjepa_mpc.core.errors import InputError, first_line
from vjepa_mpc.core.files import read_json
from vjepa_mpc.datasets.formats.hdf5 import kind_of, member, opened
from vjepa_mpc.datasets.formats.video import describe_video, frames_by_number
from vjepa_mpc.datasets.logs import CameraInfo, LogOptions, Rows, VectorInfo, inside

ROLES = ("ext1", "ext2", "wrist")
_FILE = "trajectory.h5"
_CLOCK = "observation/timestamp/robot_state/read_start"  # milliseconds
_RATE_HZ = 15.0
_DEPTH = 6  # folders between the source and an episode: lab, outcome, date, time, and two to spare
_MAX_ROWS = 1_000_000
_IN_CAMERA = "camera_frame"
_LOOKED_AT = 20  # episodes that say which cameras there are, and of which size


class DroidLog:
    """One or many DROID episodes. See the contract in `logs.py`."""

    format: ClassVar[str] = "droid"
    robot = "franka"
    suggestion: tuple[str, ...] = (
        "robot_state/cartesian_position[0:3]:xyz",
        "robot_state/cartesian_position[3:6]:euler",
        "robot_state/gripper_position:gripper",
    )

    def __init__(self, path: Path, options: LogOptions) -> None:
        self._root, self._options = path, options
        self._names = [os.path.relpath(folder, path) for folder in _episode_folders(path)]
        self.broken: Mapping[str, str] = {}
        self.rate_hz: float | None = None
        self.vectors: dict[str, VectorInfo] = {}
        self.cameras: dict[str, CameraInfo] = {}
        reason = f"no folder below it holds a {_FILE}"
        for name in self._names:
            try:
                self.vectors = self._vectors(name)
                break
            except InputError as error:
                reason = first_line(error)
        if not self.vectors:
            raise InputError(f"{path} has no DROID episode that can be read: {reason}.")
        self.cameras = self._seen_cameras()

    @classmethod
    def recognises(cls, path: Path) -> bool:
        return path.is_dir() and next(iter(_episode_folders(path)), None) is not None

    @classmethod
    def open(cls, path: Path, options: LogOptions) -> DroidLog:
        return cls(path, options)

    def episodes(self) -> Sequence[str]:
        return self._names

    def files(self) -> Sequence[Path]:
        return [self._root / name / _FILE for name in self._names]

    def rows(self, episode: str, names: Sequence[str]) -> Rows:
        with opened(inside(self._root, f"{episode}/{_FILE}", self._options)) as file:
            vectors = {
                name: self._in_camera(episode, file, name) if name.startswith(_IN_CAMERA) else _column(file, name)
                for name in names
            }
            count = len(_column(file, "robot_state/cartesian_position"))
            times = np.arange(count) / (self._options.rate_hz or _RATE_HZ)
            with contextlib.suppress(InputError):
                clock = np.asarray(member(file, _CLOCK)[()], np.float64) / 1000
                times = clock - clock[:1]
        return Rows(times, vectors, self._task(episode))

    def frames(self, episode: str, camera: str, rows: Int64[np.ndarray, "n"]) -> Iterator[UInt8[np.ndarray, "_ _ 3"]]:
        videos = self._videos(episode)
        if camera not in videos:
            raise InputError(f"it has no video of camera {camera}")
        total = len(self.rows(episode, []).times)
        yield from frames_by_number(videos[camera], rows, total)

    def _vectors(self, name: str) -> dict[str, VectorInfo]:
        """Every numeric vector with one row a step, below `observation/robot_state` and `action`."""
        found = {}
        with opened(inside(self._root, f"{name}/{_FILE}", self._options)) as file:
            count = len(member(file, "observation/robot_state/cartesian_position"))
            for group, head in (("observation/robot_state", "robot_state"), ("action", "action")):
                for key in member(file, group) if group in file else ():
                    with contextlib.suppress(InputError):
                        item = member(file, f"{group}/{key}")
                        shape: tuple[int, ...] = getattr(item, "shape", ())
                        if len(shape) in (1, 2) and shape[0] == count and kind_of(item) in tuple("fiu"):
                            found[f"{head}/{key}"] = VectorInfo(shape[1] if len(shape) == 2 else 1)
            for role, video in self._videos(name).items():
                if f"observation/camera_extrinsics/{video.stem}_left" in file:
                    found[f"{_IN_CAMERA}/{role}/cartesian_position"] = VectorInfo(6)
        return found

    def _in_camera(self, episode: str, file: Any, name: str) -> np.ndarray:
        """The end effector's pose [n, 6] (m, extrinsic xyz Euler angles in rad) in the frame of a camera, whose own
        pose in the base frame is `camera_extrinsics` (of the left eye): inv(T_camera) T_effector."""
        import torch

        from vjepa_mpc.core.poses import euler_to_matrix, matrix_to_euler

        role = name.split("/")[1]
        videos = self._videos(episode)
        if role not in videos or not name.endswith("/cartesian_position"):
            raise InputError(f"it lacks {name}")
        effector = torch.from_numpy(_column(file, "robot_state/cartesian_position"))
        camera = torch.from_numpy(_column(file, f"observation/camera_extrinsics/{videos[role].stem}_left"))
        if camera.shape != effector.shape or effector.shape[1] != 6:
            raise InputError(f"the extrinsics of {role} are {list(camera.shape)}, its poses {list(effector.shape)}")
        back = euler_to_matrix(camera[:, 3:]).transpose(-1, -2)
        place = (back @ (effector[:, :3] - camera[:, :3]).unsqueeze(-1)).squeeze(-1)
        turned = matrix_to_euler(back @ euler_to_matrix(effector[:, 3:]))
        return np.asarray(torch.cat([place, turned], dim=1).numpy())

    def _seen_cameras(self) -> dict[str, CameraInfo]:
        """The cameras of episodes spread over the log, each of the size that most of them have: any one episode
        may lack a camera, or have been recorded otherwise."""
        chosen = np.unique(np.linspace(0, len(self._names) - 1, min(_LOOKED_AT, len(self._names))).round().astype(int))
        sizes: dict[str, Counter[CameraInfo]] = {}
        for index in chosen.tolist():
            with contextlib.suppress(InputError):
                for role, file in self._videos(self._names[index]).items():
                    with contextlib.suppress(InputError):
                        sizes.setdefault(role, Counter())[describe_video(file)[0]] += 1
        return {role: sizes[role].most_common(1)[0][0] for role in ROLES if role in sizes}

    def _metadata(self, name: str) -> dict[str, Any]:
        """The laboratory's notes on an episode, {} when there are none."""
        for file in sorted((self._root / name).glob("metadata_*.json")):
            with contextlib.suppress(InputError):
                value = read_json(file)
                return value if isinstance(value, dict) else {}
        return {}

    def _task(self, name: str) -> str:
        return str(self._metadata(name).get("current_task") or "")

    def _videos(self, name: str) -> dict[str, Path]:
        """Video files by role: by the serial numbers in the notes, else by the camera types in the file."""
        folder = inside(self._root, f"{name}/recordings/MP4", self._options)
        serials = sorted(file.stem for file in folder.glob("*.mp4") if not file.stem.endswith("-stereo"))
        notes = self._metadata(name)
        roles = {role: str(notes.get(f"{role}_cam_serial") or "") for role in ROLES}
        if not any(roles.values()):
            with opened(inside(self._root, f"{name}/{_FILE}", self._options)) as file:
                kinds = file.get("observation/camera_type")
                wrist = [s for s in serials if kinds is not None and s in kinds and int(np.ravel(kinds[s][()])[0]) == 0]
            outside = [serial for serial in serials if serial not in wrist]
            roles = {"ext1": [*outside, ""][0], "ext2": [*outside, "", ""][1], "wrist": [*wrist, ""][0]}
        return {
            role: inside(self._root, f"{name}/recordings/MP4/{serial}.mp4", self._options)
            for role, serial in roles.items()
            if serial in serials
        }


def _column(file: Any, name: str) -> np.ndarray:
    """A vector of an open trajectory as [n, w]."""
    place = f"observation/{name}" if name.startswith("robot_state/") else name
    item = member(file, place)
    if not len(item.shape) or item.shape[0] > _MAX_ROWS:
        raise InputError(f"{place} claims {list(item.shape)} numbers; it is damaged")
    values = np.asarray(item[()], np.float64)
    return values.reshape(len(values), math.prod(values.shape[1:]))


def _episode_folders(path: Path) -> Iterator[Path]:
    """Folders with a trajectory, in order, links not followed."""
    depth = len(path.parts)
    for folder, folders, files in os.walk(path):
        if _FILE in files:
            folders.clear()
            yield Path(folder)
        elif len(Path(folder).parts) - depth >= _DEPTH:
            folders.clear()
        folders.sort()
