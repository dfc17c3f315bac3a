"""Filling a cache of latents: the same batches of frames to the same half-precision numbers, wherever they are encoded.

Frames go out in batches and latents come back in their order, so that whoever waits for them writes one file from
its beginning to its end: an interrupted file is good up to a row, and workers on other machines need no disk in common.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Generator, Iterable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Shaped, UInt8
from torch import Tensor

from vjepa_mpc.core.errors import InputError, NotFiniteError
from vjepa_mpc.core.files import read_json, write_json
from vjepa_mpc.datasets.cache_files import reserve

Progress = Callable[[int, int], None]  # called with rows done and rows in all
Encode = Callable[[UInt8[Tensor, "n h w 3"]], Float[Tensor, "n p d"]]
Pictures = UInt8[np.ndarray, "n h w 3"]
Half = Shaped[np.ndarray, "n p d"]  # float16, or the bits of bfloat16, which numpy does not have, as uint16
Work = Callable[[Encode, Pictures], Half]
Encoding = Callable[[Work, Iterable[Pictures]], Generator[Half, None, None]]
"""`work(encode, pictures)` for each batch of pictures, in order, with an `encode` it has: `here`, or an executor's."""

FLOATS = {"fp16": (torch.float16, np.dtype(np.float16)), "bf16": (torch.bfloat16, np.dtype(np.uint16))}
_SAVE_EVERY = 16  # batches after which a killed build loses no more


def here(encode: Encode) -> Encoding:
    """Encode in this process."""

    def stream(work: Work, batches: Iterable[Pictures]) -> Generator[Half, None, None]:
        yield from (work(encode, batch) for batch in batches)

    return stream


def half(numbers: str, encode: Encode, pictures: Pictures) -> Half:
    """The latents of a batch in half precision (`FLOATS`); worked out without gradients."""
    with torch.no_grad():
        latents = torch.as_tensor(encode(torch.from_numpy(pictures))).detach().to("cpu", FLOATS[numbers][0])
    return np.asarray(latents) if numbers == "fp16" else latents.view(torch.int16).numpy().view(np.uint16)


def whole(values: Shaped[np.ndarray, "*n"]) -> Shaped[np.ndarray, "*n"]:
    """Latents as numpy can reckon with them: float16 as it is, the bits of bfloat16 as float32 (the upper half)."""
    return values if values.dtype == np.float16 else (values.astype(np.uint32) << 16).view(np.float32)


def encode_all(
    frames: np.ndarray, encoding: Encoding, numbers: str, path: Path, batch: int, progress: Progress | None,
    room: Callable[[int], None],
) -> None:  # fmt: skip
    """Fill `path` with the latents of all `frames`, `batch` at a time, going on from its side file `*.json` when there
    is one. `room`: called with the bytes that the file will take, before they are claimed.

    What is done is kept when it is interrupted; a killed process loses the last `_SAVE_EVERY` batches at most.
    """
    note = path.with_suffix(".json")
    done, total, rows = _resume(path, note, len(frames), batch, numbers)
    if rows is not None:
        room(path.stat().st_size)
    starts = range(done, total, batch)
    batches = (np.array(frames[start : start + batch]) for start in starts)

    def save() -> None:
        if rows is not None and done:
            rows.flush()
            write_json(note, {"rows": done, "batch": batch})

    try:
        with contextlib.closing(encoding(partial(half, numbers), batches)) as stream:
            for number, values in enumerate(_checked(stream, starts, min(batch, total), total, numbers), 1):
                if rows is None:
                    room(total * values[0].nbytes)
                    shape = (total, *values.shape[1:])
                    rows = np.lib.format.open_memmap(path, mode="w+", dtype=FLOATS[numbers][1], shape=shape)
                    reserve(path)
                rows[done : done + len(values)] = values
                done += len(values)
                if number % _SAVE_EVERY == 0 and done < total:
                    save()
                if progress is not None:
                    progress(done, total)
    except BaseException:
        save()
        raise
    if rows is not None:
        rows.flush()
    note.unlink(missing_ok=True)


def _checked(stream: Iterator[Half], starts: range, batch: int, total: int, numbers: str) -> Iterator[Half]:
    """The latents of the batches that begin at `starts`, when they are finite and of as many frames as were given."""
    for start, values in zip(starts, stream, strict=True):
        frames = min(batch, total - start)
        if values.ndim != 3 or len(values) != frames:
            raise InputError(f"encode must return [n, p, d] for {frames} frames, got {list(values.shape)}.")
        if not np.isfinite(whole(values)).all():
            place = f"in frames {start} to {start + frames}"
            raise NotFiniteError(f"The encoder gave NaN, or more than {numbers} holds, {place}.")
        yield values


def _resume(path: Path, note: Path, total: int, batch: int, numbers: str) -> tuple[int, int, np.memmap | None]:
    """Rows done, rows in all, and the half-made array; from the start when it cannot be trusted."""
    with contextlib.suppress(InputError, OSError, ValueError, KeyError, TypeError):
        saved = read_json(note)
        rows = np.lib.format.open_memmap(path, mode="r+")
        fits = saved["batch"] == batch and rows.dtype == FLOATS[numbers][1]
        if fits and 0 < saved["rows"] <= total == len(rows):
            return int(saved["rows"]), total, rows
    return 0, total, None
