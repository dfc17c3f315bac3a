"""Deadlines, on a clock that only the cost function moves: exact, whatever else the machine does."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from unittest import mock

import torch
from jaxtyping import Float, Int
from torch import Tensor

from vjepa_mpc.planners.base import ActionPlan, Budget, CostFunction, Evaluation
from vjepa_mpc.planners.testing.worlds import Bowl, PlannerFactory, box, distinct_goals, solve


@dataclass(frozen=True)
class Call:
    """One call of a cost function: when it began and ended (s), the `evaluations` made by then, whether slopes were
    asked for."""

    began_s: float
    ended_s: float
    evaluations: int
    slopes: bool


@dataclass
class Timed:
    """A cost function whose calls take what `takes(call, candidates)` says, in s of a clock that stands otherwise."""

    cost_fn: CostFunction
    takes: Callable[[int, int], float]
    now_s: float = 0.0
    calls: list[Call] = field(default_factory=list)

    def __call__(self, actions: Float[Tensor, "b n h a"], problems: Int[Tensor, "b"]) -> Evaluation:
        began_s, made = self.now_s, self.calls[-1].evaluations if self.calls else 0
        self.now_s += self.takes(len(self.calls), actions.shape[1])
        self.calls.append(Call(began_s, self.now_s, made + actions.shape[1], torch.is_grad_enabled()))
        return self.cost_fn(actions, problems)

    @contextlib.contextmanager
    def clock(self) -> Iterator[None]:
        """All clocks of wall time are this one."""
        with contextlib.ExitStack() as stack:
            for name in ("perf_counter", "monotonic", "time"):
                stack.enter_context(mock.patch.object(time, name, lambda: self.now_s))
            yield


def _constant(call: int, candidates: int) -> float:
    return 0.05


def _irregular(call: int, candidates: int) -> float:
    """Other processes come and go: a call may take many times as long as the one before."""
    return (0.01, 0.03, 0.01, 0.11, 0.02, 0.07)[call % 6]


def _by_candidate(call: int, candidates: int) -> float:
    return 0.01 * candidates


def check_deadline_kept(make: PlannerFactory) -> None:
    """A plan ends within one call of its deadline, however irregular calls are, and is still an answer. Calls that take
    alike end before it."""
    for limit in (None, 0.4):
        bowl = Bowl(distinct_goals(1, 2, 2), limit=limit)
        for takes in (_constant, _irregular, _by_candidate):
            for deadline_s in (0.0, 0.03, 0.15, 0.42):
                timed = Timed(bowl, takes)
                plan = _planned(make, timed, deadline_s)
                # Where a descent ended is judged all the same: slopes alone are no answer.
                allowed = 2 if any(call.slopes for call in timed.calls) else 1
                late = [call for call in timed.calls if call.ended_s > deadline_s + 1e-9]
                assert len(late) <= allowed, f"calls that ended after the deadline of {deadline_s} s: {late}"
                if takes is _constant and deadline_s > 0.4:
                    assert not late, f"calls of 50 ms each were begun too late for the deadline: {late}"
        assert float(plan.cost[0]) < float("inf"), "no answer in time"
    timed = Timed(Bowl(distinct_goals(1, 2, 2)), _constant)
    plan, start = _planned(make, timed, 0.6), torch.zeros(1, 1, 2, 2)
    assert float(plan.cost[0]) < float(timed.cost_fn(start, torch.arange(1)).cost[0, 0]), "no progress in time"
    assert timed.now_s > 0.3, f"only {timed.now_s:.2f} s were used of 0.6 s"


def _planned(make: PlannerFactory, timed: Timed, deadline_s: float) -> ActionPlan:
    with timed.clock():
        plan = solve(make(box(2)), timed, torch.zeros(1, 2, 2), budget=Budget(deadline_s=deadline_s))
    assert abs(plan.seconds - timed.now_s) < 1e-9, f"{timed.now_s:.3f} s were taken, {plan.seconds:.3f} s are told"
    assert plan.stopped == "deadline", f"stopped by {plan.stopped!r}, not by the deadline"
    assert len(timed.calls) > 0, "the start was not judged"
    return plan
