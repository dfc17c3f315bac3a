"""How many candidates fit into memory at a time, and what to do when they do not."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import torch

from vjepa_mpc.core.errors import InputError
from vjepa_mpc.predictor import PredictorConfig

T = TypeVar("T")
CHUNK = 256
"""Candidates judged at a time where memory allows: more gain nothing on CPUs. Results depend on it in the last bit."""
FREE_SHARE = 0.5
"""Of the free memory that a plan may fill when nothing is said: others live here too."""
_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12, "ki": 2**10, "mi": 2**20, "gi": 2**30, "ti": 2**40}


def parse_bytes(text: str) -> int:
    """Bytes of "24GB", "500 MB", "1.5GiB" or a plain number; `InputError` for anything else or nothing."""
    found = re.fullmatch(r"\s*([0-9]*\.?[0-9]+)\s*([kmgt]?i?)b?\s*", text.lower())
    if found is None or found[2] not in _UNITS or float(found[1]) <= 0:
        raise InputError(f"{text!r} is no amount of memory; write it as 24GB or 500MB.")
    return int(float(found[1]) * _UNITS[found[2]])


def free_bytes(device: torch.device, root: Path = Path("/")) -> int | None:
    """Memory that can be had on `device` now: on CPUs what the machine has available, or less where this process's
    control group (version 2 or 1) allows less. None where the system does not say. `root`: where /proc and /sys lie."""
    if device.type == "cuda":
        free: int = torch.cuda.mem_get_info(device)[0]
        return free
    amounts = [_available(root / "proc/meminfo")]
    for folder, limit, used, cache in _CONTROL_GROUPS:
        amounts.append(_left(root / "sys/fs/cgroup" / folder, limit, used, cache))
    known = [amount for amount in amounts if amount is not None]
    return max(0, min(known)) if known else None


_CONTROL_GROUPS = (
    ("", "memory.max", "memory.current", "inactive_file"),
    ("memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
)
"""Folder, files of limit and use, and the row of memory.stat that is page cache: counted as used, yet given up at once
when memory is wanted. Inside a container the folder is its own group's."""


def _available(meminfo: Path) -> int | None:
    try:
        rows = dict(line.split(":") for line in meminfo.read_text().splitlines())
        return 1024 * int(rows["MemAvailable"].split()[0])
    except (OSError, ValueError, KeyError, IndexError):
        return None


def _left(folder: Path, limit: str, used: str, cache: str) -> int | None:
    """What a control group may still take; None without one, or without a limit ("max"; version 1's is huge)."""
    try:
        left = int((folder / limit).read_text()) - int((folder / used).read_text())
    except (OSError, ValueError):
        return None
    try:
        rows = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
        return left + int(rows[cache])
    except (OSError, ValueError, KeyError):
        return left


def peak_bytes(device: torch.device) -> int:
    """The most memory that this process has held on `device` so far."""
    if device.type == "cuda":
        most: int = torch.cuda.max_memory_allocated(device)
        return most
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


def candidate_bytes(config: PredictorConfig, frames: int, horizon: int, dtype: torch.dtype) -> int:
    """About what one candidate takes while it is imagined: the keys and values of `frames` frames in every block, the
    widest block's intermediate values, and the `horizon` imagined frames with what a cost makes of them (float32)."""
    width = torch.empty(0, dtype=dtype).element_size()
    tokens = config.tokens * config.width
    cache = 2 * config.depth * frames * tokens * width
    block = (2 * config.mlp_ratio + 10) * tokens * width
    imagined = 3 * (horizon + 2) * config.patches * config.latent_dim * 4
    return int(cache + block + imagined)


def chunk_within(bytes_a_candidate: int, budget: int | None) -> int:
    """Candidates at a time inside `budget` bytes, `CHUNK` at most and 1 at least; None: no limit is known."""
    return CHUNK if budget is None else max(1, min(CHUNK, budget // max(1, bytes_a_candidate)))


def with_smaller_chunks(work: Callable[[int], T], chunk: int) -> tuple[T, int]:
    """`work(chunk)`, and where memory runs out again with half as many at a time, down to one; and the chunk that did,
    for the next call to begin with."""
    while True:
        try:
            return work(chunk), chunk
        except (RuntimeError, MemoryError) as error:
            if chunk == 1 or not _out_of_memory(error):
                raise
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        chunk = max(1, chunk // 2)


def _out_of_memory(error: BaseException) -> bool:
    """Whether this is memory's end: of the GPU, of Python, or of torch's allocator on CPUs (a plain RuntimeError)."""
    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or "can't allocate memory" in str(error)
