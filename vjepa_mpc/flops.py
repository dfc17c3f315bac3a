"""How much arithmetic a plan or a training step takes, counted and not estimated from sizes; and what a device can."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
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
        with torch.no_grad():
            return counted(lambda: model.rollout(context, actions), model.device)

    one, two = imagined(1), imagined(2)
    picture = np.zeros((1, camera.height, camera.width, 3), np.uint8)
    with torch.no_grad():
        encode = counted(lambda: model.encode(picture), model.device)
    return Flops(encode, two - one, max(0, 2 * one - two))


def counted(work: Callable[[], object], device: torch.device) -> int:
    """Floating-point operations of the matrix products that `work` does on `device`, backward passes included."""
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    # Attention's fused kernels on CPUs are unknown to the counter; as plain matrix products it sees them.
    plain = sdpa_kernel(SDPBackend.MATH) if device.type == "cpu" else nullcontext()
    laid_out = {torch.ops.mkldnn._linear_pointwise: _product} if has_fused_products() else {}
    with plain, FlopCounterMode(display=False, custom_mapping=laid_out) as counter:
        work()
    return int(counter.get_total_flops())


def _product(x: Sequence[int], *_: object, out_shape: Sequence[int], **__: object) -> int:
    """Of a product laid out by `vjepa_mpc.linear`, whose input has the shape x."""
    return 2 * math.prod(x) * out_shape[-1]


PEAKS = {"H200": 989e12, "H100 PCIe": 756e12, "H100": 989e12, "A100": 312e12, "L40S": 362e12, "RTX 4090": 165e12}
"""Dense bfloat16 operations a second with sums in float32, by NVIDIA's data sheets; the first name that fits counts."""


def peak(device: torch.device, bf16: bool) -> tuple[float, str]:
    """Operations a second that a device can do at most, and whose word that is: the data sheet's for a GPU in `PEAKS`
    with bfloat16, else what one large matrix product reaches here and now."""
    if device.type == "cuda" and bf16:
        name = torch.cuda.get_device_name(device)
        for known, most in PEAKS.items():
            if known in name:
                return most, f"{known}'s data sheet"
    size = 8192 if device.type == "cuda" else 2048
    dtype = torch.bfloat16 if bf16 else torch.float32
    one = torch.ones(size, size, dtype=dtype, device=device)
    best = 0.0
    for _ in range(5):
        started = time.perf_counter()
        float((one @ one)[0, 0])  # waits for the GPU
        best = max(best, 2 * size**3 / (time.perf_counter() - started))
    return best, f"a product of {size} x {size} matrices here"
