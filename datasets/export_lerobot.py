"""Export a store to a LeRobot v3.0 dataset: parquet tables and one video a camera, many episodes in a file."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any, cast

import numpy as np
from jaxtyping import UInt8

from vjepa_mpc.core.errors import InputError, unknown_name
from vjepa_mpc.core.files import atomic_folder, write_json
from vjepa_mpc.core.scheduling import same_scheduling
from vjepa_mpc.datasets.episode import StoreSpec
from vjepa_mpc.datasets.formats.lerobot import OWN
from vjepa_mpc.datasets.statistics import colours
from vjepa_mpc.datasets.store import ZarrStore

Progress = Callable[[int, int], None]

CODECS = {
    "h264": ("libx264", {"crf": "18", "g": "2"}),
    "av1": ("libsvtav1", {"crf": "30", "g": "2"}),
}
_DATA = "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
_VIDEO = "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4"
_CHUNK = 1000  # files in a folder
_EPISODES = 100  # in a file: a broken one loses no more
_AV1_LEAST = 64  # pixels a side that the AV1 encoder takes
_HALVED, _WHOLE = "yuv420p", "yuv444p"  # colours at half the resolution, or at the full one


@dataclass
class _Written:
    """What has been written: rows of the index of episodes, task numbers, frames."""

    rows: list[dict[str, Any]] = field(default_factory=list)
    tasks: dict[str, int] = field(default_factory=dict)
    frames: int = 0


def export_lerobot(store: ZarrStore, out: Path, codec: str = "h264", progress: Progress | None = None) -> None:
    """Write `out`, a folder that is whole or absent. Videos are compressed with loss; the numbers are exact.

    LeRobot has one action a row: the last row's is 0 and means nothing. Its time stamps are row / rate:
    those of the store are kept as `observation.time`. The store's description (units, bounds, ...) is added as a file
    of its own in `meta/`, since the format has no place for it.

    `InputError`: no episodes, an unknown codec, or pictures too small for it.
    """
    if not len(store):
        raise InputError(f"{store.path} holds no episodes; there is nothing to export.")
    if codec not in CODECS:
        raise unknown_name("codec", codec, CODECS)
    least = min(min(size) for size in store.spec.cameras.values())
    if codec == "av1" and least < _AV1_LEAST:
        raise InputError(f"AV1 needs pictures of {_AV1_LEAST} pixels a side, these have {least}; use --codec h264.")
    odd = [size for size in store.spec.cameras.values() if _pixels(size) != _HALVED]
    if codec == "av1" and odd:
        raise InputError(f"AV1 needs even sides, these are {odd[0][1]} x {odd[0][0]} pixels; use --codec h264.")
    if out.exists():
        raise InputError(f"{out} already exists; choose another path.")
    written = _Written()
    with atomic_folder(out) as folder:
        for first in range(0, len(store), _EPISODES):
            _write_file(store, folder, range(first, min(first + _EPISODES, len(store))), codec, written, progress)
        _write_meta(store, folder, codec, written)


def _write_file(
    store: ZarrStore, folder: Path, indices: range, codec: str, written: _Written, progress: Progress | None
) -> None:
    """One parquet file and one video a camera, for the episodes `indices`."""
    import pyarrow.parquet as pq

    number = indices.start // _EPISODES
    place = {"chunk_index": number // _CHUNK, "file_index": number % _CHUNK}
    fps = _fps(store.spec)
    videos = {
        camera: _Video(folder / _VIDEO.format(video_key=_key(camera), **place), size, codec, fps)
        for camera, size in store.spec.cameras.items()
    }
    path = folder / _DATA.format(**place)
    path.parent.mkdir(parents=True, exist_ok=True)
    table: Any = None
    try:
        for index in indices:
            rows, entry = _episode(store, index, fps, written, place, videos)
            table = pq.ParquetWriter(path, rows.schema) if table is None else table
            table.write_table(rows)
            written.rows.append(entry)
            if progress is not None:
                progress(index + 1, len(store))
    finally:
        for video in videos.values():
            video.close()
        if table is not None:
            table.close()


def _episode(
    store: ZarrStore, index: int, fps: float, written: _Written, place: dict[str, int], videos: dict[str, _Video]
) -> tuple[Any, dict[str, Any]]:
    """Append an episode's frames to the videos; its table and its row of the index."""
    import pyarrow as pa

    episode = store.read(index)
    length, start = len(episode), written.frames
    task = str(episode.metadata.get("task") or "")
    number = written.tasks.setdefault(task, len(written.tasks))
    actions = np.concatenate([episode.actions, np.zeros((1, episode.actions.shape[1]), np.float32)])
    table = pa.table(
        {
            "observation.state": pa.array(list(episode.states), pa.list_(pa.float32(), episode.states.shape[1])),
            "action": pa.array(list(actions), pa.list_(pa.float32(), actions.shape[1])),
            "observation.time": pa.array(episode.times),
            "timestamp": pa.array((np.arange(length) / fps).astype(np.float32)),
            "frame_index": pa.array(np.arange(length)),
            "episode_index": pa.array(np.full(length, index)),
            "index": pa.array(np.arange(start, start + length)),
            "task_index": pa.array(np.full(length, number)),
        }
    )
    entry: dict[str, Any] = {
        "episode_index": index,
        "tasks": [task],
        "length": length,
        "data/chunk_index": place["chunk_index"],
        "data/file_index": place["file_index"],
        "dataset_from_index": start,
        "dataset_to_index": start + length,
        "meta/episodes/chunk_index": 0,
        "meta/episodes/file_index": 0,
    }
    for camera, video in videos.items():
        head = f"videos/{_key(camera)}"
        entry[f"{head}/chunk_index"], entry[f"{head}/file_index"] = place["chunk_index"], place["file_index"]
        entry[f"{head}/from_timestamp"] = video.frames / fps
        for frame in episode.images[camera]:
            video.write(frame)
        entry[f"{head}/to_timestamp"] = video.frames / fps
    written.frames += length
    return table, entry


