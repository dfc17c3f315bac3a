"""Starting the next plan from the last one."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from vjepa_mpc.core.errors import InputError


def shift_plan(actions: Float[Tensor, "b h a"], hold: Float[Tensor, "a"]) -> Float[Tensor, "b h a"]:
    """The plan one control step later: the first action, now done, dropped; `hold` (the action that keeps
    the robot where it is) at the end. `InputError` when the two disagree on the action size."""
    if hold.shape != actions.shape[-1:]:
        raise InputError(f"The hold action has {hold.numel()} values, the plan's {actions.shape[-1]}; make them agree.")
    return torch.cat((actions[:, 1:], hold.to(actions).expand_as(actions[:, :1])), dim=1)
