"""Defects to plant in the planners, and the check that must fail for each: the proof that the suite sees.

`DEFECTS` is the list. `goes_unseen(defect, make)` plants one, runs its check and says whether it passed:

    assert not [d.name for d in DEFECTS if goes_unseen(d, make)]
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from unittest import mock

import torch

from vjepa_mpc.planners import cem, cma_es, gradient, knots, lagrangian, lbfgs, mppi, noise, search, slopes
from vjepa_mpc.planners import evaluation as judging
from vjepa_mpc.planners.base import ActionPlan, Bounds, Evaluation
from vjepa_mpc.planners.cem import CEM, CEMProposal, CEMSettings
from vjepa_mpc.planners.cma_es import CMAES, CMASettings
from vjepa_mpc.planners.evaluation import Best, Ledger
from vjepa_mpc.planners.gradient import AdamProposal, GradientPlanner, GradientSettings
from vjepa_mpc.planners.icem import ICEM, ICEMProposal, ICEMSettings
from vjepa_mpc.planners.knots import ByKnots, Lines
from vjepa_mpc.planners.lagrangian import LagrangianLBFGS, LagrangianLBFGSSettings
from vjepa_mpc.planners.lbfgs import LBFGS, LBFGSSettings
from vjepa_mpc.planners.mppi import MPPI, MPPISettings
from vjepa_mpc.planners.shooting import PredictiveProposal, PredictiveSampling, PredictiveSettings
from vjepa_mpc.planners.testing import clock, honest, known, limits, records, same
from vjepa_mpc.planners.testing.worlds import PlannerFactory
from vjepa_mpc.planners.wrappers import Refined

Plant = Callable[[Any, str, Any], None]
"""Replaces an attribute (owner, name, value) until the check is over."""


# ---- in the search all planners share ------------------------------------------------------------------


def dropped_clip(plant: Plant) -> None:
    """Actions are not projected into the bounds."""
    plant(Bounds, "clip", lambda self, actions: actions)


def nan_ranked_first(plant: Plant) -> None:
    """NaN becomes a number, and the best one."""
    original = Ledger._call

    def forgiving(self: Ledger, actions: torch.Tensor, problems: torch.Tensor) -> Evaluation:
        with mock.patch.object(judging, "check_evaluation", lambda *_: None):
            found = original(self, actions, problems)
        return Evaluation(found.cost.nan_to_num(nan=-1e10), found.violation.nan_to_num(nan=0.0), found.names)

    plant(Ledger, "_call", forgiving)


def forgotten_generator(plant: Plant) -> None:
    """Noise comes from the global generator."""
    original = torch.randn
    plant(torch, "randn", lambda *shape, generator=None, **rest: original(*shape, **rest))


def one_generator_for_all(plant: Plant) -> None:
    """Every problem draws from the first one's generator."""
    _with_generators(plant, lambda generators: (generators[0],) * len(generators))


def fixed_seed(plant: Plant) -> None:
    """The generators handed in are not used."""
    _with_generators(plant, lambda generators: tuple(torch.Generator().manual_seed(0) for _ in generators))


def _with_generators(plant: Plant, change: Callable[[tuple[torch.Generator, ...]], Any]) -> None:
    original = search._Search._iterate

    def iterate(self: Any, live: Any, n: int, suggestions: Any) -> Any:
        found = original(self, dataclasses.replace(live, generators=change(live.generators)), n, suggestions)
        return dataclasses.replace(found, generators=live.generators)

    plant(search._Search, "_iterate", iterate)


def off_by_one_step(plant: Plant) -> None:
    """Candidates are judged one step early: what the planner calls step t is done at step t - 1."""
    _with_actions(plant, lambda actions: actions.roll(1, dims=2))


def last_step_is_noise(plant: Plant) -> None:
    """The last action never reaches the cost function, and so is never optimised."""
    _with_actions(plant, lambda actions: torch.cat((actions[:, :, :-1], actions[:, :, -1:] * 0), dim=2))


def _with_actions(plant: Plant, change: Callable[[torch.Tensor], torch.Tensor]) -> None:
    original = Ledger._call
    plant(Ledger, "_call", lambda self, actions, problems: original(self, change(actions), problems))


