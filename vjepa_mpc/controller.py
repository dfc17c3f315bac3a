"""Closed-loop control: encode once, plan, act, carry the plan over.

`Controller.step` turns an observation into an action; `vjepa_mpc.loop` drives a robot with it. What changes
from step to step is a `ControllerState` that is passed in and returned.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

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
    ModelSpan,
    PlanningCost,
    StateBox,
    StepsToGoal,
    WayLength,
    latent_distance,
)
from vjepa_mpc.governors import Guards, Moment, expected, last_that_ends, straight_step
from vjepa_mpc.guardrails import Situation, StateLimits
from vjepa_mpc.memory import FREE_SHARE, candidate_bytes, chunk_within, free_bytes
from vjepa_mpc.planners.base import ActionPlan, Bounds, Budget, Planner
from vjepa_mpc.planners.limits import StepLimits
from vjepa_mpc.planners.warm_start import shift_plan
from vjepa_mpc.robots.base import Observation
from vjepa_mpc.rollout import Context, Rollout
from vjepa_mpc.short_term_memory import Remembered, ShortTermMemory
from vjepa_mpc.world_model import WorldModel


@dataclass(frozen=True)
class ControlSettings:
    """`horizon` model steps are planned, the first control step of which is executed. `running`: weight of
    imagined frames before the last, `nearest`: share of the one nearest to the goal (see `GoalDistance`).
    `hold_steps`: consecutive views that must count as
    there. `budget` bounds a plan. `action_rate` > 0 adds that wish; `state_box` keeps integrated states
    inside the joint limits. `chunk`: candidates imagined at a time (None: what fits); `memory_budget`: bytes that they
    may fill (None: a share of what is free when the controller is made, which is not asked where `chunk` is given).
    `legs`: displacements, one after the other, that a model step is planned as, so that a way can bend; each takes up
    to `leg_steps` control steps (None: stride / legs). `way_weight`: that of the way's length, with legs. `draft`: by
    how many first blocks of the predictor candidates are sifted (`PlanningCost`); 0: not at all. `critic`: what each
    control step costs that the model's critic foresees beyond the imagined frames; 0: it is not asked. `remember`:
    weight of what the episode's short-term memory holds against a future; 0: nothing is remembered. `limits`: what
    each control step keeps beyond the robot's box; the planner's bounds are to be those of its planned steps
    (`StepLimits.within`). `propose`: plans of the model's actor among the first candidates; 0: it is not asked. `act`:
    each search begins with what the actor does by itself, drawn where the model's search says so, of which so many
    control steps are done before it is asked again, and the model's seeing the goal reached holds nothing back
    (`following` leaves nothing else of the search); 0: it does not act."""

    horizon: int = 3
    running: float = 1.0
    hold_steps: int = 3
    action_rate: float = 0.0
    state_box: bool = True
    chunk: int | None = None
    memory_budget: int | None = None
    budget: Budget = field(default_factory=Budget)
    legs: int = 1
    leg_steps: int | None = None
    way_weight: float = 0.1
    draft: int = 0
    nearest: float = 0.0
    critic: float = 0.0
    remember: float = 0.0
    limits: StepLimits = field(default_factory=StepLimits)
    propose: int = 0
    act: int = 0

    def __post_init__(self) -> None:
        if self.horizon < 1:
            raise InputError(f"The horizon must be at least 1 step, got {self.horizon}.")
        if self.chunk is not None and self.chunk < 1:
            raise InputError(f"At least 1 candidate must be imagined at a time, got a chunk of {self.chunk}.")
        if not 0 <= self.running < math.inf:
            raise InputError(f"The weight of earlier frames must be at least 0 and finite, got {self.running}.")
        if not 0 <= self.nearest <= 1:
            raise InputError(f"The share of the nearest imagined frame must be 0 to 1, got {self.nearest}.")
        if self.hold_steps < 1:
            raise InputError(f"The goal must be held for at least 1 step, got {self.hold_steps}.")
        if self.draft < 0:
            raise InputError(f"A draft takes the first blocks of the predictor, 1 at least, not {self.draft}.")
        if self.legs < 1 or not 0 <= self.way_weight < math.inf:
            raise InputError(f"A model step has at least 1 leg and a way weight >= 0, got {self.legs} legs.")
        if self.leg_steps is not None and self.leg_steps < 1:
            raise InputError(f"A leg takes at least 1 control step, not {self.leg_steps}.")
        if not 0 <= self.critic < math.inf:
            raise InputError(f"What a step that the critic foresees costs must be 0 or more, got {self.critic}.")
        if not 0 <= self.remember < math.inf:
            raise InputError(f"The weight of what is remembered must be at least 0 and finite, got {self.remember}.")
        if self.limits.rates and self.legs > 1:
            raise InputError(
                "Legs turn from one straight line to the next at once, which a limit on the change of actions "
                "(--rate-limit) forbids; leave it or --legs out."
            )
        if (least := min(self.propose, self.act)) < 0:
            raise InputError(f"An actor proposes 0 plans or more and acts for 0 steps or more, not {least}.")

    def steps_a_leg(self, stride: int) -> int:
        """Control steps that one leg may take of a model that steps `stride` of them."""
        return stride // self.legs if self.leg_steps is None else self.leg_steps


@dataclass(frozen=True)
class ControllerState:
    """What one step hands to the next: the last k = (history - 1) * stride + 1 latents and states, the k - 1
    actions between them, what is left of the last plan (its first action is the next to be done), for how many
    views in a row the goal has been judged reached, what is left of further plans worth suggesting to the
    planner; for guards and the memory the context of the step before, the last two actions sent, what each guard
    remembers; the short-term memory; and what is left of what the actor was about."""

    latents: Float[Tensor, "k p d"] | None = None
    states: Float[Tensor, "k s"] | None = None
    actions: Float[Tensor, "past a"] | None = None
    plan: Float[Tensor, "h a"] | None = None
    reached_for: int = 0
    others: Float[Tensor, "m h a"] | None = None
    before: Context | None = None
    sent: tuple[Float[np.ndarray, "a"], ...] = ()
    memories: tuple[Any, ...] | None = None
    memory: ShortTermMemory | None = None
    way: Float[Tensor, "t a"] | None = None


@dataclass(frozen=True)
class View:
    """What one observation says: its latents and their distance to the goal, whether that counts as there, and the
    context to plan from."""

    latent: Float[Tensor, "1 p d"]
    latent_cost: float
    near: bool
    context: Context


@dataclass(frozen=True)
class Problem:
    """What a controller hands to its planner: the cost of the moment, where the search begins, and plans that are
    worth a look: of the last step, those that its planner held worth keeping, then the actor's. `previous`: the action
    just sent, for as long as a planned step takes, where changes are limited. `way`: control steps of the actor's,
    where it acts."""

    cost: PlanningCost
    init: Float[Tensor, "1 h a"]
    suggestions: Float[Tensor, "1 m h a"] | None = None
    previous: Float[Tensor, "1 a"] | None = None
    way: Float[Tensor, "t a"] | None = None

    def earlier(self) -> dict[str, Tensor]:
        """The suggestions and the previous action as the planner takes them; nothing where there are none."""
        given = {"suggestions": self.suggestions, "previous": self.previous}
        return {name: value for name, value in given.items() if value is not None}


@dataclass(frozen=True)
class Decision:
    """The controller's answer to one observation. `held_by`: constraints that the plan breaks and governors that
    slowed or stopped it."""

    action: Float[np.ndarray, "a"]
    plan: ActionPlan
    latent_cost: float
    terms: Mapping[str, float]
    reached: bool
    cost: PlanningCost = field(repr=False)
    held_by: tuple[str, ...] = ()

    def figures(self) -> dict[str, float]:
        """What is kept of a step in an evaluation."""
        return {
            "latent_cost": self.latent_cost,
            "evaluations": self.plan.evaluations,
            "reached": float(self.reached),
        }


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
        guards: Guards | None = None,
    ) -> None:
        longest = model.longest_horizon
        if settings.horizon > longest:
            raise InputError(
                f"A horizon of {settings.horizon} after {model.config.history} past frames is more than the "
                f"{model.config.predictor.max_frames} frames this model was trained on; plan at most {longest} ahead."
            )
        if settings.leg_steps is None and model.config.stride % settings.legs:
            raise InputError(
                f"A model step of {model.config.stride} control steps cannot be planned as {settings.legs} legs; "
                "choose a divisor, or say how many control steps a leg takes (leg_steps)."
            )
        self.model, self.planner, self.settings, self.generator = model, planner, settings, generator
        self.guards = guards or Guards()
        self.guards.check_limits(settings.limits)
        robot = model.config.robot
        box = Bounds(*(torch.tensor(limit, dtype=torch.float64) for limit in (robot.action_low, robot.action_high)))
        self.step_bounds = settings.limits.within(box)
        self.hold = np.zeros(len(robot.action_names))
        self.governors = self.guards.all_governors(model.states)
        self.draft = model.draft(settings.draft) if settings.draft else None
        self.straight = settings.legs > 1 or bool(self.guards.rails)
        self.chunk = _chunk(model, settings)
        with torch.no_grad():
            pooled = model.pooled(goal[None])
        self.goal, self.likeness = model.standardise(pooled), model.likeness(goal, pooled)

    def step(self, observation: Observation, state: ControllerState) -> tuple[Decision, ControllerState]:
        """Decide on the action for `observation`. The returned state still lacks the action truly applied:
        hand that to `applied` before the next step."""
        view, state = self.see(observation, state)
        return self.decide(view, state)

    def see(self, observation: Observation, state: ControllerState) -> tuple[View, ControllerState]:
        """Encode an observation and remember it."""
        model = self.model
        latent = model.encode(observation.images[model.config.camera][None])
        pose = torch.as_tensor(observation.proprioception, dtype=torch.float32, device=model.device)[None]
        return self.look(latent, pose, state)

    def look(
        self, latent: Float[Tensor, "1 p d"], pose: Float[Tensor, "1 s"], state: ControllerState
    ) -> tuple[View, ControllerState]:
        """`see` what is already encoded, or only imagined."""
        model = self.model
        if self.settings.remember > 0:
            state = replace(state, memory=self._outcome(latent, pose, state))
        context, state = self._remember(latent, pose, state)
        here = float(latent_distance(latent, self.goal))
        near = model.near(latent, self.goal, here)
        return View(latent, here, near, context), replace(state, reached_for=state.reached_for + 1 if near else 0)

    def decide(self, view: View, state: ControllerState) -> tuple[Decision, ControllerState]:
        """Plan from what was seen, and choose the action."""
        problem = self.problem(view, state)
        plan = self.planner.plan(
            problem.cost, problem.init, budget=self.settings.budget, generators=[self.generator], **problem.earlier()
        )
        with torch.no_grad():
            own = torch.zeros(1, dtype=torch.long, device=self.model.device)
            terms = problem.cost.by_term(plan.actions[:, None], own)
        return self.conclude(problem, plan, terms, view, state)

    def problem(self, view: View, state: ControllerState) -> Problem:
        """What is to be planned: the cost of this moment, and where the search begins."""
        model, settings = self.model, self.settings
        points = 2 * settings.steps_a_leg(model.config.stride)
        situation = Situation(view.context.states[0, -1], model.states, points)
        constraints = [*self._constraints(situation), *(rail.constraint(situation) for rail in self.guards.rails)]
        terms = self._terms()
        if state.memory:
            here = view.context.states[0, -1]
            terms.append(
                Remembered(state.memory, here, model.states, model.step_limits, settings.remember, settings.running)
            )
        cost = PlanningCost(
            model, view.context, terms, constraints, chunk=self.chunk, legs=settings.legs, draft=self.draft
        )
        previous = None
        if settings.limits.rates:
            sent = torch.as_tensor(self._last(state), dtype=torch.float32, device=model.device)
            previous = settings.steps_a_leg(model.config.stride) * sent[None]
        way = self._acted(view, state) if settings.act else None
        return Problem(cost, self._init(way, state), self._suggestions(view, state), previous, way)

    def conclude(
        self,
        problem: Problem,
        plan: ActionPlan,
        terms: Mapping[str, Float[Tensor, "1 1"]],
        view: View,
        state: ControllerState,
    ) -> tuple[Decision, ControllerState]:
        """Choose the action, once there is a `plan` for this problem alone, and its cost by `terms`."""
        values = {name: float(value) for name, value in terms.items()}
        wanted, kept = self.next_action(plan.actions[0], view, values["goal"], state)
        action, held_by, state = self.governed(wanted, view, state)
        decision = Decision(
            action=action,
            plan=plan,
            latent_cost=view.latent_cost,
            terms=values,
            reached=state.reached_for >= self.settings.hold_steps,
            cost=problem.cost.undrafted(),
            held_by=(*plan.held_by[0], *held_by),
        )
        others = None if plan.others is None else plan.others[0]
        return decision, replace(state, plan=kept, others=others, way=problem.way)

    def next_action(
        self, plan: Float[Tensor, "h a"], view: View, expected: float, state: ControllerState
    ) -> tuple[Float[np.ndarray, "a"], Float[Tensor, "h a"]]:
        """The control step with which `plan`, expected to end at `expected` from the goal, begins; and the plan as
        it is to be gone on with. Seen to be there, no future that is only imagined is worth leaving for. What the
        settings limit a control step by is kept in any case."""
        stride = self.model.config.stride
        if view.near and view.latent_cost <= expected and not self.settings.act:
            if stride == 1:  # the next start drops one action: let it be the hold, not the plan's first
                plan = torch.cat([torch.zeros_like(plan[:1]), plan[:-1]])
            return self.limited(self.hold, state), plan
        first = plan[0]
        if self.straight:
            first, plan = straight_step(plan, self.step_bounds)
        # A model step may ask for more than one control step can do: as much of it as can be, at once.
        wanted = first.double().cpu().numpy()
        if self.settings.limits.rates:  # but no faster than can be slowed down from where it ends
            rates = dict(self.settings.limits.rates)
            change = np.array([rates.get(action, math.inf) for action in range(len(wanted))])
            within = self.settings.steps_a_leg(stride)
            most = last_that_ends(np.abs(plan[0].double().cpu().numpy()), change, within)
            wanted = np.clip(wanted, -most, most)
        return self.limited(wanted, state), plan

    def limited(self, wanted: Float[np.ndarray, "a"], state: ControllerState) -> Float[np.ndarray, "a"]:
        """The nearest that one control step may do after the last one."""
        bounds = self.step_bounds
        if self.settings.limits.rates:
            bounds = bounds.after(torch.from_numpy(self._last(state))[None])
        return bounds.clip(torch.from_numpy(wanted)[None, None])[0, 0].numpy()

    def _last(self, state: ControllerState) -> Float[np.ndarray, "a"]:
        """The action that was applied last; a robot at rest has been sent zeros."""
        return state.sent[-1] if state.sent else self.hold

    def governed(
        self, wanted: Float[np.ndarray, "a"], view: View, state: ControllerState
    ) -> tuple[Float[np.ndarray, "a"], tuple[str, ...], ControllerState]:
        """What the governors leave of an action, and which of them changed it."""
        memories = state.memories or tuple(governor.begin() for governor in self.governors)
        pose = view.context.states[0, -1]
        moment = Moment(self.model, view.latent, view.latent_cost, view.near, pose, state.before, state.sent)
        held: list[str] = []
        kept: list[Any] = []
        robot = self.model.config.robot
        for governor, memory in zip(self.governors, memories, strict=True):
            verdict = governor(wanted, moment, memory)
            wanted = np.clip(verdict.action, robot.action_low, robot.action_high)
            kept.append(verdict.memory)
            if verdict.held:
                held.append(governor.name)
        return wanted, tuple(held), replace(state, before=view.context, memories=tuple(kept))

    def applied(self, action: Float[np.ndarray, "a"], state: ControllerState) -> ControllerState:
        """Note the action that the robot truly applied, for the next step's history."""
        row = torch.as_tensor(action, dtype=torch.float32, device=self.model.device)[None]
        keep = self._frames_kept - 1
        past = row if state.actions is None else torch.cat([state.actions, row])
        sent = (*state.sent, np.asarray(action, dtype=np.float64))[-2:]
        way = None if state.way is None else state.way[1:]
        return replace(self.carried(action, state), actions=past[len(past) - keep :], sent=sent, way=way)

    def carried(self, action: Float[np.ndarray, "a"], state: ControllerState) -> ControllerState:
        """The plan and its alternatives after a control step: of a model step of one control step the next one
        begins; of a longer one what was applied is taken off, and once it is done the next begins. An action that is
        held has its share of every plan, and no part in what is done."""
        plan, others = state.plan, state.others
        if plan is None:
            return state
        if self.model.config.stride == 1:
            hold = torch.zeros(plan.shape[-1], device=plan.device)
            others = None if others is None else shift_plan(others, hold)
            return replace(state, plan=shift_plan(plan[None], hold)[0], others=others)
        row = torch.as_tensor(action, dtype=torch.float32, device=self.model.device)[None]
        left = plan[:1] - row  # of the model step under way
        near = left[0].abs() < 0.1 * self.model.action_bounds.high / self.model.config.stride
        near[[action for action, _ in self.settings.limits.held]] = True
        done = bool(near.all())
        others = None if others is None else torch.stack([_carried(other, row, done) for other in others])
        return replace(state, plan=_carried(plan, row, done), others=others)

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
        return context, replace(state, latents=latents, states=states, actions=actions)

    def _init(self, way: Float[Tensor, "t a"] | None, state: ControllerState) -> Float[Tensor, "1 h a"]:
        steps = self.settings.horizon * self.settings.legs
        if way is not None:
            return folded(way[None, None], steps, self.settings.steps_a_leg(self.model.config.stride))[:, 0]
        if state.plan is not None:
            return state.plan[None]
        return torch.zeros(1, steps, len(self.model.config.robot.action_names), device=self.model.device)

    def _acted(self, view: View, state: ControllerState) -> Float[Tensor, "t a"]:
        """What the actor does by itself from here: what is left of what it said, until it is to be asked again."""
        model = self.model
        assert model.actor is not None, "following refuses a model without"
        if state.way is not None and len(state.way) > model.actor.config.ahead - self.settings.act:
            return state.way
        return model.act(view.latent, view.context.states[:, -1], self.goal, [self.generator])[0]

    def _suggestions(self, view: View, state: ControllerState) -> Float[Tensor, "1 m h a"] | None:
        model, settings = self.model, self.settings
        found = [] if state.others is None else [state.others[None]]
        if settings.propose:
            actions = model.propose(
                view.latent, view.context.states[:, -1], self.goal, settings.propose, [self.generator]
            )
            found.append(folded(actions, settings.horizon * settings.legs, settings.steps_a_leg(model.config.stride)))
        return torch.cat(found, dim=1) if found else None

    @torch.no_grad()
    def _outcome(
        self, latent: Float[Tensor, "1 p d"], pose: Float[Tensor, "1 s"], state: ControllerState
    ) -> ShortTermMemory:
        """The memory with what the last action came to: how much more this view costs than the imagined one."""
        model = self.model
        memory = state.memory or ShortTermMemory.empty(pose[0], model.step_limits)
        if state.before is None or not state.sent:
            return memory
        action = torch.as_tensor(state.sent[-1], dtype=pose.dtype, device=pose.device)
        imagined = expected(model, state.before, state.sent[-1])
        futures = Rollout(
            torch.cat([imagined.latents, latent[None, None]], dim=1),
            torch.cat([imagined.states, pose[None, None]], dim=1),
        )
        own = torch.zeros(1, dtype=torch.long, device=pose.device)
        costs = torch.stack([term(futures, action.expand(1, 2, 1, -1), own)[0] for term in self._wishes()]).sum(0)
        return memory.with_outcome(state.before.states[0, -1], action, float(costs[1] - costs[0]))

    def _wishes(self) -> list[CostTerm]:
        """What the frames themselves cost."""
        frames = self.settings.running, self.settings.nearest
        terms: list[CostTerm] = [GoalDistance(self.goal, *frames)]
        if self.settings.critic > 0:
            terms.append(StepsToGoal(self.model, self.goal, self.settings.critic, *frames))
        return terms

    def _terms(self) -> list[CostTerm]:
        terms = self._wishes()
        if self.settings.action_rate > 0:
            terms.append(ActionRate(self.model.action_bounds.high / self.settings.legs, self.settings.action_rate))
        if self.settings.legs > 1:
            bounds, stride = self.model.action_bounds, self.model.config.stride
            step = self.settings.limits.within(Bounds(bounds.low / stride, bounds.high / stride))
            terms.append(WayLength(step, self.settings.horizon * stride, self.settings.way_weight))
        return terms

    def _constraints(self, situation: Situation) -> list[Constraint]:
        if not self.settings.state_box:
            rules: list[Constraint] = []
        else:
            space = self.model.states
            rules = [StateLimits(space).constraint(situation) if self.straight else StateBox(space)]
        stride, legs = self.model.config.stride, self.settings.legs
        if legs * self.settings.steps_a_leg(stride) > stride:
            bounds = self.model.action_bounds
            rules.append(ModelSpan(bounds.low, bounds.high, legs))
        return rules


def folded(actions: Float[Tensor, "b m t a"], steps: int, each: int) -> Float[Tensor, "b m h a"]:
    """Plans of `steps` planned steps, which are the sums of `each` control steps' displacements, from `actions` of t
    control steps; what is beyond those holds still."""
    wanted = steps * each
    held = actions.new_zeros(*actions.shape[:2], max(0, wanted - actions.shape[2]), actions.shape[3])
    return torch.cat([actions, held], dim=2)[:, :, :wanted].unflatten(2, (steps, each)).sum(3)


def _carried(plan: Float[Tensor, "h a"], applied: Float[Tensor, "1 a"], done: bool) -> Float[Tensor, "h a"]:
    """What is left of a plan of blocks after a control step; once its first block is done the next one begins."""
    if done:
        return torch.cat([plan[1:], torch.zeros_like(plan[:1])])
    return torch.cat([plan[:1] - applied, plan[1:]])
