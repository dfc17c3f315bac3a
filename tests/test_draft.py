"""Candidates sifted by the predictor's first blocks, and judged by all of them."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from torch import Tensor

from vjepa_mpc.cli.building import planner_and_control
from vjepa_mpc.controller import ControlSettings
from vjepa_mpc.core.errors import InputError
from vjepa_mpc.costs import DRAFT_KEEPS, GoalDistance, PlanningCost, StateBox
from vjepa_mpc.planners.evaluation import rank
from vjepa_mpc.rollout import Context
from vjepa_mpc.world_model import WorldModel, build_world_model

MANY = 300


@pytest.fixture(scope="module")
def model(tiny_model: Path) -> WorldModel:
    """The tiny world model with three blocks, which answer actions visibly."""
    config = WorldModel.from_pretrained(tiny_model).config
    made = build_world_model(dataclasses.replace(config, predictor=dataclasses.replace(config.predictor, depth=3)))
    for parameter in made.predictor.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.2, generator=torch.Generator().manual_seed(parameter.numel()))
    return made.requires_grad_(False)


def cost_of(model: WorldModel, draft: WorldModel | None) -> PlanningCost:
    draw = torch.Generator().manual_seed(0)
    history, (p, d) = model.config.history, model.latent_space.mean.shape
    context = Context(
        torch.randn(2, history, p, d, generator=draw), torch.zeros(2, history, 2), torch.zeros(2, history - 1, 2)
    )
    goal = GoalDistance(torch.randn(2, p, d, generator=draw))
    return PlanningCost(model, context, [goal], [StateBox(model.states)], draft=draft)


def actions(count: int = MANY) -> Tensor:
    return 3 * torch.randn(2, count, 2, 2, generator=torch.Generator().manual_seed(1))


def test_the_draft_is_the_model_with_fewer_blocks_and_the_same_weights(model: WorldModel) -> None:
    draft, problems = model.draft(2), torch.arange(2)
    assert len(draft.predictor.predictor_blocks) == draft.predictor.config.depth == 2
    assert draft.predictor.predictor_blocks[0] is model.predictor.predictor_blocks[0]
    assert len(model.predictor.predictor_blocks) == model.predictor.config.depth == model.config.predictor.depth == 3
    with torch.no_grad():
        by_hand = build_world_model(draft.config)
        by_hand.load_state_dict({name: model.state_dict()[name] for name in by_hand.state_dict()})
        wanted, found = (cost_of(one, None)(actions(5), problems).cost for one in (by_hand, draft))
        assert torch.equal(found, wanted)
        assert not torch.allclose(found, cost_of(model, None)(actions(5), problems).cost, atol=1e-3)


def test_what_it_leaves_is_judged_in_full_and_the_rest_is_rejected(model: WorldModel) -> None:
    problems = torch.arange(2)
    with torch.no_grad():
        sifted = cost_of(model, model.draft(2))(actions(), problems)
        rough = cost_of(model.draft(2), None)(actions(), problems)
        full = cost_of(model, None)(actions(), problems)
    number = max(DRAFT_KEEPS, MANY // 8)
    kept = torch.zeros(2, MANY, dtype=torch.bool).scatter(1, rank(rough)[:, :number], True)
    assert torch.equal(sifted.cost != torch.inf, kept) and int(kept.sum()) == 2 * number
    torch.testing.assert_close(sifted.cost[kept], full.cost[kept])
    torch.testing.assert_close(sifted.violation, full.violation)
    assert sifted.names == full.names and bool(full.violation.any()) and not bool(full.violation.all())
    assert bool((rank(sifted)[:, :number].sort().values == kept.nonzero()[:, 1].reshape(2, number)).all())


def test_few_candidates_and_those_with_slopes_are_all_judged_in_full(model: WorldModel) -> None:
    problems, drafted, plain = torch.arange(2), cost_of(model, model.draft(1)), cost_of(model, None)
    with torch.no_grad():
        assert torch.equal(drafted(actions(DRAFT_KEEPS), problems).cost, plain(actions(DRAFT_KEEPS), problems).cost)
    steps = actions(40).requires_grad_()
    assert torch.equal(drafted(steps, problems).cost, plain(steps, problems).cost)


def test_drafts_that_are_none_are_refused(model: WorldModel) -> None:
    for blocks in (0, 3, 7):
        with pytest.raises(InputError, match=f"3 blocks; a draft takes the first 1 to 2 of them, not {blocks}"):
            model.draft(blocks)
    with pytest.raises(InputError, match="1 at least, not -1"):
        ControlSettings(draft=-1)


def test_more_elites_than_it_leaves_are_refused(model: WorldModel) -> None:
    options = {"horizon": 2, "samples": 192, "iterations": 1, "settings": (), "draft": 1}
    planner_and_control(model, None, "cem", elites=DRAFT_KEEPS, **options)
    with pytest.raises(InputError, match="fewer than the 33 elites"):
        planner_and_control(model, None, "cem", elites=DRAFT_KEEPS + 1, **options)
    with pytest.raises(InputError, match="fewer than the 33 elites"):
        planner_and_control(model, None, "cem+lbfgs", elites=DRAFT_KEEPS + 1, **options)
    with pytest.raises(InputError, match="fewer than the 48 elites"):
        planner_and_control(model, None, "cma", elites=None, **{**options, "samples": 96})
    with pytest.raises(InputError, match="tries 32 at a time: it would sift nothing"):
        planner_and_control(model, None, "cem", elites=None, **{**options, "samples": DRAFT_KEEPS})
    with pytest.raises(InputError, match="it would sift nothing"):
        planner_and_control(model, None, "gradient", elites=None, **{**options, "samples": 4})
    with pytest.raises(InputError, match="--draft and --propose out"):
        planner_and_control(model, "vjepa2-ac", "cem", elites=None, **options)
