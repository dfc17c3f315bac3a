"""An actor that reads where an object lies and acts as seen from it.

What it takes to push an object does not depend on where on the table that happens, or which way up: seen from the
object itself there is one way to push each face. So the poses of the object, here and in the goal picture, are read
from the latents, which is learned from logs that say them; the rest is learned in the object's own frame, and what
comes out is turned back. (Canonicalisation: an actor that is equivariant under the plane's rigid motions but for what
is told of the place itself, where walls and a robot's reach are. Compare Zeng et al. 2020, "Transporter networks",
arXiv:2010.14406, and Kaba et al. 2023, "Equivariance with learned canonicalization functions", arXiv:2211.06489.)
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from vjepa_mpc.actor import Actor, ActorConfig, Mixture, ObjectView, mixture_of
from vjepa_mpc.core.errors import InputError


class Reading(NamedTuple):
    """What a picture shows: the object's x, y [m] and angle [rad], and the robot's state, in physical units."""

    pose: Float[Tensor, "*n 3"]
    robot: Float[Tensor, "*n s"]


class ObjectReader(nn.Module):
    """Where the object and the robot are, from a picture's latents."""

    def __init__(self, config: ActorConfig, view: ObjectView) -> None:
        super().__init__()
        self.view = view
        self.see = nn.Linear(config.latent_dim, config.channels)
        self.gather = nn.Linear(config.positions * config.channels, config.width)
        self.gather_norm = nn.LayerNorm(config.width)
        self.hidden = nn.Linear(config.width, config.width)
        self.hidden_norm = nn.LayerNorm(config.width)
        self.say = nn.Linear(config.width, len(view.middle) + 2)

    def forward(self, latents: Float[Tensor, "*n p d"]) -> Float[Tensor, "*n v"]:
        """In float32: place and state less their middle, in units of their spread, then cosine and sine of the angle
        (times as often as the object looks the same in a turn)."""
        seen = F.gelu(self.see(latents)).flatten(-2)
        seen = F.gelu(self.gather_norm(self.gather(seen)))
        seen = F.gelu(self.hidden_norm(self.hidden(seen)))
        with torch.autocast(latents.device.type, enabled=False):
            return self.say(seen.float())

    def asked(self, truth: Reading) -> Float[Tensor, "*n v"]:
        """What it should say."""
        angle = self.view.folds * truth.pose[..., 2:]
        values = torch.cat([truth.pose[..., :2], truth.robot], dim=-1)
        return torch.cat([self._standardised(values), angle.cos(), angle.sin()], dim=-1)

    def understood(self, said: Float[Tensor, "*n v"]) -> Reading:
        """What was said, in physical units; the angle within half a turn, or less, of 0."""
        middle, spread = self._scale(said)
        values = said[..., :-2] * spread + middle
        angle = torch.atan2(said[..., -1], said[..., -2]) / self.view.folds
        return Reading(torch.cat([values[..., :2], angle[..., None]], dim=-1), values[..., 2:])

    def _standardised(self, values: Float[Tensor, "*n v"]) -> Float[Tensor, "*n v"]:
        middle, spread = self._scale(values)
        return (values - middle) / spread

    def _scale(self, like: Tensor) -> tuple[Float[Tensor, "v"], Float[Tensor, "v"]]:
        return like.new_tensor(self.view.middle), like.new_tensor(self.view.spread)


