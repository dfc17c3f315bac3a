"""A Franka Panda under V-JEPA 2-AC's own interface, and the task of reaching with it; its model is found at run time.

The interface (Assran et al. 2025, arXiv:2506.09985, section 3): the state is the end effector's position [m], its
extrinsic xyz Euler angles [rad] and the gripper in [0, 1], in the base's frame; an action is the difference of two
of them, the angles being those of R_next R^T (`vjepa_mpc.core.poses`); 4 steps a second; one fixed third-person camera.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from jaxtyping import Float

from vjepa_mpc.core.errors import InputError
from vjepa_mpc.robots.base import Camera, RobotSpec
from vjepa_mpc.robots.differential_ik import SiteKinematics, rotation_vector, shortened
from vjepa_mpc.robots.panda_model import CAMERA, JOINTS, build_panda, fetches, panda_folder
from vjepa_mpc.robots.task import Script, Task
from vjepa_mpc.robots.world import MujocoWorld

CONTROL_PERIOD_S = 0.25
STEP_M, TURN_RAD, GRIPPER_STEP = 0.075, 0.2, 0.75
LOW_M, HIGH_M = (0.35, -0.25, 0.15), (0.65, 0.25, 0.5)
"""The box in which the point between the fingertips moves; x (forwards), y, z in the base's frame."""
TILT_RAD = 0.5
"""How far the hand may be turned away from pointing down."""
_SLACK = 4e-3
"""By how much (rad, m) a hand on its way may be beyond tilt and box."""
DOWN_RAD = (math.pi, 0.0, 0.0)
HOME_RAD = (0.0, 0.1, 0.0, -2.2, 0.0, 2.3, 0.785)
SPEED_RAD_S: Float[np.ndarray, "7"] = np.array([2.175] * 4 + [2.61] * 3)  # Franka's own limits
_SHOULDER_M, _WRIST_M, _HAND_M = 0.333, 0.088, 0.107 + 0.1034
REACH_M = 0.7
"""How far the wrist may be from the shoulder; straight, the arm is 0.719 m long (Franka's published lengths)."""
FINGER_M = 0.04
"""How far each finger is from the middle when the gripper is open."""


def panda_spec(camera_size: int = 64) -> RobotSpec:
    """V-JEPA 2-AC's 7-D interface: xyz [m], extrinsic xyz Euler angles [rad], gripper (0 open, 1 closed)."""
    names = ("x", "y", "z", "roll", "pitch", "yaw", "gripper")
    units = ("m",) * 3 + ("rad",) * 3 + ("",)
    high = (STEP_M,) * 3 + (TURN_RAD,) * 3 + (GRIPPER_STEP,)
    return RobotSpec(
        name="panda-reach",
        action_names=tuple(f"{name}_delta" for name in names),
        action_low=tuple(-value for value in high),
        action_high=high,
        action_units=units,
        state_names=names,
        state_low=(*LOW_M, -math.pi, -math.pi / 2, -math.pi, 0.0),
        state_high=(*HIGH_M, math.pi, math.pi / 2, math.pi, 1.0),
        state_units=units,
        state_periodic=(False,) * 7,
        control_period_s=CONTROL_PERIOD_S,
        cameras={CAMERA: Camera(camera_size, camera_size)},
        state_model="pose",
    )


