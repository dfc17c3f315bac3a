"""Safetensors written one tensor after the other, and mapped ones given back: files larger than memory allows."""

from __future__ import annotations

import ctypes
import json
import mmap
import struct
import sys
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from vjepa_mpc.core.errors import InputError

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
_CODES = {torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}
_PAGEOUT = 21  # of linux/mman.h; Python 3.11 has no name for it


def write_tensors(path: Path, tensors: Mapping[str, Tensor], dtype: torch.dtype) -> int:
    """Write floating-point tensors as a safetensors file in type `dtype`; returns its size in bytes.

    One tensor at a time is converted and written, and its mapped source given back, so that memory holds the
    largest of them and no more. Raises `InputError` for a tensor that is not finite in `dtype`.
    """
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    offset, width = 0, torch.empty(0, dtype=dtype).element_size()
    for name, tensor in tensors.items():
        end = offset + tensor.numel() * width
        header[name] = {"dtype": _CODES[dtype], "shape": list(tensor.shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as stream:
        stream.write(struct.pack("<Q", len(text)) + text)
        for name, tensor in tensors.items():
            written = tensor.detach().to("cpu", dtype).contiguous()
            if not bool(torch.isfinite(written).all()):
                raise InputError(f"{name} holds NaN or values beyond {dtype}; check the file, or choose another type.")
            stream.write(written.reshape(-1).view(torch.uint8).numpy().tobytes())
            give_back(tensor)
    return 8 + len(text) + offset


def give_back(tensor: Tensor) -> None:
    """Ask the system to take back the memory of a tensor mapped from a file; it is read again when needed.

    A request and no more (`MADV_PAGEOUT` keeps what memory holds, whatever it is): without effect where the
    system has no such thing.
    """
    storage = tensor.untyped_storage()
    madvise = getattr(ctypes.CDLL(None), "madvise", None) if sys.platform == "linux" else None
    if madvise is None or tensor.device.type != "cpu":
        return
    page = mmap.PAGESIZE
    start = -(-storage.data_ptr() // page) * page  # whole pages: the first and last are shared with neighbours
    length = (storage.data_ptr() + storage.nbytes() - start) // page * page
    if length > 0:
        madvise(ctypes.c_void_p(start), ctypes.c_size_t(length), ctypes.c_int(_PAGEOUT))
