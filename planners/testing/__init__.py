"""The planners' contract as checks: a new planner is trusted once these pass for it.

Each check takes a `PlannerFactory` (a planner from its bounds) and raises `AssertionError` with a
sentence when the planner breaks the contract. `CHECKS` are for every planner, `SEARCHES_WELL` for those that
claim to find optima; `check_finds_the_global_optimum`, `check_spends_the_whole_budget`, `check_draws_anew` (for
planners that sample), `check_draws_around_the_best` (predictive sampling), `check_descends_from_the_start`,
`check_learns_curvature`, `check_never_steps_up`, `check_coasts` (with momentum), `check_gives_up_a_direction`,
`check_cuts_its_memory` (L-BFGS) and `check_learns_prices` (planners that descend), `check_learns_from_suggestions`
(those that learn a distribution) are promises that not every planner makes. `vjepa_mpc.planners.testing.defects`
shows what they catch.
"""

from __future__ import annotations

from collections.abc import Callable

from vjepa_mpc.planners.testing.clock import check_deadline_kept
from vjepa_mpc.planners.testing.honest import (
    check_all_infeasible_progresses,
    check_bounds_kept,
    check_constraints_first,
    check_evidence,
    check_leaves_no_gradient_behind,
    check_makes_progress,
    check_nan_raises,
    check_never_worse_than_start,
    check_rejected_never_wins,
    check_several_constraints,
    check_suggestions_are_judged,
)
from vjepa_mpc.planners.testing.known import (
    check_any_unit_of_cost,
    check_constraints_lead_the_search,
    check_descends_from_the_start,
    check_draws_around_the_best,
    check_finds_a_corner,
    check_finds_every_step,
    check_finds_the_global_optimum,
    check_ill_conditioned,
    check_learns_curvature,
    check_learns_prices,
    check_never_steps_up,
    check_small_tasks,
    check_uneven_units,
)
from vjepa_mpc.planners.testing.learning import (
    check_coasts,
    check_cuts_its_memory,
    check_gives_up_a_direction,
    check_learns_from_suggestions,
)
from vjepa_mpc.planners.testing.limits import (
    check_bad_input_refused,
    check_budget_kept,
    check_patience_kept,
    check_shift,
    check_spends_the_whole_budget,
)
from vjepa_mpc.planners.testing.records import check_records_are_true
from vjepa_mpc.planners.testing.same import (
    check_batch_equals_loop,
    check_draws_anew,
    check_global_generators_untouched,
    check_keeps_nothing_between_plans,
    check_problems_stop_one_by_one,
    check_same_on_cuda,
    check_same_seed_same_plan,
    check_units,
)
from vjepa_mpc.planners.testing.worlds import Bowl, PlannerFactory, Watch, box, distinct_goals, generators, solve

CHECKS: tuple[Callable[[PlannerFactory], None], ...] = (
    check_same_seed_same_plan,
    check_keeps_nothing_between_plans,
    check_global_generators_untouched,
    check_batch_equals_loop,
    check_problems_stop_one_by_one,
    check_units,
    check_same_on_cuda,
    check_bounds_kept,
    check_never_worse_than_start,
    check_makes_progress,
    check_suggestions_are_judged,
    check_evidence,
    check_records_are_true,
    check_leaves_no_gradient_behind,
    check_rejected_never_wins,
    check_nan_raises,
    check_constraints_first,
    check_several_constraints,
    check_all_infeasible_progresses,
    check_budget_kept,
    check_deadline_kept,
    check_patience_kept,
    check_bad_input_refused,
)
SEARCHES_WELL: tuple[Callable[[PlannerFactory], None], ...] = (
    check_finds_every_step,
    check_finds_a_corner,
    check_ill_conditioned,
    check_uneven_units,
    check_any_unit_of_cost,
    check_small_tasks,
    check_constraints_lead_the_search,
)

__all__ = [
    "CHECKS",
    "SEARCHES_WELL",
    "Bowl",
    "PlannerFactory",
    "Watch",
    "box",
    "check_bounds_kept",
    "check_coasts",
    "check_cuts_its_memory",
    "check_descends_from_the_start",
    "check_draws_anew",
    "check_draws_around_the_best",
    "check_finds_the_global_optimum",
    "check_gives_up_a_direction",
    "check_learns_curvature",
    "check_learns_from_suggestions",
    "check_learns_prices",
    "check_never_steps_up",
    "check_shift",
    "check_spends_the_whole_budget",
    "distinct_goals",
    "generators",
    "solve",
]
