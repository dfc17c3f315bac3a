"""How much arithmetic a plan takes: counted, not estimated from sizes."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from vjepa_mpc.linear import has_fused_products
from vjepa_mpc.rollout import Context
from vjepa_mpc.world_model import WorldModel


@dataclass(frozen=True)
class Flops:
    """Floating-point operations of the matrix products (two for each multiplication and addition): `encode` of one
    picture, `evaluation` of one candidate imagined to the horizon, `shared` by all candidates of a plan."""

    encode: int
    evaluation: int
    shared: int

    def step(self, evaluations: float) -> float:
        """Of a control step with so many evaluations: forward passes alone, without a gradient planner's backward."""
        return self.encode + self.shared + evaluations * self.evaluation


def count_flops(model: WorldModel, horizon: int) -> Flops:
    """Count on zeros what one picture, and one candidate more than one, take; attention is counted in full."""
    robot, latent, frames = model.config.robot, model.config.latent, model.config.history
    camera = robot.cameras[model.config.camera]
    patches = model.config.predictor.grid_height * model.config.predictor.grid_width
    context = Context(
        torch.zeros(1, frames, patches, latent.dim, device=model.device),
        torch.zeros(1, frames, len(robot.state_names), device=model.device),
        torch.zeros(1, frames - 1, len(robot.action_names), device=model.device),
    )

    def imagined(candidates: int) -> int:
        actions = torch.zeros(1, candidates, horizon, len(robot.action_names), device=model.device)
        return _counted(lambda: model.rollout(context, actions))

    one, two = imagined(1), imagined(2)
    picture = np.zeros((1, camera.height, camera.width, 3), np.uint8)
    return Flops(_counted(lambda: model.encode(picture)), two - one, max(0, 2 * one - two))


def _counted(work: Callable[[], object]) -> int:
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    # Attention's fused kernels on CPUs are unknown to the counter; as plain matrix products it sees them.
    laid_out = {torch.ops.mkldnn._linear_pointwise: _product} if has_fused_products() else {}
    counter = FlopCounterMode(display=False, custom_mapping=laid_out)
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), counter:
        work()
    return int(counter.get_total_flops())


def _product(x: Sequence[int], *_: object, out_shape: Sequence[int], **__: object) -> int:
    """Of a product laid out by `vjepa_mpc.linear`, whose input has the shape x."""
    return 2 * math.prod(x) * out_shape[-1]
