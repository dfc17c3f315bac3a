"""What the gradient planner does with slopes, and what it refuses."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from vjepa_mpc.core.errors import InputError, NotFiniteError
from vjepa_mpc.planners.base import Budget, Evaluation
from vjepa_mpc.planners.gradient import GradientPlanner, GradientSettings, clipped, descents
from vjepa_mpc.planners.lbfgs import LBFGS, LBFGSSettings
from vjepa_mpc.planners.slopes import BadCandidates
from vjepa_mpc.planners.testing import Bowl, Watch, box, distinct_goals, generators, solve


def unconstrained(cost: torch.Tensor) -> Evaluation:
    return Evaluation(cost, cost.new_zeros(*cost.shape, 0))


@pytest.mark.parametrize(
    "wrong",
    [
        {"starts": 0},
        {"steps": 0},
        {"learning_rate": 0.0},
        {"learning_rate": math.inf},
        {"gradient_clip": 0.0},
        {"perturbation": -1.0},
        {"action_noise": math.nan},
        {"noise_share": 0.0},
        {"penalty": -1.0},
    ],
)
def test_settings_that_cannot_work_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(InputError):
        GradientSettings(**wrong)


def test_the_starts_are_the_given_plan_and_perturbed_ones_in_one_call() -> None:
    watch = Watch(Bowl(torch.full((2, 3, 2), 0.4)))
    init = torch.full((2, 3, 2), -0.2)
    solve(GradientPlanner(box(2), GradientSettings(starts=5, steps=3)), watch, init)
    assert [tuple(asked.shape) for asked in watch.asked] == [
        (2, 1, 3, 2),
        *[(2, 5, 3, 2)] * 3,
        (2, 6, 3, 2),  # where the starts ended, and the best seen
    ]
    torch.testing.assert_close(watch.asked[1][:, 0], init)
    assert not torch.isclose(watch.asked[1][:, 1:], init[:, None]).all(dim=(2, 3)).any()


def test_the_first_step_is_adams() -> None:
    """Adam's first step is its learning rate in each sign's direction, in fractions of half the range."""
    watch = Watch(Bowl(torch.tensor([[[5.0, -5.0]]])))
    settings = GradientSettings(starts=1, steps=4, learning_rate=0.1)
    solve(GradientPlanner(box(2, half=2.0), settings), watch, torch.zeros(1, 1, 2))
    torch.testing.assert_close(watch.asked[2][0, 0, 0], torch.tensor([0.2, -0.2]))


def test_every_step_is_adams() -> None:
    """Beside torch's own Adam, its learning rate along the same half cosine."""
    goal, steps = torch.tensor([[[0.6, -0.3]]], dtype=torch.float64), 12
    watch = Watch(Bowl(goal))
    settings = GradientSettings(starts=1, steps=steps, learning_rate=0.05, gradient_clip=100.0)
    solve(GradientPlanner(box(2), settings), watch, torch.zeros(1, 1, 2, dtype=torch.float64))
    here = torch.zeros(1, 1, 2, dtype=torch.float64, requires_grad=True)
    adam = torch.optim.Adam([here], lr=0.05)
    rates = torch.optim.lr_scheduler.LambdaLR(adam, lambda step: (1 + math.cos(math.pi * step / steps)) / 2)
    for asked in watch.asked[1 : steps + 1]:
        torch.testing.assert_close(asked[:, 0], here.detach(), atol=1e-9, rtol=0)
        adam.zero_grad()
        (here - goal).square().sum().backward()
        adam.step()
        rates.step()


def test_gradients_are_clipped_for_each_start() -> None:
    slopes = torch.tensor([3.0, 4.0, 0.3, 0.4]).reshape(1, 2, 2, 1)
    torch.testing.assert_close(clipped(slopes, 1.0).flatten(), torch.tensor([0.6, 0.8, 0.3, 0.4]))


