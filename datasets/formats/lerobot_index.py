"""Where the episodes of a LeRobot dataset lie: v3.0 (many episodes in a file) and v2.x (a file an episode).

The path templates of `meta/info.json` are trusted, not the version string. Nothing of the lerobot package is
used: the layout is read with pyarrow.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vjepa_mpc.core.errors import InputError, first_line
from vjepa_mpc.datasets.logs import LogOptions, inside

_FIELD = re.compile(r"\{(\w+)(?::0?(\d{1,2})d)?\}")  # no wider: a hostile width would fill the memory

_MOST_MISSING = 10_000  # episodes announced beyond the last one there is that are listed one by one
_MOST_SECONDS = 1e8
_INDEX_BYTES = 128 << 20  # of a file of `meta/episodes`, unpacked: a hundred times that of 100,000 episodes
_BATCH = 1024  # rows unpacked at once


@dataclass(frozen=True)
class VideoSpan:
    """A video file, and the seconds in it at which an episode begins and ends (None: not said)."""

    file: str
    start_s: float
    end_s: float | None = None


@dataclass(frozen=True)
class EpisodePlace:
    """Where an episode lies: `file` is relative to the dataset, `video` by camera."""

    length: int
    file: str
    videos: Mapping[str, VideoSpan]
    task: str


def fill(template: str, values: Mapping[str, int | str]) -> str:
    """A path template with its fields filled in. Only plain `{name}` and `{name:03d}` are understood."""

    def one(match: re.Match[str]) -> str:
        name, width = match[1], match[2]
        if name not in values:
            raise InputError(f"meta/info.json has the path template {template!r}, whose {name!r} is not known.")
        value = values[name]
        return f"{int(value):0{int(width)}d}" if width else str(value)

    path = _FIELD.sub(one, template)
    if "{" in path or "}" in path:
        raise InputError(f"meta/info.json has the path template {template!r}, which is not understood.")
    return path


def read_index(
    root: Path, info: Mapping[str, Any], cameras: list[str], options: LogOptions
) -> tuple[dict[int, EpisodePlace], dict[str, str]]:
    """Places by episode number, and the reason for every episode that is announced and has none."""
    per_episode = "episode_index" in str(info["data_path"])
    reasons: list[str] = []
    places: dict[int, EpisodePlace] = {}
    nowhere: dict[str, str] = {}
    if per_episode:
        for row in _lines(root, options):
            number = int(row["episode_index"])
            places[number] = _place_v2(info, cameras, number, row)
    else:
        for row in _tables(root, cameras, options, reasons):
            spare = {"tasks", *(f"videos/{camera}/to_timestamp" for camera in cameras)}
            empty = [name for name, value in row.items() if value is None and name not in spare]
            if empty:  # what a recording that encodes its videos later has not come to
                reason = f"meta/ does not say its {empty[0]}: the recording was not finished"
                nowhere[str(row["episode_index"])] = reason
                continue
            try:
                places[int(row["episode_index"])] = _place_v3(info, cameras, row)
            except InputError:
                raise
            except (ValueError, TypeError, ArithmeticError) as error:
                nowhere[str(row["episode_index"])] = f"what meta/ says of it is damaged ({first_line(error)})"
    announced = info.get("total_episodes")
    announced = announced if isinstance(announced, int) else len(places)
    why = "; ".join(reasons) or next(iter(nowhere.values()), "meta/ does not say where it lies")
    named = min(announced, max(places, default=0) + _MOST_MISSING)  # a claim of billions is not written out
    missing = {str(number): why for number in range(named) if number not in places}
    if named < announced:
        missing[f"{named} to {announced - 1}"] = why
    if not places:
        raise InputError(f"{root} has no episode that can be read ({why}).")
    return places, {**missing, **nowhere}


def _place_v2(info: Mapping[str, Any], cameras: list[str], number: int, row: Mapping[str, Any]) -> EpisodePlace:
    values: dict[str, int | str] = {
        "episode_index": number,
        "episode_chunk": number // max(int(info.get("chunks_size") or 1000), 1),
    }
    spans = {
        camera: VideoSpan(fill(str(info["video_path"]), {**values, "video_key": camera}), 0.0) for camera in cameras
    }
    return EpisodePlace(int(row["length"]), fill(str(info["data_path"]), values), spans, _task(row))


def _place_v3(info: Mapping[str, Any], cameras: list[str], row: Mapping[str, Any]) -> EpisodePlace:
    values = {"chunk_index": int(row["data/chunk_index"]), "file_index": int(row["data/file_index"])}
    spans = {}
    for camera in cameras:
        head = f"videos/{camera}"
        where: dict[str, int | str] = {
            "chunk_index": int(row[f"{head}/chunk_index"]),
            "file_index": int(row[f"{head}/file_index"]),
            "video_key": camera,
        }
        end = row.get(f"{head}/to_timestamp")
        start_s, end_s = float(row[f"{head}/from_timestamp"]), None if end is None else float(end)
        spans[camera] = VideoSpan(fill(str(info["video_path"]), where), start_s, end_s)
        if not math.isfinite(start_s + (end_s or 0)) or abs(start_s) > _MOST_SECONDS:
            raise ValueError(f"it begins at second {start_s} of a video")
    return EpisodePlace(int(row["length"]), fill(str(info["data_path"]), values), spans, _task(row))


def _task(row: Mapping[str, Any]) -> str:
    tasks = row.get("tasks") or []
    return "; ".join(map(str, tasks)) if isinstance(tasks, list) else str(tasks)


def _lines(root: Path, options: LogOptions) -> Iterator[dict[str, Any]]:
    """The rows of `meta/episodes.jsonl` (v2.x)."""
    path = inside(root, "meta/episodes.jsonl", options)
    try:
        for line in path.read_text(encoding="utf-8").splitlines():
            if line.strip():
                row = json.loads(line)
                int(row["episode_index"]), int(row["length"])
                yield row
    except FileNotFoundError as error:
        raise InputError(f"{root} has no meta/episodes.jsonl, which says what is in it; copy it again.") from error
    except (OSError, ValueError, KeyError, TypeError, ArithmeticError, RecursionError) as error:
        raise InputError(f"{path} is damaged ({first_line(error)}); copy it again.") from error


def _tables(root: Path, cameras: list[str], options: LogOptions, reasons: list[str]) -> Iterator[dict[str, Any]]:
    """The rows of `meta/episodes/*/*.parquet` (v3.0); what cannot be read is told in `reasons`."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    columns = ["episode_index", "length", "tasks", "data/chunk_index", "data/file_index"]
    columns += [f"videos/{camera}/{part}" for camera in cameras for part in ("chunk_index", "file_index")]
    columns += [f"videos/{camera}/from_timestamp" for camera in cameras]
    ends = [f"videos/{camera}/to_timestamp" for camera in cameras]
    files = sorted((root / "meta" / "episodes").glob("*/*.parquet"))
    if not files:
        reasons.append("meta/episodes has no parquet file: the recording was not finished")
    for file in files:
        name = str(file.relative_to(root))
        try:
            path = inside(root, name, options)
            # Asked first: a name with dots that is not there is searched for inside of other columns.
            with pq.ParquetFile(path) as opened:
                there = [column for column in [*columns, *ends] if column in opened.schema_arrow.names]
                rows = read_columns(opened, there, name, _INDEX_BYTES).to_pylist()
        except InputError as error:
            reasons.append(first_line(error))
            continue
        except (OSError, pa.ArrowException) as error:
            reasons.append(f"{name} {parquet_fault(error)}")
            continue
        absent = [column for column in columns if column not in there and column != "tasks"]
        if absent:
            reasons.append(f"{name} lacks the columns {', '.join(absent)}: the recording was not finished")
            continue
        yield from rows