def same_noise_every_iteration(plant: Plant) -> None:
    """Each iteration draws the first one's noise again."""
    original = noise.draw

    def draw(n: int, like: torch.Tensor, generators: Any, exponent: float = 0.0) -> torch.Tensor:
        again = [torch.Generator().manual_seed(generator.initial_seed()) for generator in generators]
        return original(n, like, again, exponent)

    plant(cem, "draw", draw)


def suggestions_of_another_problem(plant: Plant) -> None:
    """What is suggested for one problem is judged by another's cost."""
    original = search._Search._iterate

    def iterate(self: Any, live: Any, n: int, suggestions: Any) -> Any:
        return original(self, live, n, None if suggestions is None else suggestions.roll(1, 0))

    plant(search._Search, "_iterate", iterate)


def deadline_between_iterations_only(plant: Plant) -> None:
    """Within an iteration, however long, the clock is not looked at."""
    original = Ledger._in_chunks

    def in_chunks(self: Ledger, *parts: Any) -> Evaluation:
        budget = self._budget
        self._budget = dataclasses.replace(budget, deadline_s=None)
        try:
            return original(self, *parts)
        finally:
            self._budget = budget

    plant(Ledger, "_in_chunks", in_chunks)


def never_better(plant: Plant) -> None:
    """Every iteration counts as one that brought nothing."""
    plant(Best, "clearly_better", lambda self, than, tolerance: torch.zeros_like(self.cost, dtype=torch.bool))


def best_that_forgets(plant: Plant) -> None:
    """The newest candidate replaces the best so far."""

    def newest(self: Best, actions: torch.Tensor, evaluation: Evaluation) -> Best:
        return Best(actions[:, 0], evaluation.cost[:, 0], evaluation.violation[:, 0])

    plant(Best, "improved_by", newest)


def start_not_counted(plant: Plant) -> None:
    """The start is judged and thrown away."""
    original = Best.__init__

    def worthless(self: Best, actions: torch.Tensor, cost: torch.Tensor, violation: torch.Tensor) -> None:
        original(self, actions, torch.full_like(cost, 1e9), violation)

    plant(Best, "__init__", worthless)


def infinity_wins(plant: Plant) -> None:
    """A rejected candidate is taken for a very cheap one."""
    original = Best.improved_by

    def improved_by(self: Best, actions: torch.Tensor, evaluation: Evaluation) -> Best:
        cheap = evaluation.cost.masked_fill(evaluation.cost == torch.inf, -1e10)
        return original(self, actions, dataclasses.replace(evaluation, cost=cheap))

    plant(Best, "improved_by", improved_by)


def constraints_ignored(plant: Plant) -> None:
    """Cost alone decides."""
    plant(judging, "_first_key", lambda cost, violation: torch.zeros_like(cost))


def names_lost(plant: Plant) -> None:
    """The answer does not say which constraint is meant."""
    plant(search, "ActionPlan", lambda *parts: dataclasses.replace(ActionPlan(*parts), names=()))


def budget_off_by_one(plant: Plant) -> None:
    """One evaluation more than allowed."""
    original = Ledger.affordable
    plant(Ledger, "affordable", lambda self, wanted: original(self, wanted - 1) + 1)


def evaluations_miscounted(plant: Plant) -> None:
    """The start "does not count"."""
    original = Ledger._call

    def free(self: Ledger, actions: torch.Tensor, problems: torch.Tensor) -> Evaluation:
        found = original(self, actions, problems)
        self.evaluations -= actions.shape[1] == 1
        return found

    plant(Ledger, "_call", free)


def deadline_ignored(plant: Plant) -> None:
    """The clock is not looked at."""
    plant(Ledger, "late", lambda self, expected_s=0.0: False)


def problems_swapped(plant: Plant) -> None:
    """The cost function is told the wrong problems."""
    original = Ledger._call
    plant(Ledger, "_call", lambda self, actions, problems: original(self, actions, problems.flip(0)))


def never_stops_alone(plant: Plant) -> None:
    """Problems that are done are solved on until all are."""
    plant(search._Search, "_stop_satisfied", lambda self, live, schedule: live)


def target_not_looked_at(plant: Plant) -> None:
    """A plan that is good enough already is searched on."""
    plant(Best, "meets", lambda self, target: torch.zeros_like(self.cost, dtype=torch.bool))


def target_met_by_what_is_forbidden(plant: Plant) -> None:
    """A cheap plan that breaks a constraint ends the search."""
    original = Best.meets
    plant(Best, "meets", lambda self, target: original(dataclasses.replace(self, violation=self.violation * 0), target))


