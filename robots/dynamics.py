"""Seeded changes of how a MuJoCo world moves: friction and mass, off by default."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from vjepa_mpc.core.errors import InputError, unknown_name
from vjepa_mpc.robots.rendering import import_mujoco

LOOKS = ("colors", "texture", "light", "camera", "distractors")
DYNAMICS = ("friction", "mass")
FACTORS = (*LOOKS, *DYNAMICS)
"""Every factor of variation; each has a level in [0, 1], 0 when it is not named."""


def check_factors(levels: Mapping[str, float]) -> dict[str, float]:
    """Every factor's level, 0 for those not named; `InputError` for an unknown one or a level out of [0, 1]."""
    for name, level in levels.items():
        if name not in FACTORS:
            raise unknown_name("factor", name, FACTORS)
        if not 0.0 <= level <= 1.0:
            raise InputError(f"The level of {name} is {level:g}, outside [0, 1]; 0 is off, 1 the full range.")
    return {name: float(levels.get(name, 0.0)) for name in FACTORS}


class Dynamics:
    """Scales friction and masses of one compiled `mujoco.MjModel`, from its values at construction.

    At level 1 each is multiplied by a factor from 1/2 to 2, uniform in its logarithm; at level l by that to
    the power of l. Friction is one factor for the world (contacts, joint damping and dry joint friction); mass
    is one for each body, inertia with it.
    """

    _FRICTION = ("geom_friction", "dof_damping", "dof_frictionloss")

    def __init__(self, model: Any) -> None:
        self._model = model
        names = (*self._FRICTION, "body_mass", "body_inertia")
        self._plain = {name: getattr(model, name).copy() for name in names}

    def vary(self, seed: int, friction: float, mass: float) -> None:
        """Draw the factors from `seed`, each with its own random stream; levels in [0, 1], 0 restores."""
        for_friction, for_mass = np.random.default_rng(seed).spawn(2)
        self._scale(self._FRICTION, np.exp(friction * for_friction.uniform(-math.log(2), math.log(2))))
        bodies = len(self._plain["body_mass"])
        factors = np.exp(mass * for_mass.uniform(-math.log(2), math.log(2), bodies))
        self._model.body_mass[:] = self._plain["body_mass"] * factors
        self._model.body_inertia[:] = self._plain["body_inertia"] * factors[:, None]
        mujoco = import_mujoco()
        mujoco.mj_setConst(self._model, mujoco.MjData(self._model))  # what follows from the masses

    def _scale(self, names: tuple[str, ...], factor: float) -> None:
        for name in names:
            getattr(self._model, name)[:] = self._plain[name] * factor