class Panda(MujocoWorld):
    """Franka's arm (7 joints, two fingers) from MuJoCo Menagerie, seen by one fixed camera from its left front.

    Action: V-JEPA 2-AC's, per control step of 0.25 s. The target is the measured pose plus the action, its place
    kept in the box and its rotation within `TILT_RAD` of pointing down; damped least squares find the joints
    (`SiteKinematics`, as for the Jaco), within their limits and speeds. Gravity is compensated, contacts are off.
    """

    obstacles = False

    def __init__(self, camera_size: int = 64, seed: int = 0, backend: str = "auto") -> None:
        settings = {"camera_size": camera_size, "seed": seed}
        super().__init__(panda_spec(camera_size), build_panda(panda_folder()), settings, backend)
        self._kinematics = SiteKinematics(self._model, "tip", JOINTS)
        self._arm = self._kinematics.qpos
        self._fingers = np.array([int(self._model.joint(f"finger_joint{side}").qposadr[0]) for side in (1, 2)])
        self._put(np.array([0.5, 0.0, 0.3, *DOWN_RAD, 0.0]))

    def _check(self, state: Float[np.ndarray, "w"]) -> Float[np.ndarray, "w"]:
        checked = self._spec.check_state(state)
        if tilt(checked) > TILT_RAD + 0.02:
            raise InputError(f"The hand would be tilted by {tilt(checked):.2f} rad, more than {TILT_RAD} rad.")
        return checked

    def _rest(self, state: Float[np.ndarray, "w"]) -> None:
        angles = self._kinematics.solve(np.array(HOME_RAD), state[:3], matrix(state[3:6]), iterations=200)
        if np.abs(self._kinematics.error(angles, state[:3], matrix(state[3:6]))).max() > 1e-4:
            raise InputError(f"The arm cannot put its hand at {state.tolist()}.")
        self._data.qpos[self._arm] = self._data.ctrl[: len(JOINTS)] = angles
        self._data.qpos[self._fingers] = self._data.ctrl[len(JOINTS) :] = FINGER_M * (1.0 - state[6])

    def sample_state(self, generator: np.random.Generator) -> Float[np.ndarray, "w"]:
        return sample(generator)

    def true_state(self) -> Float[np.ndarray, "w"]:
        """The pose of the point between the fingertips and the gripper, as V-JEPA 2-AC has them."""
        site = self._data.site("tip")
        place = np.clip(site.xpos, LOW_M, HIGH_M)
        closed = 1.0 - float(self._data.qpos[self._fingers].mean()) / FINGER_M
        return np.array([*place, *angles_of(site.xmat.reshape(3, 3)), min(max(closed, 0.0), 1.0)])

    def _measure(self) -> Float[np.ndarray, "s"]:
        return self.true_state()

    def _move(self, wanted: Float[np.ndarray, "a"]) -> Float[np.ndarray, "a"]:
        start, before = self.true_state(), self._data.qpos[self._arm].copy()
        goal = kept(moved(start, wanted), max(TILT_RAD, tilt(start)))  # no action is no motion, also at the edge
        # From home, as `_rest` does: seven joints have a pose in many ways, and a picture is to tell the pose alone.
        turn = self._kinematics.solve(np.array(HOME_RAD), goal[:3], matrix(goal[3:6]), iterations=40) - before
        limit = SPEED_RAD_S * CONTROL_PERIOD_S * 0.5  # the servos go there in half of the step
        turn *= min(1.0, float((limit / np.maximum(np.abs(turn), 1e-9)).min())) if wanted[:6].any() else 0.0

        def reached(turn: Float[np.ndarray, "n"]) -> Float[np.ndarray, "7"]:
            place, rotation = self._kinematics.pose(before + turn)
            return np.array([*place, *angles_of(rotation), goal[6]])

        limits, here = np.array(self._spec.action_high[:6]), reached(np.zeros(len(JOINTS)))

        def share(turn: Float[np.ndarray, "n"]) -> float:
            end = reached(turn)
            return max(float((np.abs(difference(start, end)[:6]) / limits).max()), _share_to_the_edge(here, end))

        turn = shortened(turn, share)
        fingers = np.full(2, FINGER_M * (1.0 - goal[6]))
        self._glide(self._data.ctrl.copy(), np.concatenate([before + turn, fingers]), jumps=10)
        return difference(start, reached(turn))

    def stop(self) -> None:
        """Brake, and hold the present pose."""
        self._data.ctrl[: len(JOINTS)] = self._data.qpos[self._arm]
        self._data.ctrl[len(JOINTS) :] = self._data.qpos[self._fingers]
        self._data.qvel[:] = 0.0

    def end_effector(self) -> Float[np.ndarray, "3"]:
        """The point between the fingertips, m."""
        return self._data.site("tip").xpos.copy()


def sample(generator: np.random.Generator) -> Float[np.ndarray, "7"]:
    """A place in the box, a hand tilted by up to half of `TILT_RAD` about each axis, any gripper; uniform. Drawn again
    where the arm would have to be straighter than `REACH_M`."""
    while True:
        angles = generator.uniform(-TILT_RAD / 2, TILT_RAD / 2, 3)
        tilted = angles_of(matrix(angles) @ matrix(np.array(DOWN_RAD)))
        state = np.array([*generator.uniform(LOW_M, HIGH_M), *tilted, generator.uniform()])
        if reach(state) <= REACH_M:
            return state


def reach(state: Float[np.ndarray, "7"]) -> float:
    """How far [m] the wrist (the axes of joints 5 to 7 but for Franka's offset of 88 mm) is at least from the shoulder,
    for a hand at `state`: its last joint may turn, which takes the wrist round a circle about the hand's axis."""
    axis = matrix(state[3:6])[:, 2]
    away = np.asarray(state[:3]) - _HAND_M * axis - np.array([0.0, 0.0, _SHOULDER_M])
    along = float(away @ axis)
    return math.hypot(along, float(np.linalg.norm(away - along * axis)) - _WRIST_M)


def tilt(state: Float[np.ndarray, "7"]) -> float:
    """The angle [rad] between the hand's rotation and pointing down."""
    return float(np.linalg.norm(rotation_vector(matrix(state[3:6]) @ matrix(np.array(DOWN_RAD)).T)))


def _share_to_the_edge(before: Float[np.ndarray, "7"], after: Float[np.ndarray, "7"]) -> float:
    """How much a step takes of the way to where the hand is tilted, or outside its box, by `_SLACK` (rad, m) too much,
    which joints in the middle of a long turn may lead to; 0 for one that does not go so far."""
    outside = [np.array([tilt(one) - TILT_RAD, *_outside(one[:3])]) for one in (before, after)]
    edge = np.maximum(outside[0], _SLACK)
    ways = (outside[1] - outside[0]) / np.maximum(edge - outside[0], 1e-9)
    return float(np.where(outside[1] > edge, ways, 0.0).max())


