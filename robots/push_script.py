"""Pushing a flat block to a pose: which face to push, the way there, and the push, by quasi-static mechanics.

A block that is damped alike in all directions answers a force f (unit vector) at the point p (from its centre of
mass) with the velocity v = f and the rate w = (p x f) / r^2, up to a common factor, where r is its turning radius;
the contact itself advances by f . (v + w x p) = 1 + k^2, k = (p x f) / r. (The limit surface of quasi-static
pushing, Goyal, Ruina and Papadopoulos 1991, is then an ellipsoid.)
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float

from vjepa_mpc.robots.visibility import VisibilityGraph, free

_GAP_M = 0.010  # where a push begins, before the contact
_MARGIN_M = 0.004  # kept from the block on the way there
_ALIGNED_M = 0.006
_DONE_M, _AGAIN_M = 0.006, 0.012
_LEAST_PUSH_M = 0.003


@dataclass(frozen=True)
class PushShape:
    """A block of `boxes` (its own frame: centres and half widths) and a round pusher; all in m.

    `lever_m` weighs the block's turn against its displacement. The pusher stays within `reach_m` of the middle
    along each axis and moves `step_m` at most in a control step.
    """

    boxes: Float[np.ndarray, "k 2 2"]
    turning_radius_m: float
    lever_m: float
    pusher_radius_m: float
    step_m: float
    reach_m: float


class PushScript:
    """From a world state [pusher x, y, block x, y, angle] to the pusher's displacement [m], towards a block's pose.

    It keeps to one contact until another promises much more; the contact promises by how much the best push
    there would shorten the way left, less what going there costs. Once the block is there, `resting`, the pusher goes
    round it to `rest` (x, y), or stays where it is.
    """

    def __init__(
        self, goal: Float[np.ndarray, "3"], shape: PushShape, rest: Float[np.ndarray, "2"] | None = None
    ) -> None:
        self._goal, self._shape, self._rest = goal, shape, rest
        self._points, self._normals = _contacts(shape)
        crossing = self._normals[:, 0] * self._points[:, 1] - self._normals[:, 1] * self._points[:, 0]
        turn = crossing / shape.turning_radius_m  # k of the module's text, for the force against the normal
        advance = 1.0 + turn**2
        moved = -self._normals / advance[:, None]
        turned = shape.lever_m * turn / shape.turning_radius_m / advance
        self._effects = np.column_stack([moved, turned])  # of a push of 1 m, angles times the lever
        self._contact: int | None = None
        self._ways: VisibilityGraph | None = None
        self.resting = False

    def __call__(self, state: Float[np.ndarray, "5"]) -> Float[np.ndarray, "2"]:
        place, error = self._seen(state)
        left = max(float(np.linalg.norm(error[:2])), abs(float(error[2])))
        self.resting = left < (_AGAIN_M if self.resting else _DONE_M)
        if self.resting:
            return np.zeros(2) if self._rest is None else self._away(place, self._rest, state)
        pushes = self._effects @ error / (self._effects**2).sum(axis=1)
        gains = np.where(pushes > _LEAST_PUSH_M, pushes * (self._effects @ error), 0.0)
        chosen = self._slipped(place)
        if chosen is None or gains[chosen] < 0.3 * gains.max():
            chosen = self._choose(state, place, gains / max(float(error @ error), 1e-12))
        return self._limited(self._advance(place, chosen, float(pushes[chosen])), state)

    def _seen(self, state: Float[np.ndarray, "5"]) -> tuple[Float[np.ndarray, "2"], Float[np.ndarray, "3"]]:
        """The pusher's place and the way left (the turn times the lever), both as seen from the block, m."""
        back = _rotation(-float(state[4]))
        turn = (self._goal[2] - state[4] + math.pi) % (2.0 * math.pi) - math.pi
        way = back @ (self._goal[:2] - state[2:4])
        return back @ (state[:2] - state[2:4]), np.array([*way, self._shape.lever_m * turn])

    def _slipped(self, place: Float[np.ndarray, "2"]) -> int | None:
        """The contact under way; where the pusher has slipped along the face, the one it is at now."""
        if self._contact is None:
            return None
        touching = self._points + self._shape.pusher_radius_m * self._normals
        apart = np.linalg.norm(touching - place, axis=1)
        apart[self._normals @ self._normals[self._contact] < 0.5] = np.inf
        nearest = int(np.argmin(apart))
        if apart[nearest] < _ALIGNED_M:
            self._contact = nearest
        return self._contact

    def _choose(
        self, state: Float[np.ndarray, "5"], place: Float[np.ndarray, "2"], gains: Float[np.ndarray, "m"]
    ) -> int:
        """The contact with the best gain for its way, among those that can be reached on the board."""
        self._ways = ways = self._around(state)
        begins = self._points + (self._shape.pusher_radius_m + _GAP_M) * self._normals
        scores = np.where(self._on_board(begins, state), gains, -np.inf)
        order = np.argsort(-scores)[:12]
        place = self._clear_of_block(place)
        lengths = np.array([ways.length(place, begins[index]) for index in order])
        self._contact = int(order[np.argmax(scores[order] - 1.5 * np.minimum(lengths, 10.0))])
        return self._contact

    def _around(self, state: Float[np.ndarray, "5"]) -> VisibilityGraph:
        """The ways round the block, as seen from it, by those of its corners that are on the board."""
        nodes = _corners(self._shape)
        margin = self._shape.pusher_radius_m + _MARGIN_M
        return VisibilityGraph(nodes[self._on_board(nodes, state)], self._shape.boxes, margin)

    def _on_board(self, places: Float[np.ndarray, "n 2"], state: Float[np.ndarray, "5"]) -> Bool[np.ndarray, "n"]:
        """Whether places, as seen from the block, are within the pusher's reach."""
        turned = places @ _rotation(float(state[4])).T
        return np.asarray((np.abs(turned + state[2:4]) <= self._shape.reach_m).all(axis=1))

    def _away(
        self, place: Float[np.ndarray, "2"], rest: Float[np.ndarray, "2"], state: Float[np.ndarray, "5"]
    ) -> Float[np.ndarray, "2"]:
        """To the pusher's own place, round the block; nowhere if the block covers it."""
        rest = _rotation(-float(state[4])) @ (rest - state[2:4])
        clear = self._clear_of_block(place)
        if clear is not place:
            return self._limited(clear, state)
        if not free(rest, self._shape.boxes, self._shape.pusher_radius_m + _MARGIN_M):
            return np.zeros(2)
        following = self._around(state).next_place(place, rest)
        return np.zeros(2) if following is None else self._limited(following, state)

    def _advance(self, place: Float[np.ndarray, "2"], contact: int, push: float) -> Float[np.ndarray, "2"]:
        """Where the pusher goes next, as seen from the block: on with the push, or to where it begins."""
        shape, normal = self._shape, self._normals[contact]
        offset = place - self._points[contact]
        beside = abs(float(offset[0] * normal[1] - offset[1] * normal[0]))
        if beside < _ALIGNED_M and 0.0 < offset @ normal < shape.pusher_radius_m + 2.0 * _GAP_M:
            return self._points[contact] + (shape.pusher_radius_m - min(push, shape.step_m)) * normal
        begin = self._points[contact] + (shape.pusher_radius_m + _GAP_M) * normal
        out = self._clear_of_block(place)
        if out is not place or self._ways is None:
            return out
        following = self._ways.next_place(place, begin)
        return begin if following is None else following

    def _clear_of_block(self, place: Float[np.ndarray, "2"]) -> Float[np.ndarray, "2"]:
        """`place` itself, or the nearest one a little off the block when it is closer than ways may come."""
        margin = self._shape.pusher_radius_m + _MARGIN_M
        if free(place, self._shape.boxes, margin):
            return place
        begins = self._points + (margin + 0.002) * self._normals
        begins = np.array([begin for begin in begins if free(begin, self._shape.boxes, margin + 0.001)])
        return np.asarray(begins[int(np.argmin(np.linalg.norm(begins - place, axis=1)))])

    def _limited(self, target: Float[np.ndarray, "2"], state: Float[np.ndarray, "5"]) -> Float[np.ndarray, "2"]:
        delta = _rotation(float(state[4])) @ target + state[2:4] - state[:2]
        return delta * min(1.0, self._shape.step_m / max(float(np.abs(delta).max()), 1e-9))


