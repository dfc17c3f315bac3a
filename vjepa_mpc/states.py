"""Robot states and actions as the predictor sees them, and how a state follows from an action."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn

from vjepa_mpc.core.errors import InputError
from vjepa_mpc.core.poses import integrate_pose, pose_difference
from vjepa_mpc.robots.base import RobotSpec

FREQUENCIES = (1, 2, 4, 8)
"""Multiples of an angle among its Fourier features: a patch's width of motion at an arm's length is about a
tenth of a radian, which lower ones cannot resolve."""


class JointStates(nn.Module):
    """Joint positions under joint displacements.

    A state follows by addition. The predictor is fed Fourier features (networks learn sharp functions of
    plain coordinates slowly: Tancik et al. 2020, arXiv:2006.10739) of every joint's angle and of the sums
    along the chain, which are the links' own directions in a plane; no seam at +-pi for periodic joints;
    and the range-scaled values of limited ones. For an action it is fed its value in units of its limits
    together with the same features of the state it leads to. With a `stride` an action is the sum of that
    many displacements.
    """

    low: Tensor
    high: Tensor
    scale: Tensor
    free: Tensor
    angular: Tensor

    def __init__(self, spec: RobotSpec, stride: int = 1) -> None:
        super().__init__()
        self.periodic = [i for i, flag in enumerate(spec.state_periodic) if flag]
        self.limited = [i for i, flag in enumerate(spec.state_periodic) if not flag]
        if len(spec.action_names) != len(spec.state_names):
            raise InputError(
                f"{spec.name} has {len(spec.action_names)} actions and {len(spec.state_names)} state values; "
                "joint displacements need one action a joint."
            )
        self.register_buffer("low", torch.tensor(spec.state_low), persistent=False)
        self.register_buffer("high", torch.tensor(spec.state_high), persistent=False)
        self.register_buffer("free", torch.tensor(spec.state_periodic), persistent=False)
        angular = torch.tensor([unit == "rad" for unit in spec.state_units])
        self.register_buffer("angular", angular, persistent=False)
        scale = stride * torch.tensor(spec.action_high).abs().maximum(torch.tensor(spec.action_low).abs())
        self.register_buffer("scale", scale, persistent=False)

    @property
    def state_dim(self) -> int:
        joints = len(self.periodic) + len(self.limited)
        return 2 * len(FREQUENCIES) * (2 * joints - 1) + len(self.limited)

    @property
    def action_dim(self) -> int:
        return len(self.scale) + self.state_dim

    def integrate(self, state: Float[Tensor, "*n s"], action: Float[Tensor, "*n a"]) -> Float[Tensor, "*n s"]:
        """The state after `action` (rad). Not clipped: a guardrail must be able to see an excess."""
        return state + action

    def state_features(self, state: Float[Tensor, "*n s"]) -> Float[Tensor, "*n f"]:
        scaled = (2 * (state - self.low) / (self.high - self.low) - 1).clamp(-1, 1)
        held = self.low + 0.5 * (scaled + 1) * (self.high - self.low)
        angles = torch.where(self.free, state, torch.where(self.angular, held, 0.5 * math.pi * scaled))
        angles = torch.cat([angles, angles.cumsum(-1)[..., 1:]], dim=-1)
        waves = (angles[..., None] * torch.tensor(FREQUENCIES, device=angles.device)).flatten(-2)
        return torch.cat([waves.cos(), waves.sin(), scaled[..., self.limited]], dim=-1)

    def action_features(
        self, action: Float[Tensor, "*n a"], state: Float[Tensor, "*n s"]
    ) -> Float[Tensor, "*n f"]:
        return torch.cat([action / self.scale, self.state_features(self.integrate(state, action))], dim=-1)

    def excess(self, state: Float[Tensor, "*n s"]) -> Float[Tensor, "*n"]:
        """How far a state is outside the joint limits, summed over joints (rad); periodic ones have none."""
        over = (state - self.high).clamp(min=0) + (self.low - state).clamp(min=0)
        return over[..., self.limited].sum(-1)

    def difference(self, a: Float[Tensor, "*#n s"], b: Float[Tensor, "*#n s"]) -> Float[Tensor, "*n s"]:
        """b - a, the short way round for periodic joints (rad)."""
        delta = b - a
        for i in self.periodic:
            delta[..., i] = (delta[..., i] + math.pi) % (2 * math.pi) - math.pi
        return delta


class PoseStates(nn.Module):
    """V-JEPA 2-AC's 7-D end-effector pose: fed to the predictor as it is, integrated as a rigid motion."""

    low: Tensor
    high: Tensor

    def __init__(self, spec: RobotSpec) -> None:
        super().__init__()
        if len(spec.action_names) != 7 or len(spec.state_names) != 7:
            raise InputError(f"{spec.name}: a pose state has 7 values (xyz, Euler, gripper) and 7 displacements.")
        self.register_buffer("low", torch.tensor(spec.state_low), persistent=False)
        self.register_buffer("high", torch.tensor(spec.state_high), persistent=False)

    state_dim = 7
    action_dim = 7

    def integrate(self, state: Float[Tensor, "*n s"], action: Float[Tensor, "*n a"]) -> Float[Tensor, "*n s"]:
        return integrate_pose(state, action)

    def state_features(self, state: Float[Tensor, "*n s"]) -> Float[Tensor, "*n s"]:
        return state

    def action_features(
        self, action: Float[Tensor, "*n a"], state: Float[Tensor, "*n s"]
    ) -> Float[Tensor, "*n a"]:
        return action

    def excess(self, state: Float[Tensor, "*n s"]) -> Float[Tensor, "*n"]:
        """How far xyz is outside the workspace box, summed over axes (m)."""
        over = (state - self.high).clamp(min=0) + (self.low - state).clamp(min=0)
        return over[..., :3].sum(-1)

    def difference(self, a: Float[Tensor, "*#n s"], b: Float[Tensor, "*#n s"]) -> Float[Tensor, "*n s"]:
        """The displacement from a to b (m, rad, gripper): its angles are those of R_b R_a^T, as an action's are,
        so that neither the seam at +-pi nor the two spellings of one rotation make near poses far."""
        return pose_difference(a, b)


StateSpace = JointStates | PoseStates


def state_space(spec: RobotSpec, stride: int = 1) -> StateSpace:
    """The state space that `spec.state_model` names, for models that step `stride` control steps at a time."""
    if spec.state_model == "joints":
        return JointStates(spec, stride)
    if spec.state_model == "pose":
        if stride != 1:
            raise InputError(f"Poses do not add up: a pose model steps 1 control step at a time, not {stride}.")
        return PoseStates(spec)
    raise InputError(f"The state model {spec.state_model!r} is unknown: use 'joints' or 'pose'.")
