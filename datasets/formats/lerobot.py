"""LeRobot datasets, v3.0 and v2.x, with videos (any codec PyAV decodes) or pictures in the parquet files."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from jaxtyping import Int64, UInt8

from vjepa_mpc.core.errors import InputError
from vjepa_mpc.core.files import read_json
from vjepa_mpc.datasets.formats.lerobot_index import EpisodePlace, parquet_fault, read_columns, read_index
from vjepa_mpc.datasets.formats.pictures import decode_picture
from vjepa_mpc.datasets.formats.video import Doubt, doubt, frames_by_time
from vjepa_mpc.datasets.logs import CameraInfo, LogOptions, Origin, Rows, VectorInfo, inside, own_spec

OWN = "meta/vjepa_mpc.json"
"""What an export adds to the format's own files: the store's description, which LeRobot has no place for."""
_MAX_BYTES = 2 << 30  # read at once, pictures in parquet among them: a larger claim is damage or a bomb
_MOST_SAID, _MOST_LETTERS = 100, 100_000  # words that an episode keeps: how often they change, and how many
_BOOKKEEPING = {"timestamp", "frame_index", "episode_index", "index", "task_index"}
# Mappings that datasets known by their names call for, the first whose fields are all there.
_SUGGESTIONS = (
    (
        "observation.state.cartesian_position[0:3]:xyz",
        "observation.state.cartesian_position[3:6]:euler",
        "observation.state.gripper_position:gripper",
    ),
    ("observation.state",),
)


class LeRobotLog:
    """One LeRobot dataset. See the contract in `logs.py`."""

    format: ClassVar[str] = "lerobot"

    def __init__(self, path: Path, options: LogOptions) -> None:
        self._root, self._options = path, options
        info = read_json(inside(path, "meta/info.json", options))
        if not isinstance(info, dict) or not isinstance(info.get("features"), dict) or "data_path" not in info:
            raise InputError(f"{path / 'meta/info.json'} lacks features or data_path; LeRobot v2 and v3 have them.")
        if not isinstance(info.get("fps"), int | float) or not 0 < info["fps"] < 100_000:
            raise InputError(f"{path / 'meta/info.json'} has fps {info.get('fps')!r}; it must be a positive number.")
        features: dict[str, dict[str, Any]] = info["features"]
        pictures = {name: value for name, value in features.items() if not _is_depth(value)}
        self._video = [name for name, value in pictures.items() if value.get("dtype") == "video"]
        images = [name for name, value in pictures.items() if value.get("dtype") == "image"]
        self.cameras = {name: _camera(path, name, features[name]) for name in [*self._video, *images]}
        self.vectors = {
            name: vector
            for name, value in features.items()
            if name not in self.cameras and name not in _BOOKKEEPING and (vector := _vector(value)) is not None
        }
        self._texts = [name for name, value in features.items() if value.get("dtype") == "string"]
        self.rate_hz, self.robot = float(info["fps"]), str(info.get("robot_type") or "")
        self._places, self.broken = read_index(path, info, self._video, options)
        self._doubts: dict[str, Doubt | None] = {}
        # The groups of rows read last, by columns: neighbouring episodes share them, numbers and pictures alternate.
        self._last: dict[tuple[str, ...], tuple[Any, Any]] = {}
        fitting = (parts for parts in _SUGGESTIONS if all(re.split(r"[\[:]", p)[0] in self.vectors for p in parts))
        self.suggestion = next(fitting, ())

    @classmethod
    def recognises(cls, path: Path) -> bool:
        return (path / "meta" / "info.json").is_file()

    @classmethod
    def open(cls, path: Path, options: LogOptions) -> LeRobotLog:
        return cls(path, options)

    def origin(self) -> Origin | None:
        if not (self._root / OWN).is_file():
            return None
        spec = own_spec(read_json(inside(self._root, OWN, self._options)), str(self._root / OWN))
        cameras = {name: f"observation.images.{name}" for name in spec.cameras}
        return Origin(spec, "observation.state", "action", cameras)

    def episodes(self) -> Sequence[str]:
        return [str(number) for number in sorted(self._places)]

    def files(self) -> Sequence[Path]:
        named = {place.file for place in self._places.values()}
        named |= {span.file for place in self._places.values() for span in place.videos.values()}
        return [*(self._root / "meta").rglob("*.*"), *(self._root / name for name in named)]

    def rows(self, episode: str, names: Sequence[str]) -> Rows:
        place = self._places[int(episode)]
        table = self._table(int(episode), place, ["timestamp", "frame_index", *names], self._texts)
        if len(table) != place.length:
            raise InputError(f"{place.file} holds {len(table)} of its rows, meta/ says {place.length}")
        if (table["frame_index"].to_numpy() != np.arange(place.length)).any():
            raise InputError(f"the rows of {place.file} are not frames 0, 1, 2, ...")
        vectors = {name: _numbers(table[name], name, self.vectors[name].width) for name in names}
        times = table["timestamp"].to_numpy().astype(np.float64)
        return Rows(times, vectors, place.task, _said(table, self._texts, times))

    def frames(self, episode: str, camera: str, rows: Int64[np.ndarray, "n"]) -> Iterator[UInt8[np.ndarray, "_ _ 3"]]:
        place = self._places[int(episode)]
        if camera not in self._video:
            yield from self._pictures(int(episode), place, camera, rows)
            return
        span, rate = place.videos[camera], float(self.rate_hz or 1)
        if span.end_s is not None and (span.end_s - span.start_s) * rate < place.length - 0.5:
            # What follows in the file is another episode: its frames would be taken for this one's last.
            there = round((span.end_s - span.start_s) * rate)
            raise InputError(f"{camera} has {there} frames for {place.length} rows; which row lacks one is not known")
        path = inside(self._root, span.file, self._options)
        times = self.rows(episode, []).times[rows] + span.start_s
        yield from frames_by_time(path, times, 0.5 / rate)
        doubtful = self._doubt(path, span.file, camera, rate)
        if doubtful is not None and span.start_s >= doubtful.start_s:
            raise InputError(doubtful.text)

    def _doubt(self, path: Path, file: str, camera: str, rate: float) -> Doubt | None:
        """Whether, and from where on, a video that episodes share lacks frames; looked at once."""
        if file not in self._doubts:
            places = [place for place in self._places.values() if place.videos[camera].file == file]
            starts = sorted(place.videos[camera].start_s for place in places)
            ends = [place.videos[camera].start_s + place.length / rate for place in places]
            self._doubts[file] = doubt(path, starts, max(ends), rate) if len(places) > 1 else None
        return self._doubts[file]

    def _pictures(
        self, episode: int, place: EpisodePlace, camera: str, rows: Int64[np.ndarray, "n"]
    ) -> Iterator[UInt8[np.ndarray, "_ _ 3"]]:
        """Pictures kept in the parquet file itself, as encoded bytes."""
        cells = self._table(episode, place, [camera])[camera]
        for row in rows.tolist():
            value = cells[row].as_py()
            data = value.get("bytes") if isinstance(value, dict) else None
            if not data:
                raise InputError(f"{camera} holds no picture in row {row}")
            yield decode_picture(io.BytesIO(data), f"{camera}, row {row},")

    def _table(self, episode: int, place: EpisodePlace, names: Sequence[str], texts: Sequence[str] = ()) -> Any:
        """The rows of an episode, columns `names`, and those of `texts` that are there; row groups without any of it
        are not read."""
        import pyarrow as pa
        import pyarrow.compute as pc
        import pyarrow.parquet as pq

        path = inside(self._root, place.file, self._options)
        columns = ["episode_index", *names]
        try:
            file = pq.ParquetFile(path, memory_map=True)
            absent = [name for name in columns if name not in file.schema_arrow.names]
            if absent:
                raise InputError(f"{place.file} lacks the columns {', '.join(absent)}")
            columns += [name for name in texts if name in file.schema_arrow.names]
            groups = _groups(file.metadata, episode)
            _check_size(file.metadata, groups, columns, place.file)
            key = (place.file, tuple(groups))
            if self._last.get(tuple(columns), (None,))[0] != key:
                self._last.pop(tuple(columns), None)  # before the next is read: one of each in memory
                self._last[tuple(columns)] = (key, read_columns(file, columns, place.file, _MAX_BYTES, groups))
            table = self._last[tuple(columns)][1]
            return table.filter(pc.equal(table["episode_index"], episode))
        except FileNotFoundError as error:
            raise InputError(f"{place.file} is missing") from error
        except (OSError, pa.ArrowException) as error:
            raise InputError(f"{place.file} {parquet_fault(error)}") from error

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_last": {}}


def _groups(metadata: Any, episode: int) -> list[int]:
    """The row groups that may hold an episode, by the statistics of `episode_index`."""
    column = metadata.schema.to_arrow_schema().names.index("episode_index")
    # Nested columns count several leaves: find the leaf by its path.
    leaves = [metadata.schema.column(i).path for i in range(metadata.num_columns)]
    column = leaves.index("episode_index") if "episode_index" in leaves else column
    found = []
    for number in range(metadata.num_row_groups):
        known = metadata.row_group(number).column(column).statistics
        if known is None or not known.has_min_max or known.min <= episode <= known.max:
            found.append(number)
    return found


def _check_size(metadata: Any, groups: Sequence[int], columns: Sequence[str], file: str) -> None:
    """Refuse to unpack what claims to be huge."""
    names, total = metadata.schema.to_arrow_schema().names, 0
    for number in groups:
        group = metadata.row_group(number)
        for i in range(group.num_columns):
            leaf = group.column(i)
            # Leaves lie inside their column (a list's items, the bytes of a picture), and names have dots in them.
            owners = [name for name in names if f"{leaf.path_in_schema}.".startswith(f"{name}.")]
            if max(owners, key=len, default="") in columns:
                total += leaf.total_uncompressed_size
    if total > _MAX_BYTES:
        raise InputError(
            f"{file} claims {total / 1e9:.1f} GB in the groups of rows of one episode; it is damaged, or has to be "
            "written in smaller groups"
        )


def _numbers(column: Any, name: str, width: int) -> np.ndarray:
    """A parquet column as float64 [n, width]."""
    import pyarrow as pa

    array = column.combine_chunks()
    array = array.chunk(0) if isinstance(array, pa.ChunkedArray) and array.num_chunks else array
    if array.null_count:
        raise InputError(f"{name} has {array.null_count} empty rows")
    values = array
    while isinstance(values, pa.ListArray | pa.LargeListArray | pa.FixedSizeListArray):
        values = values.flatten()
    numbers = np.asarray(values.to_numpy(zero_copy_only=False), np.float64)
    if numbers.size != len(array) * width:
        raise InputError(f"{name} has {numbers.size} numbers in {len(array)} rows of {width}")
    return numbers.reshape(len(array), width)


def _said(table: Any, names: Sequence[str], times: np.ndarray) -> dict[str, list[tuple[float, str]]]:
    """What columns of words say, and from when on; one that says something new at nearly every row is left out."""
    found = {}
    for name in names:
        if name not in table.column_names:
            continue
        words = table[name].to_pylist()
        rows = [row for row, word in enumerate(words) if word and (not row or word != words[row - 1])]
        if rows and len(rows) <= _MOST_SAID and sum(len(str(words[row])) for row in rows) <= _MOST_LETTERS:
            found[name] = [(float(times[row]), str(words[row])) for row in rows]
    return found


def _is_depth(feature: Mapping[str, Any]) -> bool:
    """Whether a camera records distances: by its own word, or with a single channel of the three of a colour."""
    about = [feature.get("info"), feature.get("video_info"), feature]
    said = any(part.get(f"{head}is_depth_map") for part in about if isinstance(part, dict) for head in ("", "video."))
    shape = feature.get("shape") or []
    return said or (len(shape) == 3 and 3 not in (shape[0], shape[-1]) and 1 in (shape[0], shape[-1]))


def _vector(feature: Mapping[str, Any]) -> VectorInfo | None:
    """A numeric feature's width and names; None for text and the like."""
    if not str(feature.get("dtype", "")).startswith(("float", "int", "uint", "bool")):
        return None
    shape = feature.get("shape") or [1]
    width = int(np.prod([int(n) for n in shape]))
    names = _flat(feature.get("names"))
    return VectorInfo(width, tuple(names) if len(names) == width else ())


def _flat(names: Any) -> list[str]:
    """Names, which may be a list, a list in a dictionary, or absent."""
    if isinstance(names, dict):
        return [name for value in names.values() for name in _flat(value)]
    if isinstance(names, list):
        return [name for value in names for name in (_flat(value) if isinstance(value, list | dict) else [str(value)])]
    return []


def _camera(root: Path, name: str, feature: Mapping[str, Any]) -> CameraInfo:
    """Picture size of a camera: its shape is [h, w, c] or [c, h, w]; the names say which."""
    shape = [int(n) for n in feature.get("shape") or []]
    names = [word.lower() for word in _flat(feature.get("names"))]
    if len(shape) != 3:
        raise InputError(f"{root / 'meta/info.json'}: camera {name} has shape {shape}, not [height, width, channels].")
    first = bool(names[0].startswith("channel")) if len(names) == 3 else shape[0] == 3 and shape[2] != 3
    return CameraInfo(*shape[1:]) if first else CameraInfo(*shape[:2])
