"""Bounds beyond a box: groups of actions inside a ball, actions that stay fixed, and limits on their change."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from vjepa_mpc.core.errors import InputError
from vjepa_mpc.planners.base import Bounds


@dataclass(frozen=True)
class Ball:
    """Actions `members` (indices) whose Euclidean norm is at most `radius`, in their common unit: the length of
    a Cartesian step, say, while the gripper keeps its own interval."""

    members: tuple[int, ...]
    radius: float

    def __post_init__(self) -> None:
        if not self.members or not 0 < self.radius < float("inf"):
            raise InputError(f"A ball needs members and a positive radius; got {self.members} and {self.radius}.")


def fixed(bounds: Bounds, values: Mapping[int, float]) -> Bounds:
    """The same box with these actions (index: value) held fixed."""
    low, high = bounds.low.clone(), bounds.high.clone()
    for action, value in values.items():
        if not 0 <= action < low.numel():
            raise InputError(f"There is no action {action} to be fixed; they are numbered 0 to {low.numel() - 1}.")
        if not float(low[action]) <= value <= float(high[action]):
            raise InputError(f"Action {action} cannot be fixed at {value}: that is outside its bounds.")
        low[action] = high[action] = value
    return replace(bounds, low=low, high=high)


@dataclass(frozen=True)
class Limits(Bounds):
    """A box, balls inside it, and the largest change from one step of the horizon to the next.

    `rate` [a]: in action units a step (+inf for none); `previous` [b, a]: the actions just executed, one row a
    problem or one for all, from which the first step may differ by `first` [a], or where that is None by `rate` (None:
    the first step is free). Every candidate a cost function sees keeps all of it (to rounding), so a sampling planner
    wastes none on what a robot would clip.

    The projection takes the steps in order: into the box, into each ball, then as far towards that as the
    rate allows, starting from the step before. Where a ball's members have rates their change is
    shortened as a whole, so that it stays inside the ball. A `previous` outside balls or box is approached
    as fast as the rate allows, and the box comes first.
    """

    balls: tuple[Ball, ...] = ()
    rate: Float[Tensor, "a"] | None = None
    previous: Float[Tensor, "#b a"] | None = None
    first: Float[Tensor, "a"] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        seen: set[int] = set()
        for ball in self.balls:
            if seen & set(ball.members) or not all(0 <= member < self.low.numel() for member in ball.members):
                raise InputError(f"The ball of actions {ball.members} overlaps another, or names none of the actions.")
            seen |= set(ball.members)
            members = list(ball.members)
            nearest = torch.zeros_like(self.low).clamp(self.low, self.high)[members]
            if float(nearest.norm()) > ball.radius * (1 + 8 * torch.finfo(nearest.dtype).eps):  # but for rounding
                raise InputError(f"No action of {ball.members} lies in the box and within {ball.radius} of zero.")
        for rate in (self.rate, self.first):
            if rate is not None and not bool((rate > 0).all()):
                raise InputError(f"Action rates must be positive (+inf for none); got {rate.tolist()}.")
        if self.previous is not None and not bool(torch.isfinite(self.previous).all()):
            raise InputError("The actions just executed hold NaN or infinity; give what the robot was really sent.")

    def after(self, previous: Float[Tensor, "#b a"] | None) -> Limits:
        """Those that hold after these actions; None: as they are."""
        return self if previous is None else replace(self, previous=previous)

    @property
    def groups(self) -> tuple[tuple[int, ...], ...]:
        """The members of each ball."""
        return tuple(ball.members for ball in self.balls)

    def in_units(self, unit: Float[Tensor, "a"]) -> Limits:
        """The same limits where each action is told in this unit, the members of a ball in one."""
        return replace(
            self,
            low=self.low / unit,
            high=self.high / unit,
            balls=tuple(replace(ball, radius=ball.radius / float(unit[ball.members[0]])) for ball in self.balls),
            rate=None if self.rate is None else self.rate.to(unit) / unit,
            first=None if self.first is None else self.first.to(unit) / unit,
            previous=None if self.previous is None else self.previous.to(unit) / unit,
        )

    def check_problems(self, count: int) -> None:
        """Refuse previous actions of another number of problems."""
        if self.previous is not None and len(self.previous) not in (1, count):
            raise InputError(
                f"{count} problems need one row of previous actions, or one each; got {len(self.previous)}."
            )

    def rows(self, problems: Int[Tensor, "r"]) -> Limits:
        """Those of these problems."""
        if self.previous is None or len(self.previous) == 1:
            return self
        return replace(self, previous=self.previous[problems])

    def clip(self, actions: Float[Tensor, "*batch a"]) -> Float[Tensor, "*batch a"]:
        """Project sequences [..., h, a]; single actions [a] or [n, a] have no step before them."""
        wanted = self._placed(super().clip(actions))
        if self.rate is None or actions.ndim < 3:
            return wanted
        rate = self.rate.to(actions)
        limit = rate if self.first is None else self.first.to(actions)
        before: Tensor | None = None
        if self.previous is not None:
            shape = (-1, *(1,) * (actions.ndim - 3), actions.shape[-1])
            before = super().clip(self.previous.to(actions)).reshape(shape).expand_as(wanted[..., 0, :])
        steps = []
        for step in wanted.unbind(dim=-2):
            before = step if before is None else super().clip(before + self._slowed(step - before, limit))
            limit = rate
            steps.append(before)
        return torch.stack(steps, dim=-2)

    def _placed(self, actions: Float[Tensor, "*batch a"]) -> Float[Tensor, "*batch a"]:
        """Into each ball, towards the point of the box nearest to zero."""
        for ball in self.balls:
            members = list(ball.members)
            low, high = self.low.to(actions)[members], self.high.to(actions)[members]
            centre = torch.zeros_like(low).clamp(low, high)
            part = actions[..., members] - centre
            # The largest t in [0, 1] with |centre + t * part| <= radius, in units of about the radius: squares of very
            # large or small numbers are none.
            unit = 2.0 ** (math.frexp(ball.radius)[1] - 1)
            radius, middle, part = ball.radius / unit, centre / unit, part / unit
            square = part.square().sum(dim=-1, keepdim=True)
            along = (part * middle).sum(dim=-1, keepdim=True)
            room = radius**2 - middle.square().sum()
            root = (along.square() + square * room).clamp(min=0).sqrt()
            reach = torch.where(square > 0, (root - along) / torch.where(square > 0, square, 1.0), 1.0)
            shrunk = centre + unit * (part * reach.clamp(0, 1))
            actions = actions.index_copy(-1, torch.tensor(members, device=actions.device), shrunk)
        return actions

    def _slowed(self, change: Float[Tensor, "*batch a"], rate: Float[Tensor, "a"]) -> Float[Tensor, "*batch a"]:
        """The change shortened to the rate: a ball's members together, the others each by itself."""
        slowed = change.clamp(-rate, rate)
        for ball in self.balls:
            members = list(ball.members)
            part = change[..., members]
            share = (rate[members] / part.abs().clamp(min=torch.finfo(change.dtype).tiny)).amin(dim=-1, keepdim=True)
            index = torch.tensor(members, device=change.device)
            slowed = slowed.index_copy(-1, index, part * share.clamp(max=1))
        return slowed


