"""Optimisers of a cost function over action sequences. They know no model, robot or plot."""

from vjepa_mpc.planners.base import ActionPlan, Bounds, Budget, CostFunction, Ending, Evaluation, Planner
from vjepa_mpc.planners.cem import CEM, CEMSettings
from vjepa_mpc.planners.cma_es import CMAES, CMASettings
from vjepa_mpc.planners.discrete import Choices, DiscreteCEM, DiscreteSettings
from vjepa_mpc.planners.gradient import GradientPlanner, GradientSettings
from vjepa_mpc.planners.icem import ICEM, ICEMSettings
from vjepa_mpc.planners.knots import Blocks, ByKnots, Lines, Splines
from vjepa_mpc.planners.lagrangian import AugmentedLagrangian, LagrangianLBFGS, LagrangianLBFGSSettings
from vjepa_mpc.planners.lbfgs import LBFGS, LBFGSSettings
from vjepa_mpc.planners.limits import Ball, Limits, StepLimits, fixed
from vjepa_mpc.planners.mppi import MPPI, MPPISettings
from vjepa_mpc.planners.published import PublishedCEM, PublishedSettings
from vjepa_mpc.planners.search import Proposal, SearchPlanner
from vjepa_mpc.planners.shooting import PredictiveSampling, PredictiveSettings, RandomShooting, ShootingSettings
from vjepa_mpc.planners.warm_start import shift_plan
from vjepa_mpc.planners.wrappers import Refined, Suggested

__all__ = [
    "CEM",
    "CMAES",
    "ICEM",
    "LBFGS",
    "MPPI",
    "ActionPlan",
    "AugmentedLagrangian",
    "Ball",
    "Blocks",
    "Bounds",
    "Budget",
    "ByKnots",
    "CEMSettings",
    "CMASettings",
    "Choices",
    "CostFunction",
    "DiscreteCEM",
    "DiscreteSettings",
    "Ending",
    "Evaluation",
    "GradientPlanner",
    "GradientSettings",
    "ICEMSettings",
    "LBFGSSettings",
    "LagrangianLBFGS",
    "LagrangianLBFGSSettings",
    "Limits",
    "Lines",
    "MPPISettings",
    "Planner",
    "PredictiveSampling",
    "PredictiveSettings",
    "Proposal",
    "PublishedCEM",
    "PublishedSettings",
    "RandomShooting",
    "Refined",
    "SearchPlanner",
    "ShootingSettings",
    "Splines",
    "StepLimits",
    "Suggested",
    "fixed",
    "shift_plan",
]
