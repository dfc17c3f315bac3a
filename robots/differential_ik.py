"""Differential inverse kinematics: small joint displacements that move a site as asked, damped near singularities."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from vjepa_mpc.robots.rendering import import_mujoco


def damped_least_squares(
    jacobian: Float[np.ndarray, "m n"], error: Float[np.ndarray, "m"], damping: float
) -> Float[np.ndarray, "n"]:
    """The joint displacement that minimises |J d - error|^2 + damping^2 |d|^2 (Wampler 1986; Nakamura and Hanafusa
    1986). No component along a singular direction exceeds |error| / (2 damping)."""
    square = jacobian @ jacobian.T + damping**2 * np.eye(len(jacobian))
    return jacobian.T @ np.linalg.solve(square, error)


def shortened(
    turn: Float[np.ndarray, "n"], share: Callable[[Float[np.ndarray, "n"]], float]
) -> Float[np.ndarray, "n"]:
    """`turn`, shorter where need be for `share(turn)` of what is allowed to be at most 1.

    A turn of joints that was cut to their speeds does not lead straight to where it would have ended: the hand may be
    further along one axis than it would have been then. `share` is 0 without a turn, and none is left where eight tries
    do not do.
    """
    for _ in range(8):
        taken = share(turn)
        if taken <= 1.0 + 1e-6:
            return turn
        turn = turn * (0.999 / taken)
    return np.zeros_like(turn)


class SiteKinematics:
    """Where a site of a `mujoco.MjModel` is for given joint positions, and joint positions for a given place.

    Works on its own data: the simulation is not touched. `joints` are the names of hinge joints; poses are in the
    world frame, positions in m, joints in rad.
    """

    def __init__(self, model: Any, site: str, joints: tuple[str, ...], damping: float = 0.02) -> None:
        self._mujoco = import_mujoco()
        self._model, self._data = model, self._mujoco.MjData(model)
        self._site, self._damping = model.site(site).id, damping
        self.qpos: Int[np.ndarray, "n"] = np.array([int(model.joint(name).qposadr[0]) for name in joints])
        self._dofs = np.array([int(model.joint(name).dofadr[0]) for name in joints])
        ids = [model.joint(name).id for name in joints]
        limited = model.jnt_limited[ids].astype(bool)
        self.low = np.where(limited, model.jnt_range[ids, 0], -np.inf)
        self.high = np.where(limited, model.jnt_range[ids, 1], np.inf)

    def pose(self, angles: Float[np.ndarray, "n"]) -> tuple[Float[np.ndarray, "3"], Float[np.ndarray, "3 3"]]:
        """Position and rotation of the site."""
        self._data.qpos[self.qpos] = angles
        self._mujoco.mj_kinematics(self._model, self._data)
        return self._data.site_xpos[self._site].copy(), self._data.site_xmat[self._site].reshape(3, 3).copy()

    def jacobian(self, angles: Float[np.ndarray, "n"]) -> Float[np.ndarray, "6 n"]:
        """d(position, rotation vector) / d(joints), the rotation vector in the world frame."""
        self.pose(angles)
        self._mujoco.mj_comPos(self._model, self._data)
        whole = np.zeros((6, self._model.nv))
        self._mujoco.mj_jacSite(self._model, self._data, whole[:3], whole[3:], self._site)
        return whole[:, self._dofs]

    def error(
        self, angles: Float[np.ndarray, "n"], place: Float[np.ndarray, "3"], rotation: Float[np.ndarray, "3 3"]
    ) -> Float[np.ndarray, "6"]:
        """What is left to a pose: displacement [m] and rotation vector [rad], both in the world frame."""
        position, turned = self.pose(angles)
        return np.concatenate([place - position, rotation_vector(rotation @ turned.T)])

    def solve(
        self,
        angles: Float[np.ndarray, "n"],
        place: Float[np.ndarray, "3"],
        rotation: Float[np.ndarray, "3 3"],
        iterations: int = 8,
    ) -> Float[np.ndarray, "n"]:
        """Joint positions near `angles` whose pose is nearest to the one asked, within the joints' limits.

        A pose out of reach is approached as far as the damping lets; compare `error` afterwards.
        """
        for _ in range(iterations):
            left = self.error(angles, place, rotation)
            if np.abs(left).max() < 1e-10:
                break
            step = damped_least_squares(self.jacobian(angles), left, self._damping)
            angles = np.clip(angles + step, self.low, self.high)
        return angles


def rotation_vector(rotation: Float[np.ndarray, "3 3"]) -> Float[np.ndarray, "3"]:
    """Axis times angle [rad] of a rotation matrix, for angles below pi."""
    skew = np.array(
        [rotation[2, 1] - rotation[1, 2], rotation[0, 2] - rotation[2, 0], rotation[1, 0] - rotation[0, 1]]
    )
    sine = float(np.linalg.norm(skew)) / 2.0
    angle = float(np.arctan2(sine, (np.trace(rotation) - 1.0) / 2.0))
    return skew / 2.0 if sine < 1e-9 else skew * (angle / (2.0 * sine))
