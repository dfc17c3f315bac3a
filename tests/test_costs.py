"""Costs of imagined futures: the formula, the gradient, the names."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from vjepa_mpc.core.errors import InputError
from vjepa_mpc.costs import ActionRate, Constraint, CostTerm, GoalDistance, PlanningCost, StateBox, latent_distance
from vjepa_mpc.robots.reacher import WRIST_LIMIT_RAD, reacher_spec
from vjepa_mpc.rollout import Context, Rollout
from vjepa_mpc.states import JointStates
from vjepa_mpc.world_model import WorldModel

B, N, H, P, D = 2, 3, 4, 5, 6
ALL = torch.arange(B)


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def future() -> Rollout:
    return Rollout(noise(B, N, H, P, D), noise(B, N, H, 2, seed=1))


@pytest.mark.parametrize(("running", "weights"), [(0.0, [0, 0, 0, 1]), (1.0, [1, 1, 1, 1]), (0.5, [0.5, 0.5, 0.5, 1])])
def test_goal_distance_is_the_weighted_mean_of_absolute_differences(running: float, weights: list[float]) -> None:
    goal, imagined, actions = noise(B, P, D, seed=2), future(), noise(B, N, H, 2)
    cost = GoalDistance(goal, running)(imagined, actions, ALL)
    for b in range(B):
        for n in range(N):
            steps = [float((imagined.latents[b, n, h] - goal[b]).abs().mean()) for h in range(H)]
            wanted = sum(w * step for w, step in zip(weights, steps, strict=True)) / sum(weights)
            assert float(cost[b, n]) == pytest.approx(wanted, rel=1e-5)


@pytest.mark.parametrize("running", [0.0, 1.0])
def test_the_nearest_frame_has_its_share(running: float) -> None:
    goal, imagined, actions = noise(B, P, D, seed=2), future(), noise(B, N, H, 2)
    mean = GoalDistance(goal, running)(imagined, actions, ALL)
    steps = (imagined.latents - goal[:, None, None]).abs().mean(dim=(-2, -1))
    assert not torch.equal(steps.argmin(-1), torch.full((B, N), H - 1))
    torch.testing.assert_close(GoalDistance(goal, running, 1.0)(imagined, actions, ALL), steps.min(-1).values)
    blended = GoalDistance(goal, running, 0.75)(imagined, actions, ALL)
    torch.testing.assert_close(blended, 0.25 * mean + 0.75 * steps.min(-1).values)


def test_each_problem_has_its_own_goal() -> None:
    goal, imagined, actions = noise(7, P, D, seed=2), future(), noise(B, N, H, 2)
    for running in (0.0, 1.0):
        cost = GoalDistance(goal, running)(imagined, actions, torch.tensor([5, 3]))
        swapped = GoalDistance(goal[[5, 3]], running)(imagined, actions, ALL)
        assert torch.equal(cost, swapped)


def test_at_the_goal_there_is_no_cost() -> None:
    goal = noise(B, P, D)
    there = Rollout(goal[:, None, None].expand(B, N, H, P, D), torch.zeros(B, N, H, 2))
    assert torch.equal(GoalDistance(goal)(there, torch.zeros(B, N, H, 2), ALL), torch.zeros(B, N))
    assert float(latent_distance(goal[0], goal[0])) == 0


def test_action_rate_by_hand() -> None:
    actions = torch.tensor([[[[0.0, 0.0], [0.2, 0.0], [0.2, -0.4]]]])
    rate = ActionRate(torch.tensor([0.2, 0.4]), weight=3.0)
    assert float(rate(future(), actions, ALL[:1])) == pytest.approx(3 * (1 + 0 + 0 + 1) / 4)
    assert float(rate(future(), actions[:, :, :1], ALL[:1])) == 0


def test_the_state_box_measures_how_far_out_the_whole_way() -> None:
    states = torch.zeros(1, 2, 3, 2)
    states[0, 1, :, 1] = torch.tensor([WRIST_LIMIT_RAD + 0.1, 0.0, -WRIST_LIMIT_RAD - 0.2])
    states[0, :, :, 0] = 99.0  # the shoulder turns as it likes
    box = StateBox(JointStates(reacher_spec()))
    broken = box(Rollout(noise(1, 2, 3, P, D), states), torch.zeros(1, 2, 3, 2))
    torch.testing.assert_close(broken, torch.tensor([[0.0, 0.3]]), atol=1e-5, rtol=0)


@pytest.fixture(scope="module")
def model(tiny_model: Path) -> WorldModel:
    model = WorldModel.from_pretrained(tiny_model).double()
    for parameter in model.predictor.parameters():  # so that actions move the picture visibly
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.3, generator=torch.Generator().manual_seed(parameter.numel()))
    return model


def planning_cost(model: WorldModel, problems: int = 2) -> PlanningCost:
    context = Context(
        noise(problems, 2, 4, 48).double(), noise(problems, 2, 2).double(), noise(problems, 1, 2).double()
    )
    terms = [
        GoalDistance(noise(problems, 4, 48, seed=3).double(), 0.5),
        ActionRate(torch.tensor([0.3, 0.3]).double(), 0.1),
    ]
    return PlanningCost(model, context, terms, [StateBox(model.states)])


def test_the_gradient_is_that_of_finite_differences(model: WorldModel) -> None:
    cost = planning_cost(model)
    actions = 0.1 * noise(2, 1, 3, 2, seed=4).double()
    problems = torch.arange(2)
    leaf = actions.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(cost(leaf, problems).cost.sum(), leaf)
    assert float(gradient.abs().min()) > 1e-5
    with torch.no_grad():
        for index in range(actions.numel()):
            step = torch.zeros_like(actions)
            step.view(-1)[index] = 1e-6
            slope = (cost(actions + step, problems).cost - cost(actions - step, problems).cost).sum() / 2e-6
            assert float(slope) == pytest.approx(float(gradient.view(-1)[index]), rel=1e-4, abs=1e-7)


def test_terms_add_up_and_go_by_their_names(model: WorldModel) -> None:
    cost, actions, problems = planning_cost(model), noise(2, 3, 3, 2).double(), torch.arange(2)
    whole, parts = cost(actions, problems), cost.by_term(actions, problems)
    assert list(parts) == ["goal", "action_rate", "state_box"]
    torch.testing.assert_close(whole.cost, parts["goal"] + parts["action_rate"])
    assert whole.names == ("state_box",) and torch.equal(whole.violation[..., 0], parts["state_box"])
    assert float(whole.violation.max()) > 0 and float(whole.violation.min()) >= 0


def test_problems_choose_contexts_and_goals(model: WorldModel) -> None:
    cost, actions = planning_cost(model), noise(2, 3, 3, 2).double()
    both = cost(actions, torch.arange(2)).cost
    for problem in range(2):
        alone = cost(actions[problem : problem + 1], torch.tensor([problem])).cost
        torch.testing.assert_close(alone[0], both[problem])


def test_without_constraints_there_are_no_violations(model: WorldModel) -> None:
    cost = planning_cost(model)
    free = PlanningCost(model, cost.context, cost.terms)(noise(2, 3, 1, 2).double(), torch.arange(2))
    assert free.violation.shape == (2, 3, 0) and free.names == ()


def test_names_must_tell_terms_apart(model: WorldModel) -> None:
    cost = planning_cost(model)
    goal = cost.terms[0]
    for terms, rules in (
        ([goal, goal], []),
        ([], []),
        ([GoalDistance(noise(2, 4, 48), name="state_box")], cost.constraints),
    ):
        with pytest.raises(InputError, match="distinct names"):
            PlanningCost(model, cost.context, terms, rules)


def test_the_parts_follow_their_contracts(model: WorldModel) -> None:
    cost = planning_cost(model)
    assert all(isinstance(term, CostTerm) for term in cost.terms)
    assert all(isinstance(rule, Constraint) for rule in cost.constraints)