class ObjectActor(nn.Module):
    """Actions of the next control steps from a frame, with the robot's state, to a goal picture, by the poses of the
    thing in both. What it says is a mixture in the object's own axes."""

    def __init__(self, config: ActorConfig) -> None:
        super().__init__()
        if config.object is None:
            raise InputError("An actor that acts as seen from an object must be told how it is read (object).")
        self.config, self.view = config, config.object
        self.reader = ObjectReader(config, self.view)
        inputs = 6 + 4 + 2 + 2 * (len(self.view.middle) - 2)
        self.enter = nn.Linear(inputs, config.width)
        self.enter_norm = nn.LayerNorm(config.width)
        self.hidden = nn.Linear(config.width, config.width)
        self.hidden_norm = nn.LayerNorm(config.width)
        self.more = nn.Linear(config.width, config.width)
        self.more_norm = nn.LayerNorm(config.width)
        self.read = nn.Linear(config.width, config.components * (1 + 2 * config.ahead * config.actions))

    def forward(
        self,
        latents: Float[Tensor, "*n p d"],
        features: Float[Tensor, "*n f"],
        goal: Float[Tensor, "*#n p d"],
        states: Float[Tensor, "*n s"],
    ) -> Mixture:
        """A mixture in float32. `states` in physical units; their `features` are not looked at."""
        return self.with_readings(latents, goal, states)[0]

    def with_readings(
        self, latents: Float[Tensor, "*n p d"], goal: Float[Tensor, "*#n p d"], states: Float[Tensor, "*n s"]
    ) -> tuple[Mixture, Float[Tensor, "*n v"], Float[Tensor, "*#n v"]]:
        """The mixture, and what was read of frames and goals, as `ObjectReader` says it. What to do is learned from
        what is read, not the other way round: no gradient goes from there to the reader."""
        said, aim = self.reader(latents), self.reader(goal)
        here, there = (self.reader.understood(part.detach()) for part in (said, aim))
        there = Reading(*(part.expand(*here.pose.shape[:-1], -1) for part in there))
        return self.decide(here.pose, states, there), said, aim

    def shows_the_same(self, latents: Float[Tensor, "*n p d"], goal: Float[Tensor, "*#n p d"]) -> Bool[Tensor, "*n"]:
        """Whether the object lies in frames as it does in goals, for all that can be read; nowhere, where it is not
        known how well that is read."""
        here, there = (self.reader.understood(self.reader(part)).pose for part in (latents, goal))
        if self.view.within is None:
            return torch.zeros(here.shape[:-1], dtype=torch.bool, device=here.device)
        (place, angle), period = self.view.within, self.view.same_after_rad
        turn = torch.remainder(here[..., 2] - there[..., 2] + period / 2, period) - period / 2
        return ((here - there)[..., :2].norm(dim=-1) <= place) & (turn.abs() <= angle)

    def reads_within(self, place_m: float, angle_rad: float) -> None:
        """Note what nine of ten readings of a picture are off by at most. Two such errors add up to the root of 2 of
        one."""
        place, angle = (round(math.sqrt(2) * max(value, 1e-6), 6) for value in (place_m, angle_rad))
        self.view = self.reader.view = replace(self.view, within=(place, angle))
        self.config = replace(self.config, object=self.view)

    def decide(
        self, pose: Float[Tensor, "*n 3"], states: Float[Tensor, "*n s"], goal: Reading
    ) -> Mixture:
        """What to do where these poses are known, all in physical units."""
        with torch.autocast(pose.device.type, enabled=False):
            axes = turning(pose[..., 2])
            hidden = F.gelu(self.enter_norm(self.enter(self._seen(pose.float(), states.float(), goal, axes))))
            hidden = F.gelu(self.hidden_norm(self.hidden(hidden)))
            hidden = F.gelu(self.more_norm(self.more(hidden)))
            return mixture_of(self.read(hidden), self.config, self._of_actions(axes))

    def _seen(
        self, pose: Float[Tensor, "*n 3"], states: Float[Tensor, "*n s"], goal: Reading, axes: Float[Tensor, "*n 2 2"]
    ) -> Float[Tensor, "*n i"]:
        view = self.view
        unit = 0.5 * (view.spread[0] + view.spread[1])
        place = list(view.place)
        spots = torch.stack([states[..., place], goal.pose[..., :2], goal.robot[..., place]], dim=-2)
        spots = ((spots - pose[..., None, :2]) / unit) @ axes  # along the object's axes: rows times their columns
        turn = goal.pose[..., 2] - pose[..., 2]
        turn = torch.remainder(turn + view.same_after_rad / 2, view.same_after_rad) - view.same_after_rad / 2
        angles = torch.stack([turn, pose[..., 2]], dim=-1)
        reader = self.reader
        here = reader._standardised(torch.cat([pose[..., :2], states], dim=-1))
        there = reader._standardised(torch.cat([goal.pose[..., :2], goal.robot], dim=-1))[..., 2:]
        return torch.cat([spots.flatten(-2), angles.cos(), angles.sin(), here, there], dim=-1)

    def _of_actions(self, axes: Float[Tensor, "*n 2 2"]) -> Float[Tensor, "*n a a"]:
        """The axes in which the mixture is: the object's for the push, the robot's own for the rest."""
        whole = torch.eye(self.config.actions, device=axes.device).repeat(*axes.shape[:-2], 1, 1)
        push = list(self.view.push)
        for row in range(2):
            whole[..., push[row], push] = axes[..., row, :]
        return whole


def turning(angle: Float[Tensor, "*n"]) -> Float[Tensor, "*n 2 2"]:
    """Columns: the axes of what is turned by `angle` [rad], counter-clockwise, as seen from where it is 0."""
    cosine, sine = angle.cos(), angle.sin()
    return torch.stack([torch.stack([cosine, -sine], dim=-1), torch.stack([sine, cosine], dim=-1)], dim=-2)


def make_actor(config: ActorConfig) -> Actor | ObjectActor:
    """The actor of this configuration, with fresh weights."""
    return Actor(config) if config.object is None else ObjectActor(config)


def view_of(
    poses: Float[np.ndarray, "n 3"], states: Float[np.ndarray, "n s"], place: tuple[int, int],
    push: tuple[int, int],
    same_after_rad: float, ranges: Sequence[float],
) -> ObjectView:  # fmt: skip
    """How an object that lay so, with the robot in these states, is read. A state that hardly varied is told in
    hundredths of its range. `InputError` where the object never moved."""
    values = np.concatenate([poses[:, :2], states], axis=1).astype(np.float64)
    middle, spread = values.mean(axis=0), values.std(axis=0)
    if float(spread[:2].min()) < 1e-6 or float(np.ptp(poses[:, 2])) < 1e-6:
        raise InputError("In these logs the object never moves, or never turns: they say nothing of how to push it.")
    spread[2:] = np.maximum(spread[2:], 0.01 * np.asarray(ranges))
    own, width = (tuple(round(float(value), 6) for value in part) for part in (middle, spread))
    return ObjectView(place, push, same_after_rad, own, width)
