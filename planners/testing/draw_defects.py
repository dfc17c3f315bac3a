"""Defects in what a planner draws from, and in what it keeps from one plan to the next."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable
from typing import Any

import torch

from vjepa_mpc.planners import cem, gradient, noise, search
from vjepa_mpc.planners.base import ActionPlan
from vjepa_mpc.planners.cem import CEMProposal
from vjepa_mpc.planners.testing.worlds import Plant


def forgotten_generator(plant: Plant) -> None:
    """Noise comes from the global generator."""
    original = torch.randn
    plant(torch, "randn", lambda *shape, generator=None, **rest: original(*shape, **rest))


def one_generator_for_all(plant: Plant) -> None:
    """Every problem draws from the first one's generator."""
    _with_generators(plant, lambda generators: (generators[0],) * len(generators))


def fixed_seed(plant: Plant) -> None:
    """The generators handed in are not used."""
    _with_generators(plant, lambda generators: tuple(torch.Generator().manual_seed(0) for _ in generators))


def _with_generators(plant: Plant, change: Callable[[tuple[torch.Generator, ...]], Any]) -> None:
    original = search._Search._iterate

    def iterate(self: Any, live: Any, n: int, suggestions: Any) -> Any:
        found = original(self, dataclasses.replace(live, generators=change(live.generators)), n, suggestions)
        return dataclasses.replace(found, generators=live.generators)

    plant(search._Search, "_iterate", iterate)


def same_noise_every_iteration(plant: Plant) -> None:
    """Each iteration draws the first one's noise again."""
    original = noise.draw

    def draw(n: int, like: torch.Tensor, generators: Any, exponent: float = 0.0) -> torch.Tensor:
        again = [torch.Generator().manual_seed(generator.initial_seed()) for generator in generators]
        return original(n, like, again, exponent)

    plant(cem, "draw", draw)


def start_overwritten(plant: Plant) -> None:
    """The answer is written into the start that was handed in."""
    original = search.SearchPlanner.plan

    def plan(self: Any, cost_fn: Any, init: torch.Tensor, **rest: Any) -> ActionPlan:
        found = original(self, cost_fn, init, **rest)
        init.copy_(found.actions)
        return found

    plant(search.SearchPlanner, "plan", plan)


def last_plan_remembered(plant: Plant) -> None:
    """A planner begins where its last plan of that shape ended."""
    original, ended = CEMProposal.init, CEMProposal.final
    memory: dict[Any, torch.Tensor] = {}

    def init(self: CEMProposal, init_actions: torch.Tensor, *rest: Any) -> Any:
        state = original(self, init_actions, *rest)
        return dataclasses.replace(state, mean=memory.get((id(self), init_actions.shape), state.mean))

    def final(self: CEMProposal, state: Any) -> torch.Tensor:
        memory[id(self), state.mean.shape] = state.mean
        return ended(self, state)

    plant(CEMProposal, "init", init)
    plant(CEMProposal, "final", final)


def drawn_from_python(plant: Plant) -> None:
    """Seeds come from Python's own generator."""
    original = noise.draw

    def draw(n: int, like: torch.Tensor, generators: Any, exponent: float = 0.0) -> torch.Tensor:
        return original(n, like, [torch.Generator().manual_seed(random.getrandbits(31)) for _ in generators], exponent)

    for module in (cem, gradient):
        plant(module, "draw", draw)
