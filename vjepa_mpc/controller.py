"""Closed-loop control: encode once, plan, act, carry the plan over. Recorders watch from outside.

`Controller.step` turns an observation into an action; `run_episode` drives a robot with it. What changes
from step to step is a `ControllerState` that is passed in and returned.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from vjepa_mpc.core.errors import InputError
from vjepa_mpc.costs import (
    ActionRate,
    Constraint,
    CostTerm,
    GoalDistance,
    PlanningCost,
    StateBox,
    latent_distance,
)
from vjepa_mpc.memory import FREE_SHARE, candidate_bytes, chunk_within, free_bytes
from vjepa_mpc.planners.base import ActionPlan, Budget, Planner
from vjepa_mpc.planners.warm_start import shift_plan
from vjepa_mpc.robots.base import Observation, Robot
from vjepa_mpc.rollout import Context
from vjepa_mpc.world_model import WorldModel


@dataclass(frozen=True)
class ControlSettings:
    """`horizon` model steps are planned, the first control step of which is executed. `running`: weight of
    imagined frames before the last (see `GoalDistance`). `hold_steps`: consecutive views that must count as
    there. `budget` bounds a plan. `action_rate` > 0 adds that guardrail; `state_box` keeps predictions
    inside the joint limits. `chunk`: candidates imagined at a time (None: what fits); `memory_budget`: bytes that they
    may fill (None: a share of what is free when the controller is made, which is not asked where `chunk` is given)."""

    horizon: int = 3
    running: float = 1.0
    hold_steps: int = 3
    action_rate: float = 0.0
    state_box: bool = True
    chunk: int | None = None
    memory_budget: int | None = None
    budget: Budget = field(default_factory=Budget)

    def __post_init__(self) -> None:
        if self.horizon < 1:
            raise InputError(f"The horizon must be at least 1 step, got {self.horizon}.")
        if self.chunk is not None and self.chunk < 1:
            raise InputError(f"At least 1 candidate must be imagined at a time, got a chunk of {self.chunk}.")
        if not 0 <= self.running < math.inf:
            raise InputError(f"The weight of earlier frames must be at least 0 and finite, got {self.running}.")
        if self.hold_steps < 1:
            raise InputError(f"The goal must be held for at least 1 step, got {self.hold_steps}.")


@dataclass(frozen=True)
class ControllerState:
    """What one step hands to the next: the last k = (history - 1) * stride + 1 latents and states, the k - 1
    actions between them, what is left of the last plan (in model steps), for how many views in a row
    the goal has been judged reached, and what is left of further plans worth suggesting to the planner."""

    latents: Float[Tensor, "k p d"] | None = None
    states: Float[Tensor, "k s"] | None = None
    actions: Float[Tensor, "past a"] | None = None
    plan: Float[Tensor, "h a"] | None = None
    reached_for: int = 0
    others: Float[Tensor, "m h a"] | None = None


@dataclass(frozen=True)
class StepRecord:
    """One control step as recorders see it. `latent_cost`: distance of the present view to the goal;
    `planned_cost`: of the imagined future; `action`: truly applied; `distance`: task units, simulator only."""

    step: int
    image: UInt8[np.ndarray, "height width 3"]
    proprioception: Float[np.ndarray, "s"]
    latent_cost: float
    planned_cost: float
    terms: Mapping[str, float]
    wanted: Float[np.ndarray, "a"]
    action: Float[np.ndarray, "a"]
    milliseconds: float
    evaluations: int
    distance: float | None = None
    reached: bool = False


@dataclass(frozen=True)
class Decision:
    """The controller's answer to one observation."""

    action: Float[np.ndarray, "a"]
    plan: ActionPlan
    latent_cost: float
    terms: Mapping[str, float]
    reached: bool
    cost: PlanningCost = field(repr=False)


def fitting_chunk(model: WorldModel, horizon: int, memory_budget: int | None, *, sharers: int = 1) -> int:
    """Candidates that may be imagined at a time inside `memory_budget` bytes, or inside a share of what is free,
    which `sharers` processes divide among them.

    Raises `InputError` for a budget that one candidate exceeds.
    """
    config = model.config
    each = candidate_bytes(
        config.predictor, config.history - 1 + horizon, horizon, model.predictor.predictor_embed.weight.dtype
    )
    if memory_budget is not None and each > memory_budget:
        raise InputError(
            f"One candidate of this model takes about {each / 1e6:.1f} MB and the memory budget is "
            f"{memory_budget / 1e6:.1f} MB; raise it, or shorten the horizon."
        )
    free = free_bytes(model.device) if memory_budget is None else None
    return chunk_within(each, memory_budget if free is None else int(FREE_SHARE * free / sharers))