def _contacts(shape: PushShape) -> tuple[Float[np.ndarray, "m 2"], Float[np.ndarray, "m 2"]]:
    """Points about every 12 mm along the block's outline that the pusher can touch, and outward normals."""
    points, normals = [], []
    for center, half in shape.boxes:
        for axis in (0, 1):
            for side in (-1.0, 1.0):
                normal = np.eye(2)[axis] * side
                along = np.eye(2)[1 - axis]
                length = half[1 - axis] - 0.004
                for offset in np.linspace(-length, length, 1 + max(2, round(2 * length / 0.012))):
                    point = center + normal * half + along * offset
                    if free(point + normal * (shape.pusher_radius_m + 1e-6), shape.boxes, shape.pusher_radius_m):
                        points.append(point)
                        normals.append(normal)
    return np.array(points), np.array(normals)


def _corners(shape: PushShape) -> Float[np.ndarray, "n 2"]:
    """Places just off each box's corners, those that are clear of the other boxes."""
    margin = shape.pusher_radius_m + _MARGIN_M + 0.002
    signs = np.array([[-1, -1], [-1, 1], [1, -1], [1, 1]])
    corners = np.concatenate([center + signs * (half + margin) for center, half in shape.boxes])
    return np.array([corner for corner in corners if free(corner, shape.boxes, margin - 0.001)])


def _rotation(angle: float) -> Float[np.ndarray, "2 2"]:
    cosine, sine = math.cos(angle), math.sin(angle)
    return np.array([[cosine, -sine], [sine, cosine]])