def _outside(place: Float[np.ndarray, "3"]) -> Float[np.ndarray, "3"]:
    """How far [m] outside its box the hand is along each axis."""
    return np.maximum(0.0, np.maximum(np.array(LOW_M) - place, place - np.array(HIGH_M)))


def kept(state: Float[np.ndarray, "7"], most_rad: float = TILT_RAD) -> Float[np.ndarray, "7"]:
    """`state` with its place in the box, its tilt at most `most_rad` (same axis) and its gripper in [0, 1]."""
    import torch

    from vjepa_mpc.core.poses import rotation_vector_to_matrix

    angles = np.asarray(state[3:6])
    if tilt(state) > most_rad:
        down = matrix(np.array(DOWN_RAD))
        vector = rotation_vector(matrix(angles) @ down.T) * (most_rad / tilt(state))
        angles = angles_of(rotation_vector_to_matrix(torch.from_numpy(vector)).numpy() @ down)
    return np.array([*np.clip(state[:3], LOW_M, HIGH_M), *angles, min(max(float(state[6]), 0.0), 1.0)])


def matrix(angles: Float[np.ndarray, "3"]) -> Float[np.ndarray, "3 3"]:
    """`vjepa_mpc.core.poses.euler_to_matrix` for NumPy."""
    import torch

    from vjepa_mpc.core.poses import euler_to_matrix

    return euler_to_matrix(torch.from_numpy(np.asarray(angles, dtype=np.float64))).numpy()


def angles_of(rotation: Float[np.ndarray, "3 3"]) -> Float[np.ndarray, "3"]:
    """`vjepa_mpc.core.poses.matrix_to_euler` for NumPy."""
    import torch

    from vjepa_mpc.core.poses import matrix_to_euler

    return matrix_to_euler(torch.from_numpy(np.array(rotation, dtype=np.float64))).numpy()


def moved(pose: Float[np.ndarray, "7"], delta: Float[np.ndarray, "7"]) -> Float[np.ndarray, "7"]:
    """`vjepa_mpc.core.poses.integrate_pose` for NumPy."""
    import torch

    from vjepa_mpc.core.poses import integrate_pose

    return integrate_pose(torch.from_numpy(np.asarray(pose)), torch.from_numpy(np.asarray(delta))).numpy()


def difference(start: Float[np.ndarray, "7"], end: Float[np.ndarray, "7"]) -> Float[np.ndarray, "7"]:
    """`vjepa_mpc.core.poses.pose_difference` for NumPy."""
    import torch

    from vjepa_mpc.core.poses import pose_difference

    return pose_difference(torch.from_numpy(np.asarray(start)), torch.from_numpy(np.asarray(end))).numpy()


@dataclass(frozen=True)
class PandaReachTask(Task):
    """Bring the hand to its pose in the goal picture; the gripper does not count.

    The distance is the greater of the displacement [m] and the turn [rad] times `lever_m`: the success radius of
    0.05 m is at once 5 cm and 15 degrees.
    """

    name: ClassVar[str] = "panda-reach"
    version: ClassVar[int] = 2  # 1: poses were drawn up to the end of the arm's reach, and beyond
    robot: ClassVar[str] = "panda-reach"
    summary: ClassVar[str] = "a Franka Panda brings its hand to a pose, under V-JEPA 2-AC's own 7-D interface"
    success_radius_m: float = 0.05
    min_start_distance_m: float = 0.12
    lever_m: float = 0.05 / math.radians(15.0)
    step_budget: int = 20
    held_steps: int = 3

    @property
    def spec(self) -> RobotSpec:
        return panda_spec()

    @property
    def missing(self) -> str | None:
        if fetches():
            return None  # when it is first used, not for a list of tasks
        try:
            panda_folder()
        except InputError as error:
            return str(error)
        return None

    def sample_pair(
        self, generator: np.random.Generator
    ) -> tuple[Float[np.ndarray, "7"], Float[np.ndarray, "7"]]:
        """Poses as `sample` draws them; pairs under `min_start_distance_m` are redrawn."""
        while True:
            start, goal = sample(generator), sample(generator)
            if self.distance(start, goal) >= self.min_start_distance_m:
                return start, goal

    def distance(self, state: Float[np.ndarray, "7"], goal: Float[np.ndarray, "7"]) -> float:
        turn = rotation_vector(matrix(np.asarray(goal)[3:6]) @ matrix(np.asarray(state)[3:6]).T)
        apart = float(np.linalg.norm(np.asarray(state)[:3] - np.asarray(goal)[:3]))
        return max(apart, self.lever_m * float(np.linalg.norm(turn)))

    def script(self, goal: Float[np.ndarray, "7"]) -> Script:
        spec, target = self.spec, np.asarray(goal, dtype=np.float64)
        return lambda state: np.clip(difference(np.asarray(state), target), spec.action_low, spec.action_high)
