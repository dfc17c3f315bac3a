"""Costs of imagined futures: small, named, summable; and guardrails as named constraints.

A soft wish is a `CostTerm`, something forbidden a `Constraint` whose violation a planner must bring to zero.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from vjepa_mpc.core.errors import InputError
from vjepa_mpc.memory import CHUNK, with_smaller_chunks
from vjepa_mpc.planners.base import Bounds, Evaluation
from vjepa_mpc.planners.evaluation import join, rank, take
from vjepa_mpc.planners.limits import control_steps
from vjepa_mpc.rollout import Context, Rollout
from vjepa_mpc.states import StateSpace
from vjepa_mpc.world_model import WorldModel

DRAFT_KEEPS = 32
"""Candidates that a draft leaves at least."""


@runtime_checkable
class CostTerm(Protocol):
    """A named cost of a rollout and the actions that made it. `problems` says which rows of the goals are meant."""

    @property
    def name(self) -> str: ...

    def __call__(
        self, rollout: Rollout, actions: Float[Tensor, "b n h a"], problems: Int[Tensor, "b"]
    ) -> Float[Tensor, "b n"]: ...


@runtime_checkable
class Constraint(Protocol):
    """A named hard constraint: how far each candidate breaks it, 0 when kept."""

    @property
    def name(self) -> str: ...

    def __call__(self, rollout: Rollout, actions: Float[Tensor, "b n h a"]) -> Float[Tensor, "b n"]: ...


def latent_distance(
    a: Float[Tensor, "*batch p d"], b: Float[Tensor, "*#batch p d"]
) -> Float[Tensor, "*batch"]:
    """Mean absolute difference over positions and channels: V-JEPA 2-AC's energy (Assran et al. 2025, eq. 5)."""
    return (a - b).abs().mean(dim=(-2, -1))


def over_horizon(values: Float[Tensor, "b n h"], running: float, nearest: float) -> Float[Tensor, "b n"]:
    """The mean of the frames' values, the last one counting 1 and earlier ones `running`; of the least one the share
    `nearest` beside it."""
    weights = torch.full((values.shape[-1],), running, device=values.device)
    weights[-1] = 1.0
    mean = (values * (weights / weights.sum())).sum(-1)
    return mean if not nearest else (1 - nearest) * mean + nearest * values.amin(-1)


@dataclass(frozen=True)
class GoalDistance:
    """Latent distance of the imagined frames to the goal, weighted over the horizon.

    The last frame counts 1, earlier ones `running`: 0 is V-JEPA 2-AC's terminal energy, 1 the sum over the
    horizon that eb_jepa found better. Divided by the sum of weights, so that the unit stays a distance. `nearest`: the
    share, 0 to 1, that the imagined frame nearest to the goal has instead of that mean. A way that only passes the goal
    is then worth finding: near it, one step need be right and not all of them, and the next plan need not pass it.
    """

    goal: Float[Tensor, "problems p d"]
    running: float = 1.0
    nearest: float = 0.0
    name: str = "goal"

    def __call__(
        self, rollout: Rollout, actions: Float[Tensor, "b n h a"], problems: Int[Tensor, "b"]
    ) -> Float[Tensor, "b n"]:
        goal = self.goal[problems][:, None, None]
        if self.running == 0 and not self.nearest:
            return latent_distance(rollout.latents[:, :, -1], goal[:, :, 0])
        return over_horizon(latent_distance(rollout.latents, goal), self.running, self.nearest)


@dataclass(frozen=True)
class StepsToGoal:
    """`weight` times the control steps that `model`'s critic foresees from the imagined frames to the goal, over the
    horizon as `GoalDistance` has it."""

    model: WorldModel
    goal: Float[Tensor, "problems p d"]
    weight: float
    running: float = 1.0
    nearest: float = 0.0
    name: str = "steps_to_goal"

    def __call__(
        self, rollout: Rollout, actions: Float[Tensor, "b n h a"], problems: Int[Tensor, "b"]
    ) -> Float[Tensor, "b n"]:
        steps = self.model.steps_to(rollout.latents, rollout.states, self.goal[problems][:, None, None])
        return self.weight * over_horizon(steps, self.running, self.nearest)


