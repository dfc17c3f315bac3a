"""Small cost functions, seeds and boxes that the checks are made of."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from vjepa_mpc.planners.base import ActionPlan, Bounds, Budget, CostFunction, Evaluation, Planner

PlannerFactory = Callable[[Bounds], Planner]
Plant = Callable[[Any, str, Any], None]
"""Replaces an attribute (owner, name, value) until a check is over: how a defect is planted."""


def generators(problems: int, seed: int = 0) -> list[torch.Generator]:
    """One generator a problem, seeded `seed`, `seed` + 1, ..."""
    return [torch.Generator().manual_seed(seed + problem) for problem in range(problems)]


def box(size: int, half: float = 1.0) -> Bounds:
    """The bounds [-half, half] for each of `size` actions."""
    return Bounds(torch.full((size,), -half), torch.full((size,), half))


@dataclass(frozen=True)
class Bowl:
    """cost = sum over steps and actions of weight * (action - goal)^2, a weight for each action or for each step and
    action, and no constraints unless `limit` is given: then the sum of the first step's actions must not exceed it.

    Added up term by term, so that the numbers do not depend on how many candidates are asked for.
    """

    goals: Float[Tensor, "b h a"]
    weight: Float[Tensor, "*steps a"] | None = None
    limit: float | None = None

    def __call__(self, actions: Float[Tensor, "b n h a"], problems: Int[Tensor, "b"]) -> Evaluation:
        error = (actions - self.goals[problems][:, None].to(actions)).square()
        if self.weight is not None:
            error = error * self.weight.to(actions)
        cost = actions.new_zeros(actions.shape[:2])
        for term in error.flatten(2).unbind(2):
            cost = cost + term
        if self.limit is None:
            return Evaluation(cost, actions.new_zeros(*actions.shape[:2], 0))
        first = actions.new_zeros(actions.shape[:2])
        for term in actions[:, :, 0].unbind(2):
            first = first + term
        return Evaluation(cost, (first - self.limit).clamp(min=0)[:, :, None], ("first_step",))


@dataclass
class Watch:
    """Passes calls on to a cost function and remembers what it was asked."""

    cost_fn: CostFunction
    asked: list[Tensor] = field(default_factory=list)

    def __call__(self, actions: Float[Tensor, "b n h a"], problems: Int[Tensor, "b"]) -> Evaluation:
        assert not torch.is_inference_mode_enabled(), "the cost function was called in inference mode"
        self.asked.append(actions.detach().clone())
        return self.cost_fn(actions, problems)

    @property
    def candidates(self) -> Tensor:
        """Every candidate asked for, [b, n, h, a]."""
        return torch.cat(self.asked, dim=1)


def solve(
    planner: Planner,
    cost_fn: CostFunction,
    init: Float[Tensor, "b h a"],
    *,
    budget: Budget | None = None,
    rng: Sequence[torch.Generator] | None = None,
) -> ActionPlan:
    """Plan without limits and with seed 0, unless told otherwise."""
    rng = rng or generators(init.shape[0])
    return planner.plan(cost_fn, init, budget=budget or Budget(), generators=rng)


def distinct_goals(problems: int, horizon: int, size: int, seed: int = 3) -> Float[Tensor, "b h a"]:
    """Goals inside [-0.8, 0.8] that differ at every problem, step and action."""
    return 1.6 * torch.rand(problems, horizon, size, generator=torch.Generator().manual_seed(seed)) - 0.8


def assert_near(found: Tensor, wanted: Tensor, tolerance: float, what: str) -> None:
    """Fail with `what` where any number is off by more than `tolerance`."""
    error = float((found - wanted).abs().max())
    assert error <= tolerance, f"{what}: off by {error:.3g}, more than {tolerance:g}"
