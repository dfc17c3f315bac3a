"""Defects in one algorithm each."""

from __future__ import annotations

import dataclasses
from typing import Any
from unittest import mock

import torch

from vjepa_mpc.planners import cem, cma_es, gradient, knots, lagrangian, lbfgs, mppi, noise, prices, slopes
from vjepa_mpc.planners import evaluation as judging
from vjepa_mpc.planners.base import ActionPlan, Evaluation
from vjepa_mpc.planners.cem import CEMProposal
from vjepa_mpc.planners.cma_es import CMAProposal
from vjepa_mpc.planners.evaluation import Best
from vjepa_mpc.planners.gradient import AdamProposal
from vjepa_mpc.planners.icem import ICEMProposal
from vjepa_mpc.planners.lbfgs import LBFGSProposal
from vjepa_mpc.planners.shooting import PredictiveProposal
from vjepa_mpc.planners.testing.worlds import Plant
from vjepa_mpc.planners.wrappers import Refined


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


def positions_in_reverse(plant: Plant) -> None:
    """CMA-ES takes what was suggested for a plan whose numbers stand in reverse."""
    original = CMAProposal._positions
    plant(CMAProposal, "_positions", lambda self, *rest: original(self, *rest).flip(1))


def no_momentum(plant: Plant) -> None:
    """Adam follows the newest slope alone."""
    plant(gradient, "BETA_1", 0.0)


def squares_overflow(plant: Plant) -> None:
    """A slope whose squares are no numbers counts as infinitely long."""
    plant(gradient, "clipped", lambda slope, largest: slope * (largest / gradient._norms(slope))[:, :, None, None])


def never_gives_up_a_direction(plant: Plant) -> None:
    """L-BFGS halves a trial for ever."""
    plant(lbfgs, "SHORTEST", 0.0)


def memory_never_cut(plant: Plant) -> None:
    """L-BFGS remembers all of its steps."""
    original = LBFGSProposal._appended

    def appended(self: Any, *parts: Any) -> Any:
        endless = LBFGSProposal(dataclasses.replace(self.settings, memory=10**6))
        return original(endless, *parts)

    plant(LBFGSProposal, "_appended", appended)


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
    plant(lbfgs, "_direction", lambda slope, pairs: original(slope, pairs[::-1]))


def pairs_of_another_start(plant: Plant) -> None:
    """L-BFGS remembers the next start's steps."""
    original = LBFGSProposal._appended

    def appended(self: Any, pairs: Any, move: torch.Tensor, change: torch.Tensor, *which: Any) -> Any:
        return original(self, pairs, move.roll(1, 0), change.roll(1, 0), *which)

    plant(LBFGSProposal, "_appended", appended)


def one_pair_only(plant: Plant) -> None:
    """L-BFGS forgets all but its last step."""
    original = LBFGSProposal._appended
    plant(LBFGSProposal, "_appended", lambda *parts: original(*parts)[-1:])


def prices_never_rise(plant: Plant) -> None:
    """The augmented Lagrangian stays at its first prices."""
    plant(prices.Price, "after", lambda self, *_: self)


def prices_of_another_constraint(plant: Plant) -> None:
    """What one constraint is found to be worth is asked for another."""
    original = prices.Price.after

    def after(self: Any, *rest: Any) -> Any:
        found = original(self, *rest)
        return prices.Price(found.multiplier.flip(1), found.weight.flip(1))

    plant(prices.Price, "after", after)


def suggestions_priced_alone(plant: Plant) -> None:
    """The augmented Lagrangian judges suggestions with its constraints priced in, never by the cost itself."""
    plant(lagrangian.AugmentedLagrangian, "_with_suggested", lambda self, best, *_: best)


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