@dataclass(frozen=True)
class StepLimits:
    """What every control step of a robot keeps beyond its box, in action units a control step: `balls`, the largest
    change from one control step to the next (`rates`: index and change), and actions that stay (`held`: index and
    value)."""

    balls: tuple[Ball, ...] = ()
    rates: tuple[tuple[int, float], ...] = ()
    held: tuple[tuple[int, float], ...] = ()

    def __post_init__(self) -> None:
        both = dict(self.held).keys() & dict(self.rates).keys()
        if both:
            raise InputError(f"The actions {sorted(both)} are held and do not change; give no rate for them.")

    def __bool__(self) -> bool:
        return bool(self.balls or self.rates or self.held)

    def within(self, box: Bounds, steps: float = 1) -> Bounds:
        """The bounds of displacements that take `steps` control steps each, in a plan of such displacements; `box`
        bounds them already.

        With n steps of actions u: the sum of n vectors no longer than a ball's radius r is no longer than n r, and n
        equal ones come to any that short, so the ball's radius is n r. What is held at v comes to n v. Where u changes
        by c at most, u[i + n] and u[i] differ by n c at most and two sums of n by n^2 c (`rate`), and n actions after
        one that was u0 differ from it by c, 2c, ... n c: their sum from n u0 by n (n + 1) / 2 c (`first`, with n u0 as
        `previous`). No plan beyond these can be done; of one control step they are the limits themselves.
        """
        low, high = box.low.tolist(), box.high.tolist()
        values = {}
        for action, value in self.held:
            whole = value * steps
            inside = min(max(whole, low[action]), high[action])
            values[action] = inside if math.isclose(inside, whole, rel_tol=1e-6) else whole  # beyond rounding: refused
        box = fixed(box, values)
        if not self.balls and not self.rates:
            return box
        balls = tuple(replace(ball, radius=steps * ball.radius) for ball in self.balls)
        if not self.rates:
            return Limits(box.low, box.high, balls)
        rates = dict(self.rates)
        change = torch.tensor([rates.get(action, math.inf) for action in range(len(low))]).to(box.low)
        return Limits(box.low, box.high, balls, steps**2 * change, first=steps * (steps + 1) / 2 * change)


def control_steps(displacements: Float[Tensor, "*batch a"], step: Bounds) -> Float[Tensor, "*batch"]:
    """How many control steps `displacements` take at full speed, as a real number, where `step` bounds what one may do.
    Actions without range take none, nor does a direction that has no step."""
    low, high = step.low.to(displacements), step.high.to(displacements)
    moves = high > low
    ahead, back = (
        torch.where(here, displacements / torch.where(here, limit, 1.0), 0.0)
        for here, limit in ((moves & (high > 0), high), (moves & (low < 0), low))
    )
    steps = torch.maximum(ahead, back).amax(dim=-1)
    for ball in step.balls if isinstance(step, Limits) else ():
        moving = [member for member in ball.members if bool(moves[member])]
        room = ball.radius**2 - sum(float(low[member]) ** 2 for member in ball.members if member not in moving)
        if moving and room > 0:
            square = displacements[..., moving].square().sum(dim=-1)
            steps = steps.maximum((square / room).clamp(min=torch.finfo(square.dtype).tiny).sqrt())
    return steps
