"""The cross-entropy method over finite sets of actions (Rubinstein 1999, "The cross-entropy method for
combinatorial and continuous optimization"): one categorical distribution a step, moved to the elites' frequencies.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from vjepa_mpc.core.errors import InputError
from vjepa_mpc.planners.base import Bounds, Evaluation
from vjepa_mpc.planners.evaluation import rank, take
from vjepa_mpc.planners.search import Proposal, SearchPlanner


@dataclass(frozen=True)
class DiscreteSettings:
    """What the discrete CEM may be told.

    `samples`, `elites`, `iterations` and `chunk` as CEM's. `levels`: in a box, how many equally spaced values of
    each action are tried, the bounds among them (with `Choices` as bounds their list is used instead).
    `momentum`: the share of the old probabilities kept; `floor`: no choice becomes less probable than
    this share of an even one.
    """

    samples: int = 128
    elites: int = 16
    iterations: int = 10
    levels: int = 21
    momentum: float = 0.2
    floor: float = 0.02
    chunk: int | None = None

    def __post_init__(self) -> None:
        if self.elites < 1 or self.iterations < 1 or self.samples < self.elites:
            raise InputError(
                f"The discrete CEM needs 1 <= elites <= samples and iterations >= 1; got {self.elites} elites, "
                f"{self.samples} samples and {self.iterations} iterations."
            )
        if self.levels < 2:
            raise InputError(f"The discrete CEM has {self.levels} levels an action; give at least 2.")
        for name in ("momentum", "floor"):
            if not 0 <= getattr(self, name) < 1:
                raise InputError(f"The discrete CEM's {name} is {getattr(self, name)}; it must lie in [0, 1).")


@dataclass(frozen=True)
class Choices(Bounds):
    """A finite set of actions as bounds: projecting takes the nearest one. `values` is [m, a]; `low` and `high`
    are their least and largest."""

    values: Float[Tensor, "m a"] | None = None

    @staticmethod
    def of(values: Float[Tensor, "m a"]) -> Choices:
        """The set of these actions."""
        if values.ndim != 2 or 0 in values.shape:
            raise InputError(f"A set of actions is [choices, actions], both >= 1; got {tuple(values.shape)}.")
        return Choices(values.amin(dim=0), values.amax(dim=0), values)

    def in_units(self, unit: Float[Tensor, "a"]) -> Choices:
        """The same actions, each told in this unit."""
        assert self.values is not None
        return Choices.of(self.values.to(unit) / unit)

    def clip(self, actions: Float[Tensor, "*batch a"]) -> Float[Tensor, "*batch a"]:
        """The nearest of the actions allowed, in units of their range; the first of equally near ones."""
        assert self.values is not None
        values = self.values.to(actions)
        half = (self.high / 2 - self.low / 2).to(actions)  # the whole may be no number
        scale = torch.where(half > 0, half, 1.0)
        away = ((actions[..., None, :] / 2 - values / 2) / scale).square().sum(dim=-1)
        return values[away.argmin(dim=-1)]


@dataclass(frozen=True)
class DiscreteState:
    """Probabilities of each choice at each step for each factor (f: actions, or one for all of them together),
    and the values of the choices."""

    probability: Float[Tensor, "b h f m"]
    values: Float[Tensor, "b f m g"]


class DiscreteProposal(Proposal[DiscreteState]):
    """The discrete CEM as a proposal of the search loop."""

    def __init__(self, settings: DiscreteSettings) -> None:
        self.settings = settings

    def sizes(self) -> tuple[int, ...]:
        """`iterations` populations of `samples`."""
        return (self.settings.samples,) * self.settings.iterations

    def init(self, init_actions: Float[Tensor, "b h a"], bounds: Bounds, iterations: int) -> DiscreteState:
        """Every choice is as probable."""
        b, h, _ = init_actions.shape
        if isinstance(bounds, Choices) and bounds.values is not None:
            values = bounds.values.to(init_actions)[None]  # [1, m, a]: one factor of all actions
        else:
            steps = torch.linspace(0, 1, self.settings.levels, dtype=init_actions.dtype, device=init_actions.device)
            low, high = bounds.low[:, None], bounds.high[:, None]
            values = torch.minimum(low + (high - low) * steps, high)[:, :, None]  # [a, m, 1]: one factor an action
        factors, choices, _ = values.shape
        even = torch.full((b, h, factors, choices), 1.0 / choices, dtype=init_actions.dtype, device=init_actions.device)
        return DiscreteState(even, values.expand(b, -1, -1, -1))

    def sample(self, state: DiscreteState, n: int, generators: Sequence[torch.Generator]) -> Float[Tensor, "b n h a"]:
        """`n` draws at each step."""
        _, h, f, m = state.probability.shape
        parts = []
        for probability, values, generator in zip(state.probability, state.values, generators, strict=True):
            flat = probability.reshape(h * f, m).to(generator.device)
            index = torch.multinomial(flat, n, replacement=True, generator=generator).to(values.device)
            index = index.reshape(h, f, n).permute(2, 0, 1)
            parts.append(_picked(values, index))
        return torch.stack(parts)

    def update(
        self, state: DiscreteState, samples: Float[Tensor, "b n h a"], evaluation: Evaluation
    ) -> DiscreteState:
        """Move to the frequencies among the elites; rejected candidates are none of them."""
        settings = self.settings
        count = min(settings.elites, max(1, settings.elites * samples.shape[1] // settings.samples))
        best = rank(evaluation)[:, :count]
        usable = (evaluation.cost.gather(1, best) != torch.inf).to(samples)
        found = usable.sum(dim=1)[:, None, None, None]
        elites = take(samples, best)
        chosen = torch.stack([_nearest(row, values) for row, values in zip(elites, state.values, strict=True)])
        hits = torch.nn.functional.one_hot(chosen, state.probability.shape[-1]).to(samples)
        frequency = (hits * usable[:, :, None, None, None]).sum(dim=1) / found.clamp(min=1)
        moved = settings.momentum * state.probability + (1 - settings.momentum) * frequency
        moved = (1 - settings.floor) * moved + settings.floor / state.probability.shape[-1]
        return replace(state, probability=torch.where(found > 0, moved, state.probability))

    def final(self, state: DiscreteState) -> Float[Tensor, "b 1 h a"]:
        """The most probable choice at each step."""
        likeliest = state.probability.argmax(dim=-1)
        pairs = zip(state.values, likeliest, strict=True)
        return torch.stack([_picked(values, index[None]) for values, index in pairs])


def _picked(values: Float[Tensor, "f m g"], index: Int[Tensor, "n h f"]) -> Float[Tensor, "n h a"]:
    """The values of these choices, factors side by side."""
    factors = torch.arange(values.shape[0], device=values.device)
    return values[factors, index].flatten(2)


def _nearest(actions: Float[Tensor, "n h a"], values: Float[Tensor, "f m g"]) -> Int[Tensor, "n h f"]:
    """Which choice each action is, or is nearest to."""
    parts = actions.unflatten(2, (values.shape[0], -1))
    return (parts[:, :, :, None] - values).square().sum(dim=-1).argmin(dim=-1)


class DiscreteCEM(SearchPlanner[DiscreteState]):
    """The cross-entropy method over a grid in a box, or over `Choices`."""

    def __init__(self, bounds: Bounds, settings: DiscreteSettings | None = None) -> None:
        self.settings = settings or DiscreteSettings()
        super().__init__(bounds, DiscreteProposal(self.settings), chunk=self.settings.chunk)
