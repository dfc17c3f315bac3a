"""Two rooms with a door: the goal is always in the other room, and going straight at it ends at the wall."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from jaxtyping import Float

from vjepa_mpc.robots.point import PointTask, PointWorld, Wall, sample_free
from vjepa_mpc.robots.stage import HALF_WIDTH_M

DOOR_Y_M = 0.1
DOOR_HALF_M = 0.035
_THICKNESS_M = 0.01  # half
_BELOW, _ABOVE = DOOR_Y_M - DOOR_HALF_M, DOOR_Y_M + DOOR_HALF_M
WALLS: tuple[Wall, ...] = (
    ((0.0, (_BELOW - HALF_WIDTH_M) / 2), (_THICKNESS_M, (_BELOW + HALF_WIDTH_M) / 2)),
    ((0.0, (_ABOVE + HALF_WIDTH_M) / 2), (_THICKNESS_M, (HALF_WIDTH_M - _ABOVE) / 2)),
)


class TwoRooms(PointWorld):
    """The board cut in two by a wall (20 mm) with one door (70 mm wide, 100 mm above the middle)."""

    def __init__(self, camera_size: int = 64, seed: int = 0, backend: str = "auto") -> None:
        super().__init__("two-rooms", WALLS, camera_size, seed, backend)


@dataclass(frozen=True)
class TwoRoomsTask(PointTask):
    """Bring the ball through the door to its place in the other room."""

    name: ClassVar[str] = "two-rooms"
    robot: ClassVar[str] = "two-rooms"
    summary: ClassVar[str] = "a ball goes through the door to a place in the other room"
    success_radius_m: float = 0.03
    step_budget: int = 40
    held_steps: int = 3

    @property
    def walls(self) -> Sequence[Wall]:
        return WALLS

    @property
    def nodes(self) -> Float[np.ndarray, "n 2"]:
        return np.array([[-0.05, DOOR_Y_M], [0.05, DOOR_Y_M]])

    def sample_pair(
        self, generator: np.random.Generator
    ) -> tuple[Float[np.ndarray, "2"], Float[np.ndarray, "2"]]:
        """Places uniform over the rooms, one in each, both on the same side of the door.

        So the straight way ends at the wall, and sliding along it towards the goal does not pass the door.
        """
        walls = np.array(WALLS)
        while True:
            start, goal = sample_free(generator, walls), sample_free(generator, walls)
            apart = start[0] * goal[0] < 0 and min(abs(start[0]), abs(goal[0])) > 0.04
            above = (start[1] - DOOR_Y_M, goal[1] - DOOR_Y_M)
            if apart and above[0] * above[1] > 0 and min(abs(above[0]), abs(above[1])) > 0.06:
                return start, goal
