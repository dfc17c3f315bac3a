"""What planning rougher than the world model can is worth: how much of a plan is lost, and how much time is won.

Every way plans the same frozen problems, in turn; the whole model judges what each of them found. A way that drops a
part of the model has to win more than planning with fewer candidates does, which stands beside it.
"""

from __future__ import annotations

import copy
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from vjepa_mpc.controller import Controller, ControllerState, ControlSettings
from vjepa_mpc.core.errors import InputError
from vjepa_mpc.costs import PlanningCost
from vjepa_mpc.intervals import spearman
from vjepa_mpc.latents import LatentSpace
from vjepa_mpc.planners.base import Evaluation, Planner
from vjepa_mpc.predictor import ActionConditionedPredictor
from vjepa_mpc.world_model import WorldModel

if TYPE_CHECKING:
    from vjepa_mpc.robots.base import SimulatedRobot
    from vjepa_mpc.robots.tasks import Pair

WHOLE = "whole"
KINDS = ("draft", "blocks", "grid", "samples", "iterations")
"""A draft's first blocks; these alone, for all candidates; latents averaged to so many positions a side; CEM's own."""


@dataclass(frozen=True)
class Shortcut:
    """One of `KINDS` and how much of it, or all of the model (`WHOLE`)."""

    kind: str = WHOLE
    amount: int = 0

    @property
    def name(self) -> str:
        return f"{self.kind}-{self.amount}" if self.amount else self.kind

    @classmethod
    def named(cls, text: str) -> Shortcut:
        """The shortcut called "draft-2"; `InputError` for what is none."""
        kind, _, amount = text.partition("-")
        if kind not in KINDS or not amount.isdigit() or int(amount) < 1:
            raise InputError(f"{text!r} is no way to plan; write one of {', '.join(KINDS)} and a number, as draft-2.")
        return cls(kind, int(amount))

    def of(self, model: WorldModel) -> WorldModel:
        """The model that plans."""
        if self.kind == "blocks":
            return model.draft(self.amount)
        return averaged(model, self.amount) if self.kind == "grid" else model