def evidence_of_another_problem(plant: Plant) -> None:
    """What is not finite is blamed on a problem by its row among those still being solved."""
    original = judging.check_evaluation
    plant(judging, "check_evaluation", lambda evaluation, actions, problems=None: original(evaluation, actions))


def records_forget(plant: Plant) -> None:
    """Each record's best is that of its own population."""
    original = search.statistics

    def newest(problems: Any, best: Best, samples: torch.Tensor, evaluation: Evaluation, *rest: Any) -> Any:
        forgot = dataclasses.replace(best, cost=evaluation.cost.amax(dim=1))
        return original(problems, forgot, samples, evaluation, *rest)

    plant(search, "statistics", newest)


def suggestions_dropped(plant: Plant) -> None:
    """Suggested plans are taken, and forgotten."""
    original = search._Search._iterate
    plant(search._Search, "_iterate", lambda self, live, n, suggestions: original(self, live, n, None))


def inference_mode_used(plant: Plant) -> None:
    """Plans are made in inference mode, which spoils what gradient planners share."""
    plant(torch, "no_grad", torch.inference_mode)


def anything_accepted(plant: Plant) -> None:
    """Nothing is checked before planning."""
    plant(search, "check_task", lambda init, bounds, *rest: bounds)


def bounds_rounded_outwards(plant: Plant) -> None:
    """Bounds of a finer type than the plan's are rounded to the nearest number."""
    plant(judging, "bounds_like", lambda b, a: dataclasses.replace(b, low=b.low.to(a), high=b.high.to(a)))


def only_the_first_suggestion(plant: Plant) -> None:
    """Of several suggested plans one is judged."""
    original = search._Search._iterate

    def iterate(self: Any, live: Any, n: int, suggestions: Any) -> Any:
        return original(self, live, n, None if suggestions is None else suggestions[:, :1])

    plant(search._Search, "_iterate", iterate)


def suggestions_judged_in_vain(plant: Plant) -> None:
    """What was suggested is judged and learned from, and can never be the answer."""
    original = search._Search._iterate

    def iterate(self: Any, live: Any, n: int, suggestions: Any) -> Any:
        found = original(self, live, n, suggestions)
        return found if suggestions is None else dataclasses.replace(found, best=live.best)

    plant(search._Search, "_iterate", iterate)


def chunks_of_other_problems(plant: Plant) -> None:
    """From the second chunk on the cost function is told the problems in another order."""
    original = Ledger._in_chunks

    def in_chunks(self: Ledger, call: Any, *rest: Any) -> Evaluation:
        calls = iter(range(10**9))
        return original(self, lambda part, rows: call(part, rows.flip(0) if next(calls) else rows), *rest)

    plant(Ledger, "_in_chunks", in_chunks)


def slopes_of_other_chunks(plant: Plant) -> None:
    """Slopes are put together in another order than costs."""
    original = judging.join

    def join(parts: Any) -> Evaluation:
        slopes = [part.slope for part in parts if part.slope is not None][::-1]
        return dataclasses.replace(original(parts), slope=torch.cat(slopes, dim=1) if slopes else None)

    plant(judging, "join", join)


def largest_violation_counts(plant: Plant) -> None:
    """Violations are not summed: the largest decides."""

    def key(cost: torch.Tensor, violation: torch.Tensor) -> torch.Tensor:
        largest = violation.amax(dim=-1) if violation.shape[-1] else cost * 0
        return torch.where(cost == torch.inf, torch.inf, largest)

    plant(judging, "_first_key", key)


def violations_untold(plant: Plant) -> None:
    """The answer says that nothing is broken."""
    original = search._Search._last_word

    def last_word(self: Any, *rest: Any) -> Best:
        best = original(self, *rest)
        return dataclasses.replace(best, violation=best.violation * 0)

    plant(search._Search, "_last_word", last_word)


def equal_is_better(plant: Plant) -> None:
    """A candidate that is no better than the best so far replaces it."""
    original = Best.improved_by

    def improved_by(self: Best, actions: torch.Tensor, evaluation: Evaluation) -> Best:
        slightly = dataclasses.replace(self, cost=self.cost + 1e-7)
        return original(slightly, actions, evaluation)

    plant(Best, "improved_by", improved_by)


