"""CEM's own arithmetic, its settings, its noise, and what it takes beside the cost function."""

from __future__ import annotations

import math
import subprocess
import sys
import time
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from vjepa_mpc.core.errors import InputError
from vjepa_mpc.planners.base import Bounds, Budget, Evaluation
from vjepa_mpc.planners.cem import CEM, CEMProposal, CEMSettings
from vjepa_mpc.planners.noise import colour_filter, draw
from vjepa_mpc.planners.testing import Bowl, Watch, box, generators, solve


def judged(cost: list[float]) -> Evaluation:
    return Evaluation(torch.tensor([cost]), torch.zeros(1, len(cost), 0))


def line(values: list[float]) -> torch.Tensor:
    """Candidates of one problem, one step and one action."""
    return torch.tensor(values).reshape(1, -1, 1, 1)


@pytest.mark.parametrize(
    "wrong",
    [
        {"samples": 3, "elites": 4},
        {"elites": 0},
        {"iterations": 0},
        {"momentum_mean": 1.0},
        {"momentum_std": -0.1},
        {"std_floor": 2.0},
        {"keep_fraction": -1.0},
        {"std_fraction": 0.0},
        {"std_fraction": math.nan},
        {"std": (0.1, math.nan)},
        {"noise_exponent": -1.0},
        {"path_share": 1.0},
        {"chunk": 0},
    ],
)
def test_settings_that_cannot_work_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="CEM"):
        CEMSettings(**wrong)


def test_update_moves_to_the_elites_with_momentum() -> None:
    """By hand: elites 1 and 3 have mean 2 and std 1; the old mean 0 and std 4 keep a quarter and a half."""
    settings = CEMSettings(
        samples=4,
        elites=2,
        momentum_mean=0.25,
        momentum_std=0.5,
        std=(4.0,),
        std_floor=0.0,
        keep_fraction=0.5,
    )
    proposal = CEMProposal(settings)
    state = proposal.init(torch.zeros(1, 1, 1), box(1, 10.0), 3)
    state = proposal.update(state, line([9.0, 3.0, 1.0, 7.0]), judged([5.0, 1.0, 0.0, 9.0]))
    assert float(state.mean) == 0.25 * 0 + 0.75 * 2
    assert float(state.std) == 0.5 * 4 + 0.5 * 1
    assert state.kept is not None
    assert state.kept_actions.flatten().tolist() == [1.0] and state.kept.cost.tolist() == [[0.0]]
    # The kept elite (1, cost 0) competes with the next population without being evaluated again.
    state = proposal.update(state, line([5.0, 5.0, 8.0, 8.0]), judged([2.0, 3.0, 4.0, 4.0]))
    assert float(state.mean) == pytest.approx(0.25 * 1.5 + 0.75 * 3)


def test_elites_that_are_kept_keep_their_own_costs_and_each_step_its_spread() -> None:
    """Two steps, two elites, both kept: the better of them alone is an elite beside a better newcomer."""
    settings = CEMSettings(samples=3, elites=2, momentum_mean=0, momentum_std=0, std_floor=0, keep_fraction=1.0)
    proposal = CEMProposal(settings)
    state = proposal.init(torch.zeros(1, 2, 1), box(1, 10.0), 3)
    plans = torch.tensor([[5.0, 9.0], [1.0, 2.0], [3.0, 8.0]]).reshape(1, 3, 2, 1)
    state = proposal.update(state, plans, judged([9.0, 2.0, 1.0]))
    assert state.mean.flatten().tolist() == [2.0, 5.0] and state.std.flatten().tolist() == [1.0, 3.0]
    assert state.kept is not None and state.kept.cost.tolist() == [[1.0, 2.0]]
    assert torch.equal(state.kept_actions, plans[:, [2, 1]])
    state = proposal.update(state, plans + 4, judged([9.0, 1.5, 9.0]))
    assert state.mean.flatten().tolist() == [4.0, 7.0]  # of (3, 8), kept, and (5, 6), new


def test_rejected_candidates_are_no_elites() -> None:
    """Two usable of four elites give the mean and half of the variance; one alone leaves it as it was."""
    settings = CEMSettings(samples=4, elites=4, momentum_mean=0, momentum_std=0, std=(4.0,), keep_fraction=0)
    proposal = CEMProposal(settings)
    state = proposal.init(torch.zeros(1, 1, 1), box(1, 10.0), 3)
    candidates, no = line([9.0, 3.0, 5.0, -9.0]), math.inf
    some = proposal.update(state, candidates, judged([no, 1.0, 2.0, no]))
    assert float(some.mean) == 4.0 and float(some.std) == pytest.approx(math.sqrt(1 / 2 + 16 / 2))
    one = proposal.update(state, candidates, judged([no, 1.0, no, no]))
    assert float(one.mean) == 3.0 and float(one.std) == 4.0
    none = proposal.update(state, candidates, judged([no] * 4))
    assert torch.equal(none.mean, state.mean) and torch.equal(none.std, state.std)


