"""A peer's world model under our planners: models that keep things between calls as the real ones do, and forget
nothing by themselves."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch

from vjepa_mpc.core.errors import InputError, NotFiniteError
from vjepa_mpc.peer_costs import PeerCost, PlannerSolver
from vjepa_mpc.planners.base import Bounds, Budget
from vjepa_mpc.planners.cem import CEM, CEMSettings
from vjepa_mpc.planners.gradient import GradientPlanner, GradientSettings


class KeepsInInfo(torch.nn.Module):
    """Moves a point (the mean of its pixels) by the sum of its actions; keeps encodings in `info`, as LeWM does."""

    def __init__(self) -> None:
        super().__init__()
        self.gain = torch.nn.Parameter(torch.tensor(1.0), requires_grad=False)
        self.encoded = 0

    def encode(self, pixels: torch.Tensor) -> torch.Tensor:
        self.encoded += 1
        return self.gain * pixels[:, -1].flatten(2).mean(-1)  # [b, c]

    def get_cost(self, info: dict[str, Any], actions: torch.Tensor) -> torch.Tensor:
        b, n = actions.shape[:2]
        assert all(value.shape[:2] == (b, n) for value in info.values())
        if "goal_emb" not in info:
            info["goal_emb"] = self.encode(info["goal"][:, 0])[:, None].expand(b, n, -1)
        if "emb" not in info:
            info["emb"] = self.encode(info["pixels"][:, 0])[:, None].expand(b, n, -1)
        info.pop("action")  # an error where there is none
        return (info["emb"][..., : actions.shape[-1]] + actions.sum(2) - info["goal_emb"]).square().sum(-1)


class KeepsInItself(KeepsInInfo):
    """Keeps encodings for as long as `id` and `step_idx` stay, as PreJEPA does."""

    kept: dict[str, Any]

    def get_cost(self, info: dict[str, Any], actions: torch.Tensor) -> torch.Tensor:
        mark = torch.cat([info["id"][:, 0], info["step_idx"][:, 0]])
        if not hasattr(self, "kept") or not torch.equal(self.kept["mark"], mark):
            own: dict[str, Any] = dict(info)
            super().get_cost(own, actions)
            self.kept = {"mark": mark, "emb": own["emb"], "goal_emb": own["goal_emb"]}
        return super().get_cost({**info, "emb": self.kept["emb"], "goal_emb": self.kept["goal_emb"]}, actions)


STARTS = torch.tensor([[0.0, 0.0], [1.0, -1.0], [0.5, 0.2]])
GOALS = torch.tensor([[0.6, -0.4], [0.2, 0.3], [0.1, 0.1]])


def seen(points: torch.Tensor) -> torch.Tensor:
    return points[:, None, :, None, None].expand(-1, 1, 2, 4, 4)


def info(**changes: Any) -> dict[str, Any]:
    return {
        "pixels": seen(STARTS), "goal": seen(GOALS), "step_idx": torch.zeros(3, 1, dtype=torch.long),
        "id": torch.full((3, 1), 7), "env_name": [["a"]] * 3, "action": torch.full((3, 1, 2), torch.nan), **changes,
    }  # fmt: skip


BOX = Bounds(torch.full((2,), -0.5), torch.full((2,), 0.5))


def generators() -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in range(3)]


@pytest.mark.parametrize("model", [KeepsInInfo, KeepsInItself])
@pytest.mark.parametrize("chunk", [256, 5])
def test_it_is_solved_whatever_the_model_keeps(model: Any, chunk: int) -> None:
    made = model()
    for _ in range(2):  # another cost of the same model finds nothing of the first
        cost = PeerCost(made, info(), chunk=chunk)
        planner = CEM(BOX, CEMSettings(samples=32, elites=4, iterations=12))
        plan = planner.plan(cost, torch.zeros(3, 3, 2), budget=Budget(), generators=generators())
        np.testing.assert_allclose((STARTS + plan.actions.sum(1)).numpy(), GOALS.numpy(), atol=0.05)
    some = cost(torch.zeros(2, 4, 3, 2), torch.tensor([2, 0]))
    wanted = (STARTS - GOALS).square().sum(-1)[[2, 0]]
    np.testing.assert_allclose(some.cost.numpy(), wanted[:, None].expand(2, 4).numpy(), atol=1e-6)
    assert some.violation.shape == (2, 4, 0)


def test_gradients_pass_and_nan_is_loud() -> None:
    cost = PeerCost(KeepsInInfo(), info())
    plan = GradientPlanner(BOX, GradientSettings(starts=2, steps=40)).plan(
        cost, torch.zeros(3, 3, 2), budget=Budget(), generators=generators()
    )
    np.testing.assert_allclose((STARTS + plan.actions.sum(1)).numpy(), GOALS.numpy(), atol=0.1)
    blind = PeerCost(KeepsInInfo(), info(pixels=torch.full((3, 1, 2, 4, 4), torch.nan)))
    with pytest.raises(NotFiniteError):
        CEM(BOX, CEMSettings()).plan(blind, torch.zeros(3, 3, 2), budget=Budget(), generators=generators())


def test_what_cannot_be_judged_is_said() -> None:
    with pytest.raises(InputError, match="needs pixels and goal; info has pixels"):
        PeerCost(KeepsInInfo(), {"pixels": seen(STARTS)})
    with pytest.raises(InputError, match="chunk of 0"):
        PeerCost(KeepsInInfo(), info(), chunk=0)
    odd: Any = SimpleNamespace(get_cost=lambda info_dict, action_candidates: action_candidates.sum((1, 2, 3)))
    with pytest.raises(InputError, match=r"4 candidates of a problem with \(1,\) costs"):
        PeerCost(odd, info())(torch.zeros(1, 4, 3, 2), torch.tensor([0]))


class Shifted:
    """A scaler: actions of the model are (x - 1) / 2."""

    def transform(self, x: np.ndarray) -> np.ndarray:
        return (x - 1) / 2


def test_a_planner_is_a_solver_of_theirs() -> None:
    """Called as `WorldModelPolicy` calls solvers: configured once, then for those environments that need a plan."""
    solver = PlannerSolver(
        KeepsInInfo(), lambda box: CEM(box, CEMSettings(samples=32, elites=4, iterations=12)), scaler=Shifted()
    )
    space = gymnasium.spaces.Box(-1.0, 3.0, (3, 1), np.float32)
    solver.configure(action_space=space, n_envs=3, config=SimpleNamespace(horizon=4, action_block=2))
    assert (solver.action_dim, solver.n_envs, solver.horizon) == (2, 3, 4)
    assert solver.planner.bounds.low.tolist() == [-1.0, -1.0] and solver.planner.bounds.high.tolist() == [1.0, 1.0]
    plans = solver(info(), init_action=None)["actions"]
    np.testing.assert_allclose((STARTS + plans.sum(1)).numpy(), GOALS.numpy(), atol=0.1)
    row = {name: value[1:2] for name, value in info().items()}
    again = solver(row, init_action=plans[1:2, 1:])  # shorter than the horizon: what is left of a plan
    assert again["actions"].shape == (1, 4, 2) and len(again["costs"]) == 1
    assert float((STARTS[1] + again["actions"][0].sum(0) - GOALS[1]).abs().max()) < 0.1
