"""What a plan tells of its search is what was judged: recomputed from every candidate the cost function saw."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import accumulate

import torch
from jaxtyping import Float, Int
from torch import Tensor

from vjepa_mpc.planners.base import ActionPlan, Evaluation, IterationStatistics
from vjepa_mpc.planners.testing.clock import Timed
from vjepa_mpc.planners.testing.worlds import Bowl, PlannerFactory, assert_near, box, distinct_goals, solve


@dataclass
class _Judged:
    """A bowl where a part of the box is rejected; remembers candidates and costs call by call."""

    bowl: Bowl
    actions: list[Tensor] = field(default_factory=list)
    costs: list[Tensor] = field(default_factory=list)

    def __call__(self, actions: Float[Tensor, "b n h a"], problems: Int[Tensor, "b"]) -> Evaluation:
        found = self.bowl(actions, problems)
        cost = torch.where(actions[:, :, 0, 0] > 0.9, torch.inf, found.cost)
        self.actions.append(actions.detach().clone())
        self.costs.append(cost.detach().clone())
        return Evaluation(cost, found.violation)


def check_records_are_true(make: PlannerFactory) -> None:
    """Best, mean cost, spread, evaluations and time of every iteration, and the further plans, of each problem."""
    judged = _Judged(Bowl(distinct_goals(2, 2, 2)))
    timed = Timed(judged, lambda call, candidates: 0.01 + 0.001 * candidates)
    with timed.clock():
        plan = solve(make(box(2)), timed, torch.zeros(2, 2, 2))
    ends = list(accumulate(cost.shape[1] for cost in judged.costs))
    before = 0
    for number, record in enumerate(plan.iterations, start=1):
        assert record.evaluations in ends, f"no call ended at the {record.evaluations} evaluations of record {number}"
        last = ends.index(record.evaluations)
        best = torch.cat(judged.costs[: last + 1], dim=1).amin(dim=1)
        assert_near(torch.tensor(record.best), best, 1e-5, f"the best so far of record {number}")
        assert abs(record.seconds - timed.calls[last].ended_s) < 1e-9, f"the seconds of record {number} are not those"
        calls = [slice(first, last + 1) for first in range(before, last + 1)]
        assert any(_is_of(record, judged.actions[part], judged.costs[part]) for part in calls), (
            f"mean cost {record.mean_cost} and std {record.std} of record {number} are those of no population before it"
        )
        before = last + 1
    _check_endings(plan)
    if plan.others is not None:
        _check_others(plan.others, torch.cat(judged.actions, dim=1), judged.bowl)


def _is_of(record: IterationStatistics, actions: list[Tensor], costs: list[Tensor]) -> bool:
    """Whether mean cost (of what was not rejected) and spread are those of this population."""
    cost, samples = torch.cat(costs, dim=1), torch.cat(actions, dim=1)
    mean = torch.stack([row[row != torch.inf].mean() for row in cost])
    std = samples.std(dim=1, correction=0).mean(dim=(1, 2))
    near = torch.allclose(torch.tensor(record.mean_cost), mean, atol=1e-5, rtol=1e-4)
    return near and torch.allclose(torch.tensor(record.std), std, atol=1e-5, rtol=1e-4)


def _check_endings(plan: ActionPlan) -> None:
    assert len(plan.endings) == len(plan.actions), f"{len(plan.endings)} endings of {len(plan.actions)} problems"
    assert max(ending.evaluations for ending in plan.endings) == plan.evaluations, "the longest ending is another"
    for row in range(len(plan.actions)):
        one = plan.of_problem(row)
        assert torch.equal(one.actions[0], plan.actions[row]) and one.endings == plan.endings[row : row + 1]
        assert [record.best for record in one.iterations] == [record.best[row : row + 1] for record in plan.iterations]


def _check_others(others: Float[Tensor, "b m h a"], candidates: Float[Tensor, "b n h a"], bowl: Bowl) -> None:
    """Further plans were judged for their own problem, and come best first."""
    for problem, plans in enumerate(others):
        known = (plans[:, None] == candidates[problem]).flatten(2).all(dim=2).any(dim=1)
        assert bool(known.all()), f"{int((~known).sum())} further plans of problem {problem} were never judged for it"
    cost = bowl(others, torch.arange(len(others))).cost
    assert torch.equal(cost, cost.sort(dim=1).values), f"the further plans do not come best first: {cost.tolist()}"