def target_must_be_beaten(plant: Plant) -> None:
    """A plan that costs exactly the target does not meet it."""
    plant(Best, "meets", lambda self, target: self.allowed() & (self.cost < (-torch.inf if target is None else target)))


def one_iteration_too_patient(plant: Plant) -> None:
    """A search that has converged goes on for an iteration."""
    original = search._Search._stop_satisfied

    def later(self: Any, live: Any, schedule: Any) -> Any:
        budget = self.budget
        self.budget = dataclasses.replace(budget, patience=budget.patience and budget.patience + 1)
        try:
            return original(self, live, schedule)
        finally:
            self.budget = budget

    plant(search._Search, "_stop_satisfied", later)


def patience_begins_anew_for_all(plant: Plant) -> None:
    """An iteration that brings something to one problem counts for every one."""
    original = Best.clearly_better

    def for_any(self: Best, than: Best, tolerance: float) -> torch.Tensor:
        better = original(self, than, tolerance)
        return better | better.any()

    plant(Best, "clearly_better", for_any)


def tolerance_in_units_of_cost(plant: Plant) -> None:
    """The tolerance is not relative."""
    original = Best.clearly_better
    unit = torch.ones(())

    def absolute(self: Best, than: Best, tolerance: float) -> torch.Tensor:
        better = original(self, than, 0.0)
        return better & ((than.cost == torch.inf) | (self.cost < than.cost - tolerance * unit))

    plant(Best, "clearly_better", absolute)


def expects_nothing_of_an_iteration(plant: Plant) -> None:
    """An iteration is begun although it will end after the deadline."""
    original = Ledger.late
    plant(Ledger, "late", lambda self, expected_s=0.0: original(self))


def clock_of_the_processor(plant: Plant) -> None:
    """Time that is spent waiting does not count."""
    import time

    stopped = type("Clock", (), {"perf_counter": staticmethod(time.process_time)})
    plant(judging, "time", stopped)


def spread_of_all_problems(plant: Plant) -> None:
    """Records tell the mean spread of the batch."""
    original = search.statistics

    def mixed(*parts: Any) -> Any:
        record = original(*parts)
        return dataclasses.replace(record, std=(sum(record.std) / len(record.std),) * len(record.std))

    plant(search, "statistics", mixed)


def statistics_of_the_first_problem(plant: Plant) -> None:
    """Records tell the first problem's spread for all."""
    original = search.statistics

    def first(problems: Any, best: Best, samples: torch.Tensor, *rest: Any) -> Any:
        return original(problems, best, samples[:1].expand_as(samples), *rest)

    plant(search, "statistics", first)


def seconds_of_an_iteration(plant: Plant) -> None:
    """Records tell how long an iteration took, not when it ended."""
    original = search.statistics

    def lasted(*parts: Any) -> Any:
        record = original(*parts)
        return dataclasses.replace(record, seconds=record.seconds - parts[-1].seconds)

    plant(search, "statistics", lasted)


def endings_of_the_first_problem(plant: Plant) -> None:
    """Every problem is said to have ended as the first did."""
    original = search._Search._plan

    def plan(self: Any, names: Any) -> ActionPlan:
        found = original(self, names)
        return dataclasses.replace(found, endings=found.endings[:1] * len(found.endings))

    plant(search._Search, "_plan", plan)


def start_is_not_checked(plant: Plant) -> None:
    """NaN in the start's cost goes unheard."""
    original = judging.check_evaluation

    def check(evaluation: Evaluation, actions: torch.Tensor, *rest: Any) -> None:
        if actions.shape[1] > 1:
            original(evaluation, actions, *rest)

    plant(judging, "check_evaluation", check)


def costs_in_single_precision(plant: Plant) -> None:
    """Costs told in float64 are compared in float32."""
    original = Ledger._call

    def call(self: Ledger, *rest: Any) -> Evaluation:
        found = original(self, *rest)
        return dataclasses.replace(found, cost=found.cost.float().to(found.cost))

    plant(Ledger, "_call", call)


def start_overwritten(plant: Plant) -> None:
    """The answer is written into the start that was handed in."""
    original = search.SearchPlanner.plan

    def plan(self: Any, cost_fn: Any, init: torch.Tensor, **rest: Any) -> ActionPlan:
        found = original(self, cost_fn, init, **rest)
        init.copy_(found.actions)
        return found

    plant(search.SearchPlanner, "plan", plan)


