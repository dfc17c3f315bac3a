"""Chosen frames of a video file, decoded one at a time."""

from __future__ import annotations

import contextlib
import itertools
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float64, Int64, UInt8

from vjepa_mpc.core.errors import InputError, first_line
from vjepa_mpc.datasets.formats.pictures import MAX_PIXELS
from vjepa_mpc.datasets.logs import CameraInfo

# By FFmpeg's names. Play lists (concat, hls, dash, ...) are not among them: they name other files, also out of the log.
_CONTAINERS = "mov,mp4,matroska,webm,avi,mpegts,mpeg,mpegvideo,m4v,ogg,flv,asf,ivf,nut,mjpeg,h264,hevc,av1,obu,gif"
_CUT = 3.0  # times what the picture changes otherwise: another recording begins


def frames_by_number(path: Path, rows: Int64[np.ndarray, "n"], total: int) -> Iterator[UInt8[np.ndarray, "_ _ 3"]]:
    """Frames number `rows` (increasing, counted from 0) of a video that must have `total` frames: one short,
    and nobody knows which row it belongs to. `InputError` when it has another number or cannot be decoded."""
    wanted, seen = iter(rows.tolist()), 0
    following = next(wanted, None)
    with _opened(path) as (container, stream):
        for frame in container.decode(stream):
            if seen == following:
                yield _rgb(frame)
                following = next(wanted, None)
            seen += 1
    if seen != total:
        raise InputError(f"{path.name} has {seen} frames for {total} rows; which row lacks one is not known")


def frames_by_time(
    path: Path, times: Float64[np.ndarray, "n"], tolerance_s: float
) -> Iterator[UInt8[np.ndarray, "_ _ 3"]]:
    """The frames shown at `times` (s, increasing) of a video, each within `tolerance_s` of what was asked.

    `InputError` when one is missing or the file cannot be decoded.
    """
    wanted = times.tolist()
    done = 0
    if not wanted:
        return
    with _opened(path) as (container, stream):
        start = float(stream.start_time * stream.time_base) if stream.start_time else 0.0
        # To the key frame at or before the first one wanted; a little earlier for rounding.
        container.seek(max(int((wanted[0] + start - tolerance_s) / stream.time_base), 0), stream=stream)
        best: tuple[float, Any] | None = None
        for frame in container.decode(stream):
            if frame.pts is None:
                continue
            shown = float(frame.pts * stream.time_base) - start
            while done < len(wanted) and best is not None and abs(best[0] - wanted[done]) <= abs(shown - wanted[done]):
                yield _near(best, wanted[done], tolerance_s, path)
                done += 1
            if done == len(wanted):
                return
            best = (shown, frame)
        while done < len(wanted):
            yield _near(best, wanted[done], tolerance_s, path)
            done += 1


@dataclass(frozen=True)
class Doubt:
    """From second `start_s` of a video on, nobody knows which row a frame belongs to; `text` says why."""

    start_s: float
    text: str


def doubt(path: Path, starts_s: Sequence[float], end_s: float, rate: float) -> Doubt | None:
    """Whether a video of several episodes, which begin at `starts_s` (increasing) and end at `end_s`, lacks frames in a
    way that moves those after them: then an episode is trusted only where the picture changes abruptly as the next one
    begins. None when it has them all by its own word, or when its time stamps tell where the gap is."""
    expected = round(end_s * rate)
    times: list[float] = []
    changes, before = [0.0], None
    with _opened(path) as (container, stream):
        if not stream.frames or stream.frames >= expected:
            return None
        start = float(stream.start_time * stream.time_base) if stream.start_time else 0.0
        for frame in container.decode(stream):
            times.append(float((frame.pts or 0) * stream.time_base) - start)
            small = frame.reformat(width=32, height=32, format="rgb24").to_ndarray().astype(np.int16)
            changes += [] if before is None else [float(np.abs(small - before).mean())]
            before = small
    if not times or times[-1] > end_s - 1.5 / rate:
        return None
    text = f"{path.name} has {len(times)} frames for {expected} rows of its episodes; which rows lack one is not known"
    for first, following in itertools.pairwise(starts_s):
        row, least = round(following * rate), round(first * rate) + 1
        near = [*changes[max(row - (expected - len(times)), least) : row], *changes[row + 1 : row + 2]]
        if row >= len(changes) or changes[row] <= _CUT * max(near, default=0.0):
            return Doubt(first, text)
    return Doubt(starts_s[-1], text)


def describe_video(path: Path) -> tuple[CameraInfo, int, float | None]:
    """Picture size, frames by the file's own word (0 = it does not say) and frames a second."""
    with _opened(path) as (_, stream):
        rate = float(stream.average_rate) if stream.average_rate else None
        return CameraInfo(stream.height, stream.width), stream.frames, rate


def _near(best: tuple[float, Any] | None, wanted: float, tolerance_s: float, path: Path) -> UInt8[np.ndarray, "_ _ 3"]:
    if best is None or abs(best[0] - wanted) > tolerance_s:
        there = "it has none" if best is None else f"the nearest is at {best[0]:.3f} s"
        raise InputError(f"{path.name} has no frame at {wanted:.3f} s ({there}); it is short, or of another recording")
    return _rgb(best[1])


def _rgb(frame: Any) -> UInt8[np.ndarray, "_ _ 3"]:
    return np.asarray(frame.to_ndarray(format="rgb24"))


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[tuple[Any, Any]]:
    """The container and its first video stream; decoding errors become `InputError`s."""
    import av

    try:
        # Absolute: `run:1/top.mp4` would name a protocol.
        with av.open(os.path.abspath(path), options={"format_whitelist": _CONTAINERS}) as container:
            if not container.streams.video:
                raise InputError(f"{path.name} holds no video; it is cut short, or of another kind")
            stream = container.streams.video[0]
            if stream.height * stream.width > MAX_PIXELS:
                raise InputError(f"{path.name} claims pictures of {stream.width} x {stream.height} pixels")
            stream.thread_type = "AUTO"
            yield container, stream
    except FileNotFoundError as error:
        raise InputError(f"{path.name} is missing") from error
    except av.error.FFmpegError as error:
        raise InputError(f"{path.name} cannot be decoded ({first_line(error)}); it is cut short or damaged") from error
