"""stable-worldmodel's world models (LeWM, PLDM, DINO-WM's kind, or any with its `get_cost`) under our planners.

`PeerCost` is such a model as a cost function, `PlannerSolver` one of our planners as a solver of that package, so that
its `WorldModelPolicy` brings pictures and actions into the model's units as it does for its own. Written against
version 0.1.1 of the package, which is not needed to import this module.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from vjepa_mpc.core.errors import InputError
from vjepa_mpc.planners.base import Bounds, Budget, Evaluation, Planner


@runtime_checkable
class Costable(Protocol):
    """What that package asks of a world model: the cost of candidates [b, n, h, a], where every tensor of `info_dict`
    is repeated for each candidate ([b, n, time, ...])."""

    def get_cost(self, info_dict: dict[str, Any], action_candidates: Float[Tensor, "b n h a"]) -> Tensor: ...


@runtime_checkable
class Scaler(Protocol):
    """Brings values into the units a model was trained in."""

    def transform(self, x: np.ndarray) -> np.ndarray: ...


class PeerCost:
    """The cost of a peer's world model for our planners, in the units of its own actions.

    `info` holds what its policies hand to solvers: tensors [problems, time, ...] (what else is in it is left out). One
    problem (LeWM takes no more) and at most `chunk` candidates are judged at a time. Each call sees a fresh `info`:
    these models keep the encoded start and goal in it (LeWM), or in themselves for as long as `id` and `step_idx` stay
    (PreJEPA), in both cases for as many candidates as they saw first. Start and goal are therefore encoded at every
    call. Differentiable where the model is.
    """

    _numbers = itertools.count(-1, -1)  # everyone's, and none that a world gives: a model may have seen another cost

    def __init__(self, model: Costable, info: Mapping[str, Any], *, chunk: int = 256) -> None:
        if chunk < 1:
            raise InputError(f"At least 1 candidate must be judged at a time, got a chunk of {chunk}.")
        if "goal" not in info or "pixels" not in info:
            raise InputError(f"A world model's cost needs pixels and goal; info has {', '.join(sorted(info))}.")
        self.model, self.chunk = model, chunk
        self._info = {name: value for name, value in info.items() if torch.is_tensor(value)}

    def __call__(self, actions: Float[Tensor, "b n h a"], problems: Int[Tensor, "b"]) -> Evaluation:
        """The model's cost; nothing is forbidden. `InputError` where it is not one number a candidate."""
        costs = [
            torch.cat([self._costs(part, row) for part in own.split(self.chunk, dim=1)], dim=1)
            for own, row in zip(actions.split(1), problems.tolist(), strict=True)
        ]
        return Evaluation(torch.cat(costs), actions.new_zeros(*actions.shape[:2], 0))

    def _costs(self, actions: Float[Tensor, "1 n h a"], row: int) -> Float[Tensor, "1 n"]:
        given = {name: value[row : row + 1] for name, value in self._info.items()}
        given.setdefault("action", actions.new_zeros(1, 1, actions.shape[-1]))  # of the past; some look for it
        given["id"] = torch.full((1, 1), next(self._numbers))
        given.setdefault("step_idx", given["id"])
        weight = next(iter(getattr(self.model, "parameters", list)()), actions)
        count, info = actions.shape[1], {}
        for name, value in given.items():
            own = value.to(device=weight.device, dtype=weight.dtype if value.is_floating_point() else None)
            info[name] = own[:, None].expand(1, count, *own.shape[1:])
        cost = self.model.get_cost(info, actions.to(weight))
        if cost.shape != (1, count):
            raise InputError(f"The world model answers {count} candidates of a problem with {tuple(cost.shape)} costs.")
        return cost.to(actions)


class PlannerSolver:
    """One of our planners as a solver of stable-worldmodel's `WorldModelPolicy(solver, config, ...)`.

    `make` builds the planner inside bounds. These are the environments', in the units of the model's actions: give the
    `scaler` that the policy is given as process["action"]. Every plan has a generator of its own, seeded in order.
    """

    def __init__(
        self,
        model: Costable,
        make: Callable[[Bounds], Planner],
        *,
        scaler: Scaler | None = None,
        budget: Budget = Budget(),  # noqa: B008 - frozen
        seed: int = 0,
        chunk: int = 256,
    ) -> None:
        self.model, self.make, self.scaler, self.budget = model, make, scaler, budget
        self.seed, self.chunk = seed, chunk

    def configure(self, *, action_space: Any, n_envs: int, config: Any) -> None:
        """Told the batched action space [n, a] and the package's `PlanConfig`."""
        limits = np.stack([action_space.low, action_space.high]).reshape(2, n_envs, -1)[:, 0]
        if self.scaler is not None:
            limits = np.sort(self.scaler.transform(limits), axis=0)
        low, high = torch.as_tensor(np.tile(limits, (1, config.action_block)), dtype=torch.float32)
        self._count, self._horizon = n_envs, int(config.horizon)
        self.planner = self.make(Bounds(low, high))
        self._seeds = itertools.count(self.seed)

    @property
    def action_dim(self) -> int:
        """Numbers of one model step: those of a control step times the block."""
        return len(self.planner.bounds.low)

    @property
    def n_envs(self) -> int:
        return self._count

    @property
    def horizon(self) -> int:
        return self._horizon

    def solve(self, info_dict: Mapping[str, Any], init_action: Float[Tensor, "b k a"] | None = None) -> dict[str, Any]:
        """Plans {"actions": [b, h, a]} of the problems in `info_dict`, from what is left of the last ones (then holding
        still: the mean action of the training, as the package's own solvers do) into the bounds."""
        cost = PeerCost(self.model, info_dict, chunk=self.chunk)
        problems = len(info_dict["pixels"])
        init = torch.zeros(problems, self._horizon, self.action_dim)
        if init_action is not None:
            kept = init_action[:, : self._horizon]
            init[:, : kept.shape[1]] = kept.to(init)
        generators = [torch.Generator().manual_seed(next(self._seeds)) for _ in range(problems)]
        plan = self.planner.plan(cost, init, budget=self.budget, generators=generators)
        return {"actions": plan.actions.detach(), "costs": plan.cost.tolist()}

    def __call__(self, info_dict: Mapping[str, Any], **given: Any) -> dict[str, Any]:
        return self.solve(info_dict, **given)
