"""Whether bodies touch: what probes ask an encoder for. Nothing plans or trains on it."""

from __future__ import annotations

from itertools import combinations
from typing import Any

from vjepa_mpc.robots.rendering import import_mujoco

TOUCH_M = 2e-3
"""Bodies so near touch. A push that has come to rest leaves a gap of fractions of a millimetre."""


class Touch:
    """The pairs of geoms of a compiled `mujoco.MjModel` that can collide: their masks fit, they are of bodies that move
    against each other, and these are no neighbours in a chain, which MuJoCo leaves out as well."""

    def __init__(self, model: Any) -> None:
        self._mujoco, self._model = import_mujoco(), model
        off = model.opt.disableflags & int(self._mujoco.mjtDisableBit.mjDSBL_CONTACT)
        self._pairs = [] if off else [pair for pair in combinations(range(model.ngeom), 2) if self._collide(*pair)]

    @property
    def possible(self) -> bool:
        """Whether there is anything that could touch."""
        return bool(self._pairs)

    def now(self, data: Any) -> bool:
        """Whether two bodies are within `TOUCH_M` of each other."""
        distance = self._mujoco.mj_geomDistance
        return any(distance(self._model, data, *pair, 2 * TOUCH_M, None) <= TOUCH_M for pair in self._pairs)

    def _collide(self, first: int, second: int) -> bool:
        model = self._model
        one, other = (int(model.body_weldid[model.geom_bodyid[geom]]) for geom in (first, second))
        above = [int(model.body_weldid[model.body_parentid[body]]) for body in (one, other)]
        chained = one and other and (above[0] == other or above[1] == one)  # the world is nobody's neighbour
        masks = (model.geom_contype, model.geom_conaffinity)
        fit = masks[0][first] & masks[1][second] or masks[0][second] & masks[1][first]
        return bool(one != other and not chained and fit)