@pytest.mark.parametrize("size", [1e20, 3e38, 1e-20])
def test_gradients_are_clipped_where_their_squares_are_no_numbers(size: float) -> None:
    slopes = size * torch.tensor([1.0, 0.5, -0.25, 0.125]).reshape(1, 2, 2, 1)
    wanted = slopes.double() * min(1.0, 1 / (size * math.hypot(1, 0.5)))
    torch.testing.assert_close(clipped(slopes, 1.0)[0, 0].double(), wanted[0, 0], rtol=1e-6, atol=0)
    beside = torch.tensor([3.0, 0.7, 0.1, 0.2]).reshape(1, 2, 2, 1)
    together = clipped(torch.cat((beside, slopes)), 1.0)
    assert torch.equal(together[:1], clipped(beside, 1.0)) and torch.equal(together[1:], clipped(slopes, 1.0))


@pytest.mark.parametrize("small", [1e-41, 1e-45, 0.0])
def test_slopes_that_hardly_differ_from_zero_are_kept_beside_huge_ones(small: float) -> None:
    slopes = torch.tensor([1e30, small]).reshape(1, 2, 1, 1)
    torch.testing.assert_close(clipped(slopes, 1.0).flatten(), torch.tensor([1.0, small]), atol=0, rtol=1e-6)


@pytest.mark.parametrize("kind", [torch.float32, torch.float64])
@pytest.mark.parametrize("largest", [0.3, 1e40])
def test_the_norm_clipped_to_is_of_the_plans_type(kind: torch.dtype, largest: float) -> None:
    """One for all and one a problem are the same to the bit; what the type does not hold clips nothing."""
    slopes = torch.tensor([1.0, 2.0], dtype=kind).reshape(1, 1, 2, 1)
    found = clipped(slopes, largest)
    assert torch.equal(found, clipped(slopes, torch.tensor([largest], dtype=kind)))
    norm = min(largest, math.sqrt(5))
    assert float(found.norm()) == pytest.approx(norm, rel=8 * torch.finfo(kind).eps)
    settings = GradientSettings(starts=2, steps=3, gradient_clip=largest)
    plan = solve(GradientPlanner(box(1), settings), Bowl(torch.full((1, 1, 1), 0.5)), torch.zeros(1, 1, 1, dtype=kind))
    assert float(plan.cost) < 0.25


class Scaled:
    """A bowl whose problems are told in units of their own."""

    def __init__(self, goals: torch.Tensor, units: list[float]) -> None:
        self.bowl, self.units = Bowl(goals, torch.tensor([1.0, 30.0])), units

    def __call__(self, actions: torch.Tensor, problems: torch.Tensor) -> Evaluation:
        unit = torch.tensor([self.units[problem] for problem in problems.tolist()])
        return unconstrained(unit[:, None] * self.bowl(actions, problems).cost)


@pytest.mark.parametrize("clip", [1.0, 1e30])
@pytest.mark.parametrize("unit", [1e20, 1e30, 1e-20, 1e-30])
def test_the_unit_of_the_cost_does_not_matter(unit: float, clip: float) -> None:
    """Adam and L-BFGS in float32, which does not hold the squares of such slopes; beside a problem in another unit."""
    goals, starts = distinct_goals(2, 2, 2), torch.zeros(2, 2, 2)
    for planner in (
        GradientPlanner(box(2), GradientSettings(starts=2, steps=80, gradient_clip=clip)),
        LBFGS(box(2), LBFGSSettings(starts=2, steps=12)),
    ):
        plan = solve(planner, Scaled(goals, [1.0, unit]), starts)
        torch.testing.assert_close(plan.actions, goals, atol=0.03, rtol=0)
        alone = solve(planner, Scaled(goals[1:], [unit]), starts[1:], rng=generators(2)[1:])
        assert torch.equal(alone.actions[0], plan.actions[1])


def test_slopes_that_grow_beyond_all_measure_are_followed() -> None:
    """From a plain so flat that Adam's epsilon is large there, down into a hole 1e25 times as steep."""

    def hole(actions: torch.Tensor, problems: torch.Tensor) -> Evaluation:
        away = (actions - 0.8).square().flatten(2).sum(dim=-1)
        return unconstrained(1e-15 * away - 1e10 * (-100 * away).exp())

    plan = solve(GradientPlanner(box(2), GradientSettings(starts=1, steps=80)), hole, torch.full((1, 1, 2), -0.8))
    torch.testing.assert_close(plan.actions, torch.full((1, 1, 2), 0.8), atol=0.02, rtol=0)