def last_plan_remembered(plant: Plant) -> None:
    """A planner begins where its last plan of that shape ended."""
    original, ended = CEMProposal.init, CEMProposal.final
    memory: dict[Any, torch.Tensor] = {}

    def init(self: CEMProposal, init_actions: torch.Tensor, *rest: Any) -> Any:
        state = original(self, init_actions, *rest)
        return dataclasses.replace(state, mean=memory.get((id(self), init_actions.shape), state.mean))

    def final(self: CEMProposal, state: Any) -> torch.Tensor:
        memory[id(self), state.mean.shape] = state.mean
        return ended(self, state)

    plant(CEMProposal, "init", init)
    plant(CEMProposal, "final", final)


def wrong_shift(plant: Plant) -> None:
    """A warm start that keeps the step already done."""
    from vjepa_mpc.planners import warm_start

    def off_by_one(actions: torch.Tensor, hold: torch.Tensor) -> torch.Tensor:
        return torch.cat((actions[:, :-1], hold.expand_as(actions[:, :1])), dim=1)

    plant(warm_start, "shift_plan", off_by_one)


# ---- in one algorithm --------------------------------------------------------------------------------


def std_is_a_variance(plant: Plant) -> None:
    """The elites' variance is used where a standard deviation belongs."""
    original = cem._fit

    def squared(*parts: Any) -> tuple[torch.Tensor, torch.Tensor]:
        mean, std = original(*parts)
        return mean, std.square()

    plant(cem, "_fit", squared)


def elites_of_the_first_problem(plant: Plant) -> None:
    """Goals mix: every problem learns from the first one's elites."""
    original = judging.take
    plant(cem, "take", lambda values, index: original(values, index[:1].expand_as(index)))


def worst_are_elites(plant: Plant) -> None:
    """A sign is wrong."""
    plant(cem, "rank", lambda evaluation: judging.rank(evaluation).flip(1))


def never_updates(plant: Plant) -> None:
    """The distribution stays as it was."""
    plant(CEMProposal, "update", lambda self, state, samples, evaluation: state)


def mppi_weighs_by_cost_alone(plant: Plant) -> None:
    """Candidates that break a constraint have a part in the mean."""
    plant(mppi, "merit", lambda evaluation: evaluation.cost)


def predictive_sampling_that_forgets(plant: Plant) -> None:
    """The nominal plan moves to the best of the newest candidates, better or worse than it was."""
    original = PredictiveProposal.update

    def forgetful(self: PredictiveProposal, state: Any, samples: torch.Tensor, evaluation: Evaluation) -> Any:
        return original(self, dataclasses.replace(state, best=None), samples, evaluation)

    plant(PredictiveProposal, "update", forgetful)


def adam_never_steps(plant: Plant) -> None:
    """Slopes are computed and not followed."""
    original = AdamProposal.update

    def idle(self: AdamProposal, state: Any, samples: torch.Tensor, evaluation: Evaluation) -> Any:
        found = original(self, state, samples, evaluation)
        return dataclasses.replace(found, position=found.box.of_actions(samples))

    plant(AdamProposal, "update", idle)


def gradients_pile_up(plant: Plant) -> None:
    """backward() instead of grad(): the model's parameters keep gradients."""

    def backward(total: torch.Tensor, leaf: torch.Tensor, allow_unused: bool) -> tuple[torch.Tensor | None]:
        total.backward()
        return (leaf.grad,)

    plant(torch.autograd, "grad", backward)


def kept_elites_of_another_problem(plant: Plant) -> None:
    """The elites kept compete for the next problem."""
    original = CEMProposal.move

    def move(self: CEMProposal, *rest: Any) -> Any:
        found = original(self, *rest)
        return dataclasses.replace(found, kept_actions=found.kept_actions.roll(1, 0))

    plant(CEMProposal, "move", move)


def spread_of_the_first_step(plant: Plant) -> None:
    """All steps are drawn as wide as the first one."""
    original = cem._fit

    def first(*parts: Any) -> tuple[torch.Tensor, torch.Tensor]:
        mean, std = original(*parts)
        return mean, std[:, :1].expand_as(std).clone()

    plant(cem, "_fit", first)


