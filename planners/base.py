"""The contract between a planner and what it optimises.

Shapes: b problems solved at once, n candidates of each, h steps of horizon, a action size,
k constraints. A planner sees a cost function and nothing else.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from vjepa_mpc.core.errors import InputError


@dataclass(frozen=True)
class Evaluation:
    """What a cost function says of candidates.

    `cost` [b, n]: lower is better, `+inf` rejects, NaN is an error. `violation` [b, n, k] >= 0: how far
    each hard constraint named in `names` is broken (0 = kept). k may be 0. `slope` is none of the cost
    function's business: the search adds what planners that descend asked for.
    """

    cost: Float[Tensor, "b n"]
    violation: Float[Tensor, "b n k"]
    names: tuple[str, ...] = ()
    slope: Float[Tensor, "b n h a"] | None = None


@runtime_checkable
class CostFunction(Protocol):
    """Maps actions [b, n, h, a] of the problems whose indices are in `problems` [b] to an `Evaluation`."""

    def __call__(self, actions: Float[Tensor, "b n h a"], problems: Int[Tensor, "b"]) -> Evaluation: ...


@dataclass(frozen=True)
class Bounds:
    """The box every action stays in, in the robot's action units. `low` and `high` are [a]."""

    low: Float[Tensor, "a"]
    high: Float[Tensor, "a"]

    def __post_init__(self) -> None:
        if not bool(torch.isfinite(self.low).all() and torch.isfinite(self.high).all()):
            raise InputError("Action bounds must be finite; give each action a low and a high value.")
        if bool((self.low > self.high).any()):
            raise InputError(f"Action bounds are crossed: low {self.low.tolist()} above high {self.high.tolist()}.")

    def rows(self, problems: Int[Tensor, "r"]) -> Bounds:
        """Those of these problems: a box is everyone's."""
        return self

    def after(self, previous: Float[Tensor, "#b a"] | None) -> Bounds:
        """Those that hold after these actions: a box holds whatever came before."""
        return self

    def check_problems(self, count: int) -> None:
        """`InputError` for bounds that are of another number of problems; these are everyone's."""

    @property
    def groups(self) -> tuple[tuple[int, ...], ...]:
        """The actions that are measured together, and so in one unit; in a box none."""
        return ()

    def in_units(self, unit: Float[Tensor, "a"]) -> Bounds:
        """The same bounds where each action is told in this unit."""
        return replace(self, low=self.low / unit, high=self.high / unit)

    def clip(self, actions: Float[Tensor, "*batch a"]) -> Float[Tensor, "*batch a"]:
        """Project actions into the box."""
        return actions.clamp(self.low.to(actions), self.high.to(actions))


@dataclass(frozen=True)
class Budget:
    """What a plan may cost: model evaluations per problem, and seconds of wall time. None = no limit.

    A problem also stops, by itself, once a plan that breaks no constraint costs `target` or less, and after
    `patience` iterations that brought no relative improvement above `tolerance`. Benchmarks budget
    evaluations, never seconds, so that results do not depend on the machine.
    """

    max_evaluations: int | None = None
    deadline_s: float | None = None
    patience: int | None = None
    tolerance: float = 1e-3
    target: float | None = None


@dataclass(frozen=True)
class IterationStatistics:
    """One iteration's record: `best` [b] so far, this population's `mean_cost` [b] over finite candidates,
    `std` [b] of the population averaged over horizon and actions, `evaluations` so far of a problem still
    being solved, `seconds` since the start. Problems that stopped before keep their last values."""

    best: tuple[float, ...]
    mean_cost: tuple[float, ...]
    std: tuple[float, ...]
    evaluations: int
    seconds: float

    def of_problem(self, row: int) -> IterationStatistics:
        """The record of problem number `row` alone."""
        one = slice(row, row + 1)
        return IterationStatistics(self.best[one], self.mean_cost[one], self.std[one], self.evaluations, self.seconds)


@dataclass(frozen=True)
class Ending:
    """How the search for one problem's plan ended: its evaluations, and why it stopped ("iterations",
    "max_evaluations", "deadline", "converged" or "target")."""

    evaluations: int
    stopped: str


@dataclass(frozen=True)
class ActionPlan:
    """The whole answer: the plan, what it costs, which constraints it breaks, and how it was found.

    `evaluations` and `stopped` are those of the problem that took longest, `endings` [b] each one's.
    `others` [b, m, h, a]: further good plans, best first, worth suggesting to the next search (m may be 0).
    """

    actions: Float[Tensor, "b h a"]
    cost: Float[Tensor, "b"]
    violation: Float[Tensor, "b k"]
    names: tuple[str, ...]
    evaluations: int
    seconds: float
    stopped: str
    iterations: tuple[IterationStatistics, ...] = field(default=(), repr=False)
    endings: tuple[Ending, ...] = field(default=(), repr=False)
    others: Float[Tensor, "b m h a"] | None = field(default=None, repr=False)

    def of_problem(self, row: int) -> ActionPlan:
        """The answer to problem number `row` alone; `seconds` are those of all."""
        one = slice(row, row + 1)
        ending = self.endings[row] if self.endings else Ending(self.evaluations, self.stopped)
        return ActionPlan(
            self.actions[one], self.cost[one], self.violation[one], self.names, ending.evaluations, self.seconds,
            ending.stopped, tuple(record.of_problem(row) for record in self.iterations), (ending,),
            None if self.others is None else self.others[one],
        )  # fmt: skip

    @property
    def held_by(self) -> tuple[tuple[str, ...], ...]:
        """Of each problem the constraints that its plan breaks: nothing better was found for them."""
        return tuple(
            tuple(name for name, value in zip(self.names, row, strict=True) if value > 0)
            for row in self.violation.tolist()
        )


@runtime_checkable
class Planner(Protocol):
    """Lowers a cost function from a starting plan, inside its own action bounds.

    `generators` holds one `torch.Generator` a problem: the only randomness used. `suggestions` [b, m, h, a]
    (of a policy, or earlier plans) are candidates of the first population. `previous` [b, a]: the actions just
    executed, from which bounds that limit changes (`Limits`) count; None: what these hold. The returned plan has been
    evaluated and is never worse than `init` (projected into the bounds), nor than what was suggested;
    `PublishedCEM` alone, which reproduces a published planner, does not promise the latter two.
    """

    bounds: Bounds

    def plan(
        self,
        cost_fn: CostFunction,
        init: Float[Tensor, "b h a"],
        *,
        budget: Budget,
        generators: Sequence[torch.Generator],
        suggestions: Float[Tensor, "b m h a"] | None = None,
        previous: Float[Tensor, "#b a"] | None = None,
    ) -> ActionPlan: ...
