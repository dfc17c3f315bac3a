"""What it gains to solve many planning problems in one batched call instead of one after the other."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from vjepa_mpc.core.files import write_json
from vjepa_mpc.core.settings import from_plain, provenance
from vjepa_mpc.planner_courses import kept_file, kept_part
from vjepa_mpc.planner_problems import Problems
from vjepa_mpc.planners.base import ActionPlan, Bounds, Budget, CostFunction, Evaluation, Planner

WARM = 8
"""Evaluations of the plan that is made before anything is measured."""


@dataclass(frozen=True)
class Gain:
    """`count` problems with `evaluations` each: processor seconds one after the other and in one call, and the largest
    difference between the two in a problem's cost."""

    planner: str
    problems: str
    count: int
    evaluations: int
    alone_s: float
    together_s: float
    apart: float

    @property
    def times(self) -> float:
        """How many times less processor time a batch takes."""
        return self.alone_s / self.together_s


def measure_gain(
    name: str, make: Callable[[Bounds], Planner], problems: Problems, budget: int, seed: int = 0
) -> Gain:
    """Solve every problem alone, then all in one call, each time with the same seeds. One after the other in one
    process: a busy machine has little part in the ratio."""
    planner, costs, seconds = make(problems.bounds), [], 0.0
    _plan(planner, _Alone(problems.cost_fn, 0), problems.init[:1], WARM, seed)
    for index in range(len(problems.init)):
        alone, took = _plan(
            planner, _Alone(problems.cost_fn, index), problems.init[index : index + 1], budget, seed + index
        )
        costs.append(alone.cost)
        seconds += took
    together, took = _plan(planner, problems.cost_fn, problems.init, budget, seed)
    apart = float((together.cost - torch.cat(costs)).abs().max())
    return Gain(name, problems.name, len(costs), together.evaluations, seconds, took, apart)


def _plan(
    planner: Planner, cost_fn: CostFunction, init: Float[Tensor, "b h a"], budget: int, seed: int
) -> tuple[ActionPlan, float]:
    """The plan and the processor seconds it took."""
    generators = [torch.Generator().manual_seed(seed + problem) for problem in range(len(init))]
    began = time.process_time()
    plan = planner.plan(cost_fn, init, budget=Budget(max_evaluations=budget), generators=generators)
    return plan, time.process_time() - began


@dataclass(frozen=True)
class _Alone:
    """The cost of one problem of a set, as if there were no others."""

    cost_fn: CostFunction
    index: int

    def __call__(self, actions: Float[Tensor, "b n h a"], problems: Int[Tensor, "b"]) -> Evaluation:
        return self.cost_fn(actions, problems + self.index)


def save_gain(folder: Path, what: Mapping[str, Any], gain: Gain) -> None:
    """Keep what was measured, with what it was measured on and by which commit."""
    file = kept_file(folder, "batches", what)
    write_json(file, {"what": dict(what), "gain": asdict(gain), "provenance": provenance()})


def load_gain(folder: Path, what: Mapping[str, Any]) -> Gain | None:
    """What an earlier run measured, None where there is nothing. `InputError` for a file that was altered."""
    file = kept_file(folder, "batches", what)
    return from_plain(Gain, kept_part(file, "gain"), file) if file.is_file() else None