def further_plans_worst_first(plant: Plant) -> None:
    """The elites kept are handed on in the wrong order."""
    original = ICEMProposal.others

    def others(self: ICEMProposal, state: Any) -> torch.Tensor | None:
        found = original(self, state)
        return None if found is None else found.flip(1)

    plant(ICEMProposal, "others", others)


def mppi_weights_overflow(plant: Plant) -> None:
    """Weights are not taken from the least cost on: far from zero they are all 0 or infinite."""

    def weights(merit: torch.Tensor, temperature: float) -> torch.Tensor:
        finite = merit[merit != torch.inf]
        if len(finite) < 2:
            return (merit != torch.inf).to(merit)
        share = (-merit / (temperature * finite.std(correction=0)).clamp(min=1e-12)).exp()
        return share / share.sum()

    plant(mppi, "weights", weights)


def told_in_reverse(plant: Plant) -> None:
    """CMA-ES is told that the worst candidate is the best."""
    original = cma_es._Optimiser.tell
    plant(cma_es._Optimiser, "tell", lambda self, points, order: original(self, points, order[::-1]))


def start_is_no_start(plant: Plant) -> None:
    """All descents begin at perturbed plans."""

    def around(start: torch.Tensor, n: int, spread: float, generators: Any) -> torch.Tensor:
        return (start[:, None] + spread * noise.draw(n, start, generators)).clamp(-1, 1)

    for module in (gradient, lbfgs):
        plant(module, "around", around)


def nan_slopes_followed(plant: Plant) -> None:
    """A slope that is not finite goes unheard."""
    plant(slopes, "_check_finite", lambda *_: None)


def takes_every_trial(plant: Plant) -> None:
    """L-BFGS without Armijo's condition."""
    plant(lbfgs, "ARMIJO", -1e9)


def pairs_in_reverse(plant: Plant) -> None:
    """L-BFGS takes the oldest pair for the newest."""
    original = lbfgs._direction
    plant(lbfgs, "_direction", lambda slope, moves, changes: original(slope, moves.flip(1), changes.flip(1)))


def pairs_of_another_start(plant: Plant) -> None:
    """L-BFGS remembers the next start's steps."""
    original = lbfgs._appended
    plant(lbfgs, "_appended", lambda pairs, newest, where: original(pairs, newest, where).roll(1, 1))


def one_pair_only(plant: Plant) -> None:
    """L-BFGS forgets all but its last step."""
    original = lbfgs._appended

    def appended(*parts: Any) -> torch.Tensor:
        longer = original(*parts)
        return torch.cat((longer[:, :, :-1] * 0, longer[:, :, -1:]), dim=2)

    plant(lbfgs, "_appended", appended)


def prices_never_rise(plant: Plant) -> None:
    """The augmented Lagrangian stays at its first prices."""
    plant(lagrangian._Price, "after", lambda self, *_: self)


def prices_of_another_constraint(plant: Plant) -> None:
    """What one constraint is found to be worth is asked for another."""
    original = lagrangian._Price.after

    def after(self: Any, *rest: Any) -> Any:
        found = original(self, *rest)
        return lagrangian._Price(found.multiplier.flip(1), found.weight.flip(1))

    plant(lagrangian._Price, "after", after)


def refined_from_the_start(plant: Plant) -> None:
    """The second planner begins where the first did."""
    original = Refined.plan

    def plan(self: Refined, cost_fn: Any, init: torch.Tensor, **rest: Any) -> ActionPlan:
        kept = self.second.plan
        with mock.patch.object(self.second, "plan", lambda cost_fn, found, **more: kept(cost_fn, init, **more)):
            return original(self, cost_fn, init, **rest)

    plant(Refined, "plan", plan)


def knots_that_do_not_count_the_start(plant: Plant) -> None:
    """The evaluation of the start as it is goes uncounted."""
    original = knots._better

    def better(kept: Best, found: ActionPlan, *rest: Any) -> ActionPlan:
        return dataclasses.replace(original(kept, found, *rest), evaluations=found.evaluations)

    plant(knots, "_better", better)


@dataclass(frozen=True)
class Defect:
    """What to plant, the check that must fail, and which `make`s of `PLANNERS` it concerns."""

    plant: Callable[[Plant], None]
    check: Callable[[PlannerFactory], None]
    planners: tuple[str, ...] = ("cem", "gradient")

    @property
    def name(self) -> str:
        """For reports."""
        return f"{self.plant.__name__}-{self.check.__name__}"


