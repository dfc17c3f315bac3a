"""Clips a second from every way of keeping frames, measured beside each other in one run: `vjepa-mpc bench data`.

The references are what one would write without this package: a raw memory map, HDF5, a plain Zarr array, MP4 decoded
by PyAV. All give the same random clips, in the same batches, as the same stacked arrays.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, cast

import numpy as np
from jaxtyping import Int64, UInt8

from vjepa_mpc.core.scheduling import same_scheduling
from vjepa_mpc.data_peers import Reader, peer_reader
from vjepa_mpc.datasets.cache import FrameCache
from vjepa_mpc.datasets.clips import ClipDataset
from vjepa_mpc.datasets.episode import Episode, StoreSpec
from vjepa_mpc.datasets.sampling import ShuffledBatches
from vjepa_mpc.datasets.store import ZarrStore

LENGTH = 4  # frames a clip
_BATCH = 16
_CACHED, _STORE, _MEMMAP, _ZARR, _AV1 = "cached clips", "the store", "np.memmap", "plain zarr", "MP4, AV1 (LeRobot's)"
_LEROBOT = "peer: lerobot"


@dataclass(frozen=True)
class Speed:
    """Clips a second of one way at one size, and the bytes it keeps on disk."""

    name: str
    size: int
    clips_a_second: float
    bytes_on_disk: int


@dataclass(frozen=True)
class Bar:
    """What is asked of this package's own ways: `ratio` to a reference in the same run, at least `least`."""

    text: str
    ratio: float
    least: float

    @property
    def held(self) -> bool:
        return self.ratio >= self.least