def _chunk(model: WorldModel, settings: ControlSettings) -> int:
    """Candidates at a time: those asked for, within a budget that is given."""
    if settings.chunk is not None and settings.memory_budget is None:
        return settings.chunk
    fits = fitting_chunk(model, settings.horizon, settings.memory_budget)
    return fits if settings.chunk is None else min(settings.chunk, fits)


class Controller:
    """Plans towards one goal picture with one world model and one planner."""

    def __init__(
        self,
        model: WorldModel,
        planner: Planner,
        goal: UInt8[np.ndarray, "height width 3"],
        settings: ControlSettings,
        generator: torch.Generator,
    ) -> None:
        longest = model.longest_horizon
        if settings.horizon > longest:
            raise InputError(
                f"A horizon of {settings.horizon} after {model.config.history} past frames is more than the "
                f"{model.config.predictor.max_frames} frames this model was trained on; plan at most {longest} ahead."
            )
        self.model, self.planner, self.settings, self.generator = model, planner, settings, generator
        self.chunk = _chunk(model, settings)
        self.goal = model.encode(goal[None])
        self.goal_score = float(model.outlier_score(self.goal))

    def step(self, observation: Observation, state: ControllerState) -> tuple[Decision, ControllerState]:
        """Decide on the action for `observation`. The returned state still lacks the action truly applied:
        hand that to `applied` before the next step."""
        model = self.model
        latent = model.encode(observation.images[model.config.camera][None])
        pose = torch.as_tensor(observation.proprioception, dtype=torch.float32, device=model.device)[None]
        return self.decide(latent, pose, state)

    def decide(
        self, latent: Float[Tensor, "1 p d"], pose: Float[Tensor, "1 s"], state: ControllerState
    ) -> tuple[Decision, ControllerState]:
        """`step` from what is already encoded, or only imagined."""
        model, settings = self.model, self.settings
        context, state = self._remember(latent, pose, state)
        cost = PlanningCost(model, context, self._terms(), self._constraints(), chunk=self.chunk)
        init = self._init(state)
        here = float(latent_distance(latent, self.goal))
        threshold = model.config.calibration.reached_cost if model.config.calibration else 0.0
        earlier: dict[str, Tensor] = {}  # plans of the last step that its planner held worth keeping
        if state.others is not None:
            earlier["suggestions"] = self._starts(state.others)[None]
        plan = self.planner.plan(cost, init, budget=settings.budget, generators=[self.generator], **earlier)
        with torch.no_grad():
            parts = cost.by_term(plan.actions[:, None], torch.zeros(1, dtype=torch.long, device=model.device))
        reached_for = state.reached_for + 1 if here <= threshold else 0
        robot = model.config.robot
        first = plan.actions[0, 0].double().cpu().numpy()
        kept = plan.actions[0]
        if here <= float(parts["goal"]) and here <= threshold:
            first = np.zeros_like(first)  # seen to be there: no future that is only imagined is worth leaving for
            if model.config.stride == 1:  # the next start drops one action: let it be the hold, not the plan's first
                kept = torch.cat([torch.zeros_like(kept[:1]), kept[:-1]])
        decision = Decision(
            # A model step may ask for more than one control step can do: as much of it as can be, at once.
            action=np.clip(first, robot.action_low, robot.action_high),
            plan=plan,
            latent_cost=here,
            terms={name: float(value) for name, value in parts.items()},
            reached=reached_for >= settings.hold_steps,
            cost=cost,
        )
        others = None if plan.others is None else plan.others[0]
        return decision, ControllerState(state.latents, state.states, state.actions, kept, reached_for, others)

    def applied(self, action: Float[np.ndarray, "a"], state: ControllerState) -> ControllerState:
        """Note the action that the robot truly applied, for the next step's history."""
        row = torch.as_tensor(action, dtype=torch.float32, device=self.model.device)[None]
        keep = self._frames_kept - 1
        past = row if state.actions is None else torch.cat([state.actions, row])
        plan, others = state.plan, state.others
        if plan is not None and self.model.config.stride > 1:
            left = plan[:1] - row  # of the model step under way
            done = bool((left.abs() < 0.1 * self.model.action_bounds.high / self.model.config.stride).all())
            plan = _carried(plan, row, done)
            others = None if others is None else torch.stack([_carried(other, row, done) for other in others])
        return ControllerState(state.latents, state.states, past[len(past) - keep :], plan, state.reached_for, others)

    @property
    def _frames_kept(self) -> int:
        return (self.model.config.history - 1) * self.model.config.stride + 1

    def _remember(
        self, latent: Float[Tensor, "1 p d"], pose: Float[Tensor, "1 s"], state: ControllerState
    ) -> tuple[Context, ControllerState]:
        """The last `history` frames, a stride apart. At the start the first frame is repeated, with actions
        that hold still: one picture says nothing of motion."""
        kept, stride = self._frames_kept, self.model.config.stride
        if state.latents is None or state.states is None:
            latents, states = latent.expand(kept, -1, -1), pose.expand(kept, -1)
        else:
            latents = torch.cat([state.latents, latent])[-kept:]
            states = torch.cat([state.states, pose])[-kept:]
        actions = state.actions
        if actions is None:
            actions = pose.new_zeros(kept - 1, len(self.model.config.robot.action_names))
        sums = actions.unflatten(0, (-1, stride)).sum(1) if kept > 1 else actions
        context = Context(latents[::stride][None], states[::stride][None], sums[None])
        return context, ControllerState(latents, states, actions, state.plan, state.reached_for, state.others)

    def _init(self, state: ControllerState) -> Float[Tensor, "1 h a"]:
        size = len(self.model.config.robot.action_names)
        hold = torch.zeros(size, device=self.model.device)
        if state.plan is None:
            return hold.expand(1, self.settings.horizon, size).clone()
        return self._starts(state.plan[None])

    def _starts(self, plans: Float[Tensor, "m h a"]) -> Float[Tensor, "m h a"]:
        """Plans of the last step as they are to be begun now: `applied` has carried blocks over already."""
        if self.model.config.stride > 1:
            return plans
        return shift_plan(plans, torch.zeros(plans.shape[-1], device=plans.device))

    def _terms(self) -> list[CostTerm]:
        terms: list[CostTerm] = [GoalDistance(self.goal, self.settings.running)]
        if self.settings.action_rate > 0:
            terms.append(ActionRate(self.model.action_bounds.high, self.settings.action_rate))
        return terms

    def _constraints(self) -> list[Constraint]:
        return [StateBox(self.model.states)] if self.settings.state_box else []