@dataclass(frozen=True)
class ActionRate:
    """Mean squared change between successive actions, in units of their limits: less jerk."""

    scale: Float[Tensor, "a"]
    weight: float
    name: str = "action_rate"

    def __call__(
        self, rollout: Rollout, actions: Float[Tensor, "b n h a"], problems: Int[Tensor, "b"]
    ) -> Float[Tensor, "b n"]:
        if actions.shape[2] < 2:
            return actions.new_zeros(actions.shape[:2])
        change = (actions[:, :, 1:] - actions[:, :, :-1]) / self.scale
        return self.weight * change.square().mean(dim=(-2, -1))


@dataclass(frozen=True)
class StateBox:
    """Keeps predicted states inside the robot's joint limits (or workspace box), in the state's units."""

    space: StateSpace
    name: str = "state_box"

    def __call__(self, rollout: Rollout, actions: Float[Tensor, "b n h a"]) -> Float[Tensor, "b n"]:
        return self.space.excess(rollout.states).sum(-1)


@dataclass(frozen=True)
class WayLength:
    """Control steps that a plan's way takes at full speed, as a share of `longest`, times `weight`: of ways that lead
    to the same place the short one. `step`: the bounds of one control step."""

    step: Bounds
    longest: int
    weight: float
    name: str = "way_length"

    def __call__(
        self, rollout: Rollout, actions: Float[Tensor, "b n h a"], problems: Int[Tensor, "b"]
    ) -> Float[Tensor, "b n"]:
        steps = control_steps(actions, self.step).sum(dim=-1)
        return self.weight * steps / self.longest


@dataclass(frozen=True)
class ModelSpan:
    """The sum of a model step's `legs` stays inside `low` and `high` [a], the displacements that the model was trained
    on, however long the way between: how far each action is outside, in units of its range, averaged over model steps.
    """

    low: Float[Tensor, "a"]
    high: Float[Tensor, "a"]
    legs: int
    name: str = "model_span"

    def __call__(self, rollout: Rollout, actions: Float[Tensor, "b n h a"]) -> Float[Tensor, "b n"]:
        sums = actions.unflatten(2, (-1, self.legs)).sum(3)
        over = (sums - self.high).clamp(min=0) + (self.low - sums).clamp(min=0)
        wide = self.high - self.low
        return (over / torch.where(wide > 0, wide, 1.0)).sum(-1).mean(-1)


@dataclass(frozen=True)
class Penalty:
    """A constraint as a soft wish: `weight` times how far it is broken is added to the cost."""

    rule: Constraint
    weight: float

    def __post_init__(self) -> None:
        if not 0 <= self.weight < float("inf"):
            raise InputError(f"The weight of a penalty must be at least 0 and finite, got {self.weight}.")

    @property
    def name(self) -> str:
        return f"soft_{self.rule.name}"

    def __call__(
        self, rollout: Rollout, actions: Float[Tensor, "b n h a"], problems: Int[Tensor, "b"]
    ) -> Float[Tensor, "b n"]:
        return self.weight * self.rule(rollout, actions)


