"""Swinging a ball up into a cup by trying motions in a simulator of one's own: a privileged ceiling, not a planner."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from jaxtyping import Float

Play = Callable[[Float[np.ndarray, "6"], Float[np.ndarray, "h 2"]], Float[np.ndarray, "h 6"]]
"""The world states after each of `h` actions from a world state."""

_ROUND, _ROUNDS, _KEPT = 24, 8, 4
_GENTLE = 0.35
_KNOWN = np.array(
    [
        [[1, 0], [-1, -1], [-1, 0], [-1, 0], [1, 1], [1, -1], [1, 1], [0, -1], [1, -1], [1, 0], [-1, 1], [-1, 0]],
        [[0, 1], [0, 1], [-1, -1], [0, -1], [1, 1], [1, 0], [0, -1], [-1, -1], [0, 0], [1, -1], [-1, 1], [1, -1]],
        [[1, 0], [-1, 0], [1, 1], [1, -1], [1, 1], [1, 1], [-1, 1], [0, -1], [-1, -1], [-1, 1], [-1, 0], [0, 0]],
    ]
)
"""Motions, in units of the greatest step, found by such a search from half, a quarter and a sixth of hanging balls."""
FROM_ANYWHERE = np.array(
    [
        [0.7, -0.7], [-0.1, -0.2], [-0.9, -0.1], [0.9, 0.2], [0.9, 0.1],
        [0.0, -0.8], [-1.0, -0.4], [-0.9, 0.1], [0.9, -0.8], [1.0, -0.9],
        [0.5, -0.7], [-0.6, 1.0], [-1.0, 1.0], [0.9, -1.0], [-0.4, 0.6],
        [-1.0, 0.9], [-0.9, 0.5], [0.2, 0.5], [-0.2, 0.0], [0.6, 1.0],
    ]
)
"""A longer one in the same units, found by changing such motions at random for as many hanging balls as possible, each
of its numbers disturbed: it ends in the cup wherever the cup is to begin with."""


class CupScript:
    """From a world state [cup x, y, ball x, y, ball velocity] to the cup's displacement [m].

    Outside the cup: motions of 12 steps, known ones and their mirror images first, are played and the best of them
    changed at random, until one ends with the ball in the cup; it is carried out as it was played. Inside: gently
    to the goal's place. `first`: a motion [h, 2], in units of `step_m`, that is tried before all others.
    """

    def __init__(
        self, goal: Float[np.ndarray, "6"], play: Play, inside: Callable[[np.ndarray], bool],
        rest: Float[np.ndarray, "2"], step_m: float, first: Float[np.ndarray, "h 2"] | None = None,
    ) -> None:  # fmt: skip
        self._goal, self._play, self._inside, self._rest, self._step_m = goal, play, inside, rest, step_m
        self._first = first
        self._left: list[np.ndarray] = []
        self._generator = np.random.default_rng(0)

    def __call__(self, state: Float[np.ndarray, "6"]) -> Float[np.ndarray, "2"]:
        if not self._left:
            if self._inside(state):
                limit = _GENTLE * self._step_m
                return np.clip(self._goal[:2] - state[:2], -limit, limit)
            self._left = list(self._search(state))
        return self._left.pop(0)

    def _search(self, state: Float[np.ndarray, "6"]) -> Float[np.ndarray, "h 2"]:
        """The first motion found that ends in the cup, or else the best of all tried but `first`."""
        if self._first is not None and self._caught(self._play(state, self._step_m * self._first)):
            return self._step_m * self._first
        following = self._step_m * np.concatenate([_KNOWN, _KNOWN * [-1, 1]]).astype(np.float64)
        best: list[tuple[float, np.ndarray]] = []
        for _ in range(_ROUNDS):
            for actions in following:
                states = self._play(state, actions)
                if self._caught(states):
                    return actions
                apart = np.linalg.norm(states[:, 2:4] - states[:, :2] - self._rest, axis=1)
                best.append((float(apart[-3:].mean() + apart.min()), actions))
            best = sorted(best, key=lambda pair: pair[0])[:_KEPT]
            following = np.array([self._changed(best[index % _KEPT][1]) for index in range(_ROUND)])
        return best[0][1]

    def _caught(self, states: Float[np.ndarray, "h 6"]) -> bool:
        return all(self._inside(reached) for reached in states[-3:])

    def _changed(self, actions: Float[np.ndarray, "h 2"]) -> Float[np.ndarray, "h 2"]:
        """Each number drawn anew with a probability of 1/5, uniform within the limits."""
        drawn = self._generator.uniform(-self._step_m, self._step_m, actions.shape)
        return np.where(self._generator.random(actions.shape) < 0.2, drawn, actions)