def moving_scene(episode: int, frames: int, size: int) -> UInt8[np.ndarray, "t h w 3"]:
    """A textured background with two discs that move over it: compresses about as a simulated robot's camera does."""
    generator = np.random.default_rng([episode, size])
    coarse = generator.integers(60, 180, (size // 8, size // 8, 3))
    ground = np.kron(coarse, np.ones((8, 8, 1))) + generator.normal(0, 3, (size // 8 * 8, size // 8 * 8, 3))
    ground = np.resize(ground, (size, size, 3)).clip(0, 255).astype(np.uint8)
    result = np.repeat(ground[None], frames, axis=0)
    y, x = np.mgrid[:size, :size]
    for disc in range(2):
        phase, colour = generator.uniform(0, 6), generator.integers(0, 256, 3)
        for t in range(frames):
            cy = size * (0.5 + 0.35 * np.sin(0.11 * t + phase))
            cx = size * (0.5 + 0.35 * np.cos(0.07 * t + phase * disc))
            result[t][(y - cy) ** 2 + (x - cx) ** 2 < (size / 10) ** 2] = colour
    return result


def make_store(path: Path, size: int, episodes: int, frames: int) -> ZarrStore:
    """A store of `episodes` moving scenes of `frames` frames, with as many states and actions as an arm has."""
    names = tuple(f"q{i}" for i in range(7))
    ones = (1.0,) * 7
    spec = StoreSpec(
        robot="bench", cameras={"top": (size, size)}, state_names=names, state_units=("rad",) * 7,
        state_low=tuple(-x for x in ones), state_high=ones, state_periodic=(False,) * 7, action_names=names,
        action_units=("rad",) * 7, action_low=tuple(-x for x in ones), action_high=ones, control_period_s=0.1,
    )  # fmt: skip
    with ZarrStore.create(path, spec) as writer:
        for episode in range(episodes):
            states = np.random.default_rng(episode).uniform(-1, 1, (frames, 7)).astype(np.float32)
            pictures = {"top": moving_scene(episode, frames, size)}
            times = 0.1 * np.arange(frames)
            writer.append(Episode(pictures, states, np.diff(states, axis=0), times))
    return ZarrStore.open(path)


def measure(reader: Reader, starts: Int64[np.ndarray, "n"], seconds: float) -> float:
    """Clips a second over random batches of `starts`, after one that warms up."""
    generator = np.random.default_rng(0)
    reader(generator.choice(starts, _BATCH))
    done, begun = 0, time.perf_counter()
    while (spent := time.perf_counter() - begun) < seconds or done < 2 * _BATCH:
        done += len(reader(generator.choice(starts, _BATCH)))
    return done / spent


def readers(folder: Path, store: ZarrStore) -> dict[str, tuple[Reader, Path]]:
    """Every way of reading the store's clips by their first rows, and the file or folder that it reads.

    Made below `folder` from the store's frames; all rows are of episodes of the same length.
    """
    import h5py
    import zarr

    frames = int(store.lengths()[0])
    everything = np.concatenate([store.read_frames(index, "top") for index in range(len(store))])
    cache = FrameCache.build(store, "top", folder / "cache")
    clips = ClipDataset(store, LENGTH, 1, "top", frames=cache)
    clip_of = np.zeros(len(everything), np.int64)  # the dataset's clip that begins at a row
    clip_of[clips.rows(np.arange(len(clips)))[:, 0]] = np.arange(len(clips))
    everything.tofile(folder / "raw.bin")
    raw = np.memmap(folder / "raw.bin", np.uint8, "r", shape=everything.shape)
    with h5py.File(folder / "frames.h5", "w") as file:
        file["frames"] = everything
    hdf5 = h5py.File(folder / "frames.h5", "r")["frames"]
    plain = zarr.create_array(
        folder / "plain.zarr", shape=everything.shape, dtype=np.uint8, chunks=(LENGTH, *everything.shape[1:])
    )
    plain[:] = everything

    def stacked(one: Callable[[int], np.ndarray]) -> Reader:
        return lambda rows: np.stack([one(int(row)) for row in rows])

    found: dict[str, tuple[Reader, Path]] = {
        _CACHED: (lambda rows: clips.batch(clip_of[rows]).frames.numpy(), cache.path),
        _STORE: (
            stacked(lambda r: store.read_frames(r // frames, "top", r % frames, r % frames + LENGTH)),
            store.path / "images",
        ),
        _MEMMAP: (stacked(lambda row: raw[row : row + LENGTH]), folder / "raw.bin"),
        "h5py, contiguous": (stacked(lambda row: hdf5[row : row + LENGTH]), folder / "frames.h5"),
        _ZARR: (stacked(lambda row: np.asarray(plain[row : row + LENGTH])), folder / "plain.zarr"),
    }
    videos = {"MP4, H.264": ("libx264", {"crf": "23"}), _AV1: ("libsvtav1", {"crf": "30", "g": "2"})}
    for name, (codec, options) in videos.items():
        path = folder / f"{codec}.mp4"
        _write_video(path, everything, codec, options)
        found[name] = (stacked(_Video(path).clip), path)
    return found


class _Video:
    """Random clips of one video that stays open, as LeRobot's loader keeps it."""

    def __init__(self, path: Path) -> None:
        import av

        self._container = cast(Any, av.open(str(path)))
        self._stream = self._container.streams.video[0]
        self._stream.thread_type = "AUTO"

    def clip(self, row: int) -> UInt8[np.ndarray, "t h w 3"]:
        rate, base = self._stream.average_rate, self._stream.time_base
        self._container.seek(int(Fraction(row) / rate / base), stream=self._stream)
        frames: list[np.ndarray] = []
        for frame in self._container.decode(self._stream):
            if round(frame.pts * base * rate) >= row:
                frames.append(frame.to_ndarray(format="rgb24"))
            if len(frames) == LENGTH:
                break
        return np.stack(frames)


def _write_video(path: Path, frames: UInt8[np.ndarray, "t h w 3"], codec: str, options: dict[str, str]) -> None:
    import av

    with cast(Any, av.open(str(path), "w")) as container:
        stream = container.add_stream(codec, rate=10, options=options)
        stream.height, stream.width, stream.pix_fmt = *frames.shape[1:3], "yuv420p"
        with same_scheduling():
            stream.codec_context.open()
        for number, frame in enumerate(frames):
            picture = av.VideoFrame.from_ndarray(frame, format="rgb24")
            picture.pts = number
            container.mux(stream.encode(picture))
        container.mux(stream.encode(None))


def bench(
    folder: Path, sizes: Sequence[int], episodes: int, frames: int, seconds: float, peers: Sequence[str] = ()
) -> list[Speed]:
    """Speeds of every way, and of the `peers` (`data_peers.py`), at every size; the exact ways are compared with each
    other on the way."""
    speeds = []
    for size in sizes:
        place = folder / str(size)
        place.mkdir(parents=True)
        store = make_store(place / "store.zarr", size, episodes, frames)
        starts = np.concatenate([np.arange(e * frames, (e + 1) * frames - LENGTH + 1) for e in range(episodes)])
        ways = readers(place, store)
        ways |= {f"peer: {name}": peer_reader(name, store, place, LENGTH) for name in peers}
        some = np.random.default_rng(1).choice(starts, 8)
        for name in (_CACHED, _STORE, "h5py, contiguous", _ZARR):
            assert np.array_equal(ways[name][0](some), ways[_MEMMAP][0](some)), f"{name} reads other frames"
        speeds += [Speed(name, size, measure(way, starts, seconds), _bytes(path)) for name, (way, path) in ways.items()]
    return speeds


def bars(speeds: Sequence[Speed]) -> list[Bar]:
    """What is asked, against what was measured."""
    rate = {(speed.name, speed.size): speed.clips_a_second for speed in speeds}
    found = []
    for size in dict.fromkeys(speed.size for speed in speeds):
        least = 2.0 if size <= 96 else 1.0
        pairs = [(_CACHED, _MEMMAP, 0.6), (_STORE, _ZARR, least), (_CACHED, _AV1, 2.0)]
        pairs += [(_CACHED, _LEROBOT, 2.0)] if (_LEROBOT, size) in rate else []
        found += [
            Bar(f"{ours} / {reference}, {size} px", rate[ours, size] / rate[reference, size], bar)
            for ours, reference, bar in pairs
        ]
    return found


def epoch_digest(store: ZarrStore, workers: int) -> str:
    """A hash of one epoch of clips, in order, through torch's loader with `workers` processes."""
    from torch.utils.data import DataLoader

    clips = ClipDataset(store, LENGTH, 1, "top")
    order = ShuffledBatches(len(clips), _BATCH, seed=0)
    value = hashlib.sha256()
    for batch in DataLoader(clips, batch_sampler=order, num_workers=workers):
        for part in batch:
            value.update(part.numpy().tobytes())
    return value.hexdigest()


def _bytes(path: Path) -> int:
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    return sum(os.path.getsize(file) for file in files)
