"""Planners made of planners: sample then refine, and plans from elsewhere put among the candidates."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

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

    Evaluations are those of both; the second judges its start, which is the first one's answer, again. With
    `patience` the second has what the first's share leaves, however early that ended. Problems
    stop one by one in each. Iterations and deadlines are the planners' own, and follow one another.
    """

    def __init__(self, first: Planner, second: Planner, share: float = 0.75) -> None:
        if not _alike(first.bounds, second.bounds):
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
        previous: Float[Tensor, "#b a"] | None = None,
    ) -> ActionPlan:
        """The second planner's answer from the first one's. Raises what the two raise."""
        began = time.perf_counter()
        check_task(init, self.bounds, budget, generators, suggestions, previous)
        limit, deadline_s = budget.max_evaluations, budget.deadline_s
        part = replace(
            budget,
            max_evaluations=None if limit is None else max(1, min(limit, round(self.share * limit))),
            deadline_s=None if deadline_s is None else self.share * deadline_s,
        )
        found = self.first.plan(
            cost_fn, init, budget=part, generators=generators, suggestions=suggestions, previous=previous
        )
        left = None
        if limit is not None and part.max_evaluations is not None:
            # What a problem that ran out of patience left over is nobody's: the slowest one's count is not its own.
            left = limit - (found.evaluations if budget.patience is None else part.max_evaluations)
            if part.max_evaluations == limit and all(ending.stopped == "target" for ending in found.endings):
                left = 0  # as beside a problem that goes on
        spent_s = time.perf_counter() - began
        late = deadline_s is not None and spent_s >= deadline_s
        if left == 0 or late:
            return _ended(found, "deadline" if late else "max_evaluations")
        rest = replace(
            budget, max_evaluations=left, deadline_s=None if deadline_s is None else deadline_s - spent_s
        )
        refined = self.second.plan(cost_fn, found.actions, budget=rest, generators=generators, previous=previous)
        return _one_after_the_other(found, refined, limit)


def _alike(one: Any, other: Any) -> bool:
    """Whether two bounds are of one kind and hold the same."""
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        return torch.equal(one, other)
    if isinstance(one, Bounds) and type(one) is type(other):
        return all(_alike(getattr(one, part.name), getattr(other, part.name)) for part in fields(one))
    return bool(type(one) is type(other) and one == other)


def _one_after_the_other(found: ActionPlan, refined: ActionPlan, limit: int | None) -> ActionPlan:
    """Both searches as one; the second one's records go on from the first one's counts."""
    later = tuple(
        replace(
            record, evaluations=record.evaluations + found.evaluations, seconds=record.seconds + found.seconds
        )
        for record in refined.iterations
    )
    endings = []
    for before, after in zip(found.endings, refined.endings, strict=True):
        cut = after.stopped == "iterations" and limit is not None and before.stopped == "max_evaluations"
        why = before.stopped if cut else after.stopped
        endings.append(Ending(before.evaluations + after.evaluations, why))
    longest = max(endings, key=lambda ending: ending.evaluations)
    return replace(
        refined,
        evaluations=longest.evaluations,
        seconds=found.seconds + refined.seconds,
        stopped=longest.stopped,
        iterations=(*found.iterations, *later),
        endings=tuple(endings),
        others=found.others if refined.others is None else refined.others,
    )


def _ended(found: ActionPlan, why: str) -> ActionPlan:
    """The first search's answer, where the second is not begun: what met the target did not end by that."""
    endings = tuple(ending if ending.stopped == "target" else replace(ending, stopped=why) for ending in found.endings)
    return replace(found, stopped=max(endings, key=lambda ending: ending.evaluations).stopped, endings=endings)


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
        previous: Float[Tensor, "#b a"] | None = None,
    ) -> ActionPlan:
        """The planner's answer. Raises what it raises, and `InputError` for suggestions of the wrong shape. What
        `suggest` takes counts as the plan's time."""
        began = time.perf_counter()
        check_task(init, self.bounds, budget, generators, suggestions, previous)
        offered = self.suggest(init, generators)
        check_task(init, self.bounds, budget, generators, offered, previous)
        if suggestions is not None:
            offered = torch.cat((suggestions, offered.to(suggestions)), dim=1)
        took_s = time.perf_counter() - began
        left_s = None if budget.deadline_s is None else max(0.0, budget.deadline_s - took_s)
        rest = replace(budget, deadline_s=left_s)
        plan = self.planner.plan(
            cost_fn, init, budget=rest, generators=generators, suggestions=offered, previous=previous
        )
        records = (replace(record, seconds=record.seconds + took_s) for record in plan.iterations)
        return replace(plan, seconds=plan.seconds + took_s, iterations=tuple(records))