def test_decided_without_gradients_descended_with_them() -> None:
    modes = []

    def cost(actions: torch.Tensor, problems: torch.Tensor) -> Evaluation:
        modes.append(torch.is_grad_enabled())
        return unconstrained((actions - 0.5).square().flatten(2).sum(dim=-1))

    solve(GradientPlanner(box(1), GradientSettings(steps=3)), cost, torch.zeros(1, 1, 1))
    assert modes == [False, True, True, True, False]


def test_the_penalty_leads_out_of_a_broken_constraint() -> None:
    """The cost pulls into the forbidden half, the penalty out of it; the answer keeps the constraint."""
    init, goals = torch.full((1, 1, 1), 0.9), torch.full((1, 1, 1), 0.9)
    settings = GradientSettings(starts=1, steps=40, penalty=10.0)
    plan = solve(GradientPlanner(box(1), settings), Bowl(goals, limit=0.0), init)
    assert float(plan.violation.max()) == 0.0 and float(plan.actions) > -0.3


def test_a_cost_without_a_slope_is_refused() -> None:
    def flat(actions: torch.Tensor, problems: torch.Tensor) -> Evaluation:
        return unconstrained((actions > 0).float().flatten(2).sum(dim=-1))

    weight = torch.ones(1, requires_grad=True)

    def elsewhere(actions: torch.Tensor, problems: torch.Tensor) -> Evaluation:
        return unconstrained(weight.expand(actions.shape[:2]))

    for cost in (flat, elsewhere):
        with pytest.raises(InputError, match="gives no gradient by the actions"):
            solve(GradientPlanner(box(1)), cost, torch.zeros(1, 1, 1))


def test_inference_mode_is_refused() -> None:
    with torch.inference_mode(), pytest.raises(InputError, match="no_grad"):
        solve(GradientPlanner(box(1)), Bowl(torch.zeros(1, 1, 1)), torch.zeros(1, 1, 1))


def test_a_gradient_that_is_not_finite_raises_with_what_led_there() -> None:
    """A norm written with a bare square root has no slope at zero."""

    def norm(actions: torch.Tensor, problems: torch.Tensor) -> Evaluation:
        return unconstrained(actions.square().flatten(2).sum(dim=-1).sqrt())

    with pytest.raises(NotFiniteError, match="square root") as caught:
        solve(GradientPlanner(box(1)), norm, torch.zeros(1, 2, 1))
    evidence = caught.value.evidence
    assert isinstance(evidence, BadCandidates) and evidence.problem == 0
    assert torch.equal(evidence.actions, torch.zeros(1, 2, 1)) and evidence.gradient is not None


def test_rejected_candidates_without_a_slope_do_not_spoil_the_others() -> None:
    """log(0) = -inf, negated: rejected, with an infinite slope there; the other starts go on."""

    def barrier(actions: torch.Tensor, problems: torch.Tensor) -> Evaluation:
        x = actions.flatten(2).sum(dim=-1)
        return unconstrained((x - 0.7).square() - 0.01 * x.clamp(min=0).log())

    plan = solve(GradientPlanner(box(1), GradientSettings(starts=8)), barrier, torch.zeros(1, 1, 1))
    assert abs(float(plan.actions) - 0.7) < 0.05


def test_more_starts_find_what_one_misses() -> None:
    """Two valleys: the start lies in the shallow one."""

    def valleys(actions: torch.Tensor, problems: torch.Tensor) -> Evaluation:
        x = actions.flatten(2).sum(dim=-1)
        return unconstrained(torch.minimum((x + 0.5).square() + 0.2, (x - 0.5).square()))

    init = torch.full((1, 1, 1), -0.6)
    one = solve(GradientPlanner(box(1), GradientSettings(starts=1)), valleys, init)
    many = solve(GradientPlanner(box(1), GradientSettings(starts=8, perturbation=1.0)), valleys, init)
    assert float(one.actions) < 0 < float(many.actions) and float(many.cost[0]) < 0.01


