"""The one search loop; an algorithm is a small `Proposal` whose state is a value."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any, ClassVar, Generic, TypeVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from vjepa_mpc.core.errors import InputError
from vjepa_mpc.planners.base import (
    ActionPlan,
    Bounds,
    Budget,
    CostFunction,
    Ending,
    Evaluation,
    IterationStatistics,
)
from vjepa_mpc.planners.evaluation import Best, Ledger, check_task
from vjepa_mpc.planners.positions import Positions
from vjepa_mpc.planners.units import units_of

State = TypeVar("State")
UNLIMITED = 2**62


@dataclass(frozen=True)
class Schedule:
    """How the evaluations of a problem are spent after the start's: on populations of these sizes, one an
    iteration, and on `final` candidates. `cut`: the budget allowed less than the settings ask for."""

    populations: tuple[int, ...]
    final: int
    cut: bool = False


def spread(sizes: Sequence[int], left: int, final: int = 1) -> Schedule:
    """Populations of `sizes` and `final` candidates within `left` evaluations: the last population shrinks, and
    what the final candidates need is kept for them, unless they would be the start again."""
    if left <= final:
        return Schedule((1,) * left, 0, cut=True)
    populations, spare = [], left - final
    for size in sizes:
        if spare < 1:
            break
        populations.append(min(size, spare))
        spare -= populations[-1]
    return Schedule(tuple(populations), final, cut=left < sum(sizes) + final)


class Proposal(ABC, Generic[State]):
    """A search distribution over action sequences.

    `State` is a frozen value, passed in and returned. Its tensors have the problem as their first
    dimension and its tuples one entry a problem, so that problems can stop one by one (`of_problems`).
    """

    penalty: float | None = None
    """None: costs are all that is needed. A number: every evaluation comes with `slope`, the gradient of
    cost + penalty * summed violation by the actions."""

    final_is_the_answer: ClassVar[bool] = False
    """False: the best that was judged is returned. True: the final candidate is, better or worse; the best only where
    that one was not judged, is rejected or breaks a constraint, or misses the target that ended the search."""

    @abstractmethod
    def sizes(self) -> tuple[int, ...]:
        """The population of each iteration, when nothing limits them."""

    def schedule(self, left: int) -> Schedule:
        """How `left` evaluations a problem are spent."""
        return spread(self.sizes(), left)

    @abstractmethod
    def init(self, init_actions: Float[Tensor, "b h a"], bounds: Bounds, iterations: int) -> State:
        """The distribution to begin with, around a plan inside the bounds; at most `iterations` will follow."""

    @abstractmethod
    def sample(self, state: State, n: int, generators: Sequence[torch.Generator]) -> Float[Tensor, "b n h a"]:
        """`n` candidates a problem; problem i draws from `generators[i]` only. The loop projects them."""

    @abstractmethod
    def update(self, state: State, samples: Float[Tensor, "b n h a"], evaluation: Evaluation) -> State:
        """The distribution after `samples` (as evaluated: inside the bounds, suggestions among them)."""

    @abstractmethod
    def final(self, state: State) -> Float[Tensor, "b m h a"]:
        """What is judged last: the plan the distribution stands for, say."""

    def in_units(self, unit: Float[Tensor, "a"]) -> Proposal[State]:
        """The same for actions told in these units: what settings say in units of actions is changed."""
        return self

    def others(self, state: State) -> Float[Tensor, "b m h a"] | None:
        """Good plans worth suggesting to the next search, best first; None for none."""
        return None


def of_problems(value: Any, rows: Int[Tensor, "r"]) -> Any:
    """The part of a state that belongs to these problems."""
    if isinstance(value, (Bounds, Positions)):
        return value.rows(rows)
    if isinstance(value, Tensor):
        return value[rows]
    if isinstance(value, tuple):
        return tuple(value[row] for row in rows.tolist())
    if isinstance(value, Evaluation):  # its names are everyone's
        return Evaluation(value.cost[rows], value.violation[rows], value.names)
    if is_dataclass(value) and not isinstance(value, type):
        return replace(value, **{part.name: of_problems(getattr(value, part.name), rows) for part in fields(value)})
    return value


class SearchPlanner(Generic[State]):
    """Lowers a cost with a proposal: the start is judged, then populations, then the proposal's last word; the
    best is returned.

    Exactly `budget.max_evaluations` are spent where the settings would spend more. The deadline is looked
    at between iterations, and between chunks of `chunk` candidates: an iteration is not begun that is expected to
    end after it (being as long as the last one), with the last word, which takes a call of its own.
    """

    def __init__(self, bounds: Bounds, proposal: Proposal[State], *, chunk: int | None = None) -> None:
        if chunk is not None and chunk < 1:
            raise InputError(f"A chunk of {chunk} candidates cannot be evaluated; give at least 1, or None for all.")
        self.bounds = bounds
        self.proposal = proposal
        self.chunk = chunk

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
        """The best plan seen, never worse than `init` projected into the bounds (but see `final_is_the_answer`).

        Raises `InputError` for a task that cannot be started (and, of planners that descend, for a cost
        without gradient), `NotFiniteError`, with the candidates that led there, for NaN in a cost or a gradient.
        """
        ledger, proposal = Ledger(cost_fn, budget), self.proposal  # the clock runs from here
        if self.proposal.penalty is not None and torch.is_inference_mode_enabled():
            raise InputError("Gradients cannot be taken under torch.inference_mode(); use torch.no_grad() instead.")
        bounds = check_task(init, self.bounds, budget, generators, suggestions, previous)
        start = bounds.clip(init)
        if suggestions is not None:
            suggestions = bounds.clip(suggestions.to(init))
        unit = units_of(bounds)
        if unit is not None:
            ledger.unit, ledger.box = unit, (bounds.low, bounds.high)
            bounds, proposal = bounds.in_units(unit), proposal.in_units(unit)
            start, suggestions = start / unit, None if suggestions is None else suggestions / unit
        # no_grad, never inference_mode: gradient planners share the same world model and its buffers.
        with torch.no_grad():
            search = _Search(proposal, self.chunk, ledger, budget)
            return search.run(start, bounds, tuple(generators), suggestions)


@dataclass(frozen=True)
class _Live(Generic[State]):
    """The problems still being solved. `mark`: the last clearly better best; `idle`: iterations since then."""

    problems: Int[Tensor, "r"]
    bounds: Bounds
    generators: tuple[torch.Generator, ...]
    start: Best
    best: Best
    mark: Best
    idle: Int[Tensor, "r"]
    state: State


@dataclass(frozen=True)
class _Answer:
    best: Best
    others: Float[Tensor, "1 m h a"] | None
    ending: Ending


class _Search(Generic[State]):
    """One call of `plan`."""

    def __init__(self, proposal: Proposal[State], chunk: int | None, ledger: Ledger, budget: Budget) -> None:
        self.proposal, self.chunk, self.ledger, self.budget = proposal, chunk, ledger, budget
        self.answers: dict[int, _Answer] = {}
        self.records: list[IterationStatistics] = []
        self.first_s, self.final_s = 0.0, 0.0  # what the start's call took, and what the last word is expected to

    def run(
        self,
        start: Float[Tensor, "b h a"],
        bounds: Bounds,
        generators: tuple[torch.Generator, ...],
        suggestions: Float[Tensor, "b m h a"] | None,
    ) -> ActionPlan:
        """Search until every problem has stopped."""
        problems = torch.arange(start.shape[0], device=start.device)
        first = self.ledger.evaluate(start[:, None], problems)
        best = Best(start, first.cost[:, 0], first.violation[:, 0])
        costs = tuple(best.cost.tolist())
        self.begun = IterationStatistics(costs, costs, (0.0,) * len(costs), self.ledger.evaluations, 0.0)
        schedule = self.proposal.schedule(self.ledger.affordable(UNLIMITED))
        state = self.proposal.init(start, bounds, len(schedule.populations))
        live = _Live(problems, bounds, generators, best, best, best, torch.zeros_like(problems), state)
        satisfied = best.meets(self.budget.target)
        if bool(satisfied.any()):  # the start is an answer already
            self._answer(of_problems(live, satisfied.nonzero()[:, 0]), "target", schedule)
            if bool(satisfied.all()):
                return self._plan(first.names)
            live = of_problems(live, (~satisfied).nonzero()[:, 0])
            suggestions = None if suggestions is None else suggestions[~satisfied]
        stopped = "max_evaluations" if schedule.cut else "iterations"
        self.first_s = last_s = self.ledger.seconds
        for n in schedule.populations:
            # What follows the last population takes its time, too: its share, but no less than a call takes.
            self.final_s = max(last_s * schedule.final / n, min(self.first_s, last_s)) if schedule.final else 0.0
            if self.ledger.late(last_s + self.final_s):
                stopped = "deadline"
                break
            began_s = self.ledger.seconds
            live = self._iterate(live, n, suggestions)
            suggestions = None
            live = self._stop_satisfied(live, schedule)
            if not len(live.problems):
                break
            last_s = self.ledger.seconds - began_s
        if len(live.problems):
            self._answer(live, stopped, schedule)
        return self._plan(first.names)

    def _iterate(self, live: _Live[State], n: int, suggestions: Float[Tensor, "b m h a"] | None) -> _Live[State]:
        """Draw `n` candidates (those suggested among them), judge them, learn from them."""
        given = live.start.actions[:, None][:, :0] if suggestions is None else suggestions[:, : max(1, n - 1)]
        own = n - given.shape[1]
        parts = (self.proposal.sample(live.state, own, live.generators), given) if own else (given,)
        samples = live.bounds.clip(torch.cat(parts, dim=1) if given.shape[1] else parts[0])
        if self.proposal.penalty is None:
            evaluation = self.ledger.evaluate(samples, live.problems, self.chunk)
        else:
            evaluation = self.ledger.evaluate_with_slope(samples, live.problems, self.proposal.penalty, self.chunk)
        samples = samples[:, : evaluation.cost.shape[1]]
        live = replace(
            live,
            best=live.best.improved_by(samples, evaluation),
            state=self.proposal.update(live.state, samples, evaluation),
        )
        before = self.records[-1] if self.records else self.begun
        self.records.append(statistics(live.problems, live.best, samples, evaluation, self.ledger, before))
        return live

    def _stop_satisfied(self, live: _Live[State], schedule: Schedule) -> _Live[State]:
        """Answer the problems that need no more iterations, and go on with the others."""
        budget, best = self.budget, live.best
        done: dict[str, Bool[Tensor, "r"]] = {}
        if budget.target is not None:
            done["target"] = best.meets(budget.target)
        if budget.patience is not None:
            better = best.clearly_better(live.mark, budget.tolerance)
            idle = torch.where(better, 0, live.idle + 1)
            live = replace(live, mark=live.mark.where(~better, best), idle=idle)
            done["converged"] = (idle >= budget.patience) & ~done.get("target", torch.zeros_like(better))
        for why, which in done.items():
            if bool(which.any()):
                self._answer(of_problems(live, which.nonzero()[:, 0]), why, schedule)
        if not done:
            return live
        going = ~torch.stack(list(done.values())).any(dim=0)
        return live if bool(going.all()) else of_problems(live, going.nonzero()[:, 0])

    def _answer(self, live: _Live[State], why: str, schedule: Schedule) -> None:
        """Note the answers of these problems, after the proposal's last word."""
        spent = self.ledger.evaluations
        best = self._last_word(live, why, schedule)
        others = self.proposal.others(live.state)
        ending = Ending(self.ledger.evaluations, why)
        for row, problem in enumerate(live.problems.tolist()):
            one = live.problems[row : row + 1] * 0 + row
            self.answers[problem] = _Answer(
                of_problems(best, one), None if others is None else others[row : row + 1], ending
            )
        self.ledger.evaluations = spent  # the others' count goes on from here

    def _last_word(self, live: _Live[State], why: str, schedule: Schedule) -> Best:
        """The best after the proposal's final candidates. Where gradients were taken nothing judged on the way
        counts, since a model may answer differently with them: the best of it is judged again."""
        descended = self.proposal.penalty is not None
        best = live.start if descended else live.best
        if why in ("deadline", "target") and not self.records:
            return best
        if not schedule.final or not (descended or (self.records and not self.ledger.late(self.final_s))):
            return best
        candidates = self.proposal.final(live.state)
        if descended:
            candidates = _with_best_seen(live, candidates, schedule.final)
        candidates = live.bounds.clip(candidates[:, : schedule.final])
        evaluation = self.ledger.evaluate(candidates, live.problems, self.chunk)
        if self.proposal.final_is_the_answer:
            answer = Best(candidates[:, 0], evaluation.cost[:, 0], evaluation.violation[:, 0])
            stands = answer.meets(self.budget.target) if why == "target" else answer.allowed()
            return answer.where(stands, best.improved_by(candidates, evaluation))
        return best.improved_by(candidates, evaluation)

    def _plan(self, names: tuple[str, ...]) -> ActionPlan:
        answers = [self.answers[problem] for problem in sorted(self.answers)]
        longest = max((answer.ending for answer in answers), key=lambda ending: ending.evaluations)
        others = [answer.others for answer in answers if answer.others is not None]
        count = min((part.shape[1] for part in others), default=0)
        return ActionPlan(
            self.ledger.told(torch.cat([answer.best.actions for answer in answers])),
            torch.cat([answer.best.cost for answer in answers]),
            torch.cat([answer.best.violation for answer in answers]),
            names,
            longest.evaluations,
            self.ledger.seconds,
            longest.stopped,
            tuple(self.records),
            tuple(answer.ending for answer in answers),
            self.ledger.told(torch.cat([part[:, :count] for part in others])) if count else None,
        )


