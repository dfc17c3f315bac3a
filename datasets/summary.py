"""What a store holds, as plain JSON values."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32

from vjepa_mpc.datasets import layout
from vjepa_mpc.datasets.episode import StoreSpec
from vjepa_mpc.datasets.store import ZarrStore


def summarise(store: ZarrStore) -> dict[str, Any]:
    """What `describe` says, and the ranges of states and actions seen. `InputError` when an episode is damaged."""
    states, actions = store.states_and_actions()
    last = np.cumsum(store.lengths()) - 1  # an episode's last row holds no action
    seen = {
        "states": _ranges(store.spec, "state", states),
        "actions": _ranges(store.spec, "action", np.delete(actions, last, axis=0)),
    }
    return {**describe(store), **seen}


def describe(store: ZarrStore) -> dict[str, Any]:
    """Counts, description, size on disk, provenance; no array is read. Sizes in bytes, times in seconds;
    `compression_ratio` is raw frames, states, actions and times over everything on the disk."""
    spec, lengths = store.spec, store.lengths()
    frames = int(lengths.sum())
    size = _size(store.path)
    numbers = len(spec.state_names) + len(spec.action_names)
    raw = frames * (sum(3 * h * w for h, w in spec.cameras.values()) + 8 + 4 * numbers)
    return {
        "path": store.name,
        "schema_version": spec.schema_version,
        "robot": spec.robot,
        "state_model": spec.state_model,
        "control_period_s": spec.control_period_s,
        "episodes": len(store),
        "frames": frames,
        "episode_lengths": {"min": int(lengths.min(initial=frames)), "max": int(lengths.max(initial=0))},
        "duration_s": float((lengths - 1).sum() * spec.control_period_s),
        "cameras": {name: list(value) for name, value in spec.cameras.items()},
        "renderer": spec.renderer,
        "chunk_frames": spec.chunk_frames,
        "shard_frames": spec.shard_frames,
        "bytes_on_disk": size,
        "compression_ratio": raw / size if size else 0.0,
        "content_hash": store.content_hash(),
        "being_written_by": layout.writer_of(store.path),
        "provenance": dict(spec.provenance),
    }


def _ranges(spec: StoreSpec, kind: str, values: Float32[np.ndarray, "rows width"]) -> list[dict[str, Any]]:
    """Name, unit, bounds and the values seen of each component."""
    parts = [getattr(spec, f"{kind}_{part}") for part in ("names", "units", "low", "high")]
    return [
        {
            "name": name,
            "unit": unit,
            "low": low,
            "high": high,
            "min": float(column.min()) if len(column) else None,
            "max": float(column.max()) if len(column) else None,
        }
        for name, unit, low, high, column in zip(*parts, values.T, strict=True)
    ]


def _size(folder: Path) -> int:
    """Bytes of all files of the store; files that vanish meanwhile (a writer's) do not count."""
    total = 0
    for file in folder.rglob("*"):
        try:
            total += file.stat().st_size if file.is_file() else 0
        except FileNotFoundError:
            continue
    return total
