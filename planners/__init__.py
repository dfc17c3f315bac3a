"""Optimisers of a cost function over action sequences. They know no model, robot or plot."""

from vjepa_mpc.planners.base import ActionPlan, Bounds, Budget, CostFunction, Evaluation, Planner
from vjepa_mpc.planners.cem import CEM, CEMSettings
from vjepa_mpc.planners.gradient import GradientPlanner, GradientSettings
from vjepa_mpc.planners.search import Proposal, SearchPlanner
from vjepa_mpc.planners.warm_start import shift_plan

__all__ = [
    "CEM",
    "ActionPlan",
    "Bounds",
    "Budget",
    "CEMSettings",
    "CostFunction",
    "Evaluation",
    "GradientPlanner",
    "GradientSettings",
    "Planner",
    "Proposal",
    "SearchPlanner",
    "shift_plan",
]