def _carried(plan: Float[Tensor, "h a"], applied: Float[Tensor, "1 a"], done: bool) -> Float[Tensor, "h a"]:
    """What is left of a plan of blocks after a control step; once its first block is done the next one begins."""
    if done:
        return torch.cat([plan[1:], torch.zeros_like(plan[:1])])
    return torch.cat([plan[:1] - applied, plan[1:]])


@runtime_checkable
class Watcher(Protocol):
    """A recorder of the loop (`vjepa_mpc.recorders.Recorder` is one)."""

    def step(self, record: StepRecord) -> None: ...


def run_episode(
    controller: Controller,
    robot: Robot,
    *,
    max_steps: int,
    watchers: Sequence[Watcher] = (),
    distance: Callable[[], float] | None = None,
    stop_when_reached: bool = True,
) -> list[StepRecord]:
    """Drive `robot` until the model judges the goal reached and held, or for `max_steps` actions.

    The robot is stopped at the end, on Ctrl-C and on any error. `distance` is asked for the records only.
    The last record is of the final view, without an action.
    """
    state = ControllerState()
    records: list[StepRecord] = []
    try:
        for step in range(max_steps + 1):
            started = time.perf_counter()
            observation = robot.observe()
            decision, state = controller.step(observation, state)
            last = step == max_steps or (decision.reached and stop_when_reached)
            milliseconds = 1e3 * (time.perf_counter() - started)
            away = distance() if distance is not None else None
            action = np.zeros_like(decision.action) if last else robot.apply(decision.action)
            state = controller.applied(action, state)
            record = StepRecord(
                step=step,
                image=observation.images[controller.model.config.camera],
                proprioception=observation.proprioception,
                latent_cost=decision.latent_cost,
                planned_cost=float(decision.plan.cost[0]),
                terms=decision.terms,
                wanted=decision.action,
                action=action,
                milliseconds=milliseconds,
                evaluations=decision.plan.evaluations,
                distance=away,
                reached=decision.reached,
            )
            records.append(record)
            for watcher in watchers:
                watcher.step(record)
            if last:
                break
    finally:
        robot.stop()
    return records