def test_little_budget_uses_fewer_starts() -> None:
    watch = Watch(Bowl(torch.full((1, 1, 1), 0.5)))
    plan = GradientPlanner(box(1), GradientSettings(starts=4, steps=20)).plan(
        watch, torch.zeros(1, 1, 1), budget=Budget(max_evaluations=4), generators=generators(1)
    )
    assert [asked.shape[1] for asked in watch.asked] == [1, 1, 2]
    assert plan.stopped == "max_evaluations" and float(plan.cost[0]) < 0.25


@pytest.mark.parametrize("steps", [1, 2, 3, 20])
def test_all_of_a_small_budget_is_spent(steps: int) -> None:
    """Whatever is left, on slopes and on ends that there are; the answer is the best of what was asked."""
    for starts in range(1, 7):
        full = starts * steps + starts + 1
        for left in range(full + 3):
            schedule = descents(starts, steps, left)
            assert sum(schedule.populations) + schedule.final == min(left, full), (starts, steps, left)
            assert schedule.final <= max((1, *schedule.populations)) + 1 and schedule.cut == (left < full)
    for limit in range(1, 12):
        watch = Watch(Bowl(torch.full((1, 1, 1), 0.5)))
        for planner in (
            GradientPlanner(box(1), GradientSettings(starts=4, steps=steps)),
            LBFGS(box(1), LBFGSSettings(starts=4, steps=steps)),
        ):
            for suggested in (None, torch.full((1, 2, 1, 1), 0.51)):
                watch.asked.clear()
                plan = planner.plan(
                    watch,
                    torch.zeros(1, 1, 1),
                    budget=Budget(max_evaluations=limit),
                    generators=generators(1),
                    suggestions=suggested,
                )
                assert watch.candidates.shape[1] == plan.evaluations == min(limit, 4 * steps + 6)
                least = Bowl(torch.full((1, 1, 1), 0.5))(watch.candidates, torch.arange(1)).cost.min()
                assert float(plan.cost) <= float(least) + 1e-9, (limit, suggested)


def test_noise_falls_and_ends_where_it_is_said_to() -> None:
    """A flat cost: what moves is noise alone, less and less, over the first half of the steps; none of the first start,
    evenly more from start to start."""
    watch = Watch(lambda actions, problems: unconstrained(0 * actions.sum(dim=(2, 3))))
    settings = GradientSettings(starts=64, steps=20, perturbation=0.0, action_noise=0.05, noise_share=0.5)
    solve(GradientPlanner(box(2), settings), watch, torch.zeros(1, 3, 2))
    moves = [(b - a)[0] for a, b in zip(watch.asked[1:21], watch.asked[2:21], strict=False)]
    shares = torch.arange(1, 64)[:, None, None] / 63
    for step, move in enumerate(moves[:9], start=1):
        wanted = 0.05 * (1 + math.cos(math.pi * step / 10)) / 2
        assert not bool(move[0].any()), "the given plan was shaken"
        assert float((move[1:] / shares).std()) == pytest.approx(wanted, rel=0.25)
        assert float((move[33:] / shares[32:]).std()) == pytest.approx(wanted, rel=0.3)
    assert not any(bool(move.any()) for move in moves[9:]) and len(moves) == 19


def test_one_start_alone_has_all_the_noise() -> None:
    watch = Watch(lambda actions, problems: unconstrained(0 * actions.sum(dim=(2, 3))))
    settings = GradientSettings(starts=1, steps=3, action_noise=0.05)
    solve(GradientPlanner(box(20), settings), watch, torch.zeros(1, 20, 20))
    wanted = 0.05 * (1 + math.cos(math.pi / 3)) / 2
    assert float(watch.asked[2].std()) == pytest.approx(wanted, rel=0.2)
