"""The arrays of a trajectory store, and the description that says what they mean."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from zarr.codecs import ZstdCodec
from zarr.core.chunk_key_encodings import DefaultChunkKeyEncoding
from zarr.storage import LocalStore

from vjepa_mpc.core.errors import InputError
from vjepa_mpc.core.files import read_json
from vjepa_mpc.datasets import layout
from vjepa_mpc.datasets.episode import SCHEMA_VERSION, SHARDED_VERSION, Episode, StoreSpec

DAMAGED = (
    OSError,
    ValueError,
    RuntimeError,
    KeyError,
    TypeError,
)  # what zarr and its codecs raise on bad bytes


def columns(spec: StoreSpec) -> dict[str, tuple[tuple[int, ...], str]]:
    """The arrays of a store: shape of a row and type, by name."""
    images = {f"images/{name}": ((*size, 3), "uint8") for name, size in spec.cameras.items()}
    return {
        **images,
        "states": ((len(spec.state_names),), "float32"),
        "actions": ((len(spec.action_names),), "float32"),
        "times": ((), "float64"),
    }


def create_array(group: Any, name: str, spec: StoreSpec) -> None:
    """Make one of the arrays of a store, without rows."""
    shape, dtype = columns(spec)[name]
    group.create_array(
        name,
        shape=(0, *shape),
        dtype=dtype,
        chunks=(spec.chunk_frames, *shape),
        shards=(spec.shard_frames, *shape) if spec.shard_frames else None,
        compressors=ZstdCodec(level=1, checksum=True),
        chunk_key_encoding=DefaultChunkKeyEncoding(separator="."),
        fill_value=0,
    )


def column(episode: Episode, name: str) -> np.ndarray:
    return episode.images[name.removeprefix("images/")] if "/" in name else getattr(episode, name)


def line_of(episode: Episode) -> bytes:
    line = {"length": len(episode), "digest": episode.digest(), "metadata": dict(episode.metadata)}
    return json.dumps(line, allow_nan=False).encode() + b"\n"


def open_arrays(path: Path, spec: StoreSpec, read_only: bool, only: str | None = None) -> dict[str, Any]:
    """The arrays (or one), checked against the spec. Chunks equal to the fill value are written like any other:
    otherwise a lost chunk could not be told from one of zeros."""
    arrays = {}
    for name, (shape, dtype) in columns(spec).items():
        if only not in (None, name):
            continue
        try:
            store = LocalStore(path / name, read_only=read_only)
            with zarr.config.set({"array.write_empty_chunks": True}):  # open_array(config=...) ignores it in 3.1
                array = zarr.open_array(store, mode="r" if read_only else "r+")
        except DAMAGED as error:
            raise InputError(f"{path} is damaged: array {name} cannot be opened ({error}).") from error
        files = array.shards[0] if array.shards else 0
        rows = (array.chunks[0], files) == (spec.chunk_frames, spec.shard_frames)
        if array.shape[1:] != shape or str(array.dtype) != dtype or not rows:
            raise InputError(f"{path} is damaged: array {name} is {array.dtype} {array.shape}, not as described.")
        arrays[name] = array
    return arrays


def read_chunk(file: Path, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    """A chunk that is a file of its own, unpacked here: for one chunk, Zarr's own way takes longer than unpacking.
    `FileNotFoundError` when it is missing, one of `DAMAGED` when it is not what `create_array` makes."""
    from numcodecs import Zstd

    from vjepa_mpc.datasets.formats.zarr_v2 import zstd_size

    data, values = file.read_bytes(), np.empty(shape, np.dtype(dtype).newbyteorder("<"))
    if zstd_size(data) != values.nbytes:  # asked first: a bomb is not unpacked
        raise ValueError(f"it unpacks to {zstd_size(data)} bytes instead of {values.nbytes}")
    Zstd().decode(data, out=values)  # compares the checksum in the frame, too
    return values


def read_spec(path: Path) -> StoreSpec:
    """What the store says it holds; `InputError` for whatever is not a store of this schema."""
    if not path.exists():
        raise InputError(f"{path} does not exist; check the path, or make it with `vjepa-mpc collect`.")
    if not path.is_dir() or not (path / "zarr.json").exists():
        what = "is a file" if not path.is_dir() else "is empty" if not any(path.iterdir()) else "has no zarr.json"
        raise InputError(f"{path} is not a trajectory store (it {what}); make one with `vjepa-mpc collect`.")
    value = read_json(path / "zarr.json")
    attributes = value.get("attributes", {}) if isinstance(value, dict) else {}
    if attributes.get("format") != layout.FORMAT:
        raise InputError(f"{path} is a Zarr store of another schema, not {layout.FORMAT!r}; see docs/data.md.")
    if attributes.get("schema_version") not in (SCHEMA_VERSION, SHARDED_VERSION):
        raise InputError(
            f"{path} has schema version {attributes.get('schema_version')}, this program reads "
            f"{SCHEMA_VERSION} and {SHARDED_VERSION}; use the program version that wrote it."
        )
    if not isinstance(attributes.get("spec"), dict):
        raise InputError(f"{path} does not say what it holds; its zarr.json is damaged.")
    return StoreSpec.from_json(attributes["spec"])
