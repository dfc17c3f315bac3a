"""V-JEPA 2-AC's robot and conventions (Assran et al. 2025, arXiv:2506.09985, sections 3 and 4).

A Franka arm with a two-finger gripper as in DROID, seen by one fixed camera at 4 pictures a second. State and
action as `vjepa_mpc.core.poses` has them, in the robot's base frame.
"""

from __future__ import annotations

import math

import torch

from vjepa_mpc.controller import ControlSettings
from vjepa_mpc.core.errors import InputError
from vjepa_mpc.planners.base import Bounds
from vjepa_mpc.planners.published import PublishedCEM, PublishedSettings
from vjepa_mpc.robots.base import Camera, RobotSpec
from vjepa_mpc.world_model import Calibration, WorldModel

CAMERA = "exterior"
CONTROL_PERIOD_S = 0.25
STEP_M = 0.075
"""The largest displacement along each axis of a published plan's action."""
GRIPPER_STEP = 0.75
GRIPPER_STD = 1.0
GRIPPER_DEAD_ZONE = 0.25
WORKSPACE_M = 2.0
HORIZON = 1

UNCALIBRATED = Calibration(reached_cost=0.0, goal_score=None, state_radius=0.0)
"""Of a converted model: no view counts as there until `train --init` measures that on logs of one's own. Latents
are layer-normed, so that no picture's score says how unusual it is (all are 1)."""


def franka_spec() -> RobotSpec:
    """Actions are displacements along the base's axes; rotations are held, as the published planner does."""
    axes = ("x", "y", "z", "roll", "pitch", "yaw", "gripper")
    limits = (STEP_M, STEP_M, STEP_M, 0.0, 0.0, 0.0, GRIPPER_STEP)
    high = (WORKSPACE_M,) * 3 + (2 * math.pi,) * 3 + (1.0,)
    units = ("m", "m", "m", "rad", "rad", "rad", "1")
    return RobotSpec(
        name="droid-franka",
        action_names=tuple(f"{axis}_delta" for axis in axes),
        action_low=tuple(-limit for limit in limits),
        action_high=limits,
        action_units=units,
        state_names=axes,
        state_low=(*(-value for value in high[:6]), 0.0),
        state_high=high,
        state_units=units,
        state_periodic=(False, False, False, True, True, True, False),
        control_period_s=CONTROL_PERIOD_S,
        cameras={CAMERA: Camera(180, 320)},
        state_model="pose",
    )


def published_planner(
    model: WorldModel, *, samples: int | None = None, elites: int | None = None, iterations: int | None = None
) -> PublishedCEM:
    """The published planner for a model of poses: 800 samples, 10 elites, 10 iterations unless said otherwise.

    x, y and z within 7.5 cm and the gripper within 0.75, or the model's own limits where they are tighter;
    rotations held. Raises `InputError` for a model of anything but poses.
    """
    if model.config.robot.state_model != "pose":
        raise InputError(
            f"The preset vjepa2-ac plans for poses (x, y, z, angles, gripper), which {model.config.robot.name} has "
            "none of; leave --preset out."
        )
    own = model.action_bounds
    limits = torch.tensor((STEP_M,) * 3 + (0.0,) * 3 + (GRIPPER_STEP,)).to(own.high)
    given = {"samples": samples, "elites": elites, "iterations": iterations}
    settings = PublishedSettings(
        std=(STEP_M,) * 3 + (0.0,) * 3 + (GRIPPER_STD,),
        dead_zone=(0.0,) * 6 + (GRIPPER_DEAD_ZONE,),
        **{name: value for name, value in given.items() if value is not None},
    )
    return PublishedCEM(Bounds(own.low.maximum(-limits), own.high.minimum(limits)), settings)


def published_control(horizon: int | None = None) -> ControlSettings:
    """The published energy: the distance of the last imagined frame alone, one step ahead, no guardrails."""
    return ControlSettings(horizon=HORIZON if horizon is None else horizon, running=0.0, state_box=False)