def test_std_has_a_floor_and_a_start_in_the_units_of_each_action() -> None:
    bounds = Bounds(torch.tensor([-1.0, 0.0]), torch.tensor([1.0, 90.0]))
    proposal = CEMProposal(CEMSettings(samples=2, elites=2, std_fraction=0.5, std_floor=0.1, momentum_std=0))
    state = proposal.init(torch.zeros(1, 3, 2), bounds, 3)
    assert state.std[0, 0].tolist() == [0.5, 22.5]
    state = proposal.update(state, torch.zeros(1, 2, 3, 2), judged([0.0, 1.0]))
    torch.testing.assert_close(state.std[0, 2], torch.tensor([0.05, 2.25]))
    with pytest.raises(InputError, match="std has 1 values for 2 actions"):
        CEMProposal(CEMSettings(std=(1.0,))).init(torch.zeros(1, 3, 2), bounds, 3)


def test_the_mean_is_a_candidate_after_the_first_update() -> None:
    watch = Watch(Bowl(torch.full((1, 2, 1), 0.4)))
    solve(CEM(box(1), CEMSettings(samples=16, elites=4, iterations=2)), watch, torch.zeros(1, 2, 1))
    start, population, second, final = watch.asked
    assert (start.shape[1], population.shape[1], second.shape[1], final.shape[1]) == (1, 16, 16, 1)
    cost = (population - 0.4).square().sum(dim=(2, 3))
    elites = population[0, cost[0].argsort()[:4]]
    torch.testing.assert_close(second[0, 0], 0.9 * elites.mean(dim=0))  # momentum 0.1 of a start at 0


def test_one_sample_an_iteration_still_searches() -> None:
    settings = CEMSettings(samples=1, elites=1, iterations=50, keep_fraction=1.0)
    plan = solve(CEM(box(1), settings), Bowl(torch.tensor([[[0.3]]])), torch.zeros(1, 1, 1))
    assert plan.evaluations == 52 and float(plan.cost[0]) < 0.09


def test_small_populations_left_by_the_budget_do_not_break_the_update() -> None:
    """A population cut to one or two samples leaves finite means and stds."""
    for limit in range(2, 40):
        plan = solve(
            CEM(box(2), CEMSettings(samples=12, elites=6)),
            Bowl(torch.full((1, 2, 2), 0.5)),
            torch.zeros(1, 2, 2),
            budget=Budget(max_evaluations=limit),
        )
        assert bool(torch.isfinite(plan.actions).all()) and plan.evaluations == limit


@pytest.mark.parametrize("exponent", [0.0, 1.0, 2.0, 4.0])
@pytest.mark.parametrize("horizon", [1, 2, 5, 16])
def test_coloured_noise_has_unit_variance_and_the_power_law(exponent: float, horizon: int) -> None:
    noise = draw(20_000, torch.zeros(1, horizon, 1, dtype=torch.float64), generators(1), exponent)[0, :, :, 0]
    torch.testing.assert_close(noise.var(dim=0), torch.ones(horizon, dtype=torch.float64), atol=0.05, rtol=0)
    power = torch.fft.rfft(noise, dim=1).abs().square().mean(dim=0)[1:]
    frequency = torch.arange(1, len(power) + 1, dtype=torch.float64)
    torch.testing.assert_close(power / power[:1], frequency**-exponent, atol=0, rtol=0.1)


def test_no_colour_is_white() -> None:
    torch.testing.assert_close(colour_filter(6, 0.0, torch.zeros(1)), torch.eye(6), atol=1e-6, rtol=0)


def test_coloured_noise_moves_steps_together() -> None:
    """What it is for: sums over the horizon reach farther than those of white noise."""
    reach = [draw(4000, torch.zeros(1, 8, 1), generators(1), e).sum(dim=2).std() for e in (0.0, 1.0, 2.0)]
    assert reach[0] * 1.2 < reach[1] < reach[2]


def test_the_state_is_a_value() -> None:
    """Sampling and updating leave the state they were given as it was."""
    proposal = CEMProposal(CEMSettings(samples=4, elites=2))
    state = proposal.init(torch.zeros(1, 2, 1), box(1), 3)
    before = state.mean.clone(), state.std.clone()
    samples = proposal.sample(state, 4, generators(1))
    proposal.update(state, samples, judged([3.0, 1.0, 2.0, 0.0]))
    assert torch.equal(state.mean, before[0]) and torch.equal(state.std, before[1])