class PlanningCost:
    """The cost function a planner sees: world model, contexts and terms closed over, nothing else known.

    `context` holds one row a problem. With `legs` a model step is planned as so many displacements one after
    the other: the model sees their sum, terms and constraints each of them. Differentiable in the actions.

    With a `draft`, a quicker model, that one judges all candidates, and `model` the best eighth, `DRAFT_KEEPS` at
    least; what the draft leaves out costs +inf. So few candidates, and those whose slope is wanted, are all `model`'s.
    """

    def __init__(
        self,
        model: WorldModel,
        context: Context,
        terms: Sequence[CostTerm],
        constraints: Sequence[Constraint] = (),
        *,
        chunk: int = CHUNK,
        legs: int = 1,
        draft: WorldModel | None = None,
    ) -> None:
        names = [term.name for term in terms] + [rule.name for rule in constraints]
        if len(set(names)) != len(names) or not terms:
            raise InputError(f"Cost terms need distinct names and at least one of them, got {names}.")
        self.model, self.context, self.terms, self.constraints = model, context, terms, constraints
        self.chunk, self.legs = chunk, legs
        self.drafted: PlanningCost | None = None
        if draft is not None:
            self.drafted = PlanningCost(draft, context, terms, constraints, chunk=chunk, legs=legs)

    def undrafted(self) -> PlanningCost:
        """The same without its draft: `model` judges every candidate."""
        if self.drafted is None:
            return self
        return PlanningCost(
            self.model, self.context, self.terms, self.constraints, chunk=self.chunk, legs=self.legs
        )

    def imagine(self, actions: Float[Tensor, "b n h a"], problems: Int[Tensor, "b"]) -> Rollout:
        """The futures the world model expects under `actions`."""
        if self.legs > 1:
            actions = actions.unflatten(2, (-1, self.legs)).sum(3)
        return self.model.rollout(self.context.select(problems), actions, chunk=self.chunk)

    def by_term(
        self, actions: Float[Tensor, "b n h a"], problems: Int[Tensor, "b"]
    ) -> dict[str, Float[Tensor, "b n"]]:
        """Every term and constraint by its name."""
        return self.terms_of(self.imagine(actions, problems), actions, problems)

    def terms_of(
        self, rollout: Rollout, actions: Float[Tensor, "b n h a"], problems: Int[Tensor, "b"]
    ) -> dict[str, Float[Tensor, "b n"]]:
        """The same of futures that are imagined already."""
        costs = {term.name: term(rollout, actions, problems) for term in self.terms}
        return costs | {rule.name: rule(rollout, actions) for rule in self.constraints}

    def __call__(self, actions: Float[Tensor, "b n h a"], problems: Int[Tensor, "b"]) -> Evaluation:
        """Cost and violations of all candidates, or of those that a draft leaves."""
        if self.drafted is None or torch.is_grad_enabled() or actions.shape[1] <= DRAFT_KEEPS:
            return self._evaluated(actions, problems)
        rough = self.drafted(actions, problems)
        kept = rank(rough)[:, : max(DRAFT_KEEPS, actions.shape[1] // 8)]
        exact = self._evaluated(take(actions, kept), problems)
        cost = torch.full_like(rough.cost, torch.inf).scatter(1, kept, exact.cost)
        places = kept[:, :, None].expand_as(exact.violation)
        return Evaluation(cost, rough.violation.scatter(1, places, exact.violation), exact.names)

    def _evaluated(self, actions: Float[Tensor, "b n h a"], problems: Int[Tensor, "b"]) -> Evaluation:
        """What `model` says of all of them. No more than `chunk` candidates' futures exist at a time; where memory runs
        out all the same it is tried again with fewer, and `chunk` stays at what worked."""
        first = min(self.chunk, actions.shape[1])
        evaluation, worked = with_smaller_chunks(lambda chunk: self._in_chunks(actions, problems, chunk), first)
        if worked < first:
            self.chunk = worked
        return evaluation

    def _in_chunks(self, actions: Tensor, problems: Tensor, chunk: int) -> Evaluation:
        if actions.shape[1] <= chunk:
            return self.judge(self.imagine(actions, problems), actions, problems)
        parts = actions.split(chunk, dim=1)
        return join([self.judge(self.imagine(part, problems), part, problems) for part in parts])

    def judge(
        self, rollout: Rollout, actions: Float[Tensor, "b n h a"], problems: Int[Tensor, "b"]
    ) -> Evaluation:
        """Cost and violations of futures that are imagined already."""
        cost = torch.stack([term(rollout, actions, problems) for term in self.terms]).sum(0)
        broken = [rule(rollout, actions) for rule in self.constraints]
        violation = torch.stack(broken, dim=-1) if broken else cost.new_zeros(*cost.shape, 0)
        return Evaluation(cost, violation, tuple(rule.name for rule in self.constraints))
