"""What every planner does with a cost function: call it within the budget, check it, rank, keep the best.

Ranking is feasibility first (Deb 2000, "An efficient constraint handling method for genetic
algorithms"): candidates that break no constraint by cost, then the others by their summed violation,
then those whose cost is `+inf`, which never win.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from vjepa_mpc.core.errors import InputError, NotFiniteError
from vjepa_mpc.planners.base import Bounds, Budget, CostFunction, Evaluation
from vjepa_mpc.planners.slopes import BadCandidates, with_slope


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
    return replace(bounds, low=low, high=high)


def check_task(
    init: Float[Tensor, "b h a"],
    bounds: Bounds,
    budget: Budget,
    generators: Sequence[torch.Generator],
    suggestions: Float[Tensor, "b m h a"] | None = None,
    previous: Float[Tensor, "#b a"] | None = None,
) -> Bounds:
    """Refuse with `InputError` what no planner can start from; return the bounds, as they hold after `previous`, in the
    type of `init`."""
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
    if (budget.patience is not None and budget.patience < 1) or not 0 <= budget.tolerance < 1:
        raise InputError(
            f"A patience of {budget.patience} iterations with tolerance {budget.tolerance} cannot be kept; "
            "give a patience of at least 1 and a tolerance in [0, 1)."
        )
    if suggestions is not None:
        shape = tuple(suggestions.shape)
        if len(shape) != 4 or (shape[0], *shape[2:]) != tuple(init.shape):
            raise InputError(f"Suggestions of shape {shape} do not fit a start {tuple(init.shape)}; give [b, m, h, a].")
        if not bool(torch.isfinite(suggestions).all()):
            raise InputError("A suggested plan holds NaN or infinity; leave it out.")
    if previous is not None:
        batch, _, size = init.shape
        if tuple(previous.shape) not in ((1, size), (batch, size)):
            raise InputError(
                f"Previous actions of shape {tuple(previous.shape)} do not fit a start {tuple(init.shape)}; "
                "give [b, a], a row a problem or one for all."
            )
        if not bool(torch.isfinite(previous).all()):
            raise InputError("The actions just executed hold NaN or infinity; give what the robot was really sent.")
    bounds = bounds.after(previous)
    bounds.check_problems(init.shape[0])
    return bounds_like(bounds, init)


def check_evaluation(
    evaluation: Evaluation, actions: Float[Tensor, "b n h a"], problems: Int[Tensor, "b"] | None = None
) -> None:
    """Refuse an evaluation of `actions` (of these problems; None: all of them, in order) that cannot be ranked.

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
    row = int(bad.any(dim=1).nonzero()[0])
    found, problem = bad[row], row if problems is None else int(problems[row])
    if bool((violation[row, found] < 0).any()):
        raise InputError("A constraint violation is negative; return how far it is broken, and 0 where it is kept.")
    raise NotFiniteError(
        f"The cost function returned NaN or -inf for {int(found.sum())} of {found.numel()} candidates of "
        f"problem {problem}; the error's evidence holds their actions.",
        BadCandidates(
            problem,
            actions[row, found].detach().clone(),
            cost[row, found].detach().clone(),
            violation[row, found].detach().clone(),
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


def merit(evaluation: Evaluation) -> Float[Tensor, "b n"]:
    """One number a candidate, lower is better, for planners that weigh candidates instead of ranking them: where
    a problem has a candidate that breaks nothing the cost of those (+inf for the others), else the violation."""
    key = _first_key(evaluation.cost, evaluation.violation)
    kept = torch.where(key == 0, evaluation.cost, torch.inf)
    return torch.where((key == 0).any(dim=1, keepdim=True), kept, key)


def take(values: Float[Tensor, "b n *rest"], index: Int[Tensor, "b m"]) -> Float[Tensor, "b m *rest"]:
    """The entries `index` of each problem."""
    return values[torch.arange(values.shape[0], device=values.device)[:, None], index]


@dataclass(frozen=True)
class Best:
    """The best plan of each problem so far, with what was said of it."""

    actions: Float[Tensor, "b h a"]
    cost: Float[Tensor, "b"]
    violation: Float[Tensor, "b k"]

    def clearly_better(self, than: Best, tolerance: float) -> Bool[Tensor, "b"]:
        """Where this breaks less, or breaks as much and costs less by more than `tolerance` of the other's cost."""
        key, old = _first_key(self.cost, self.violation), _first_key(than.cost, than.violation)
        margin = torch.where(than.cost == torch.inf, 0.0, tolerance * than.cost.abs())
        return (key < old) | ((key == old) & (self.cost < than.cost - margin))

    def allowed(self) -> Bool[Tensor, "b"]:
        """Where this is not rejected and breaks nothing."""
        return (self.cost != torch.inf) & (self.violation.sum(dim=-1) == 0)

    def meets(self, target: float | None) -> Bool[Tensor, "b"]:
        """Where this is allowed and costs no more than `target`; nowhere without one."""
        if target is None:
            return torch.zeros_like(self.cost, dtype=torch.bool)
        return self.allowed() & (self.cost <= target)

    def where(self, keep: Bool[Tensor, "b"], other: Best) -> Best:
        """This where `keep`, else the other."""
        return Best(
            torch.where(keep[:, None, None], self.actions, other.actions),
            torch.where(keep, self.cost, other.cost),
            torch.where(keep[:, None], self.violation, other.violation),
        )

    def improved_by(self, actions: Float[Tensor, "b n h a"], evaluation: Evaluation) -> Best:
        """This, or where a candidate is strictly better, the best of them."""
        index = first(evaluation)
        cost, violation = evaluation.cost.gather(1, index[:, None])[:, 0], self.violation
        if violation.shape[1]:
            violation = take(evaluation.violation, index[:, None])[:, 0]
            new_key, old_key = _first_key(cost, violation), _first_key(self.cost, self.violation)
            wins = (new_key < old_key) | ((new_key == old_key) & (cost < self.cost))
        else:
            wins = cost < self.cost
        if not bool(wins.any()):
            return self
        whole = index[:, None, None, None].expand(-1, 1, *actions.shape[2:])
        return Best(
            torch.where(wins[:, None, None], actions.gather(1, whole)[:, 0], self.actions),
            torch.where(wins, cost, self.cost),
            torch.where(wins[:, None], violation, self.violation),
        )


class Ledger:
    """Calls the cost function for one plan: checks each answer, counts evaluations, keeps the time."""

    def __init__(self, cost_fn: CostFunction, budget: Budget) -> None:
        self._cost_fn = cost_fn
        self._budget = budget
        self._began = time.perf_counter()
        self._names: tuple[str, ...] | None = None
        self.evaluations = 0  # of each problem still being solved
        self.unit: Float[Tensor, "a"] | None = None  # that actions are handed in; None: the cost function's
        self.box: tuple[Float[Tensor, "a"], Float[Tensor, "a"]] | None = None  # in the cost function's, with a unit

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

    def evaluate(
        self, actions: Float[Tensor, "b n h a"], problems: Int[Tensor, "b"], chunk: int | None = None
    ) -> Evaluation:
        """Evaluate candidates, `chunk` at a time. After the deadline the remaining chunks are left out, so
        the answer may be of the first candidates only."""
        return self._in_chunks(self._call, self.told(actions), problems, chunk)

    def told(self, actions: Float[Tensor, "*batch a"]) -> Float[Tensor, "*batch a"]:
        """Actions as the cost function is told them. What is small beside its unit was rounded, beyond the end of the
        box even."""
        if self.unit is None or self.box is None:
            return actions
        return (actions * self.unit).clamp(*self.box)

    def evaluate_with_slope(
        self, actions: Float[Tensor, "b n h a"], problems: Int[Tensor, "b"], penalty: float, chunk: int | None = None
    ) -> Evaluation:
        """The same, with the gradient of cost + penalty * violation of each candidate by its own actions.

        Raises `InputError` for a cost without gradient, `NotFiniteError` for a gradient that is not finite.
        """

        def call(part: Tensor, problems: Tensor) -> Evaluation:
            return with_slope(part, problems, lambda leaf: self._call(leaf, problems), penalty)

        found = self._in_chunks(call, self.told(actions), problems, chunk)
        if self.unit is None or found.slope is None:
            return found
        most = torch.finfo(found.slope.dtype).max  # steep in a wide unit is beyond what is a number
        return replace(found, slope=(found.slope * self.unit).clamp(-most, most))

    def _in_chunks(
        self,
        call: Callable[[Tensor, Tensor], Evaluation],
        actions: Float[Tensor, "b n h a"],
        problems: Int[Tensor, "b"],
        chunk: int | None,
    ) -> Evaluation:
        if chunk is None or chunk >= actions.shape[1]:
            return call(actions, problems)
        parts: list[Evaluation] = []
        for part in actions.split(chunk, dim=1):
            if parts and self.late():
                break
            parts.append(call(part, problems))
        return join(parts)

    def _call(self, actions: Float[Tensor, "b n h a"], problems: Int[Tensor, "b"]) -> Evaluation:
        evaluation = self._cost_fn(actions, problems)
        self.evaluations += actions.shape[1]
        check_evaluation(evaluation, actions, problems)
        names, self._names = self._names, evaluation.names
        if names is not None and names != evaluation.names:  # a constraint told late would not be kept
            raise InputError(
                f"The cost function names its constraints {evaluation.names}, and {names} before; name the same in "
                "every answer, with a violation of 0 where one is kept."
            )
        return evaluation


def join(parts: Sequence[Evaluation]) -> Evaluation:
    """Evaluations of several groups of candidates as one."""
    return Evaluation(
        torch.cat([part.cost for part in parts], dim=1),
        torch.cat([part.violation for part in parts], dim=1),
        parts[0].names,
        torch.cat([part.slope for part in parts if part.slope is not None], dim=1)
        if all(part.slope is not None for part in parts)
        else None,
    )
