"""V-JEPA 2-AC's planner against a plain loop written from the paper and the published settings."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from vjepa_mpc.core.errors import InputError
from vjepa_mpc.planners import ActionPlan, Bounds, Budget, CostFunction, Evaluation, PublishedCEM, PublishedSettings
from vjepa_mpc.planners.published import PublishedProposal, PublishedState

LIMITS = torch.tensor([0.075, 0.075, 0.075, 0.0, 0.0, 0.0, 0.75])
STD = (0.075, 0.075, 0.075, 0.0, 0.0, 0.0, 1.0)
DEAD = (0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.25)


def energy(actions: Tensor) -> Tensor:
    """Something rough in all of them, [n, h, 7] to [n]."""
    target = torch.tensor([0.05, -0.03, 0.2, 0.3, 0.3, 0.3, 0.4])
    return ((actions - target).abs() + 0.02 * (60 * actions).sin()).mean(dim=(1, 2))


def cost(actions: Tensor, problems: Tensor) -> Evaluation:
    return Evaluation(energy(actions[0])[None], actions.new_zeros(1, actions.shape[1], 0))


def by_hand(samples: int, elites: int, iterations: int, horizon: int, momentum: float, seed: int) -> Tensor:
    """The published loop on the four free numbers (xyz, gripper), one after the other."""
    generator = torch.Generator().manual_seed(seed)
    mean, std = torch.zeros(horizon, 4), torch.tensor([0.075, 0.075, 0.075, 1.0]).expand(horizon, 4)
    for _ in range(iterations):
        noise = torch.randn(samples, horizon, 7, generator=generator)[..., [0, 1, 2, 6]]
        drawn = noise * std + mean
        drawn[..., :3] = drawn[..., :3].clip(-0.075, 0.075)
        drawn[..., 3:] = drawn[..., 3:].clip(-0.75, 0.75)
        full = torch.cat([drawn[..., :3], torch.zeros(samples, horizon, 3), drawn[..., 3:]], dim=-1)
        best = drawn[energy(full).topk(elites, largest=False).indices]
        mean = best.mean(dim=0) * (1 - momentum) + mean * momentum
        std = best.std(dim=0) * (1 - momentum) + std * momentum
    grip = mean[:, 3:]
    grip = torch.where(grip.abs() < 0.25, torch.zeros_like(grip), grip)
    return torch.cat([mean[:, :3], torch.zeros(horizon, 3), grip], dim=-1)


@pytest.mark.parametrize("horizon", [1, 3])
def test_equals_the_published_loop(horizon: int) -> None:
    settings = PublishedSettings(samples=80, elites=10, iterations=6, std=STD, dead_zone=DEAD)
    planner = PublishedCEM(Bounds(-LIMITS, LIMITS), settings)
    start = torch.full((1, horizon, 7), 0.05)  # has no part in it
    plan = planner.plan(cost, start, budget=Budget(), generators=[torch.Generator().manual_seed(4)])
    wanted = by_hand(80, 10, 6, horizon, 0.15, 4)
    torch.testing.assert_close(plan.actions[0], wanted, rtol=0, atol=1e-6)
    assert float(plan.cost[0]) == pytest.approx(float(energy(wanted[None])[0]), abs=1e-6)
    assert plan.evaluations == 80 * 6 + 2  # the start and the answer are judged, too


def test_returns_the_mean_even_where_something_better_was_seen() -> None:
    """Two valleys and elites in both: the mean lies between them and costs more than every elite, or the start."""

    def valleys(actions: Tensor, problems: Tensor) -> Evaluation:
        total = (actions.abs() - 0.5).abs().sum(dim=(2, 3))
        return Evaluation(total, actions.new_zeros(*actions.shape[:2], 0))

    planner = PublishedCEM(Bounds(-torch.ones(1), torch.ones(1)), PublishedSettings(200, 40, 1))
    generator = torch.Generator().manual_seed(0)
    plan = planner.plan(valleys, torch.full((1, 1, 1), 0.5), budget=Budget(), generators=[generator])
    assert float(plan.cost[0]) > 0.3 and float(plan.actions.abs()) < 0.2
    assert plan.iterations[0].best[0] == 0.0


def plan_of(cost_fn: CostFunction, budget: Budget, **settings: Any) -> ActionPlan:
    """From 0.5, of one action within 1."""
    planner = PublishedCEM(Bounds(-torch.ones(1), torch.ones(1)), PublishedSettings(200, 40, **settings))
    return planner.plan(
        cost_fn, torch.full((1, 1, 1), 0.5), budget=budget, generators=[torch.Generator().manual_seed(0)]
    )


def ring(actions: Tensor, refused: bool) -> Evaluation:
    """Two valleys at 0.5 from zero; within 0.3 of it everything is rejected, or breaks a constraint."""
    size = actions.abs().amax(dim=(2, 3))
    inside = size < 0.3
    cost = torch.where(inside & refused, torch.inf, (size - 0.5).abs())
    return Evaluation(cost, torch.where(inside & (not refused), 0.3 - size, 0.0)[..., None], ("ring",))


@pytest.mark.parametrize("refused", [True, False])
def test_a_mean_that_is_rejected_or_breaks_a_constraint_is_not_returned(refused: bool) -> None:
    """Elites in both valleys: their mean lies where nothing may be."""
    plan = plan_of(lambda actions, problems: ring(actions, refused), Budget(), iterations=1)
    assert float(plan.cost[0]) < 0.01 and float(plan.violation.sum()) == 0, "the mean was returned all the same"
    again = ring(plan.actions[:, None], refused)
    assert float(again.cost[0, 0]) == pytest.approx(float(plan.cost[0])), "the cost is not the answer's own"


def test_a_target_that_is_said_to_be_met_is_met() -> None:
    def valleys(actions: Tensor, problems: Tensor) -> Evaluation:
        total = (actions.abs() - 0.95).abs().sum(dim=(2, 3))
        return Evaluation(total, actions.new_zeros(*actions.shape[:2], 0))

    plan = plan_of(valleys, Budget(target=0.1), iterations=5)
    assert plan.stopped == "target" and float(plan.cost[0]) <= 0.1


def test_rejected_samples_are_no_elites() -> None:
    """Of 40 places most are taken by samples that cost +inf: the mean goes where the others are, and their spread
    is the new one. One alone, or none, moves nothing; beside it a problem with enough moves as it does alone."""

    def update(costs: Tensor, samples: Tensor) -> PublishedState:
        proposal = PublishedProposal(PublishedSettings(8, 4, momentum=0.0))
        state = proposal.init(torch.zeros(len(costs), 1, 1), Bounds(-torch.ones(1), torch.ones(1)), 1)
        return proposal.update(state, samples, Evaluation(costs, costs.new_zeros(*costs.shape, 0)))

    samples = torch.linspace(-0.8, 0.9, 8)[:, None, None].expand(4, 8, 1, 1)
    costs = torch.full((4, 8), torch.inf)
    costs[0, [5, 7]] = torch.tensor([1.0, 2.0])
    costs[1, 3] = 1.0
    costs[3] = torch.arange(8.0)
    state = update(costs, samples)
    two = samples[0, [5, 7], 0, 0]
    assert float(state.mean[0]) == pytest.approx(float(two.mean())), "rejected samples pulled the mean"
    assert float(state.std[0]) == pytest.approx(float(two.std()))
    assert state.mean[1:3].tolist() == [[[0.0]]] * 2 and state.std[1:3].tolist() == [[[1.0]]] * 2
    alone = update(costs[3:], samples[3:])
    assert torch.equal(state.mean[3:], alone.mean) and torch.equal(state.std[3:], alone.std)


def test_elites_keep_the_constraints_where_two_can() -> None:
    proposal = PublishedProposal(PublishedSettings(8, 4, momentum=0.0))
    state = proposal.init(torch.zeros(2, 1, 1), Bounds(-torch.ones(1), torch.ones(1)), 1)
    samples = torch.linspace(-0.8, 0.9, 8)[:, None, None].expand(2, 8, 1, 1)
    broken = torch.arange(8.0).expand(2, 8).clone()[..., None]
    broken[0, 1] = 0.0
    moved = proposal.update(state, samples, Evaluation(torch.zeros(2, 8), broken, ("rule",)))
    assert float(moved.mean[0]) == pytest.approx(float(samples[0, :2].mean()))
    assert float(moved.mean[1]) == pytest.approx(float(samples[1, :4].mean())), "nothing lowers the violation"


def test_the_gripper_rests_within_its_dead_zone() -> None:
    bounds = Bounds(-torch.ones(2), torch.ones(2))

    def bowl(actions: Tensor, problems: Tensor) -> Evaluation:
        return Evaluation((actions - 0.2).square().sum(dim=(2, 3)), actions.new_zeros(*actions.shape[:2], 0))

    answers = [
        PublishedCEM(bounds, PublishedSettings(200, 10, 8, dead_zone=zone)).plan(
            bowl, torch.zeros(1, 1, 2), budget=Budget(), generators=[torch.Generator().manual_seed(0)]
        )
        for zone in (None, (0.0, 0.25))
    ]
    assert answers[0].actions[0, 0].tolist() == pytest.approx([0.2, 0.2], abs=0.03)
    assert float(answers[1].actions[0, 0, 1]) == 0.0
    assert float(answers[1].cost[0]) == pytest.approx(0.04, abs=0.01), "the cost is not that of what is returned"


def test_wrong_settings_are_refused() -> None:
    for wrong in ({"elites": 1}, {"samples": 5}, {"momentum": 1.0}, {"std": (-1.0,)}, {"iterations": 0}):
        with pytest.raises(InputError):
            PublishedSettings(**wrong)  # type: ignore[arg-type]
    planner = PublishedCEM(Bounds(-torch.ones(2), torch.ones(2)), PublishedSettings(20, 5, 1, std=(1.0,)))

    def any_cost(actions: Tensor, problems: Tensor) -> Evaluation:
        return Evaluation(actions.sum(dim=(2, 3)), actions.new_zeros(*actions.shape[:2], 0))

    with pytest.raises(InputError, match="std has 1 values for 2 actions"):
        planner.plan(any_cost, torch.zeros(1, 1, 2), budget=Budget(), generators=[torch.Generator()])