def averaged(model: WorldModel, side: int) -> WorldModel:
    """`model` that imagines on `side` x `side` positions, each the mean of those it was trained on, with the same
    weights: rotary positions are scaled to the trained grid, and statistics are averaged as well. For plans only:
    distances are others than it was calibrated on. `InputError` for a grid that does not divide, and for a model with a
    critic, which reads it whole."""
    own, predictor, space = model.config, model.predictor, model.latent_space
    grid = own.latent.grid
    if side >= grid or grid % side:
        raise InputError(f"Latents of {grid} x {grid} cannot be averaged to {side} x {side}; choose a smaller divisor.")
    if own.latent.pooling != "mean":
        raise InputError("This model has neighbours side by side, not their mean; leave the smaller grid out.")
    if model.critic is not None:
        raise InputError("This model's critic reads the whole grid of latents; leave the smaller grid out.")
    trained = own.predictor.train_grid or (own.predictor.grid_height, own.predictor.grid_width)
    rough = copy.copy(model)
    rough._modules = dict(model._modules)
    rough.config = replace(
        own, latent=replace(own.latent, grid=side), familiar=0,
        predictor=replace(own.predictor, grid_height=side, grid_width=side, train_grid=trained),
    )  # fmt: skip
    rough.familiarity = None
    rough.latent_space = LatentSpace(rough.config.latent)
    rough.latent_space.mean, rough.latent_space.std = (
        part.unflatten(0, (side, grid // side, side, grid // side)).mean(dim=(1, 3)).flatten(0, 1)
        for part in (space.mean, space.std)
    )
    with torch.random.fork_rng(devices=[]):
        rough.predictor = ActionConditionedPredictor(rough.config.predictor)
    rough.predictor.load_state_dict(predictor.state_dict())
    weights = predictor.predictor_embed.weight
    rough.predictor.to(weights.device).requires_grad_(False)
    return rough.for_planning(bf16=weights.dtype == torch.bfloat16).eval()


@dataclass(frozen=True)
class Way:
    """Who plans: a model (whole, or shortened), a planner and the controller's settings."""

    model: WorldModel
    planner: Planner
    control: ControlSettings


@dataclass
class _Recorded:
    """Passes calls on and keeps the candidates, a population a call."""

    cost: PlanningCost
    populations: list[Tensor]

    def __call__(self, actions: Float[Tensor, "b n h a"], problems: Int[Tensor, "b"]) -> Evaluation:
        self.populations.append(actions.clone())
        return self.cost(actions, problems)


@dataclass(frozen=True)
class FirstPlan:
    """A plan from the start of a pair to its goal's picture: its `cost` by the whole model, and that of the `start` of
    the search; the search's `seconds`; how the way ranks the whole search's first and last population (Spearman's
    correlation with the whole model's costs; None where it asks that model for all of them)."""

    cost: float
    start: float
    seconds: float
    rank_first: float | None
    rank_last: float | None


def first_plans(ways: Mapping[str, Way], robot: SimulatedRobot, pair: Pair, number: int) -> dict[str, FirstPlan]:
    """Plan pair `number` once in every way, `WHOLE` among them, in turn, from the same random numbers."""
    robot.set_appearance(pair.appearance)
    camera = ways[WHOLE].model.config.camera
    goal = robot.place(np.asarray(pair.goal)).images[camera]
    seen = robot.place(np.asarray(pair.start))
    problems, plans, seconds, searched = {}, {}, {}, {}
    for name, way in ways.items():
        generator = torch.Generator().manual_seed(number)
        controller = Controller(way.model, way.planner, goal, way.control, generator)
        problem = problems[name] = controller.problem(*controller.see(seen, ControllerState()))
        searched[name] = _Recorded(problem.cost, [])
        began = time.perf_counter()
        plan = way.planner.plan(searched[name], problem.init, budget=way.control.budget, generators=[generator])
        seconds[name], plans[name] = time.perf_counter() - began, plan.actions
    whole, only = problems[WHOLE].cost, torch.zeros(1, dtype=torch.long)
    many = [tried for tried in searched[WHOLE].populations if tried.shape[1] > 3]
    found = {}
    with torch.no_grad():
        start = float(whole(problems[WHOLE].init[:, None], only).cost)
        for name, problem in problems.items():
            rough = problem.cost.drafted or problem.cost
            alike = rough.model is whole.model
            first, last = (None if alike else _rank(rough, whole, tried) for tried in (many[0], many[-1]))
            cost = float(whole(plans[name][:, None], only).cost)
            found[name] = FirstPlan(cost, start, seconds[name], first, last)
    return found


def _rank(rough: PlanningCost, whole: PlanningCost, actions: Float[Tensor, "1 n h a"]) -> float | None:
    """Spearman's correlation of two models' costs of one population; None where one of them holds all for equal."""
    only = torch.zeros(1, dtype=torch.long)
    costs = [judge(actions, only).cost[0].double().numpy() for judge in (rough, whole)]
    found = spearman(costs[0], costs[1], np.random.default_rng(0), draws=1)
    return None if found is None else found.rho


def plan_figures(name: str, plans: Sequence[Mapping[str, FirstPlan]]) -> dict[str, Any]:
    """What a way's first plans came to, from `first_plans` of several problems.

    `times_quicker`: the whole model's seconds over its own, in one problem. `gained`: of what the whole model's plan is
    better than the start, this way's share, as that model judges it; problems in which it finds nothing better are left
    out. Of these and the two ranks the median, and the least (`gained_mean`: the mean)."""
    own, whole = [one[name] for one in plans], [one[WHOLE] for one in plans]
    pairs = list(zip(own, whole, strict=True))
    figures: dict[str, Any] = {
        "problems": len(plans),
        "milliseconds": 1e3 * statistics.median(one.seconds for one in own),
        "cost": statistics.median(one.cost for one in own),
    }
    several = {
        "times_quicker": [best.seconds / mine.seconds for mine, best in pairs],
        "gained": [(one.start - one.cost) / (one.start - best.cost) for one, best in pairs if best.start > best.cost],
        "rank_first": [one.rank_first for one in own if one.rank_first is not None],
        "rank_last": [one.rank_last for one in own if one.rank_last is not None],
    }
    for key, values in several.items():
        figures |= {key: statistics.median(values) if values else None, f"{key}_least": min(values, default=None)}
    gained = several["gained"]
    return {**figures, "gained_mean": statistics.fmean(gained) if gained else None}


def usual_shortcuts(model: WorldModel, samples: int, keeps: int) -> list[Shortcut]:
    """What is measured where nothing is said: a draft of a quarter and of half the blocks (where there are more than
    `keeps` candidates to sift), three quarters and half of the blocks alone, half the grid; and two thirds, half and a
    third of the `samples`."""
    depth, grid = model.config.predictor.depth, model.config.latent.grid
    drafts = [Shortcut("draft", depth // part) for part in (4, 2)] if samples > keeps else []
    blocks = [Shortcut("blocks", 3 * depth // 4), Shortcut("blocks", depth // 2)]
    grids = [Shortcut("grid", grid // 2)] if grid % 2 == 0 and model.critic is None else []
    fewer = [Shortcut("samples", round(samples * share)) for share in (2 / 3, 1 / 2, 1 / 3)]
    return [one for one in (*drafts, *blocks, *grids, *fewer) if one.amount and one.amount != depth]
