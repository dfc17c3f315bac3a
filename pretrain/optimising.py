"""How long and how fast a training goes: its settings, learning rate and optimisers."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from vjepa_mpc.core.errors import InputError, unknown_name

OPTIMIZERS = ("adamw", "muon")


@dataclass(frozen=True)
class TrainSettings:
    """How long and how fast. Give `steps`, or `minutes`: those are turned into steps after warming up, once.

    The learning rate rises linearly over `warmup` steps, stays, and falls linearly to zero over the last
    `cooldown` share of the run (V-JEPA 2-AC's warm-up, constant, decay). `weight_decay` spares 1-D tensors.
    `optimizer`: "adamw" (V-JEPA's), or "muon" for the matrices inside repeated blocks and AdamW for the rest.
    `clip`: the largest norm of the gradient. `accumulate`: batches whose gradients make one step, one after the other
    in the memory of one; what a loss says of its batch as a whole (SIGReg, variances) it says of each. `keep`: so many
    checkpoints are kept, the latest among them.
    """

    steps: int | None = None
    minutes: float | None = None
    batch: int = 64
    lr: float = 1e-3
    warmup: int = 200
    cooldown: float = 0.3
    optimizer: str = "adamw"
    weight_decay: float = 0.04
    betas: tuple[float, float] = (0.9, 0.999)
    clip: float = 1.0
    seed: int = 0
    bf16: bool = True
    checkpoint_every: int = 500
    log_every: int = 20
    keep: int = 1
    accumulate: int = 1

    def __post_init__(self) -> None:
        if (self.steps is None) == (self.minutes is None):
            raise InputError("Give either --steps or --minutes, not both and not neither.")
        if self.steps is not None and self.steps < 1:
            raise InputError(f"Training needs at least one step, not {self.steps}.")
        if self.minutes is not None and not 0 < self.minutes < math.inf:
            raise InputError(f"Training needs more than 0 minutes and an end, not {self.minutes}.")
        if self.batch < 1:
            raise InputError("The batch must hold at least one clip.")
        if not (math.isfinite(self.lr) and self.lr > 0):
            raise InputError(f"The learning rate must be positive, got {self.lr}.")
        if self.optimizer not in OPTIMIZERS:
            raise unknown_name("optimizer", self.optimizer, OPTIMIZERS)
        if self.accumulate < 1:
            raise InputError(f"A step needs the gradients of at least one batch, not of {self.accumulate}.")
        if min(self.checkpoint_every, self.log_every, self.keep) < 1:
            raise InputError("Checkpoints and log rows come every so many steps, and one is kept: give at least 1.")
        if not 0 < self.clip < math.inf:
            raise InputError(f"Gradients are clipped at a positive norm, got {self.clip}; a large one leaves them be.")
        if not 0 <= self.cooldown <= 1:
            raise InputError(f"The rate falls over a share of the steps, 0 to 1, got {self.cooldown}.")


def learning_rate(step: int, total: int | None, settings: TrainSettings) -> float:
    """Learning rate of step `step` (0-based); see `TrainSettings`."""
    rise = min(1.0, (step + 1) / max(1, settings.warmup))
    if total is None:
        return settings.lr * rise
    cool = max(1, round(settings.cooldown * total))
    fall = min(1.0, (total - step) / cool)
    return settings.lr * rise * fall


def make_optimisers(modules: nn.Module, settings: TrainSettings) -> list[torch.optim.Optimizer]:
    """Optimisers that share the parameters which require gradients; biases and norms are not decayed.

    Muon (Jordan et al. 2024; steps of AdamW's size after Liu et al. 2025, arXiv:2502.16982, section 2.2) is
    for the matrices between hidden layers: those of repeated blocks (`nn.ModuleList`). What reads the input
    or writes the output stays with AdamW.
    """
    hidden: set[int] = set()
    if settings.optimizer == "muon":
        blocks = [module for module in modules.modules() if isinstance(module, nn.ModuleList)]
        hidden = {id(p) for block in blocks for p in block.parameters() if p.ndim == 2}
    trained = [p for p in modules.parameters() if p.requires_grad]
    plain = [p for p in trained if id(p) not in hidden]
    groups = [
        {"params": [p for p in plain if p.ndim > 1], "weight_decay": settings.weight_decay},
        {"params": [p for p in plain if p.ndim <= 1], "weight_decay": 0.0},
    ]
    optimisers: list[torch.optim.Optimizer] = [torch.optim.AdamW(groups, lr=settings.lr, betas=settings.betas)]
    matrices = [p for p in trained if id(p) in hidden]
    if matrices:
        muon = torch.optim.Muon(
            matrices, lr=settings.lr, weight_decay=settings.weight_decay, adjust_lr_fn="match_rms_adamw"
        )
        optimisers.append(muon)
    return optimisers


@torch.no_grad()
def follow(target: Iterable[Tensor], online: Iterable[Tensor], momentum: float) -> None:
    """target = momentum * target + (1 - momentum) * online, in place."""
    torch._foreach_lerp_(list(target), list(online), 1 - momentum)
