"""Frozen planning problems on which planners are measured against each other.

Test functions stand for planning problems of 20 and 50 numbers whose answer is known; start/goal pairs of a
manifest, through a world model, for real ones.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from vjepa_mpc.core.errors import InputError, unknown_name
from vjepa_mpc.costs import GoalDistance, PlanningCost, StateBox
from vjepa_mpc.planners.base import Bounds, CostFunction, Evaluation
from vjepa_mpc.rollout import Context, Rollout

if TYPE_CHECKING:
    from vjepa_mpc.robots.base import SimulatedRobot
    from vjepa_mpc.robots.tasks import Pair
    from vjepa_mpc.world_model import WorldModel

LEAST_HORIZON = 5
"""Model steps that problems through a model are planned ahead, where the model was not trained to see further."""
CHUNK = 64
"""Candidates imagined at a time: fifty problems are solved at once."""


@dataclass(frozen=True)
class Problems:
    """A set of planning problems that are solved in one batch. `lowest`: the cost of the answer, where known. `exact`:
    the same cost without the roundings of `cost_fn`, by which answers are judged (None: `cost_fn` has none)."""

    name: str
    cost_fn: CostFunction
    init: Float[Tensor, "b h a"]
    bounds: Bounds
    lowest: float | None = None
    exact: CostFunction | None = None

    @torch.no_grad()
    def judged(self, answers: Float[Tensor, "b h a"]) -> Float[Tensor, "b"]:
        """What an answer to each problem costs."""
        judge = self.exact or self.cost_fn
        return judge(answers[:, None], torch.arange(len(answers))).cost[:, 0]


@dataclass(frozen=True)
class Landscape:
    """cost = shape(R (x - answer)) over all numbers x of a plan, R a rotation and the answer its own in each problem.

    Shapes: "ellipsoid", curvatures from 1 to 1000; "rosenbrock", one long bent valley; "rastrigin", a bowl
    with a valley at every fifth of a unit. Boxes are [-1, 1], answers within [-0.8, 0.8], starts at zero.
    """

    shape: str
    answers: Float[Tensor, "problems d"]
    rotations: Float[Tensor, "problems d d"]

    def __call__(self, actions: Float[Tensor, "b n h a"], problems: Int[Tensor, "b"]) -> Evaluation:
        away = actions.flatten(2) - self.answers[problems][:, None]
        z = away @ self.rotations[problems].transpose(1, 2)
        cost = SHAPES[self.shape](z)
        return Evaluation(cost, cost.new_zeros(*cost.shape, 0))


def _ellipsoid(z: Tensor) -> Tensor:
    size = z.shape[-1]
    return (1000 ** (torch.arange(size, device=z.device) / (size - 1)) * z.square()).sum(dim=-1)


def _rosenbrock(z: Tensor) -> Tensor:
    x = 1 + 2 * z
    return (100 * (x[..., 1:] - x[..., :-1].square()).square() + (1 - x[..., :-1]).square()).sum(dim=-1)


def _rastrigin(z: Tensor) -> Tensor:
    return (z.square() + 0.1 * (1 - (10 * math.pi * z).cos())).sum(dim=-1)


SHAPES: dict[str, Callable[[Tensor], Tensor]] = {
    "ellipsoid": _ellipsoid, "rosenbrock": _rosenbrock, "rastrigin": _rastrigin,
}  # fmt: skip
SIZES = {20: (5, 4), 50: (10, 5)}
"""Dimensions: horizon and actions."""
FUNCTIONS = tuple(f"{shape}-{size}" for size in SIZES for shape in SHAPES)


def drawn(name: str, problems: int, seed: int = 0) -> Problems:
    """`problems` drawn versions of a function of `FUNCTIONS` ("rastrigin-20")."""
    if name not in FUNCTIONS:
        raise unknown_name("test function", name, FUNCTIONS)
    shape, size = name.split("-")
    d = int(size)
    horizon, actions = SIZES[d]
    generator = torch.Generator().manual_seed(seed)
    answers = 1.6 * torch.rand(problems, d, generator=generator) - 0.8
    rotations = torch.linalg.qr(torch.randn(problems, d, d, generator=generator))[0]
    bounds = Bounds(-torch.ones(actions), torch.ones(actions))
    function = Landscape(shape, answers, rotations)
    return Problems(name, function, torch.zeros(problems, horizon, actions), bounds, 0.0)


class OneByOne(PlanningCost):
    """The planning cost with each frame imagined from the one before alone, for horizons beyond what the predictor
    was trained to attend to. Every single prediction is of a kind it was trained on."""

    def imagine(self, actions: Float[Tensor, "b n h a"], problems: Int[Tensor, "b"]) -> Rollout:
        """Each prediction fed back as the only frame that is seen, with the state integrated so far."""
        model, seen = self.model, self.context.select(problems)
        candidates = actions.shape[1]
        latent = seen.latents[:, -1].repeat_interleave(candidates, 0)
        state = seen.states[:, -1].repeat_interleave(candidates, 0)
        latents, states = [], []
        for action in actions.flatten(0, 1).unbind(1):
            features = model.states.action_features(action, state), model.states.state_features(state)
            imagined = model.predictor(latent[:, None], *(part[:, None] for part in features))[:, 0]
            latent = model.latent_space.renormalise(imagined)
            state = model.states.integrate(state, action)
            latents.append(latent.unflatten(0, (-1, candidates)))
            states.append(state.unflatten(0, (-1, candidates)))
        return Rollout(torch.stack(latents, dim=2), torch.stack(states, dim=2))


def pairs_through_model(
    model: WorldModel, robot: SimulatedRobot, pairs: Sequence[Pair], horizon: int | None = None
) -> Problems:
    """The first plan of each pair: from a view that has been held still to the latents of the goal's picture, with
    joint limits as a constraint. Cost is the latent distance, averaged over the horizon.

    `horizon`: by default as far as the model was trained to see, and 5 at least. Further than it was trained to see
    its predictions are fed back (`OneByOne`), and a model step of several control steps is cut into `horizon`
    shorter ones, so that the whole plan spans what one model step does. Answers are judged through the same weights in
    float32: rounded to bfloat16 on the way, the cost of one plan comes out up to some 1e-3 apart, by the candidates
    beside it and by whether slopes are asked for, so that the lowest of many is lower than it is. `InputError` where
    that cannot be done.
    """
    config, views = model.config, []
    ahead = max(LEAST_HORIZON, model.longest_horizon) if horizon is None else horizon
    fed_back = ahead > model.longest_horizon
    if fed_back and config.history > 1:
        raise InputError(
            f"This model sees {config.history} past frames and at most {model.longest_horizon} steps ahead; give "
            f"--horizon {model.longest_horizon} or less."
        )
    for pair in pairs:
        robot.set_appearance(pair.appearance)
        views.append([robot.place(np.asarray(state)) for state in (pair.start, pair.goal)])
    starts, goals = (model.encode(np.stack([view[i].images[config.camera] for view in views])) for i in (0, 1))
    states = torch.tensor(np.stack([view[0].proprioception for view in views]), dtype=torch.float32)
    frames, count, size = config.history, len(pairs), len(config.robot.action_names)
    context = Context(
        starts[:, None].expand(-1, frames, -1, -1),
        states[:, None].expand(-1, frames, -1),
        torch.zeros(count, frames - 1, size),
    )
    kind = OneByOne if fed_back else PlanningCost
    cost, exact = (
        kind(world, context, [GoalDistance(goals)], [StateBox(world.states)], chunk=CHUNK)
        for world in (model, model.in_single_precision())
    )
    bounds, span = model.action_bounds, max(1, config.stride // ahead) if fed_back else config.stride
    shorter = Bounds(bounds.low * (span / config.stride), bounds.high * (span / config.stride))
    name = f"{config.robot.name}, {ahead} steps of {size}"
    return Problems(name, cost, torch.zeros(count, ahead, size), shorter, exact=exact)
