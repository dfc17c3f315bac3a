"""From an episode of a log to episodes of a store: rows chosen, states and actions computed, pictures sized."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64, Int64, UInt8

from vjepa_mpc.core.errors import InputError, first_line
from vjepa_mpc.datasets.episode import Episode
from vjepa_mpc.datasets.formats.pictures import MAX_PIXELS
from vjepa_mpc.datasets.logs import Log, Rows, damage
from vjepa_mpc.datasets.mapping import LogMapping
from vjepa_mpc.datasets.resample import sample_rows

MAX_BYTES = 2 << 30  # of one episode's pictures in memory


@dataclass(frozen=True)
class Numbers:
    """One stretch of an episode without its pictures: `rows` [t] of the log, `states` [t, s], `actions`
    [t-1, a], `times` [t] (s)."""

    rows: Int64[np.ndarray, "t"]
    states: Float64[np.ndarray, "t s"]
    actions: Float64[np.ndarray, "t_minus_1 a"]
    times: Float64[np.ndarray, "t"]


@dataclass(frozen=True)
class Converted:
    """What became of one episode of the log: `episodes` (several where gaps cut it), or the `reason` why not."""

    name: str
    episodes: tuple[Episode, ...] = ()
    reason: str = ""


@dataclass(frozen=True)
class Converter:
    """Turns episodes of `log` into episodes of a store. `sizes`: (height, width) in the store by its camera
    names. `log_period_s`, `period_s`: seconds between the rows of the log and of the store."""

    log: Log
    mapping: LogMapping
    sizes: Mapping[str, tuple[int, int]]
    log_period_s: float
    period_s: float

    def numbers(self, name: str) -> list[Numbers]:
        """The stretches of an episode with at least two rows each; `InputError` says why there is none."""
        return stretches(self._read(name), self.mapping, self.log_period_s, self.period_s)

    def convert(self, name: str) -> Converted:
        """Read one episode whole; what is wrong with it becomes the reason."""
        try:
            read = self._read(name)
            parts = stretches(read, self.mapping, self.log_period_s, self.period_s)
            images = self.pictures(name, [part.rows for part in parts])
            return Converted(name, tuple(self._episodes(name, parts, images, read)))
        except InputError as error:
            return Converted(name, reason=first_line(error))

    def _read(self, name: str) -> Rows:
        """An episode's numbers, of the widths that the log announced."""
        with damage("its numbers cannot be read"):
            read = self.log.rows(name, self.mapping.fields())
        if not len(read.times):
            raise InputError("it has no rows")
        for field in self.mapping.fields():
            width, announced = read.vectors[field].shape[1], self.log.vectors[field].width
            if width != announced:
                raise InputError(f"{field} has {width} values a row, elsewhere {announced}")
        return read

    def pictures(
        self, name: str, parts: list[Int64[np.ndarray, "_"]]
    ) -> list[dict[str, UInt8[np.ndarray, "_ _ _ 3"]]]:
        """The pictures of every camera at the rows of each part; each source is decoded once, in order."""
        rows = np.concatenate(parts)
        need = len(rows) * sum(3 * h * w for h, w in self.sizes.values())
        if need > MAX_BYTES:
            raise InputError(f"its pictures need {need / 1e9:.1f} GB of memory; make them smaller with --size")
        cuts = np.cumsum([len(part) for part in parts])[:-1]
        split = {
            camera: np.split(self._camera(name, source, rows, self.sizes[camera]), cuts)
            for camera, source in self.mapping.cameras.items()
        }
        return [{camera: frames[i] for camera, frames in split.items()} for i in range(len(parts))]

    def _camera(
        self, name: str, source: str, rows: Int64[np.ndarray, "t"], size: tuple[int, int]
    ) -> UInt8[np.ndarray, "t h w 3"]:
        there = self.log.cameras[source]
        if there.height * there.width > MAX_PIXELS:
            raise InputError(f"{source} claims pictures of {there.width} x {there.height} pixels")
        with damage(f"{source} cannot be read"):
            return self._sized(self.log.frames(name, source, rows), source, rows, size)

    def _sized(
        self,
        found: Iterator[UInt8[np.ndarray, "_ _ 3"]],
        source: str,
        rows: Int64[np.ndarray, "t"],
        size: tuple[int, int],
    ) -> UInt8[np.ndarray, "t h w 3"]:
        """One picture for each of `rows`, of the announced size, brought to `size`."""
        there, count = self.log.cameras[source], 0
        frames = np.empty((len(rows), *size, 3), np.uint8)
        for frame in found:
            if frame.shape != (there.height, there.width, 3):
                raise InputError(
                    f"{source} has a picture of {frame.shape[1]} x {frame.shape[0]} in row {rows[count]}, "
                    f"the log {there.width} x {there.height}"
                )
            frames[count] = resized(frame, size)
            count += 1
        if count != len(rows):
            raise InputError(f"{source} has pictures for {count} of {len(rows)} rows")
        return frames

    def _episodes(
        self, name: str, parts: list[Numbers], images: list[dict[str, UInt8[np.ndarray, "_ _ _ 3"]]], read: Rows
    ) -> list[Episode]:
        texts = {"texts": {key: [list(said) for said in value] for key, value in read.texts.items()}}
        return [
            Episode(
                images=pictures,
                states=part.states.astype(np.float32),
                actions=part.actions.astype(np.float32),
                times=part.times,
                metadata={
                    "task": read.task,
                    **(texts if read.texts else {}),
                    "source": {
                        "episode": name,
                        "rows": [int(part.rows[0]), int(part.rows[-1]) + 1],
                        "part": number,
                        "parts": len(parts),
                    },
                },
            )
            for number, (part, pictures) in enumerate(zip(parts, images, strict=True))
        ]


def stretches(read: Rows, mapping: LogMapping, log_period_s: float, period_s: float) -> list[Numbers]:
    """An episode's numbers at the rows to keep, cut where time has gaps."""
    for field in mapping.fields():
        bad = ~np.isfinite(read.vectors[field]).all(axis=1)
        if bad.any():
            raise InputError(f"{field} holds NaN or infinity in {bad.sum()} rows, the first is {bad.argmax()}")
    states = mapping.states(read.vectors)
    if not np.isfinite(states).all():
        raise InputError("its rotations hold a quaternion of length 0")
    if (np.abs(states) > np.finfo(np.float32).max).any():  # the store's numbers
        raise InputError(f"its states reach {np.abs(states).max():.3g}, which no state does")
    parts = [part for part in sample_rows(read.times, log_period_s, period_s) if len(part) >= 2]
    if not parts:
        raise InputError(f"{len(read.times)} rows are fewer than two observations {period_s:g} s apart")
    return [
        Numbers(rows, states[rows], mapping.actions(read.vectors, states, rows), read.times[rows]) for rows in parts
    ]


def resized(frame: UInt8[np.ndarray, "_ _ 3"], size: tuple[int, int]) -> UInt8[np.ndarray, "_ _ 3"]:
    """The picture at (height, width), averaged over what a new pixel covers."""
    if frame.shape[:2] == size:
        return frame
    from PIL import Image

    picture = Image.fromarray(np.ascontiguousarray(frame))
    return np.asarray(picture.resize((size[1], size[0]), Image.Resampling.BILINEAR))


def fitted(height: int, width: int, shorter: int | None) -> tuple[int, int]:
    """A picture's size with its shorter side at `shorter` pixels, its shape kept; never enlarged."""
    if shorter is None or min(height, width) <= shorter:
        return height, width
    scale = shorter / min(height, width)
    return max(round(height * scale), 1), max(round(width * scale), 1)
