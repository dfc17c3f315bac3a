"""One recorded episode, and the description of what a store of them holds."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

import numpy as np
from jaxtyping import Float32, Float64, UInt8

from vjepa_mpc.core.errors import InputError

SCHEMA_VERSION = 1
SHARDED_VERSION = 2  # of stores whose files hold several chunks: older programs must not read them
_NAME = re.compile(r"[A-Za-z0-9_-]+")


@dataclass(frozen=True)
class Episode:
    """A stretch of experience: t observations and the t - 1 actions between them.

    `images`: by camera name, uint8 [t, height, width, 3], RGB. `states` [t, s]: proprioception in the
    store's state units. `actions` [t-1, a]: `actions[i]`, in the store's action units, is the action TRULY
    APPLIED (after the robot's own limits) between observation i and i + 1. `times` [t]: seconds, strictly
    increasing. `metadata`: anything JSON can hold (seeds, policy, ...). `InputError` when these disagree.
    """

    # Lengths are named apart here: `__post_init__` compares them, and says more than a shape checker would.
    images: Mapping[str, UInt8[np.ndarray, "_ _ _ _"]]
    states: Float32[np.ndarray, "t s"]
    actions: Float32[np.ndarray, "t_minus_1 a"]
    times: Float64[np.ndarray, "t_too"]
    metadata: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _check(self.states, np.float32, 2, "states")
        _check(self.actions, np.float32, 2, "actions")
        _check(self.times, np.float64, 1, "times")
        steps = len(self.states)
        if steps < 1:
            raise InputError("An episode needs at least one observation; this one is empty.")
        if not self.images:
            raise InputError("An episode needs at least one camera's images; this one has none.")
        for name, frames in self.images.items():
            _check(frames, np.uint8, 4, f"images of camera {name!r}")
            if frames.shape[-1] != 3:
                raise InputError(f"Camera {name!r} has {frames.shape[-1]} channels; give RGB frames [t, h, w, 3].")
            if len(frames) != steps:
                raise InputError(f"Camera {name!r} has {len(frames)} frames but there are {steps} states.")
        if len(self.actions) != steps - 1:
            raise InputError(f"{steps} states need {steps - 1} actions between them, got {len(self.actions)}.")
        if len(self.times) != steps:
            raise InputError(f"{steps} states need {steps} times, got {len(self.times)}.")
        if (np.diff(self.times) <= 0).any():
            raise InputError("The times of an episode must increase; sort the observations by time.")
        try:
            json.dumps(dict(self.metadata), allow_nan=False)
        except (TypeError, ValueError) as error:
            raise InputError(f"Episode metadata must be plain JSON ({error}).") from error

    def __len__(self) -> int:
        """Observations in the episode (t)."""
        return len(self.states)

    def digest(self) -> str:
        """A SHA-256 hash of the frames, states, actions and times (not of the metadata)."""
        value = hashlib.sha256()
        for name in sorted(self.images):
            value.update(f"{name}{self.images[name].shape}".encode())
            value.update(np.ascontiguousarray(self.images[name]).data)
        for array in (self.states, self.actions, self.times):
            value.update(str(array.shape).encode())
            if array.size:
                value.update(np.ascontiguousarray(array).data)
        return value.hexdigest()


def _check(array: np.ndarray, dtype: Any, dimensions: int, what: str) -> None:
    """Refuse an array of another type or rank, or with NaN or infinity in it."""
    if not isinstance(array, np.ndarray) or array.dtype != dtype or array.ndim != dimensions:
        got = f"{array.dtype} {list(array.shape)}" if isinstance(array, np.ndarray) else type(array).__name__
        raise InputError(f"Episode {what} must be {np.dtype(dtype)} with {dimensions} dimensions, got {got}.")
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise InputError(f"Episode {what} hold NaN or infinity; drop or repair the broken observations.")


@dataclass(frozen=True)
class StoreSpec:
    """What every episode of a store agrees on. Field by field in docs/data.md.

    `cameras`: (height, width) in pixels by camera name. `state_*` and `action_*`: one entry a component;
    bounds in the units beside them. `state_model`: "joints" (state + action, additive) or "pose".
    `renderer`: which renderer drew the frames ("" for a real camera). `provenance`: package version,
    commit and the settings of the command that made the store. `chunk_frames`: frames in a chunk, what is read at
    least. `shard_frames`: frames in a file that holds several chunks (a Zarr shard); 0: every chunk is a file.
    """

    robot: str
    cameras: Mapping[str, tuple[int, int]]
    state_names: tuple[str, ...]
    state_units: tuple[str, ...]
    state_low: tuple[float, ...]
    state_high: tuple[float, ...]
    state_periodic: tuple[bool, ...]
    action_names: tuple[str, ...]
    action_units: tuple[str, ...]
    action_low: tuple[float, ...]
    action_high: tuple[float, ...]
    control_period_s: float
    state_model: str = "joints"
    renderer: str = ""
    provenance: Mapping[str, Any] = field(default_factory=dict)
    chunk_frames: int = 16
    shard_frames: int = 0

    def __post_init__(self) -> None:
        for kind, parts in (
            ("state", ("units", "low", "high", "periodic")),
            ("action", ("units", "low", "high")),
        ):
            names = getattr(self, f"{kind}_names")
            if not names:
                raise InputError(f"A store needs at least one {kind} name.")
            for part in parts:
                if len(getattr(self, f"{kind}_{part}")) != len(names):
                    raise InputError(
                        f"{kind}_{part} has {len(getattr(self, f'{kind}_{part}'))} entries for "
                        f"{len(names)} {kind} names; give one each."
                    )
        if not self.cameras:
            raise InputError("A store needs at least one camera.")
        for name, size in self.cameras.items():
            if not _NAME.fullmatch(name):
                raise InputError(f"Camera name {name!r} becomes a folder; use letters, digits, '-' and '_'.")
            if len(size) != 2 or min(size) < 1:
                raise InputError(f"Camera {name!r} has size {size}; give (height, width) in pixels.")
        if self.chunk_frames < 1 or not self.control_period_s > 0:
            raise InputError("chunk_frames and control_period_s must be positive.")
        if self.shard_frames < 0 or self.shard_frames % self.chunk_frames:
            raise InputError(
                f"A file of {self.shard_frames} frames is not made of whole chunks of {self.chunk_frames}; "
                f"take a multiple of {self.chunk_frames}, or 0 for a file a chunk."
            )

    @property
    def file_frames(self) -> int:
        """Rows in a file. Episodes begin on a file of their own, so that no file is ever written twice."""
        return self.shard_frames or self.chunk_frames

    @property
    def schema_version(self) -> int:
        """The version of the layout that a store of this description has."""
        return SHARDED_VERSION if self.shard_frames else SCHEMA_VERSION

    def to_json(self) -> dict[str, Any]:
        """The spec as plain JSON values."""
        value = asdict(self)
        value["cameras"] = {name: list(size) for name, size in self.cameras.items()}
        if not self.shard_frames:  # version 1 does not know it
            del value["shard_frames"]
        return value

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> StoreSpec:
        """The inverse of `to_json`; `InputError` when fields are missing or malformed."""
        known = {item.name for item in fields(cls)}
        try:
            plain: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in value.items() if k in known}
            plain["cameras"] = {name: (int(h), int(w)) for name, (h, w) in value["cameras"].items()}
            return cls(**plain)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise InputError(f"The store's description is not of schema {SCHEMA_VERSION} ({error}).") from error

    def check(self, episode: Episode) -> None:
        """Refuse an episode whose cameras, sizes or vector widths are not this store's."""
        sizes = {name: frames.shape[1:3] for name, frames in episode.images.items()}
        if sizes != {name: tuple(size) for name, size in self.cameras.items()}:
            raise InputError(f"The store holds cameras {dict(self.cameras)}, the episode {sizes}.")
        for what, width, names in (
            ("state", episode.states.shape[1], self.state_names),
            ("action", episode.actions.shape[1], self.action_names),
        ):
            if width != len(names):
                raise InputError(f"The store's {what}s have {len(names)} values ({', '.join(names)}), got {width}.")
