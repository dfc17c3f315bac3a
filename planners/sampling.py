"""The one sampling loop; an algorithm is a small `Proposal` whose state is a value."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Generic, Protocol, TypeVar, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from vjepa_mpc.core.errors import InputError
from vjepa_mpc.planners.base import ActionPlan, Bounds, Budget, CostFunction, Evaluation, IterationStatistics
from vjepa_mpc.planners.evaluation import Best, Ledger, check_task

State = TypeVar("State")


@runtime_checkable
class Proposal(Protocol[State]):
    """A search distribution over action sequences. `State` is a frozen value, passed in and returned."""

    def init(self, init_actions: Float[Tensor, "b h a"], bounds: Bounds) -> State:
        """The distribution to begin with, around a plan inside the bounds."""
        ...

    def sample(self, state: State, n: int, generators: Sequence[torch.Generator]) -> Float[Tensor, "b n h a"]:
        """`n` candidates a problem; problem i draws from `generators[i]` only. The loop clips them."""
        ...

    def update(self, state: State, samples: Float[Tensor, "b n h a"], evaluation: Evaluation) -> State:
        """The distribution after `samples` (as evaluated: inside the bounds) were judged."""
        ...

    def mean(self, state: State) -> Float[Tensor, "b h a"]:
        """The plan the distribution stands for."""
        ...


def population_statistics(
    best: Best, samples: Float[Tensor, "b n h a"], evaluation: Evaluation, ledger: Ledger
) -> IterationStatistics:
    """One iteration's record. `std` is that of the population drawn; a mean over no finite cost is +inf."""
    finite = evaluation.cost != torch.inf
    total = torch.where(finite, evaluation.cost, 0.0).sum(dim=1)
    mean_cost = torch.where(finite.any(dim=1), total / finite.sum(dim=1).clamp(min=1), torch.inf)
    std = samples.std(dim=1, correction=0).mean(dim=(1, 2))
    return IterationStatistics(
        tuple(best.cost.tolist()),
        tuple(mean_cost.tolist()),
        tuple(std.tolist()),
        ledger.evaluations,
        ledger.seconds,
    )


class SamplingPlanner(Generic[State]):
    """Lowers a cost by sampling: evaluate the start, then populations, then the final mean; return the best.

    Each problem spends 1 + iterations * samples + 1 evaluations, or exactly `budget.max_evaluations` if
    that is less: the last population shrinks, and one evaluation is kept for the final mean. The
    deadline is looked at between iterations, and between chunks of `chunk` candidates: an iteration
    expected to end after it (as long as the last one) is not begun.
    """

    def __init__(
        self,
        bounds: Bounds,
        proposal: Proposal[State],
        *,
        samples: int,
        iterations: int,
        chunk: int | None = None,
    ) -> None:
        if samples < 1 or iterations < 1 or (chunk is not None and chunk < 1):
            raise InputError(f"Samples, iterations and chunk must be >= 1; got {samples}, {iterations}, {chunk}.")
        self.bounds = bounds
        self.proposal = proposal
        self.samples = samples
        self.iterations = iterations
        self.chunk = chunk

    def plan(
        self,
        cost_fn: CostFunction,
        init: Float[Tensor, "b h a"],
        *,
        budget: Budget,
        generators: Sequence[torch.Generator],
    ) -> ActionPlan:
        """The best plan seen, never worse than `init` clipped to the bounds.

        Raises `InputError` for a task that cannot be started and `NotFiniteError`, with the candidates that
        led there, when the cost function returns NaN.
        """
        bounds = check_task(init, self.bounds, budget, generators)
        # no_grad, never inference_mode: gradient planners share the same world model and its buffers.
        with torch.no_grad():
            return self._search(cost_fn, bounds.clip(init), bounds, budget, generators)

    def _search(
        self,
        cost_fn: CostFunction,
        start: Float[Tensor, "b h a"],
        bounds: Bounds,
        budget: Budget,
        generators: Sequence[torch.Generator],
    ) -> ActionPlan:
        ledger = Ledger(cost_fn, budget, start.shape[0], start.device)
        first = ledger.evaluate(start[:, None])
        best = Best(start, first.cost[:, 0], first.violation[:, 0])
        state = self.proposal.init(start, bounds)
        records: list[IterationStatistics] = []
        last_s, stopped = ledger.seconds, "iterations"
        for iteration in range(self.iterations):
            # One evaluation is kept for the final mean, unless that mean would be the start again.
            n = ledger.affordable(self.samples + 1) - 1
            n = ledger.affordable(1) if iteration == 0 and n == 0 else n
            if n < 1:
                stopped = "max_evaluations"
                break
            if ledger.late(last_s):
                stopped = "deadline"
                break
            began_s = ledger.seconds
            samples = bounds.clip(self.proposal.sample(state, n, generators))
            evaluation = ledger.evaluate(samples, self.chunk)
            samples = samples[:, : evaluation.cost.shape[1]]
            best = best.improved_by(samples, evaluation)
            state = self.proposal.update(state, samples, evaluation)
            records.append(population_statistics(best, samples, evaluation, ledger))
            last_s = ledger.seconds - began_s
        if records and ledger.affordable(1) and not ledger.late():
            final = bounds.clip(self.proposal.mean(state))[:, None]
            best = best.improved_by(final, ledger.evaluate(final))
        return ActionPlan(
            best.actions,
            best.cost,
            best.violation,
            first.names,
            ledger.evaluations,
            ledger.seconds,
            stopped,
            tuple(records),
        )