def _pixels(size: tuple[int, int]) -> str:
    """The pixel format of a camera's video: colours at half the resolution need even sides."""
    return _WHOLE if size[0] % 2 or size[1] % 2 else _HALVED


class _Video:
    """A video being written, one frame after the other at an even rate."""

    def __init__(self, path: Path, size: tuple[int, int], codec: str, fps: float) -> None:
        import av

        path.parent.mkdir(parents=True, exist_ok=True)
        name, options = CODECS[codec]
        rate = Fraction(fps).limit_denominator(1000)
        self._container = cast(Any, av.open(str(path), "w"))
        self._stream = self._container.add_stream(name, rate=rate, options=options)
        self._stream.height, self._stream.width = size
        self._stream.pix_fmt = _pixels(size)
        with same_scheduling():
            self._stream.codec_context.open()
        self.frames = 0

    def write(self, frame: UInt8[np.ndarray, "h w 3"]) -> None:
        import av

        picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")
        picture.pts = self.frames
        self._container.mux(self._stream.encode(picture))
        self.frames += 1

    def close(self) -> None:
        self._container.mux(self._stream.encode(None))
        self._container.close()


def _write_meta(store: ZarrStore, folder: Path, codec: str, written: _Written) -> None:
    """`meta/`: description, index of episodes, tasks and statistics."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    episodes = folder / "meta/episodes/chunk-000"
    episodes.mkdir(parents=True)
    pq.write_table(pa.Table.from_pylist(written.rows), episodes / "file-000.parquet")
    tasks = pa.table({"task_index": list(written.tasks.values()), "__index_level_0__": list(written.tasks)})
    # The reader takes the tasks from the table's pandas index, which this note describes.
    note = {
        "index_columns": ["__index_level_0__"],
        "column_indexes": [],
        "columns": [
            {"name": "task_index", "field_name": "task_index", "pandas_type": "int64", "numpy_type": "int64"},
            {"name": None, "field_name": "__index_level_0__", "pandas_type": "unicode", "numpy_type": "object"},
        ],
        "pandas_version": "2.0.0",
    }
    pq.write_table(tasks.replace_schema_metadata({"pandas": json.dumps(note)}), folder / "meta/tasks.parquet")
    write_json(folder / "meta/info.json", _info(store, codec, written))
    write_json(folder / OWN, store.spec.to_json())
    write_json(folder / "meta/stats.json", _stats(store))


def _info(store: ZarrStore, codec: str, written: _Written) -> dict[str, Any]:
    spec, fps = store.spec, _fps(store.spec)
    videos = {
        _key(camera): {
            "dtype": "video",
            "shape": [*size, 3],
            "names": ["height", "width", "channels"],
            "info": {
                "video.height": size[0],
                "video.width": size[1],
                "video.codec": codec,
                "video.pix_fmt": _pixels(size),
                "video.is_depth_map": False,
                "video.fps": fps,
                "video.channels": 3,
                "has_audio": False,
            },
        }
        for camera, size in spec.cameras.items()
    }
    counts = {name: {"dtype": "int64", "shape": [1], "names": None} for name in _COUNTS}
    return {
        "codebase_version": "v3.0",
        "robot_type": spec.robot,
        "total_episodes": len(store),
        "total_frames": written.frames,
        "total_tasks": len(written.tasks),
        "chunks_size": _CHUNK,
        "data_files_size_in_mb": 100,
        "video_files_size_in_mb": 200,
        "fps": fps,
        "splits": {"train": f"0:{len(store)}"},
        "data_path": _DATA,
        "video_path": _VIDEO,
        "features": {
            **videos,
            "observation.state": _vector(spec.state_names),
            "action": _vector(spec.action_names),
            "observation.time": {"dtype": "float64", "shape": [1], "names": None},
            "timestamp": {"dtype": "float32", "shape": [1], "names": None},
            **counts,
        },
    }


_COUNTS = ("frame_index", "episode_index", "index", "task_index")


def _vector(names: tuple[str, ...]) -> dict[str, Any]:
    return {"dtype": "float32", "shape": [len(names)], "names": list(names)}


def _stats(store: ZarrStore) -> dict[str, Any]:
    """Least, most, mean, deviation and count of every feature, as LeRobot's normalisation reads them."""
    found: dict[str, Any] = {}
    numbers = [store.read_numbers(index) for index in range(len(store))]
    for name, part in (("observation.state", 0), ("action", 1)):
        values = np.concatenate([item[part] for item in numbers]).astype(np.float64)
        if len(values):
            found[name] = {
                "min": values.min(axis=0).tolist(),
                "max": values.max(axis=0).tolist(),
                "mean": values.mean(axis=0).tolist(),
                "std": values.std(axis=0).tolist(),
                "count": [len(values)],
            }
    for camera in store.spec.cameras:
        values_of = colours(store, camera)
        found[_key(camera)] = {
            name: value if name == "count" else [[[channel]] for channel in value] for name, value in values_of.items()
        }
    return found


def _fps(spec: StoreSpec) -> float:
    """Rows a second; a whole number where it is one, as LeRobot expects."""
    rate = 1 / spec.control_period_s
    return round(rate) if abs(rate - round(rate)) < 1e-3 * rate else rate


def _key(camera: str) -> str:
    return f"observation.images.{camera}"
