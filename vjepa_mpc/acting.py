"""A controller that does what the model's actor says: LeCun's Mode-1 in the loop of Mode-2, where the future is
imagined to be looked at, and nothing is searched (2022, "A path towards autonomous machine intelligence", 3.1)."""

from __future__ import annotations

from vjepa_mpc.controller import ControlSettings
from vjepa_mpc.core.errors import InputError
from vjepa_mpc.planners.base import Bounds, Budget, Planner
from vjepa_mpc.planners.shooting import RandomShooting, ShootingSettings
from vjepa_mpc.policies import actor_steps
from vjepa_mpc.world_model import WorldModel


def following(model: WorldModel) -> tuple[Planner, ControlSettings]:
    """A planner that takes its start as it is, and the controller's settings beside it. A planned step is one control
    step, so that the actor's first action is the plan's. The actor is asked again after as many as the model's search
    says, or one. `InputError` for a model without an actor."""
    if model.actor is None:
        raise InputError("This model has no actor to play; `vjepa-mpc train-actor MODEL LOGS` trains one.")
    box, stride = model.action_bounds, model.config.stride
    planner = RandomShooting(Bounds(box.low / stride, box.high / stride), ShootingSettings(samples=1, iterations=1))
    budget = Budget(max_evaluations=1)
    steps = actor_steps(model, None)
    return planner, ControlSettings(horizon=model.default_horizon, leg_steps=1, act=steps, budget=budget)
