"""Statistics of a store: what its numbers, pictures, lengths and tasks are like, as plain JSON values."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
from jaxtyping import Float

from vjepa_mpc.core.errors import InputError, first_line
from vjepa_mpc.datasets.findings import steps_of
from vjepa_mpc.datasets.store import ZarrStore

QUANTILES = {"q01": 0.01, "q50": 0.5, "q99": 0.99}
_PICTURES = 200  # frames of each camera that are read


def statistics(store: ZarrStore) -> dict[str, Any]:
    """Mean, standard deviation, extremes and quantiles of states and actions; mean and standard deviation of
    each camera's colours (0 to 1) over evenly spaced frames; lengths; tasks; the share of steps without motion.

    Episodes whose numbers cannot be read are left out of these and listed under `unreadable`. `InputError` when the
    store holds no episode, or none that can be read.
    """
    if not len(store):
        raise InputError(f"{store.path} holds no episodes yet; make some with `vjepa-mpc collect` or `data import`.")
    numbers, unreadable = _readable(store)
    states = np.concatenate([part[0] for part in numbers]).astype(np.float64)
    actions = np.concatenate([part[1] for part in numbers]).astype(np.float64)
    lengths = store.lengths().astype(np.float64)
    moves = np.concatenate([np.abs(steps_of(store.spec, part[0])) for part in numbers])
    usual = np.quantile(moves, 0.99, axis=0) if len(moves) else np.zeros(moves.shape[1])
    still = np.all(moves <= 0.01 * usual, axis=1)
    tasks = Counter(str(store.metadata(index).get("task") or "") for index in range(len(store)))
    return {
        "path": store.name,
        "content_hash": store.content_hash(),
        "episodes": len(store),
        "frames": int(lengths.sum()),
        "lengths": describe_numbers(lengths[:, None], ("frames",))["frames"],
        "states": describe_numbers(states, store.spec.state_names),
        "actions": describe_numbers(actions, store.spec.action_names),
        "images": {camera: colours(store, camera) for camera in store.spec.cameras},
        "motionless_share": float(np.mean(still)) if len(moves) else 0.0,
        "tasks": dict(tasks.most_common()),
        "unreadable": unreadable,
    }


def _readable(store: ZarrStore) -> tuple[list[tuple[np.ndarray, np.ndarray, np.ndarray]], list[int]]:
    """States, actions and times of the episodes that can be read, and the numbers of the others."""
    numbers, unreadable, reason = [], [], ""
    for index in range(len(store)):
        try:
            numbers.append(store.read_numbers(index))
        except InputError as error:
            unreadable.append(index)
            reason = reason or first_line(error)
    if not numbers:
        raise InputError(f"No episode of {store.path} can be read: {reason}")
    return numbers, unreadable


def describe_numbers(values: Float[np.ndarray, "n w"], names: tuple[str, ...]) -> dict[str, dict[str, float]]:
    """Statistics of each column, by name; {} of none."""
    if not len(values):
        return {name: {} for name in names}
    rows = {
        "mean": values.mean(axis=0),
        "std": values.std(axis=0),
        "min": values.min(axis=0),
        "max": values.max(axis=0),
        **{name: np.quantile(values, share, axis=0) for name, share in QUANTILES.items()},
    }
    return {name: {key: float(row[column]) for key, row in rows.items()} for column, name in enumerate(names)}


def colours(store: ZarrStore, camera: str) -> dict[str, list[float]]:
    """Mean, standard deviation, least and most of red, green and blue (0 to 1) over evenly spaced frames, and how
    many were read; damaged ones are passed over. `InputError` when all are."""
    lengths = store.lengths()
    ends = np.cumsum(lengths)
    rows = np.unique(np.linspace(0, ends[-1] - 1, min(_PICTURES, int(ends[-1]))).round().astype(np.int64))
    total, squares, count, frames = np.zeros(3), np.zeros(3), 0, 0
    least, most, reason = np.full(3, 1.0), np.zeros(3), ""
    for row in rows:
        index = int(np.searchsorted(ends, row, side="right"))
        at = int(row - (ends[index] - lengths[index]))
        try:
            pixels = store.read_frames(index, camera, at, at + 1).reshape(-1, 3) / 255
        except InputError as error:
            reason = first_line(error)
            continue
        frames += 1
        total, squares, count = total + pixels.sum(axis=0), squares + (pixels**2).sum(axis=0), count + len(pixels)
        least, most = np.minimum(least, pixels.min(axis=0)), np.maximum(most, pixels.max(axis=0))
    if not count:
        raise InputError(f"No picture of camera {camera} can be read: {reason}")
    mean = total / count
    std = np.sqrt(np.maximum(squares / count - mean**2, 0))
    values = {"mean": mean, "std": std, "min": least, "max": most, "count": np.array([frames])}
    return {name: value.tolist() for name, value in values.items()}