UNCHECKED = """
import random, torch
from vjepa_mpc.planners import CEM, Bounds, Budget, Evaluation, GradientPlanner

def cost(actions, problems):
    return Evaluation((actions - 0.3).square().sum((-1, -2)), actions.new_zeros(*actions.shape[:2], 0))

bounds, before = Bounds(-torch.ones(2), torch.ones(2)), random.getstate()
for planner in (CEM(bounds), GradientPlanner(bounds)):
    rng = [torch.Generator().manual_seed(0)]
    planner.plan(cost, torch.zeros(1, 5, 2), budget=Budget(max_evaluations=300), generators=rng)
    assert random.getstate() == before, f"{planner} moved Python's global generator"
"""


def test_pythons_generator_is_untouched() -> None:
    """In a process without the tests' type checks, which draw from Python's own generator."""
    done = subprocess.run([sys.executable, "-c", UNCHECKED], capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr


class CountOperations(TorchDispatchMode):
    """Counts torch's operations: at this size they are the time, and unlike it do not vary with the load."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += 1
        return func(*args, **(kwargs or {}))


def test_an_iteration_is_a_few_operations() -> None:
    """Whatever the number of samples, elites, steps and actions: nothing is done one by one."""

    def operations(iterations: int, samples: int) -> int:
        settings = CEMSettings(samples=samples, elites=samples // 8, iterations=iterations)
        with CountOperations() as mode:
            solve(CEM(box(3), settings), flat, torch.zeros(1, 9, 3))
        return mode.count

    def flat(actions: torch.Tensor, problems: torch.Tensor) -> Evaluation:
        return Evaluation(actions[:, :, 0, 0], actions.new_zeros(*actions.shape[:2], 0))

    for samples in (16, 512):
        assert (operations(6, samples) - operations(2, samples)) / 4 < 90


def test_deadline_is_looked_at_between_chunks() -> None:
    def slow(actions: torch.Tensor, problems: torch.Tensor) -> Evaluation:
        time.sleep(0.02)
        return Bowl(torch.zeros(1, 1, 1))(actions, problems)

    planner = CEM(box(1), CEMSettings(samples=100, elites=5, chunk=1))
    plan = solve(planner, slow, torch.full((1, 1, 1), 0.5), budget=Budget(deadline_s=0.3))
    assert plan.seconds < 0.5 and 2 < plan.evaluations < 50
    assert len(plan.iterations) == 1 and float(plan.cost[0]) < 0.25


def test_a_share_of_the_variance_lies_along_the_path_of_the_mean() -> None:
    """By hand: two elites whose mean is 2 away; of one number the path takes 4/5 of each step's weight."""
    settings = CEMSettings(samples=4, elites=2, std=(4.0,), momentum_mean=0.5, keep_fraction=0, path_share=0.25)
    proposal = CEMProposal(settings)
    state = proposal.init(torch.zeros(1, 1, 1), box(1, 10.0), 3)
    assert state.path is not None and float(state.path) == 0.0
    state = proposal.update(state, line([3.0, 9.0, 1.0, -9.0]), judged([0.0, 9.0, 0.5, 9.0]))
    first = math.sqrt(0.8 * 1.2 * 2) * 2.0  # the elites' step, of which momentum lets the mean go half
    assert state.path is not None and float(state.path) == pytest.approx(first) and float(state.mean) == 1.0
    drawn = proposal.sample(state, 200_001, generators(1))[0, 1:]
    wanted = 0.75 * float(state.std) ** 2 + 0.25 * first**2
    assert float(drawn.var()) == pytest.approx(wanted, rel=0.02)
    state = proposal.update(state, line([1.0, 1.0, 9.0, 9.0]), judged([0.0, 0.0, 9.0, 9.0]))
    assert state.path is not None and float(state.path) == pytest.approx(0.2 * first)


def test_the_path_helps_along_a_valley_askew() -> None:
    """Six numbers, thirty times steeper across their diagonal than along it."""

    def valley(actions: torch.Tensor, problems: torch.Tensor) -> Evaluation:
        x = actions.flatten(2) - 0.7
        along = x.mean(dim=-1, keepdim=True)
        cost = along[..., 0].square() + 30 * (x - along).square().mean(dim=-1)
        return Evaluation(cost, actions.new_zeros(*actions.shape[:2], 0))

    def reached(share: float) -> float:
        settings = CEMSettings(samples=24, elites=6, iterations=40, momentum_std=0.85, path_share=share)
        return float(solve(CEM(box(2), settings), valley, torch.full((5, 3, 2), -0.7)).cost.median())

    assert reached(0.1) < 0.2 * reached(0.0)
