"""What constraints are worth in an augmented Lagrangian, and the cost with that priced in."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from vjepa_mpc.planners.base import CostFunction, Evaluation

Heard = tuple[Float[Tensor, "n h a"], Float[Tensor, "n"], Float[Tensor, "n k"]]
"""Candidates of one problem with their true cost and violation."""


@dataclass(frozen=True)
class Price:
    """What a unit of each constraint's violation costs now: multipliers and weights [b, k]."""

    multiplier: Float[Tensor, "b k"]
    weight: Float[Tensor, "b k"]

    def after(
        self, before: Float[Tensor, "b k"], now: Float[Tensor, "b k"], growth: float, shrink: float
    ) -> Price:
        """The prices of the next round."""
        stuck = now > shrink * before
        rise = torch.where(now == torch.inf, 0.0, self.weight * now)  # which says nothing of a price
        return Price(
            self.multiplier + rise, torch.where(stuck & (now > 0), growth * self.weight, self.weight)
        )


@dataclass(frozen=True)
class Priced:
    """The cost with its constraints priced in. Smooth rounds show the planner no constraint; the exact one shows them,
    priced at twice their multipliers: a kink that holds at the boundary. Of problems that are not `chosen` nothing is
    asked: whatever is tried costs them `least` and breaks nothing."""

    cost_fn: CostFunction
    price: Price
    exact: bool
    chosen: Bool[Tensor, "b"]
    least: float
    heard: dict[int, list[Heard]] = field(default_factory=dict)

    def __call__(self, actions: Float[Tensor, "b n h a"], problems: Int[Tensor, "b"]) -> Evaluation:
        asked = self.chosen[problems].nonzero()[:, 0]
        if len(asked) == len(problems):
            return self._priced(actions, problems)
        found = self._priced(actions[asked], problems[asked])
        cost = found.cost.new_full(actions.shape[:2], self.least)
        violation = found.violation.new_zeros(*actions.shape[:2], found.violation.shape[2])
        return replace(
            found,
            cost=cost.index_copy(0, asked, found.cost),
            violation=violation.index_copy(0, asked, found.violation),
        )

    def _priced(self, actions: Float[Tensor, "r n h a"], problems: Int[Tensor, "r"]) -> Evaluation:
        found = self.cost_fn(actions, problems)
        if not torch.is_grad_enabled():
            self._remember(actions, problems, found)
        multiplier, weight = self.price.multiplier[problems][:, None], self.price.weight[problems][:, None]
        broken = found.violation.clamp(max=torch.finfo(found.violation.dtype).max)  # 0 times infinity is no number
        if self.exact:
            priced = ((2 * multiplier + weight) * broken).sum(dim=-1)
            return replace(found, cost=found.cost + priced)
        priced = (multiplier * broken + weight / 2 * broken.square()).sum(dim=-1)
        return Evaluation(found.cost + priced, broken[..., :0])

    def _remember(
        self, actions: Float[Tensor, "r n h a"], problems: Int[Tensor, "r"], found: Evaluation
    ) -> None:
        """Of each problem what was said of the first candidates and of the last."""
        for row, problem in enumerate(problems.tolist()):
            told = self.heard.setdefault(problem, [])
            del told[1:]
            told.append((actions[row], found.cost[row], found.violation[row]))

    def judged(self, plans: Float[Tensor, "r h a"], problems: Sequence[int]) -> tuple[Tensor, Tensor] | None:
        """The true cost [r, 1] and violation [r, 1, k] of plans that a search began with or judged last: what was said
        of them. None where one of them is another plan."""
        costs, violations = [], []
        for plan, problem in zip(plans, problems, strict=True):
            known = [
                (cost[row], violation[row])
                for actions, cost, violation in self.heard.get(problem, [])
                for row in (actions == plan).flatten(1).all(dim=1).nonzero()[:, 0].tolist()
            ]
            if not known:
                return None
            costs.append(known[-1][0])
            violations.append(known[-1][1])
        return torch.stack(costs)[:, None], torch.stack(violations)[:, None]