def check_shift_of_the_module(make: PlannerFactory) -> None:
    """`warm_start.shift_plan` as it is now."""
    from vjepa_mpc.planners import warm_start

    limits.check_shift(warm_start.shift_plan)


PLANNERS: dict[str, PlannerFactory] = {
    "cem": lambda bounds: CEM(bounds, CEMSettings(samples=128, elites=16, iterations=20)),
    "gradient": lambda bounds: GradientPlanner(bounds, GradientSettings(starts=4, steps=60)),
    "mppi": lambda bounds: MPPI(bounds, MPPISettings(samples=128, iterations=20)),
    "predictive": lambda bounds: PredictiveSampling(bounds, PredictiveSettings(samples=128, iterations=20)),
    "icem": lambda bounds: ICEM(bounds, ICEMSettings(samples=128, elites=16, iterations=12)),
    "cma": lambda bounds: CMAES(bounds, CMASettings(samples=16, iterations=60)),
    "lbfgs": lambda bounds: LBFGS(bounds, LBFGSSettings(starts=4, steps=30)),
    "lagrangian": lambda bounds: LagrangianLBFGS(bounds, LagrangianLBFGSSettings(starts=4, steps=30, rounds=3)),
    "refined": lambda bounds: Refined(
        CEM(bounds, CEMSettings(samples=64, elites=8, iterations=12)), LBFGS(bounds, LBFGSSettings(starts=2, steps=12))
    ),
    "knots": lambda bounds: ByKnots(CEM(bounds, CEMSettings(samples=128, elites=16, iterations=20)), Lines(8)),
    "gradient-chunked": lambda bounds: GradientPlanner(bounds, GradientSettings(starts=4, steps=60, chunk=1)),
    "chunked": lambda bounds: CEM(bounds, CEMSettings(samples=200, elites=20, iterations=20, chunk=25)),
}
ONLY_CEM, ONLY_GRADIENT = ("cem",), ("gradient",)
DEFECTS: tuple[Defect, ...] = (
    Defect(dropped_clip, honest.check_bounds_kept, ONLY_CEM),
    Defect(nan_ranked_first, honest.check_nan_raises),
    Defect(forgotten_generator, same.check_global_generators_untouched),
    Defect(forgotten_generator, same.check_same_seed_same_plan),
    Defect(one_generator_for_all, same.check_batch_equals_loop),
    Defect(fixed_seed, same.check_same_seed_same_plan),
    Defect(off_by_one_step, known.check_finds_every_step),
    Defect(last_step_is_noise, known.check_finds_every_step),
    Defect(same_noise_every_iteration, same.check_draws_anew, ONLY_CEM),
    Defect(suggestions_of_another_problem, honest.check_suggestions_are_judged),
    Defect(deadline_between_iterations_only, clock.check_deadline_kept, ("chunked",)),
    Defect(never_better, limits.check_patience_kept, ONLY_CEM),
    Defect(best_that_forgets, honest.check_never_worse_than_start),
    Defect(start_not_counted, honest.check_never_worse_than_start),
    Defect(infinity_wins, honest.check_rejected_never_wins),
    Defect(constraints_ignored, honest.check_constraints_first),
    Defect(constraints_ignored, honest.check_all_infeasible_progresses, ONLY_CEM),
    Defect(names_lost, honest.check_constraints_first),
    Defect(budget_off_by_one, limits.check_budget_kept),
    Defect(evaluations_miscounted, limits.check_budget_kept),
    Defect(deadline_ignored, clock.check_deadline_kept),
    Defect(problems_swapped, same.check_batch_equals_loop),
    Defect(never_stops_alone, same.check_problems_stop_one_by_one),
    Defect(target_not_looked_at, same.check_problems_stop_one_by_one),
    Defect(target_met_by_what_is_forbidden, same.check_problems_stop_one_by_one),
    Defect(evidence_of_another_problem, honest.check_nan_raises),
    Defect(records_forget, honest.check_evidence, ONLY_CEM),
    Defect(suggestions_dropped, honest.check_suggestions_are_judged),
    Defect(inference_mode_used, honest.check_evidence, ONLY_CEM),
    Defect(anything_accepted, limits.check_bad_input_refused),
    Defect(bounds_rounded_outwards, honest.check_bounds_kept),
    Defect(only_the_first_suggestion, honest.check_suggestions_are_judged),
    Defect(suggestions_judged_in_vain, honest.check_suggestions_are_judged),
    Defect(chunks_of_other_problems, same.check_batch_equals_loop, ("chunked",)),
    Defect(slopes_of_other_chunks, known.check_finds_every_step, ("gradient-chunked",)),
    Defect(largest_violation_counts, honest.check_several_constraints),
    Defect(violations_untold, honest.check_several_constraints),
    Defect(equal_is_better, honest.check_never_worse_than_start, ONLY_CEM),
    Defect(target_must_be_beaten, same.check_problems_stop_one_by_one),
    Defect(one_iteration_too_patient, limits.check_patience_kept),
    Defect(patience_begins_anew_for_all, limits.check_patience_kept),
    Defect(tolerance_in_units_of_cost, limits.check_patience_kept),
    Defect(expects_nothing_of_an_iteration, clock.check_deadline_kept),
    Defect(clock_of_the_processor, clock.check_deadline_kept),
    Defect(spread_of_all_problems, records.check_records_are_true),
    Defect(statistics_of_the_first_problem, records.check_records_are_true),
    Defect(seconds_of_an_iteration, records.check_records_are_true),
    Defect(endings_of_the_first_problem, same.check_problems_stop_one_by_one),
    Defect(start_is_not_checked, honest.check_nan_raises, ONLY_CEM),
    Defect(costs_in_single_precision, known.check_any_unit_of_cost, ONLY_CEM),
    Defect(start_overwritten, same.check_keeps_nothing_between_plans),
    Defect(last_plan_remembered, same.check_keeps_nothing_between_plans, ONLY_CEM),
    Defect(wrong_shift, check_shift_of_the_module, ONLY_CEM),
    Defect(std_is_a_variance, same.check_units, ONLY_CEM),
    Defect(elites_of_the_first_problem, same.check_batch_equals_loop, ONLY_CEM),
    Defect(worst_are_elites, known.check_finds_every_step, ONLY_CEM),
    Defect(never_updates, known.check_finds_every_step, ONLY_CEM),
    Defect(mppi_weighs_by_cost_alone, known.check_constraints_lead_the_search, ("mppi",)),
    Defect(predictive_sampling_that_forgets, known.check_draws_around_the_best, ("predictive",)),
    Defect(kept_elites_of_another_problem, same.check_batch_equals_loop, ONLY_CEM),
    Defect(spread_of_the_first_step, known.check_ill_conditioned, ONLY_CEM),
    Defect(further_plans_worst_first, records.check_records_are_true, ("icem",)),
    Defect(mppi_weights_overflow, known.check_any_unit_of_cost, ("mppi",)),
    Defect(told_in_reverse, known.check_finds_every_step, ("cma",)),
    Defect(start_is_no_start, known.check_descends_from_the_start, ("gradient", "lbfgs")),
    Defect(nan_slopes_followed, known.check_descends_from_the_start, ("gradient", "lbfgs")),
    Defect(takes_every_trial, known.check_never_steps_up, ("lbfgs",)),
    Defect(pairs_in_reverse, known.check_learns_curvature, ("lbfgs",)),
    Defect(pairs_of_another_start, known.check_learns_curvature, ("lbfgs",)),
    Defect(one_pair_only, known.check_learns_curvature, ("lbfgs",)),
    Defect(prices_never_rise, known.check_learns_prices, ("lagrangian",)),
    Defect(prices_of_another_constraint, known.check_learns_prices, ("lagrangian",)),
    Defect(refined_from_the_start, honest.check_never_worse_than_start, ("refined",)),
    Defect(knots_that_do_not_count_the_start, limits.check_budget_kept, ("knots",)),
    Defect(adam_never_steps, known.check_finds_every_step, ONLY_GRADIENT),
    Defect(gradients_pile_up, honest.check_leaves_no_gradient_behind, ONLY_GRADIENT),
)


def goes_unseen(defect: Defect, make: PlannerFactory) -> bool:
    """Whether the check passes although the defect is planted. Everything is as before afterwards."""
    with contextlib.ExitStack() as stack:
        defect.plant(lambda owner, name, value: stack.enter_context(mock.patch.object(owner, name, value)) and None)
        try:
            defect.check(make)
        except AssertionError:
            return False
    return True
