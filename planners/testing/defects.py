"""Defects to plant in the planners, and the check that must fail for each: the proof that the suite sees.

`DEFECTS` is the list. `goes_unseen(defect, make)` plants one, runs its check and says whether it passed:

    assert not [d.name for d in DEFECTS for name in d.planners if goes_unseen(d, PLANNERS[name])]
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from unittest import mock

import torch

from vjepa_mpc.planners.cem import CEM, CEMSettings
from vjepa_mpc.planners.cma_es import CMAES, CMASettings
from vjepa_mpc.planners.gradient import GradientPlanner, GradientSettings
from vjepa_mpc.planners.icem import ICEM, ICEMSettings
from vjepa_mpc.planners.knots import ByKnots, Lines
from vjepa_mpc.planners.lagrangian import LagrangianLBFGS, LagrangianLBFGSSettings
from vjepa_mpc.planners.lbfgs import LBFGS, LBFGSSettings
from vjepa_mpc.planners.mppi import MPPI, MPPISettings
from vjepa_mpc.planners.shooting import PredictiveSampling, PredictiveSettings
from vjepa_mpc.planners.testing import algorithm_defects as in_algorithm
from vjepa_mpc.planners.testing import clock, honest, known, learning, limits, records, same
from vjepa_mpc.planners.testing import draw_defects as in_draws
from vjepa_mpc.planners.testing import search_defects as in_search
from vjepa_mpc.planners.testing.worlds import PlannerFactory, Plant
from vjepa_mpc.planners.wrappers import Refined


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
    "gradient": lambda bounds: GradientPlanner(bounds, GradientSettings(starts=2, steps=50)),
    "mppi": lambda bounds: MPPI(bounds, MPPISettings(samples=128, iterations=20)),
    "predictive": lambda bounds: PredictiveSampling(bounds, PredictiveSettings(samples=128, iterations=20)),
    "icem": lambda bounds: ICEM(bounds, ICEMSettings(samples=128, elites=16, iterations=12)),
    "cma": lambda bounds: CMAES(bounds, CMASettings(samples=16, iterations=60)),
    "lbfgs": lambda bounds: LBFGS(bounds, LBFGSSettings(starts=4, steps=30)),
    "lagrangian": lambda bounds: LagrangianLBFGS(bounds, LagrangianLBFGSSettings(starts=2, steps=25, rounds=3)),
    "refined": lambda bounds: Refined(
        CEM(bounds, CEMSettings(samples=64, elites=8, iterations=12)), LBFGS(bounds, LBFGSSettings(starts=2, steps=12))
    ),
    "knots": lambda bounds: ByKnots(CEM(bounds, CEMSettings(samples=128, elites=16, iterations=20)), Lines(8)),
    "gradient-chunked": lambda bounds: GradientPlanner(bounds, GradientSettings(starts=2, steps=50, chunk=1)),
    "chunked": lambda bounds: CEM(bounds, CEMSettings(samples=200, elites=20, iterations=20, chunk=25)),
}
ONLY_CEM, ONLY_GRADIENT = ("cem",), ("gradient",)
DEFECTS: tuple[Defect, ...] = (
    Defect(in_search.dropped_clip, honest.check_bounds_kept, ONLY_CEM),
    Defect(in_search.nan_ranked_first, honest.check_nan_raises),
    Defect(in_draws.forgotten_generator, same.check_global_generators_untouched),
    Defect(in_draws.forgotten_generator, same.check_same_seed_same_plan),
    Defect(in_draws.one_generator_for_all, same.check_batch_equals_loop),
    Defect(in_draws.fixed_seed, same.check_same_seed_same_plan),
    Defect(in_search.off_by_one_step, known.check_finds_every_step),
    Defect(in_search.last_step_is_noise, known.check_finds_every_step),
    Defect(in_draws.same_noise_every_iteration, same.check_draws_anew, ONLY_CEM),
    Defect(in_search.suggestions_of_another_problem, honest.check_suggestions_are_judged),
    Defect(in_search.deadline_between_iterations_only, clock.check_deadline_kept, ("chunked",)),
    Defect(in_search.never_better, limits.check_patience_kept, ONLY_CEM),
    Defect(in_search.best_that_forgets, honest.check_never_worse_than_start),
    Defect(in_search.start_not_counted, honest.check_never_worse_than_start),
    Defect(in_search.infinity_wins, honest.check_rejected_never_wins),
    Defect(in_search.constraints_ignored, honest.check_constraints_first),
    Defect(in_search.constraints_ignored, honest.check_all_infeasible_progresses, ONLY_CEM),
    Defect(in_search.names_lost, honest.check_constraints_first),
    Defect(in_search.budget_off_by_one, limits.check_budget_kept),
    Defect(in_search.evaluations_miscounted, limits.check_budget_kept),
    Defect(in_search.deadline_ignored, clock.check_deadline_kept),
    Defect(in_search.problems_swapped, same.check_batch_equals_loop),
    Defect(in_search.never_stops_alone, same.check_problems_stop_one_by_one),
    Defect(in_search.target_not_looked_at, same.check_problems_stop_one_by_one),
    Defect(in_search.target_met_by_what_is_forbidden, same.check_problems_stop_one_by_one),
    Defect(in_search.evidence_of_another_problem, honest.check_nan_raises),
    Defect(in_search.records_forget, honest.check_evidence, ONLY_CEM),
    Defect(in_search.suggestions_dropped, honest.check_suggestions_are_judged),
    Defect(in_search.inference_mode_used, honest.check_evidence, ONLY_CEM),
    Defect(in_search.anything_accepted, limits.check_bad_input_refused),
    Defect(in_search.bounds_rounded_outwards, honest.check_bounds_kept),
    Defect(in_search.only_the_first_suggestion, honest.check_suggestions_are_judged, ONLY_CEM),
    Defect(in_search.suggestions_judged_in_vain, honest.check_suggestions_are_judged),
    Defect(in_search.chunks_of_other_problems, same.check_batch_equals_loop, ("chunked",)),
    Defect(in_search.slopes_of_other_chunks, known.check_finds_every_step, ("gradient-chunked",)),
    Defect(in_search.largest_violation_counts, honest.check_several_constraints),
    Defect(in_search.violations_untold, honest.check_several_constraints),
    Defect(in_search.equal_is_better, honest.check_never_worse_than_start, ONLY_CEM),
    Defect(in_search.target_must_be_beaten, same.check_problems_stop_one_by_one),
    Defect(in_search.one_iteration_too_patient, limits.check_patience_kept),
    Defect(in_search.patience_begins_anew_for_all, limits.check_patience_kept),
    Defect(in_search.tolerance_in_units_of_cost, limits.check_patience_kept),
    Defect(in_search.expects_nothing_of_an_iteration, clock.check_deadline_kept),
    Defect(in_search.clock_of_the_processor, clock.check_deadline_kept),
    Defect(in_search.spread_of_all_problems, records.check_records_are_true),
    Defect(in_search.statistics_of_the_first_problem, records.check_records_are_true),
    Defect(in_search.seconds_of_an_iteration, records.check_records_are_true),
    Defect(in_search.endings_of_the_first_problem, same.check_problems_stop_one_by_one),
    Defect(in_search.start_is_not_checked, honest.check_nan_raises, ONLY_CEM),
    Defect(in_search.costs_in_single_precision, known.check_any_unit_of_cost, ONLY_CEM),
    Defect(in_draws.start_overwritten, same.check_keeps_nothing_between_plans),
    Defect(in_draws.last_plan_remembered, same.check_keeps_nothing_between_plans, ONLY_CEM),
    Defect(in_search.gradients_left_off, honest.check_leaves_no_gradient_behind),
    Defect(in_search.costs_beside_slopes_believed, honest.check_leaves_no_gradient_behind, ("gradient", "lbfgs")),
    Defect(in_search.wrong_shift, check_shift_of_the_module, ONLY_CEM),
    Defect(in_algorithm.std_is_a_variance, same.check_units, ONLY_CEM),
    Defect(in_algorithm.elites_of_the_first_problem, same.check_batch_equals_loop, ONLY_CEM),
    Defect(in_algorithm.worst_are_elites, known.check_finds_every_step, ONLY_CEM),
    Defect(in_algorithm.never_updates, known.check_finds_every_step, ONLY_CEM),
    Defect(in_algorithm.mppi_weighs_by_cost_alone, known.check_constraints_lead_the_search, ("mppi",)),
    Defect(in_algorithm.predictive_sampling_that_forgets, known.check_draws_around_the_best, ("predictive",)),
    Defect(in_algorithm.kept_elites_of_another_problem, same.check_batch_equals_loop, ONLY_CEM),
    Defect(in_algorithm.spread_of_the_first_step, known.check_ill_conditioned, ONLY_CEM),
    Defect(in_algorithm.further_plans_worst_first, records.check_records_are_true, ("icem",)),
    Defect(in_algorithm.mppi_weights_overflow, known.check_any_unit_of_cost, ("mppi",)),
    Defect(in_algorithm.told_in_reverse, known.check_finds_every_step, ("cma",)),
    Defect(in_algorithm.start_is_no_start, known.check_descends_from_the_start, ("gradient", "lbfgs")),
    Defect(in_algorithm.nan_slopes_followed, known.check_descends_from_the_start, ("gradient", "lbfgs")),
    Defect(in_algorithm.takes_every_trial, known.check_never_steps_up, ("lbfgs",)),
    Defect(in_algorithm.pairs_in_reverse, known.check_learns_curvature, ("lbfgs",)),
    Defect(in_algorithm.pairs_of_another_start, known.check_learns_curvature, ("lbfgs",)),
    Defect(in_algorithm.one_pair_only, known.check_learns_curvature, ("lbfgs",)),
    Defect(in_algorithm.prices_never_rise, known.check_learns_prices, ("lagrangian",)),
    Defect(in_algorithm.prices_of_another_constraint, known.check_learns_prices, ("lagrangian",)),
    Defect(in_algorithm.suggestions_priced_alone, honest.check_suggestions_are_judged, ("lagrangian",)),
    Defect(in_algorithm.refined_from_the_start, honest.check_never_worse_than_start, ("refined",)),
    Defect(in_algorithm.knots_that_do_not_count_the_start, limits.check_budget_kept, ("knots",)),
    Defect(in_algorithm.adam_never_steps, known.check_finds_every_step, ONLY_GRADIENT),
    Defect(in_draws.drawn_from_python, same.check_global_generators_untouched, ("cem", "gradient", "lbfgs")),
    Defect(in_algorithm.squares_overflow, known.check_any_unit_of_cost, ONLY_GRADIENT),
    Defect(in_algorithm.no_momentum, learning.check_coasts, ONLY_GRADIENT),
    Defect(in_algorithm.never_gives_up_a_direction, learning.check_gives_up_a_direction, ("lbfgs",)),
    Defect(in_algorithm.memory_never_cut, learning.check_cuts_its_memory, ("lbfgs",)),
    Defect(in_algorithm.positions_in_reverse, learning.check_learns_from_suggestions, ("cma",)),
    Defect(in_algorithm.never_updates, learning.check_learns_from_suggestions, ONLY_CEM),
    Defect(in_algorithm.gradients_pile_up, honest.check_leaves_no_gradient_behind, ONLY_GRADIENT),
)


def goes_unseen(defect: Defect, make: PlannerFactory) -> bool:
    """Whether the check passes although the defect is planted. Everything is as before afterwards."""
    gradients = torch.is_grad_enabled()
    with contextlib.ExitStack() as stack:
        defect.plant(lambda owner, name, value: stack.enter_context(mock.patch.object(owner, name, value)) and None)
        try:
            defect.check(make)
        except AssertionError:
            return False
        finally:
            torch.set_grad_enabled(gradients)
    return True
