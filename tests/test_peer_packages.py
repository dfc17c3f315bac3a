"""The real packages, where they are installed (in an environment of their own; see docs/peers.md): their loop with our
controller, their world models under our planners, OGBench's goals."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from solvable_world import SpelledModel

from vjepa_mpc.controller import ControlSettings
from vjepa_mpc.encoder import PixelPatches
from vjepa_mpc.images import ImagePreparation
from vjepa_mpc.latents import LatentConfig
from vjepa_mpc.peer_costs import PeerCost, PlannerSolver
from vjepa_mpc.peer_policy import NoOpPeer, PlannedPeer, RandomPeer
from vjepa_mpc.peer_protocols import DatasetProtocol, TaskProtocol
from vjepa_mpc.planners.base import Budget
from vjepa_mpc.planners.cem import CEM, CEMSettings
from vjepa_mpc.predictor import PredictorConfig
from vjepa_mpc.robots.base import Camera, RobotSpec
from vjepa_mpc.world_model import Calibration, WorldModelConfig

SIZE = 64
ROOMS = RobotSpec(
    name="rooms", action_names=("x", "y"), action_low=(-5.0,) * 2, action_high=(5.0,) * 2, action_units=("px",) * 2,
    state_names=("x", "y"), state_low=(0.0,) * 2, state_high=(224.0,) * 2, state_units=("px",) * 2,
    state_periodic=(False,) * 2, control_period_s=0.1, cameras={"view": Camera(SIZE, SIZE)},
)  # fmt: skip


class RoomsModel(SpelledModel):
    """Sees the red agent where it is, and knows how it moves, but of no wall."""

    def pooled(self, images: Any) -> torch.Tensor:
        pixels = torch.as_tensor(np.asarray(images)).float()
        red = (pixels[..., 0] - pixels[..., 1]).clamp(min=40) - 40
        weight = red / red.sum((1, 2), keepdim=True).clamp(min=1e-6)
        along = (torch.arange(SIZE) + 0.5) * 224 / SIZE
        x, y = (weight.sum(1) * along).sum(1), (weight.sum(2) * along).sum(1)
        return torch.stack([x, y], dim=-1)[:, None]


def rooms_model() -> RoomsModel:
    encoder = PixelPatches(SIZE, SIZE)
    predictor = PredictorConfig(
        grid_height=1, grid_width=1, latent_dim=encoder.dim, width=6, depth=1, heads=1, max_frames=6,
        action_dim=28, state_dim=26,
    )  # fmt: skip
    config = WorldModelConfig(
        robot=ROOMS, camera="view", preparation=ImagePreparation(SIZE), encoder=encoder.describe(),
        latent=LatentConfig(1, 1, encoder.dim), predictor=predictor, history=1, stride=5,
        calibration=Calibration(2.0, 1e3, 0.1),
    )  # fmt: skip
    return RoomsModel(config, encoder)


def test_our_controller_in_their_loop() -> None:
    pytest.importorskip("stable_worldmodel", exc_type=ImportError)
    model = rooms_model()
    planner = CEM(model.action_bounds, CEMSettings(samples=32, elites=4, iterations=4))
    protocol = DatasetProtocol("swm/TwoRoom-v1", pairs=12, size=SIZE, together=6)
    rows = protocol.play(
        {
            "random": lambda: RandomPeer(0), "no-op": NoOpPeer,
            "cem": lambda: PlannedPeer(model, planner, ControlSettings(horizon=5)),
        }
    )  # fmt: skip
    successes = {row["policy"]: row["success"]["count"] for row in rows}
    print(successes)
    assert successes["cem"] >= 5 + max(successes["random"], successes["no-op"])  # it knows of no wall


def lewm(embedding: int = 24, block: int = 2) -> Any:
    """LeWM's class with random weights, small; none at 0, as its conditioning begins."""
    from transformers import ViTConfig, ViTModel

    module: Any = pytest.importorskip("stable_worldmodel.wm.lewm.module", exc_type=ImportError)
    from stable_worldmodel.wm.lewm import LeWM

    layout = ViTConfig(
        hidden_size=embedding, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, image_size=SIZE,
        patch_size=16,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        predictor = module.Predictor(
            num_frames=3, input_dim=embedding, hidden_dim=embedding, output_dim=embedding, depth=1, heads=2,
            mlp_dim=32, dim_head=12, dropout=0.0, emb_dropout=0.0,
        )  # fmt: skip
        actions = module.Embedder(input_dim=2 * block, emb_dim=embedding)
        model = LeWM(ViTModel(layout, add_pooling_layer=False), predictor, actions)
        for weight in model.parameters():
            weight += 0.1 * torch.randn_like(weight)
    return model.eval().requires_grad_(False)


def test_lewm_is_judged_as_its_own_solvers_judge_it() -> None:
    model = lewm()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        info = {name: torch.randn(2, 1, 3, SIZE, SIZE) for name in ("pixels", "goal")}
        actions = torch.randn(2, 5, 4, 4)
    info["action"] = torch.full((2, 1, 2), math.nan)
    wanted = []
    for row in range(2):  # LeWM of 0.1.1 takes one problem at a time
        theirs = {name: value[row, None, None].expand(1, 5, *value.shape[1:]) for name, value in info.items()}
        wanted.append(model.get_cost(theirs, actions[row : row + 1]))
        assert float(wanted[-1].std()) > 1e-3
    cost = PeerCost(model, info, chunk=2)
    np.testing.assert_allclose(cost(actions, torch.tensor([0, 1])).cost.numpy(), torch.cat(wanted).numpy(), rtol=1e-4)
    np.testing.assert_allclose(cost(actions[1:], torch.tensor([1])).cost.numpy(), wanted[1].numpy(), rtol=1e-4)
    wish = actions.clone().requires_grad_(True)
    cost(wish, torch.tensor([0, 1])).cost.sum().backward()
    assert wish.grad is not None and bool(wish.grad.abs().sum() > 0)


def test_our_planner_is_a_solver_of_their_policy() -> None:
    pytest.importorskip("stable_worldmodel", exc_type=ImportError)
    from stable_worldmodel import PlanConfig
    from stable_worldmodel.policy import WorldModelPolicy
    from torchvision.transforms import v2

    small, solvers = CEMSettings(samples=8, elites=2, iterations=2), []

    def policy() -> Any:
        solver = PlannerSolver(lewm(), lambda bounds: CEM(bounds, small), budget=Budget(max_evaluations=20))
        solvers.append(solver)
        ready = v2.Compose([v2.ToDtype(torch.float32, scale=True)])
        return WorldModelPolicy(
            solver, PlanConfig(horizon=3, receding_horizon=2, action_block=2),
            transform={"pixels": ready, "goal": ready},
        )  # fmt: skip

    protocol = DatasetProtocol("swm/TwoRoom-v1", pairs=2, budget=6, size=SIZE)
    (row,) = protocol.play({"lewm, untrained": policy})
    assert row["episodes"] == 2 and solvers[0].planner.bounds.high.tolist() == [1.0] * 4


@pytest.mark.parametrize("env", ["swm/PushT-v1", "swm/ReacherDMControl-v0", "swm/OGBCube-v0"])
def test_floors_of_their_other_environments(env: str) -> None:
    pytest.importorskip("stable_worldmodel", exc_type=ImportError)
    protocol = DatasetProtocol(env, pairs=2, goal_offset=3, budget=2, size=SIZE, together=2)
    rows = protocol.play({"random": lambda: RandomPeer(0), "no-op": NoOpPeer})
    assert [row["episodes"] for row in rows] == [2, 2]


def test_goals_of_ogbench_and_its_floors() -> None:
    pytest.importorskip("ogbench", exc_type=ImportError)
    rows = replace(TaskProtocol(), episodes=1).play({"no-op": NoOpPeer})
    assert rows[0]["episodes"] == 5 and list(rows[0]["by_task"]) == ["1", "2", "3", "4", "5"]
