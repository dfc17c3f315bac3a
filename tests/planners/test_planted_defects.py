"""The contract suite catches what it is for: each defect planted here makes the named check fail."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import pytest
import torch

from vjepa_mpc.planners import evaluation as judging
from vjepa_mpc.planners import gradient, noise, sampling, testing, warm_start
from vjepa_mpc.planners.base import ActionPlan, Bounds, Evaluation
from vjepa_mpc.planners.cem import CEM, CEMProposal, CEMSettings
from vjepa_mpc.planners.evaluation import Best, Ledger
from vjepa_mpc.planners.gradient import GradientPlanner, GradientSettings
from vjepa_mpc.planners.testing import PlannerFactory

Patch = pytest.MonkeyPatch
CEM_PLANNER: PlannerFactory = lambda bounds: CEM(bounds, CEMSettings(samples=128, elites=16, iterations=20))  # noqa: E731
GRADIENT: PlannerFactory = lambda bounds: GradientPlanner(bounds, GradientSettings(starts=4, steps=60))  # noqa: E731


def dropped_clip(patch: Patch) -> None:
    patch.setattr(Bounds, "clip", lambda self, actions: actions)


def nan_ranked_first(patch: Patch) -> None:
    original = Ledger._call

    def forgiving(self: Ledger, actions: torch.Tensor) -> Evaluation:
        with pytest.MonkeyPatch.context() as inner:
            inner.setattr(judging, "check_evaluation", lambda evaluation, actions: None)
            found = original(self, actions)
        return Evaluation(found.cost.nan_to_num(nan=-1e10), found.violation.nan_to_num(nan=0.0), found.names)

    patch.setattr(Ledger, "_call", forgiving)


def forgotten_generator(patch: Patch) -> None:
    def careless(n: int, like: torch.Tensor, generators: object, exponent: float = 0.0) -> torch.Tensor:
        return torch.randn(like.shape[0], n, *like.shape[1:], dtype=like.dtype)

    patch.setattr("vjepa_mpc.planners.cem.draw", careless)
    patch.setattr(gradient, "draw", careless)


def one_generator_for_all(patch: Patch) -> None:
    def shared(n: int, like: torch.Tensor, generators: list[torch.Generator], exponent: float = 0.0) -> torch.Tensor:
        return noise.draw(n, like, [generators[0]] * len(generators), exponent)

    patch.setattr("vjepa_mpc.planners.cem.draw", shared)
    patch.setattr(gradient, "draw", shared)


def fixed_seed(patch: Patch) -> None:
    def fixed(n: int, like: torch.Tensor, generators: list[torch.Generator], exponent: float = 0.0) -> torch.Tensor:
        return noise.draw(n, like, [torch.Generator().manual_seed(0) for _ in generators], exponent)

    patch.setattr("vjepa_mpc.planners.cem.draw", fixed)
    patch.setattr(gradient, "draw", fixed)


def off_by_one_step(patch: Patch) -> None:
    """Candidates are judged one step early: what the planner calls step t is done at step t - 1."""
    original = Ledger.evaluate
    patch.setattr(Ledger, "evaluate", lambda self, actions, chunk=None: original(self, actions.roll(1, dims=2), chunk))


def last_step_is_noise(patch: Patch) -> None:
    """The last action never reaches the cost function, and so is never optimised."""
    original = Ledger.evaluate

    def deaf(self: Ledger, actions: torch.Tensor, chunk: int | None = None) -> Evaluation:
        heard = torch.cat((actions[:, :, :-1], torch.zeros_like(actions[:, :, -1:])), dim=2)
        return original(self, heard, chunk)

    patch.setattr(Ledger, "evaluate", deaf)


def best_that_forgets(patch: Patch) -> None:
    def newest(self: Best, actions: torch.Tensor, evaluation: Evaluation) -> Best:
        return Best(actions[:, 0], evaluation.cost[:, 0], evaluation.violation[:, 0])

    patch.setattr(Best, "improved_by", newest)


def start_not_evaluated(patch: Patch) -> None:
    original = Best.__init__

    def worthless(self: Best, actions: torch.Tensor, cost: torch.Tensor, violation: torch.Tensor) -> None:
        original(self, actions, torch.full_like(cost, 1e9), violation)

    patch.setattr(Best, "__init__", worthless)


def infinity_wins(patch: Patch) -> None:
    patch.setattr(Best, "improved_by", _with_cost(lambda cost: cost.masked_fill(cost == torch.inf, -1e10)))


def _with_cost(change: Callable[[torch.Tensor], torch.Tensor]) -> Callable[..., Best]:
    original = Best.improved_by

    def improved_by(self: Best, actions: torch.Tensor, evaluation: Evaluation) -> Best:
        return original(self, actions, dataclasses.replace(evaluation, cost=change(evaluation.cost)))

    return improved_by


def constraints_ignored(patch: Patch) -> None:
    patch.setattr(judging, "_first_key", lambda cost, violation: torch.zeros_like(cost))


def names_lost(patch: Patch) -> None:
    patch.setattr(sampling, "ActionPlan", lambda *parts: dataclasses.replace(ActionPlan(*parts), names=()))


def budget_off_by_one(patch: Patch) -> None:
    original = Ledger.affordable
    patch.setattr(Ledger, "affordable", lambda self, wanted: original(self, wanted - 1) + 1)


def evaluations_miscounted(patch: Patch) -> None:
    original = Ledger._call

    def free(self: Ledger, actions: torch.Tensor) -> Evaluation:
        found = original(self, actions)
        self.evaluations -= actions.shape[1] == 1  # the start and the final mean "do not count"
        return found

    patch.setattr(Ledger, "_call", free)


def deadline_ignored(patch: Patch) -> None:
    patch.setattr(Ledger, "late", lambda self, expected_s=0.0: False)


def problems_swapped(patch: Patch) -> None:
    original = Ledger._call

    def swapped(self: Ledger, actions: torch.Tensor) -> Evaluation:
        self._problems = torch.arange(actions.shape[0]).flip(0)
        return original(self, actions)

    patch.setattr(Ledger, "_call", swapped)


def elites_of_the_first_problem(patch: Patch) -> None:
    original = judging.take
    patch.setattr("vjepa_mpc.planners.cem.take", lambda values, index: original(values, index[:1].expand_as(index)))


def worst_are_elites(patch: Patch) -> None:
    patch.setattr("vjepa_mpc.planners.cem.rank", lambda evaluation: judging.rank(evaluation).flip(1))


def never_updates(patch: Patch) -> None:
    patch.setattr(CEMProposal, "update", lambda self, state, samples, evaluation: state)


def adam_never_steps(patch: Patch) -> None:
    patch.setattr(torch.optim.Adam, "step", lambda self: None)


def gradients_pile_up(patch: Patch) -> None:
    def backward(total: torch.Tensor, leaf: torch.Tensor, allow_unused: bool) -> tuple[torch.Tensor | None]:
        total.backward()
        return (leaf.grad,)

    patch.setattr(torch.autograd, "grad", backward)


def inference_mode_used(patch: Patch) -> None:
    patch.setattr(torch, "no_grad", torch.inference_mode)


def horizon_zero_accepted(patch: Patch) -> None:
    patch.setattr(sampling, "check_task", lambda init, bounds, budget, generators: bounds)
    patch.setattr(gradient, "check_task", lambda init, bounds, budget, generators: bounds)


BOTH = {"cem": CEM_PLANNER, "gradient": GRADIENT}
ONLY_CEM, ONLY_GRADIENT = {"cem": CEM_PLANNER}, {"gradient": GRADIENT}
DEFECTS = [
    (dropped_clip, testing.check_bounds_kept, BOTH),
    (nan_ranked_first, testing.check_nan_raises, BOTH),
    (forgotten_generator, testing.check_global_generators_untouched, BOTH),
    (forgotten_generator, testing.check_same_seed_same_plan, BOTH),
    (one_generator_for_all, testing.check_batch_equals_loop, BOTH),
    (fixed_seed, testing.check_same_seed_same_plan, BOTH),
    (off_by_one_step, testing.check_finds_every_step, BOTH),
    (last_step_is_noise, testing.check_finds_every_step, BOTH),
    (best_that_forgets, testing.check_never_worse_than_start, BOTH),
    (start_not_evaluated, testing.check_never_worse_than_start, BOTH),
    (infinity_wins, testing.check_rejected_never_wins, BOTH),
    (constraints_ignored, testing.check_constraints_first, BOTH),
    (constraints_ignored, testing.check_all_infeasible_progresses, ONLY_CEM),
    (names_lost, testing.check_constraints_first, ONLY_CEM),
    (budget_off_by_one, testing.check_budget_kept, BOTH),
    (evaluations_miscounted, testing.check_budget_kept, BOTH),
    (deadline_ignored, testing.check_deadline_kept, BOTH),
    (problems_swapped, testing.check_batch_equals_loop, BOTH),
    (elites_of_the_first_problem, testing.check_batch_equals_loop, ONLY_CEM),
    (worst_are_elites, testing.check_finds_every_step, ONLY_CEM),
    (never_updates, testing.check_finds_every_step, ONLY_CEM),
    (adam_never_steps, testing.check_finds_every_step, ONLY_GRADIENT),
    (gradients_pile_up, testing.check_leaves_no_gradient_behind, ONLY_GRADIENT),
    (inference_mode_used, testing.check_evidence, ONLY_CEM),
    (horizon_zero_accepted, testing.check_bad_input_refused, BOTH),
]
CASES = [
    pytest.param(defect, check, make, id=f"{name}-{defect.__name__}-{check.__name__}")
    for defect, check, makers in DEFECTS
    for name, make in makers.items()
]


@pytest.mark.parametrize(("defect", "check", "make"), CASES)
def test_a_planted_defect_is_caught(
    defect: Callable[[Patch], None],
    check: Callable[[PlannerFactory], None],
    make: PlannerFactory,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Without the defect the same check passes for the same planner: see test_contract.py.
    defect(monkeypatch)
    with pytest.raises(AssertionError):
        check(make)


@pytest.mark.parametrize(
    "wrong",
    [
        lambda actions, hold: torch.cat((actions[:, :-1], hold.expand_as(actions[:, :1])), dim=1),
        lambda actions, hold: torch.cat((hold.expand_as(actions[:, :1]), actions[:, :-1]), dim=1),
        lambda actions, hold: actions.roll(-1, dims=1),
        lambda actions, hold: torch.cat((actions[:, 1:], actions[:, -1:]), dim=1),
    ],
    ids=["drops-the-last", "wrong-way", "first-again", "repeats-the-last"],
)
def test_a_wrong_shift_is_caught(wrong: Callable[..., torch.Tensor]) -> None:
    testing.check_shift(warm_start.shift_plan)
    with pytest.raises(AssertionError):
        testing.check_shift(wrong)
