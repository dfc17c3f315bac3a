"""What every planner does with a cost function: call it within the budget, check it, rank, keep the best.

Ranking is feasibility first (Deb 2000, "An efficient constraint handling method for genetic
algorithms"): candidates that break no constraint by cost, then the others by their summed violation,
then those whose cost is `+inf`, which never win.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from vjepa_mpc.core.errors import InputError, NotFiniteError
from vjepa_mpc.planners.base import Bounds, Budget, CostFunction, Evaluation


@dataclass(frozen=True)
class BadCandidates:
    """Evidence of a `NotFiniteError`: the candidates of one problem whose evaluation is not a number."""

    problem: int
    actions: Float[Tensor, "m h a"]
    cost: Float[Tensor, "m"]
    violation: Float[Tensor, "m k"]
    gradient: Float[Tensor, "m h a"] | None = None


def bounds_like(bounds: Bounds, actions: Float[Tensor, "*batch a"]) -> Bounds:
    """`bounds` in the type and on the device of `actions`, rounded inwards.

    Float64 bounds rounded to the nearest float32 could lie outside themselves by one bit. A box too
    narrow for the type to hold a number inside keeps the nearest one.
    """
    low, high = bounds.low.to(actions), bounds.high.to(actions)
    if bounds.low.dtype != actions.dtype or bounds.high.dtype != actions.dtype:
        up, down = torch.full_like(low, torch.inf), torch.full_like(high, -torch.inf)
        inner_low = torch.where(low.double() < bounds.low.to(low.device).double(), low.nextafter(up), low)
        inner_high = torch.where(high.double() > bounds.high.to(high.device).double(), high.nextafter(down), high)
        fits = inner_low <= inner_high
        low, high = torch.where(fits, inner_low, low), torch.where(fits, inner_high, high)
    return Bounds(low, high)


def check_task(
    init: Float[Tensor, "b h a"], bounds: Bounds, budget: Budget, generators: Sequence[torch.Generator]
) -> Bounds:
    """Refuse with `InputError` what no planner can start from; return the bounds in the type of `init`."""
    if init.ndim != 3 or 0 in init.shape:
        raise InputError(f"A plan starts from actions [problem, horizon, action], all >= 1; got {tuple(init.shape)}.")
    if init.shape[-1] != bounds.low.numel():
        raise InputError(
            f"The starting plan has {init.shape[-1]} values an action, the bounds {bounds.low.numel()}; "
            "make them agree."
        )
    if init.dtype not in (torch.float32, torch.float64):
        # Half precision cannot hold a small std or Adam's epsilon; the cost function may round as it likes.
        raise InputError(f"Plans are made in float32 or float64, got {init.dtype}; convert the starting plan.")
    if not bool(torch.isfinite(init).all()):
        raise InputError("The starting plan holds NaN or infinity; start from hold actions instead.")
    if len(generators) != init.shape[0]:
        raise InputError(f"{init.shape[0]} problems need as many generators, got {len(generators)}; give one each.")
    if budget.max_evaluations is not None and budget.max_evaluations < 1:
        raise InputError(f"A budget of {budget.max_evaluations} evaluations cannot judge the start; give at least 1.")
    if budget.deadline_s is not None and not budget.deadline_s >= 0:
        raise InputError(f"A deadline of {budget.deadline_s} s is not a time; give seconds >= 0, or None.")
    return bounds_like(bounds, init)


def check_evaluation(evaluation: Evaluation, actions: Float[Tensor, "b n h a"]) -> None:
    """Refuse an evaluation of `actions` that cannot be ranked.

    Raises `NotFiniteError` with `BadCandidates` for NaN (and for a cost of -inf, which would always win),
    `InputError` for wrong shapes and for negative violations, which would hide broken constraints.
    """
    cost, violation = evaluation.cost, evaluation.violation
    if cost.shape != actions.shape[:2] or violation.ndim != 3 or violation.shape[:2] != actions.shape[:2]:
        raise InputError(
            f"The cost function answered {tuple(actions.shape[:2])} candidates with cost {tuple(cost.shape)} "
            f"and violation {tuple(violation.shape)}; return cost [b, n] and violation [b, n, k]."
        )
    if len(evaluation.names) != violation.shape[2]:
        raise InputError(
            f"The cost function names {len(evaluation.names)} constraints and returns {violation.shape[2]}; name each."
        )
    bad = ~(cost > -torch.inf)
    if violation.shape[2]:
        bad |= ~(violation >= 0).all(dim=-1)
    if not bool(bad.any()):
        return
    problem = int(bad.any(dim=1).nonzero()[0])
    found = bad[problem]
    if bool((violation[problem, found] < 0).any()):
        raise InputError("A constraint violation is negative; return how far it is broken, and 0 where it is kept.")
    raise NotFiniteError(
        f"The cost function returned NaN or -inf for {int(found.sum())} of {found.numel()} candidates of "
        f"problem {problem}; the error's evidence holds their actions.",
        BadCandidates(
            problem,
            actions[problem, found].detach().clone(),
            cost[problem, found].detach().clone(),
            violation[problem, found].detach().clone(),
        ),
    )


def _first_key(cost: Float[Tensor, "*n"], violation: Float[Tensor, "*n k"]) -> Float[Tensor, "*n"]:
    """What is compared before the cost: the summed violation, or +inf for a rejected candidate."""
    return torch.where(cost == torch.inf, torch.inf, violation.sum(dim=-1))


def rank(evaluation: Evaluation) -> Int[Tensor, "b n"]:
    """Indices of the candidates of each problem, best first; equal ones keep their order."""
    order = evaluation.cost.argsort(dim=1, stable=True)
    # Where nothing is broken the cost alone says it all, rejected ones (+inf) last.
    if evaluation.violation.shape[2] and bool(evaluation.violation.any()):
        key = _first_key(evaluation.cost, evaluation.violation).gather(1, order)
        order = order.gather(1, key.argsort(dim=1, stable=True))
    return order


def first(evaluation: Evaluation) -> Int[Tensor, "b"]:
    """Index of the best candidate of each problem, the first of equal ones: `rank` without sorting."""
    if not evaluation.violation.shape[2]:
        return evaluation.cost.argmin(dim=1)
    key = _first_key(evaluation.cost, evaluation.violation)
    return torch.where(key == key.amin(dim=1, keepdim=True), evaluation.cost, torch.inf).argmin(dim=1)


def take(values: Float[Tensor, "b n *rest"], index: Int[Tensor, "b m"]) -> Float[Tensor, "b m *rest"]:
    """The entries `index` of each problem."""
    return values[torch.arange(values.shape[0], device=values.device)[:, None], index]


@dataclass(frozen=True)
class Best:
    """The best plan of each problem so far, with what was said of it."""

    actions: Float[Tensor, "b h a"]
    cost: Float[Tensor, "b"]
    violation: Float[Tensor, "b k"]

    def improved_by(self, actions: Float[Tensor, "b n h a"], evaluation: Evaluation) -> Best:
        """This, or where a candidate is strictly better, the best of them."""
        index = first(evaluation)
        rows = torch.arange(index.shape[0], device=index.device)
        cost, violation = evaluation.cost[rows, index], evaluation.violation[rows, index]
        if violation.shape[1]:
            new_key, old_key = _first_key(cost, violation), _first_key(self.cost, self.violation)
            wins = (new_key < old_key) | ((new_key == old_key) & (cost < self.cost))
        else:
            wins = cost < self.cost
        if not bool(wins.any()):
            return self
        return Best(
            torch.where(wins[:, None, None], actions[rows, index], self.actions),
            torch.where(wins, cost, self.cost),
            torch.where(wins[:, None], violation, self.violation),
        )


class Ledger:
    """Calls the cost function for one plan: checks each answer, counts evaluations, keeps the time."""

    def __init__(self, cost_fn: CostFunction, budget: Budget, problems: int, device: torch.device) -> None:
        self._cost_fn = cost_fn
        self._budget = budget
        self._problems = torch.arange(problems, device=device)
        self._began = time.perf_counter()
        self.evaluations = 0  # per problem

    @property
    def seconds(self) -> float:
        """Wall time since the plan began."""
        return time.perf_counter() - self._began

    def affordable(self, wanted: int) -> int:
        """How many of `wanted` evaluations a problem are left in the budget."""
        limit = self._budget.max_evaluations
        return wanted if limit is None else min(wanted, limit - self.evaluations)

    def late(self, expected_s: float = 0.0) -> bool:
        """Whether something that takes `expected_s` would end after the deadline."""
        deadline_s = self._budget.deadline_s
        return deadline_s is not None and self.seconds + expected_s >= deadline_s

    def evaluate(self, actions: Float[Tensor, "b n h a"], chunk: int | None = None) -> Evaluation:
        """Evaluate candidates, `chunk` at a time. After the deadline the remaining chunks are left out, so
        the answer may be of the first candidates only."""
        if chunk is None or chunk >= actions.shape[1]:
            return self._call(actions)
        parts: list[Evaluation] = []
        for part in actions.split(chunk, dim=1):
            if parts and self.late():
                break
            parts.append(self._call(part))
        return join(parts)

    def _call(self, actions: Float[Tensor, "b n h a"]) -> Evaluation:
        evaluation = self._cost_fn(actions, self._problems)
        self.evaluations += actions.shape[1]
        check_evaluation(evaluation, actions)
        return evaluation


def join(parts: Sequence[Evaluation]) -> Evaluation:
    """Evaluations of several groups of candidates as one."""
    return Evaluation(
        torch.cat([part.cost for part in parts], dim=1),
        torch.cat([part.violation for part in parts], dim=1),
        parts[0].names,
    )
