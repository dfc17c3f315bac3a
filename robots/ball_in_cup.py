"""A ball on a string, swung up into the cup that it hangs from: what is needed to act is not in one picture."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from jaxtyping import Float

from vjepa_mpc.core.errors import InputError
from vjepa_mpc.robots.base import Camera, RobotSpec, StateSpec
from vjepa_mpc.robots.cup_script import FROM_ANYWHERE, CupScript
from vjepa_mpc.robots.rendering import import_mujoco
from vjepa_mpc.robots.stage import CAMERA, new_stage
from vjepa_mpc.robots.task import Script, Task
from vjepa_mpc.robots.world import MujocoWorld

CONTROL_PERIOD_S = 0.1
STEP_M = 0.08
LOW_M, HIGH_M = (-0.09, 0.0), (0.09, 0.12)
"""Where the middle of the cup's rim moves; x, y (upwards)."""
BALL_M, STRING_M = 0.015, 0.15
"""The ball's radius and the string's length, from the cup's bottom to the ball's centre."""
_HALF_M, _DEPTH_M, _WALL_M = 0.03, 0.06, 0.005  # the cup's half width, depth and half thickness, centre lines
_BOTTOM: Float[np.ndarray, "2"] = np.array([0.0, -_DEPTH_M - _WALL_M])
"""Where the string hangs, seen from the rim."""
_HANGING: Float[np.ndarray, "2"] = _BOTTOM - np.array([0.0, STRING_M])
_RESTING: Float[np.ndarray, "2"] = np.array([0.0, -_DEPTH_M + _WALL_M + BALL_M])
_TIMESTEP_S = 0.001
_UNDRAWN = 5  # of MuJoCo's groups of things, one that is not drawn unless asked for
_CUP_KG, _BALL_KG, _RATE = 0.5, 0.02, 160.0
_SPEED_M_S = 12.0
_SUBSTEPS = round(CONTROL_PERIOD_S / _TIMESTEP_S)
_JUMPS = 10  # of the servos' target in a control step

WORLD = StateSpec(
    owner="ball-in-cup",
    names=("x", "y", "ball_x", "ball_y", "ball_x_speed", "ball_y_speed"),
    low=(*LOW_M, -0.27, -0.27, -_SPEED_M_S, -_SPEED_M_S),
    high=(*HIGH_M, 0.27, 0.27, _SPEED_M_S, _SPEED_M_S),
    units=("m", "m", "m", "m", "m/s", "m/s"),
)


def cup_spec(camera_size: int = 64) -> RobotSpec:
    """The cup under displacements of its place, m; the ball is seen, not felt."""
    return RobotSpec(
        name="ball-in-cup",
        action_names=("x_delta", "y_delta"),
        action_low=(-STEP_M, -STEP_M),
        action_high=(STEP_M, STEP_M),
        action_units=("m", "m"),
        state_names=("x", "y"),
        state_low=LOW_M,
        state_high=HIGH_M,
        state_units=("m", "m"),
        state_periodic=(False, False),
        control_period_s=CONTROL_PERIOD_S,
        cameras={CAMERA: Camera(camera_size, camera_size)},
        state_model="joints",
    )


class BallInCup(MujocoWorld):
    """The board upright: a cup (60 mm wide and deep) from whose bottom a ball (radius 15 mm) hangs by 150 mm.

    Action [x_delta, y_delta] in m per control step of 0.1 s: the cup's target becomes measured place + delta, kept
    in its box, and moves there evenly. The ball swings and flies freely under gravity. The state is the measured
    place of the cup's rim in m; the world's also has the ball's place [m] and velocity [m/s]. After dm_control's
    ball in cup (Tassa et al. 2018, arXiv:1801.00690), on the board that the planar worlds share.
    """

    obstacles = False

    def __init__(self, camera_size: int = 64, seed: int = 0, backend: str = "auto") -> None:
        super().__init__(cup_spec(camera_size), build_cup(), {"camera_size": camera_size, "seed": seed}, backend)
        self._put(hanging(np.zeros(2)))

    def _check(self, state: Float[np.ndarray, "w"]) -> Float[np.ndarray, "w"]:
        checked = WORLD.check(state)
        stretched = float(np.linalg.norm(checked[2:4] - checked[:2] - _BOTTOM)) - STRING_M
        if stretched > 0.01:
            raise InputError(f"The ball would be {stretched:.3f} m beyond its string's end; put it nearer to the cup.")
        return checked

    def _rest(self, state: Float[np.ndarray, "w"]) -> None:
        self._data.qpos[:] = state[:4]
        self._data.qvel[2:] = state[4:]
        self._data.ctrl[:] = state[:2]

    def sample_state(self, generator: np.random.Generator) -> Float[np.ndarray, "w"]:
        """The cup anywhere in its box, the ball at rest: as often in it as hanging from it."""
        cup = generator.uniform(LOW_M, HIGH_M)
        return inside(cup) if generator.random() < 0.5 else hanging(cup)

    def true_state(self) -> Float[np.ndarray, "w"]:
        """The cup's and the ball's place [m], and the ball's velocity [m/s]."""
        return np.clip(np.concatenate([self._data.qpos, self._data.qvel[2:]]), WORLD.low, WORLD.high)

    def _measure(self) -> Float[np.ndarray, "s"]:
        return self.true_state()[:2]

    def _move(self, wanted: Float[np.ndarray, "a"]) -> Float[np.ndarray, "a"]:
        before = self._data.qpos[:2].copy()
        target = move_cup(self._model, self._data, wanted)
        return target - before

    def stop(self) -> None:
        """Brake the cup and hold it; nothing holds the ball."""
        self._data.ctrl[:] = self._data.qpos[:2]
        self._data.qvel[:2] = 0.0

    def end_effector(self) -> Float[np.ndarray, "3"]:
        """The ball's centre, m."""
        return np.array([*self._data.qpos[2:], BALL_M])


