"""Reaching with a forbidden region: the fingertip must go round a disc, and knows where it is."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import numpy as np
from jaxtyping import Float

from vjepa_mpc.core.errors import InputError
from vjepa_mpc.robots.reacher import ReachTask, fingertips
from vjepa_mpc.robots.task import Disc, Script

_CELL = 2 * math.pi / 72  # rad; the script's grid over both joints
_CLEARANCE_M = 0.01  # the script keeps so far from the disc
_GOAL_CLEARANCE_M = 0.035  # starts and goals lie so far from it: more than the radius of success
_LOOKS = 6  # points looked at between two poses


DISC = Disc((0.14, 0.0), 0.06)


@dataclass(frozen=True)
class KeepOutTask(ReachTask):
    """Reach, and never enter the disc: pairs between which the direct way would.

    The script is told the disc and knows the arm: the fewest control steps over a grid of joint angles, by
    dynamic programming (Bellman 1957). It is the ceiling under the same constraint.
    """

    name: ClassVar[str] = "reach-keep-out"
    version: ClassVar[int] = 1
    robot: ClassVar[str] = "reacher"
    summary: ClassVar[str] = "a two-joint arm brings its fingertip to a place, round a forbidden disc"
    step_budget: int = 30
    disc: Disc = DISC

    @property
    def forbidden(self) -> tuple[Disc, ...]:
        return (self.disc,)

    def sample_pair(
        self, generator: np.random.Generator
    ) -> tuple[Float[np.ndarray, "2"], Float[np.ndarray, "2"]]:
        """Start and goal joint angles [rad], both clear of the disc, the direct way between them through it."""
        for _ in range(10_000):
            start, goal = super().sample_pair(generator)
            ends = fingertips(np.stack([start, goal])) - np.array(self.disc.centre)
            if np.linalg.norm(ends, axis=1).min() < self.disc.radius + _GOAL_CLEARANCE_M:
                continue
            if self._direct_intrusion(start, goal) > 0.01:
                return start, goal
        raise InputError("No pair was found whose direct way leads through the disc; choose another disc.")

    def _direct_intrusion(self, start: Float[np.ndarray, "2"], goal: Float[np.ndarray, "2"]) -> float:
        """How deep (m) the way of the script without a disc leads into it."""
        here, deepest = np.array(start), 0.0
        for _ in range(self.step_budget):
            move = self.scripted_action(here, goal)
            way = here + np.linspace(0, 1, _LOOKS + 1)[1:, None] * move
            away = np.linalg.norm(fingertips(way) - np.array(self.disc.centre), axis=1).min()
            deepest = max(deepest, self.disc.radius - float(away))
            here = here + move
        return deepest

    def script(self, goal: Float[np.ndarray, "2"]) -> Script:
        """The first step of a shortest way; straight to the goal from where that is clear and one step away."""
        left = self._steps_to(np.asarray(goal, dtype=np.float64))
        return lambda state: self._next(np.asarray(state, dtype=np.float64), goal, left)

    def _next(
        self, state: Float[np.ndarray, "2"], goal: np.ndarray, left: Callable[[np.ndarray], np.ndarray]
    ) -> np.ndarray:
        direct = self.scripted_action(state, goal)
        delta = np.asarray(goal) - state
        delta[0] = (delta[0] + math.pi) % (2 * math.pi) - math.pi
        if np.abs(delta - direct).max() < 1e-9 and self._clear(state[None], direct[None])[0]:
            return direct
        moves = self._moves
        after = left(state + moves) + 1e-3 * np.abs(moves).max(axis=1)
        after[~self._clear(np.broadcast_to(state, moves.shape), moves)] = math.inf
        best = int(after.argmin())
        return moves[best] if math.isfinite(after[best]) else np.zeros(2)

    @cached_property
    def _moves(self) -> Float[np.ndarray, "m 2"]:
        most = int(self.spec.action_high[0] / _CELL)
        steps = np.arange(-most, most + 1) * _CELL
        return np.stack(np.meshgrid(steps, steps, indexing="ij"), -1).reshape(-1, 2)

    def _clear(self, poses: Float[np.ndarray, "n 2"], moves: Float[np.ndarray, "n 2"]) -> np.ndarray:
        """Which straight moves stay clear of the disc and inside the wrist's limit."""
        share = np.linspace(0, 1, _LOOKS + 1)[1:]
        way = poses[:, None] + share[:, None] * moves[:, None]
        away = np.linalg.norm(fingertips(way) - np.array(self.disc.centre), axis=-1)
        inside = np.abs(way[..., 1]) <= self.spec.state_high[1]
        return ((away > self.disc.radius + _CLEARANCE_M) & inside).all(axis=1)

    @cached_property
    def _grid(self) -> tuple[np.ndarray, np.ndarray]:
        """Wrist angles of the grid, and from every cell [72, w] which of the moves are clear [72, w, m]."""
        count = int(self.spec.state_high[1] / _CELL)
        wrist = np.arange(-count, count + 1) * _CELL
        cells = np.stack(np.meshgrid(np.arange(72) * _CELL - math.pi, wrist, indexing="ij"), -1).reshape(-1, 1, 2)
        moves = np.broadcast_to(self._moves, (len(cells), *self._moves.shape))
        poses = np.broadcast_to(cells, moves.shape)
        clear = self._clear(poses.reshape(-1, 2), moves.reshape(-1, 2))
        return wrist, clear.reshape(72, len(wrist), -1)

    def _steps_to(self, goal: Float[np.ndarray, "2"]) -> Callable[[np.ndarray], np.ndarray]:
        """Control steps to the cell nearest the goal, as a function of poses [n, 2]."""
        wrist, clear = self._grid
        shifts = np.rint(self._moves / _CELL).astype(int)
        count, half = clear.shape[1], len(wrist) // 2

        def cell(poses: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            first = np.rint((poses[:, 0] + math.pi) / _CELL).astype(int) % 72
            return first, np.clip(np.rint(poses[:, 1] / _CELL).astype(int) + half, 0, count - 1)

        steps = np.full((72, count), math.inf)
        steps[cell(goal[None])] = 0
        while True:
            best = steps
            for (turn, bend), free in zip(shifts, np.moveaxis(clear, 2, 0), strict=True):
                moved = np.roll(steps, -turn, axis=0)
                there = np.full_like(steps, math.inf)
                low, high = max(0, -bend), min(count, count - bend)
                there[:, low:high] = moved[:, low + bend : high + bend]
                best = np.minimum(best, np.where(free, there + 1, math.inf))
            if np.array_equal(best, steps):
                return lambda poses: steps[cell(poses)]
            steps = best
