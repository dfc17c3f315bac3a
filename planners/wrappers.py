"""Planners made of planners: sample then refine, and plans from elsewhere put among the candidates."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from vjepa_mpc.core.errors import InputError
from vjepa_mpc.planners.base import ActionPlan, Bounds, Budget, CostFunction, Ending, Planner
from vjepa_mpc.planners.evaluation import check_task

Suggest = Callable[[Float[Tensor, "b h a"], Sequence[torch.Generator]], Float[Tensor, "b m h a"]]
"""Plans worth a look, best first, given the start and the problems' generators: a policy's, say."""


@dataclass(frozen=True)
class RefinedSettings:
    """`share` of the evaluations, and of the time, goes to the first planner where these are limited; `first` and
    `second` are the settings of the two."""

    share: float
    first: object
    second: object


class Refined:
    """One planner, then another from where it ended: sampling finds the valley, a gradient its bottom.

    Evaluations are those of both; the second judges its start, which is the first one's answer, again. Problems
    stop one by one in each. Iterations and deadlines are the planners' own, and follow one another.
    """

    def __init__(self, first: Planner, second: Planner, share: float = 0.75) -> None:
        same = torch.equal(first.bounds.low, second.bounds.low) and torch.equal(first.bounds.high, second.bounds.high)
        if not same:
            raise InputError("The two planners have different bounds; make both with the same.")
        if not 0 < share < 1:
            raise InputError(f"The first planner's share is {share}; it must lie between 0 and 1.")
        self.first, self.second, self.share = first, second, share
        self.bounds: Bounds = first.bounds
        self.settings = RefinedSettings(share, getattr(first, "settings", None), getattr(second, "settings", None))

    def plan(
        self,
        cost_fn: CostFunction,
        init: Float[Tensor, "b h a"],
        *,
        budget: Budget,
        generators: Sequence[torch.Generator],
        suggestions: Float[Tensor, "b m h a"] | None = None,
    ) -> ActionPlan:
        """The second planner's answer from the first one's. Raises what the two raise."""
        began = time.perf_counter()
        check_task(init, self.bounds, budget, generators, suggestions)
        limit, deadline_s = budget.max_evaluations, budget.deadline_s
        part = replace(
            budget,
            max_evaluations=None if limit is None else max(1, min(limit, round(self.share * limit))),
            deadline_s=None if deadline_s is None else self.share * deadline_s,
        )
        found = self.first.plan(cost_fn, init, budget=part, generators=generators, suggestions=suggestions)
        left = None if limit is None else limit - found.evaluations
        spent_s = time.perf_counter() - began
        late = deadline_s is not None and spent_s >= deadline_s
        if left == 0 or late:
            return replace(found, stopped="deadline" if late else "max_evaluations")
        rest = replace(
            budget, max_evaluations=left, deadline_s=None if deadline_s is None else deadline_s - spent_s
        )
        refined = self.second.plan(cost_fn, found.actions, budget=rest, generators=generators)
        return _one_after_the_other(found, refined, limit)


def _one_after_the_other(found: ActionPlan, refined: ActionPlan, limit: int | None) -> ActionPlan:
    """Both searches as one; the second one's records go on from the first one's counts."""
    later = tuple(
        replace(
            record, evaluations=record.evaluations + found.evaluations, seconds=record.seconds + found.seconds
        )
        for record in refined.iterations
    )
    endings = tuple(
        Ending(a.evaluations + b.evaluations, b.stopped)
        for a, b in zip(found.endings, refined.endings, strict=True)
    )
    stopped = refined.stopped
    if stopped == "iterations" and limit is not None and found.stopped == "max_evaluations":
        stopped = "max_evaluations"
    return replace(
        refined,
        evaluations=max((ending.evaluations for ending in endings), default=0),
        seconds=found.seconds + refined.seconds,
        stopped=stopped,
        iterations=(*found.iterations, *later),
        endings=endings,
        others=found.others if refined.others is None else refined.others,
    )


class Suggested:
    """A planner whose first population holds what `suggest` has to offer, and what it is handed itself."""

    def __init__(self, planner: Planner, suggest: Suggest) -> None:
        self.planner, self.suggest = planner, suggest
        self.bounds: Bounds = planner.bounds
        self.settings = getattr(planner, "settings", None)

    def plan(
        self,
        cost_fn: CostFunction,
        init: Float[Tensor, "b h a"],
        *,
        budget: Budget,
        generators: Sequence[torch.Generator],
        suggestions: Float[Tensor, "b m h a"] | None = None,
    ) -> ActionPlan:
        """The planner's answer. Raises what it raises, and `InputError` for suggestions of the wrong shape."""
        check_task(init, self.bounds, budget, generators, suggestions)
        offered = self.suggest(init, generators)
        if suggestions is not None:
            offered = torch.cat((suggestions, offered), dim=1)
        return self.planner.plan(cost_fn, init, budget=budget, generators=generators, suggestions=offered)