def hanging(cup: Float[np.ndarray, "2"]) -> Float[np.ndarray, "6"]:
    """The state with the rim at `cup` [m] and the ball hanging still."""
    return np.concatenate([cup, cup + _HANGING, np.zeros(2)])


def inside(cup: Float[np.ndarray, "2"]) -> Float[np.ndarray, "6"]:
    """The state with the rim at `cup` [m] and the ball lying in the middle of the cup."""
    return np.concatenate([cup, cup + _RESTING, np.zeros(2)])


def is_inside(state: Float[np.ndarray, "6"]) -> bool:
    """Whether the ball's centre is below the cup's rim and between its walls."""
    x, y = state[2:4] - state[:2]
    return bool(abs(x) < _HALF_M and -_DEPTH_M < y < 0.0)


def move_cup(model: Any, data: Any, wanted: Float[np.ndarray, "2"]) -> Float[np.ndarray, "2"]:
    """Simulate one control step of the cup under a displacement [m]; returns the target [m]."""
    mujoco = import_mujoco()
    start = data.qpos[:2].copy()
    target = np.clip(start + wanted, LOW_M, HIGH_M)
    for jump in range(1, _JUMPS + 1):
        data.ctrl[:] = start + (target - start) * (jump / _JUMPS)
        mujoco.mj_step(model, data, _SUBSTEPS // _JUMPS)
    return target


def build_cup() -> Any:
    """The compiled `mujoco.MjModel`: positions are [cup x, y, ball x, y] in m, gravity is along -y."""
    mujoco = import_mujoco()
    spec = new_stage(_TIMESTEP_S, border=False)
    spec.option.gravity = [0.0, -9.81, 0.0]
    cup = spec.worldbody.add_body(name="cup", pos=[0.0, 0.0, BALL_M])
    outline = np.array(
        [[-_HALF_M, 0.0], [-_HALF_M, -0.75 * _DEPTH_M], [-0.5 * _HALF_M, -_DEPTH_M],
         [0.5 * _HALF_M, -_DEPTH_M], [_HALF_M, -0.75 * _DEPTH_M], [_HALF_M, 0.0]]
    )  # fmt: skip
    for index, (begin, end) in enumerate(itertools.pairwise(outline)):
        cup.add_geom(
            name=f"cup_{index}", type=mujoco.mjtGeom.mjGEOM_CAPSULE, fromto=[*begin, 0.0, *end, 0.0],
            size=[_WALL_M, 0.0, 0.0], mass=_CUP_KG / 5, material="self", condim=3, friction=[0.5, 0.0, 0.0],
        )  # fmt: skip
    ball = spec.worldbody.add_body(name="ball", pos=[0.0, 0.0, BALL_M])
    ball.add_geom(
        name="ball", type=mujoco.mjtGeom.mjGEOM_SPHERE, size=[BALL_M, 0.0, 0.0], mass=_BALL_KG, material="effector",
        condim=3, friction=[0.5, 0.0, 0.0],
    )  # fmt: skip
    for body, name, damping in ((cup, "cup", 0.0), (ball, "ball", 0.004)):
        for axis, direction in (("x", [1, 0, 0]), ("y", [0, 1, 0])):
            slide = mujoco.mjtJoint.mjJNT_SLIDE
            body.add_joint(name=f"{name}_{axis}", type=slide, axis=direction, damping=[damping, 0.0, 0.0])
    cup.gravcomp = 1.0
    for axis in ("x", "y"):
        servo = spec.add_actuator(name=axis, target=f"cup_{axis}", trntype=mujoco.mjtTrn.mjTRN_JOINT)
        servo.set_to_position(kp=_CUP_KG * _RATE**2, kv=2.0 * _CUP_KG * _RATE)
    # MuJoCo draws a slack string as if gravity were along z, and ray casting draws none: no string is drawn. (One
    # without colour would be, as 26 clear capsules, which take eight times as long as the rest of the picture.)
    cup.add_site(name="hook", pos=[*_BOTTOM, 0.0], group=_UNDRAWN)
    ball.add_site(name="knot", group=_UNDRAWN)
    string = spec.add_tendon(
        name="string", limited=mujoco.mjtLimited.mjLIMITED_TRUE, range=[0.0, STRING_M], group=_UNDRAWN,
        solref_limit=[2.0 * _TIMESTEP_S, 1.0],
    )  # fmt: skip
    string.wrap_site("hook")
    string.wrap_site("knot")
    return spec.compile()


class _Twin:
    """A simulator of its own, for the script to try motions in."""

    def __init__(self) -> None:
        self._model = build_cup()
        self._data = import_mujoco().MjData(self._model)

    def __call__(self, state: Float[np.ndarray, "6"], actions: Float[np.ndarray, "h 2"]) -> Float[np.ndarray, "h 6"]:
        """The world states after each action from `state`."""
        import_mujoco().mj_resetData(self._model, self._data)
        self._data.qpos[:], self._data.qvel[2:], self._data.ctrl[:] = state[:4], state[4:], state[:2]
        states = []
        for action in actions:
            move_cup(self._model, self._data, action)
            states.append(np.concatenate([self._data.qpos, self._data.qvel[2:]]))
        return np.array(states)


@functools.cache
def _twin() -> _Twin:
    """One for the process: it is set anew before every use."""
    return _Twin()


@dataclass(frozen=True)
class BallInCupTask(Task):
    """Have the ball in the cup, and the cup where it is in the goal picture.

    The distance is the greater of the ball's and the cup's, in m. What the ball does next depends on its velocity,
    which no single picture shows and the robot does not feel.
    """

    name: ClassVar[str] = "ball-in-cup"
    version: ClassVar[int] = 2  # 1: physics steps of 2 ms, in which a ball at full speed sank 1.6 mm into the cup
    robot: ClassVar[str] = "ball-in-cup"
    summary: ClassVar[str] = "a ball on a string is swung up into the cup it hangs from, seen in motion only"
    mixture: ClassVar[Mapping[str, float]] = {"smooth": 0.40, "script": 0.30, "full_speed": 0.22, "hold": 0.08}
    quasi_static: ClassVar[bool] = False
    exactness: ClassVar[float] = 0.08  # the servo is still on its way when the step ends
    success_radius_m: float = 0.03
    step_budget: int = 60
    held_steps: int = 3

    @property
    def spec(self) -> RobotSpec:
        return cup_spec()

    @property
    def world(self) -> StateSpec:
        return WORLD

    def sample_pair(
        self, generator: np.random.Generator
    ) -> tuple[Float[np.ndarray, "6"], Float[np.ndarray, "6"]]:
        """The cup anywhere in its box, the ball hanging still at the start and in the cup at the goal."""
        return hanging(generator.uniform(LOW_M, HIGH_M)), inside(generator.uniform(LOW_M, HIGH_M))

    def distance(self, state: Float[np.ndarray, "6"], goal: Float[np.ndarray, "6"]) -> float:
        apart = np.asarray(state)[:4] - np.asarray(goal)[:4]
        return max(math.hypot(*apart[:2]), math.hypot(*apart[2:]))

    def script(self, goal: Float[np.ndarray, "6"]) -> Script:
        return self._by_trying(goal, None)

    def demonstration(self, goal: Float[np.ndarray, "6"]) -> Script:
        """The script with one motion for all hanging balls: little can be learned from what is shown where each takes
        another."""
        return self._by_trying(goal, FROM_ANYWHERE)

    def _by_trying(self, goal: Float[np.ndarray, "6"], first: Float[np.ndarray, "h 2"] | None) -> Script:
        resting = inside(np.zeros(2))[2:4]
        return CupScript(np.asarray(goal, dtype=np.float64), _twin(), is_inside, resting, STEP_M, first)