def read_columns(file: Any, columns: list[str], name: str, most: int, groups: list[int] | None = None) -> Any:
    """The columns of a parquet file (of some groups of rows) as a table. A few kilobytes can be a billion equal rows,
    and no header tells: reading stops with an `InputError` when what is unpacked is more than `most` bytes."""
    import pyarrow as pa

    parts, size = [], 0
    kinds = [file.schema_arrow.field(column).type for column in columns]
    small = all(pa.types.is_primitive(kind) for kind in kinds)
    for part in file.iter_batches(_BATCH * 64 if small else _BATCH, row_groups=groups, columns=columns):
        parts.append(part)
        size += part.nbytes
        if size > most:
            raise InputError(
                f"{name} unpacks to more than {most / 1e9:.1f} GB at once; it is damaged, a bomb, or has to be written "
                "in smaller groups of rows"
            )
    return pa.Table.from_batches(parts, None if parts else pa.schema([file.schema_arrow.field(c) for c in columns]))


def parquet_fault(error: Exception) -> str:
    """What is wrong with a parquet file, to be read after its name."""
    if "footer" in str(error) or "too small" in str(error) or "0 bytes" in str(error):
        return "has no footer: the recording was not finished, or the file is cut short"
    return f"cannot be read ({first_line(error)})"
