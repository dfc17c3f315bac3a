"""The gradient of a cost by each candidate's own actions, for planners that descend."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from vjepa_mpc.core.errors import InputError, NotFiniteError
from vjepa_mpc.planners.base import Evaluation

_NO_GRADIENT = "The cost function gives no gradient by the actions; make it differentiable or use CEM."


@dataclass(frozen=True)
class BadCandidates:
    """Evidence of a `NotFiniteError`: the candidates of one problem whose evaluation is not a number."""

    problem: int
    actions: Float[Tensor, "m h a"]
    cost: Float[Tensor, "m"]
    violation: Float[Tensor, "m k"]
    gradient: Float[Tensor, "m h a"] | None = None


def penalised(evaluation: Evaluation, penalty: float) -> Float[Tensor, "b n"]:
    """cost + penalty * summed violation: what planners that descend lower."""
    if not evaluation.violation.shape[2]:
        return evaluation.cost
    return evaluation.cost + penalty * evaluation.violation.sum(dim=-1)


def with_slope(
    actions: Float[Tensor, "b n h a"],
    problems: Int[Tensor, "b"],
    judge: Callable[[Tensor], Evaluation],
    penalty: float,
) -> Evaluation:
    """Judge candidates and differentiate cost + penalty * violation of each by its own actions.

    A rejected candidate has slope 0. Raises `InputError` where there is no gradient, `NotFiniteError` with
    `BadCandidates` where it is not finite.
    """
    with torch.enable_grad():
        leaf = actions.detach().clone().requires_grad_()
        evaluation = judge(leaf)
        objective = penalised(evaluation, penalty)
        rejected, total = None, objective.sum()
        if not math.isfinite(float(total.detach())):  # a finite sum has finite terms
            rejected = ~torch.isfinite(objective)
            total = torch.where(rejected, 0.0, objective).sum()
        if not total.requires_grad:
            raise InputError(_NO_GRADIENT)
        # Not backward(): that would pile gradients up in the world model's parameters.
        (slope,) = torch.autograd.grad(total, leaf, allow_unused=True)
    if slope is None:
        raise InputError(_NO_GRADIENT)
    # A rejected candidate has no slope to follow; what comes out of inf - inf there means nothing.
    if rejected is not None:
        slope = torch.where(rejected[:, :, None, None], 0.0, slope)
    evaluation = replace(
        evaluation, cost=evaluation.cost.detach(), violation=evaluation.violation.detach(), slope=slope
    )
    _check_finite(slope, actions, problems, evaluation)
    return evaluation


def _check_finite(
    slope: Float[Tensor, "b n h a"],
    actions: Float[Tensor, "b n h a"],
    problems: Int[Tensor, "b"],
    evaluation: Evaluation,
) -> None:
    if math.isfinite(float(slope.sum())):
        return
    bad = ~torch.isfinite(slope).flatten(2).all(dim=-1)
    if not bool(bad.any()):
        return
    row = int(bad.any(dim=1).nonzero()[0])
    found, problem = bad[row], int(problems[row])
    evidence = BadCandidates(
        problem,
        actions[row, found].clone(),
        evaluation.cost[row, found],
        evaluation.violation[row, found],
        slope[row, found],
    )
    raise NotFiniteError(
        f"The cost's gradient is not finite for {int(found.sum())} candidates of problem {problem} "
        "(the error's evidence holds them); look for a square root or division at zero, or use CEM.",
        evidence,
    )
