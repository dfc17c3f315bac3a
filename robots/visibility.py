"""Shortest ways between boxes: the visibility graph (Lozano-Perez and Wesley 1979) that scripts go by."""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Float


class VisibilityGraph:
    """Ways in the plane around axis-aligned `boxes` (centres and half widths), grown by `margin`, all in m.

    `nodes` are the places to go by, none perhaps; the graph is exact when they include a place near each outer corner.
    """

    def __init__(
        self, nodes: Float[np.ndarray, "n 2"], boxes: Float[np.ndarray, "k 2 2"], margin: float
    ) -> None:
        self.nodes, self._boxes, self._margin = nodes, boxes, margin
        apart = np.linalg.norm(nodes[:, None] - nodes, axis=2)
        ways = np.where(np.array([self.sees(node, nodes) for node in nodes]), apart, np.inf)
        np.fill_diagonal(ways, 0.0)
        for middle in range(len(nodes)):  # Floyd-Warshall
            ways = np.minimum(ways, ways[:, middle, None] + ways[None, middle])
        self._between = ways

    def next_place(
        self, place: Float[np.ndarray, "2"], goal: Float[np.ndarray, "2"]
    ) -> Float[np.ndarray, "2"] | None:
        """Where to go straight from `place`: the goal or a node; None when neither is in sight."""
        if self.sees(place, goal[None])[0]:
            return goal
        over = self._over(place, goal)
        return self.nodes[int(np.argmin(over))] if np.isfinite(over).any() else None

    def length(self, place: Float[np.ndarray, "2"], goal: Float[np.ndarray, "2"]) -> float:
        """Length [m] of the way from `place` to `goal`; +inf when there is none."""
        if self.sees(place, goal[None])[0]:
            return float(np.linalg.norm(goal - place))
        return float(self._over(place, goal).min(initial=np.inf))

    def _over(self, place: Float[np.ndarray, "2"], goal: Float[np.ndarray, "2"]) -> Float[np.ndarray, "n"]:
        """Lengths of the ways by each node first; +inf for nodes out of sight."""
        last = np.where(self.sees(goal, self.nodes), np.linalg.norm(self.nodes - goal, axis=1), np.inf)
        left = (self._between + last).min(axis=1, initial=np.inf)
        length = np.linalg.norm(self.nodes - place, axis=1) + left
        return np.where(self.sees(place, self.nodes), length, np.inf)

    def sees(self, place: Float[np.ndarray, "2"], others: Float[np.ndarray, "n 2"]) -> Bool[np.ndarray, "n"]:
        """Whether the way from `place` to each other place meets no grown box (slabs: Kay and Kajiya 1986)."""
        way = np.asarray(others, dtype=np.float64)[:, None] - place  # [n, 1, 2]
        way = np.where(np.abs(way) < 1e-12, 1e-12, way)
        low = (self._boxes[:, 0] - self._boxes[:, 1] - self._margin - place) / way  # [n, k, 2]
        high = (self._boxes[:, 0] + self._boxes[:, 1] + self._margin - place) / way
        enter = np.minimum(low, high).max(axis=2).clip(min=0.0)
        leave = np.maximum(low, high).min(axis=2).clip(max=1.0)
        return np.asarray(~(enter < leave).any(axis=1))


def free(place: Float[np.ndarray, "2"], boxes: Float[np.ndarray, "k 2 2"], margin: float) -> bool:
    """Whether `place` lies in no box grown by `margin` [m] on each side."""
    return not bool((np.abs(place - boxes[:, 0]) < boxes[:, 1] + margin).all(axis=1).any())


def gap(place: Float[np.ndarray, "2"], boxes: Float[np.ndarray, "k 2 2"]) -> float:
    """How far `place` is from the nearest box, m; 0 inside one."""
    outside = np.maximum(np.abs(place - boxes[:, 0]) - boxes[:, 1], 0.0)
    return float(np.linalg.norm(outside, axis=1).min())