def _with_best_seen(live: _Live[State], ends: Float[Tensor, "r m h a"], room: int) -> Float[Tensor, "r n h a"]:
    """Where a descent ended behind the best seen on its way; with room for one alone that which beat the start, if
    anything did."""
    if room > 1:
        return torch.cat((live.best.actions[:, None], ends), dim=1)
    better = live.best.clearly_better(live.start, 0.0)
    return torch.where(better[:, None, None, None], live.best.actions[:, None], ends[:, :1])


def statistics(
    problems: Int[Tensor, "r"],
    best: Best,
    samples: Float[Tensor, "r n h a"],
    evaluation: Evaluation,
    ledger: Ledger,
    before: IterationStatistics,
) -> IterationStatistics:
    """One iteration's record; problems that had stopped keep their values of `before`. `std` is that of the
    population drawn; a mean over no finite cost is +inf."""
    mean_costs = evaluation.cost.mean(dim=1).tolist()
    if math.inf in mean_costs:
        finite = evaluation.cost != torch.inf
        total = torch.where(finite, evaluation.cost, 0.0).sum(dim=1)
        mean_costs = torch.where(finite.any(dim=1), total / finite.sum(dim=1).clamp(min=1), torch.inf).tolist()
    # Several times quicker than torch.std along this dimension.
    spread = (samples - samples.mean(dim=1, keepdim=True)).square().mean(dim=1).sqrt()
    std = (spread if ledger.unit is None else spread.double() * ledger.unit).mean(dim=(1, 2))
    values = (best.cost.tolist(), mean_costs, std.tolist())
    old = (before.best, before.mean_cost, before.std)
    rows = problems.tolist()
    parts = [_merged(kept, rows, new) for kept, new in zip(old, values, strict=True)]
    return IterationStatistics(parts[0], parts[1], parts[2], ledger.evaluations, ledger.seconds)


def _merged(old: Sequence[float], rows: Sequence[int], new: Sequence[float]) -> tuple[float, ...]:
    merged = list(old)
    for row, value in zip(rows, new, strict=True):
        merged[row] = value
    return tuple(merged)
