"""A maze of corridors with a ball in it: where the straight way is blocked nearly always."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from jaxtyping import Float

from vjepa_mpc.robots.point import PointTask, PointWorld, Wall, sample_free

CELL_M = 0.1
LAYOUT = """
+-+-+-+-+-+
|     |   |
+ +-+ + + +
| |   | | |
+ + +-+ + +
| |     | |
+ +-+-+-+ +
|   |     |
+-+ + +-+-+
|   |     |
+-+-+-+-+-+
"""
"""Five by five cells of 0.1 m, drawn with their walls; the upper left of the picture is upper left here."""
_THICKNESS_M = 0.008  # half


def _walls(layout: str) -> tuple[Wall, ...]:
    """One box for every piece of wall inside the border, which the board has itself."""
    rows = layout.strip("\n").splitlines()
    size = len(rows) // 2
    boxes: list[Wall] = []
    for row in range(1, 2 * size):
        for column in range(1, 2 * size):
            x, y = (column / 2 - size / 2) * CELL_M, (size / 2 - row / 2) * CELL_M
            if rows[row][column] == "-":
                boxes.append(((x, y), (CELL_M / 2 + _THICKNESS_M, _THICKNESS_M)))
            elif rows[row][column] == "|":
                boxes.append(((x, y), (_THICKNESS_M, CELL_M / 2 + _THICKNESS_M)))
    return tuple(boxes)


WALLS = _walls(LAYOUT)


class PointMaze(PointWorld):
    """The board with the maze `LAYOUT`, corridors 0.1 m apart and 84 mm wide."""

    def __init__(self, camera_size: int = 64, seed: int = 0, backend: str = "auto") -> None:
        super().__init__("point-maze", WALLS, camera_size, seed, backend)


@dataclass(frozen=True)
class PointMazeTask(PointTask):
    """Bring the ball through the maze to its place in the goal picture."""

    name: ClassVar[str] = "point-maze"
    robot: ClassVar[str] = "point-maze"
    summary: ClassVar[str] = "a ball finds its way through a maze"
    success_radius_m: float = 0.03
    min_way_m: float = 0.15
    step_budget: int = 60
    held_steps: int = 3

    @property
    def walls(self) -> Sequence[Wall]:
        return WALLS

    @property
    def nodes(self) -> Float[np.ndarray, "n 2"]:
        """The middles of the cells."""
        middles = (np.arange(5) - 2) * CELL_M
        return np.array([[x, y] for x in middles for y in middles])

    def sample_pair(
        self, generator: np.random.Generator
    ) -> tuple[Float[np.ndarray, "2"], Float[np.ndarray, "2"]]:
        """Places uniform over the corridors, at least `min_way_m` of way apart."""
        walls = np.array(WALLS)
        while True:
            start, goal = sample_free(generator, walls), sample_free(generator, walls)
            if self.graph.length(start, goal) >= self.min_way_m:
                return start, goal
