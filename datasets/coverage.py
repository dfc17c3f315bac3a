"""Which part of its state space a store has been to: shares of cells, and a picture of them."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int

from vjepa_mpc.core.errors import InputError
from vjepa_mpc.core.files import atomic_path
from vjepa_mpc.datasets.store import ZarrStore

CELLS = 20
"""Along each axis."""


@dataclass(frozen=True)
class Coverage:
    """How often each cell of two state components was visited; `bounds` are (low, high) of x and of y."""

    names: tuple[str, str]
    bounds: tuple[tuple[float, float], tuple[float, float]]
    counts: Int[np.ndarray, "20 20"]

    @property
    def share(self) -> float:
        """Of the cells, how many were visited at all."""
        return float((self.counts > 0).mean())


def states_of(store: ZarrStore) -> Float[np.ndarray, "n w"]:
    """Every frame's world state where episodes have them (`world_states` in the metadata), else the robot's own."""
    if not len(store):
        raise InputError(f"{store.path} holds no episodes yet; make some with `vjepa-mpc collect` or `data import`.")
    worlds = [store.metadata(index).get("world_states") for index in range(len(store))]
    if all(world is not None for world in worlds):
        return np.concatenate([np.asarray(world, dtype=np.float64) for world in worlds])
    return np.concatenate([store.read_numbers(index)[0] for index in range(len(store))]).astype(np.float64)


def coverage(
    states: Float[np.ndarray, "n w"], names: tuple[str, ...], low: tuple[float, ...], high: tuple[float, ...]
) -> list[Coverage]:
    """Visits of a grid of 20 x 20 cells for each component of the states and the next one, within their bounds.

    A single component is shown over itself.
    """
    pairs = list(pairwise(range(len(names)))) or [(0, 0)]
    found = []
    for x, y in pairs:
        bounds = ((low[x], high[x]), (low[y], high[y]))
        across, along = (np.clip(states[:, axis], low[axis], high[axis]) for axis in (x, y))
        counts, _, _ = np.histogram2d(across, along, bins=CELLS, range=bounds)
        found.append(Coverage((names[x], names[y]), bounds, counts.astype(np.int64)))
    return found


def draw_coverage(found: list[Coverage], path: Path, title: str) -> None:
    """Write the grids as one picture (its kind by the name's ending), darker where visits were more (logarithmic)."""
    from matplotlib.figure import Figure

    columns = min(3, len(found))
    rows = -(-len(found) // columns)
    figure = Figure(figsize=(3.2 * columns, 3.0 * rows + 0.4), layout="constrained")
    figure.suptitle(title, fontsize=9)
    for index, part in enumerate(found):
        axes = figure.add_subplot(rows, columns, index + 1)
        extent = (*part.bounds[0], *part.bounds[1])
        axes.imshow(np.log1p(part.counts.T), origin="lower", extent=extent, aspect="auto", cmap="Greys")
        axes.set_xlabel(part.names[0], fontsize=8)
        axes.set_ylabel(part.names[1], fontsize=8)
        axes.tick_params(labelsize=7)
        axes.set_title(f"{part.share:.0%} of cells", fontsize=8)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format=path.suffix.lstrip(".") or "png", dpi=100)
