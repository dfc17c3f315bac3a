"""What each sampling algorithm does by its paper, by hand where that can be done."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from vjepa_mpc.core.errors import InputError
from vjepa_mpc.planners import (
    CMAES,
    ICEM,
    Bounds,
    Budget,
    Choices,
    CMASettings,
    DiscreteCEM,
    DiscreteSettings,
    Evaluation,
    ICEMSettings,
    MPPISettings,
    PredictiveSampling,
    PredictiveSettings,
    RandomShooting,
    ShootingSettings,
)
from vjepa_mpc.planners.discrete import DiscreteProposal
from vjepa_mpc.planners.icem import ICEMProposal
from vjepa_mpc.planners.mppi import MPPIProposal, savitzky_golay, weights
from vjepa_mpc.planners.testing import Bowl, Watch, box, generators, solve


def judged(cost: list[float], violation: list[float] | None = None) -> Evaluation:
    broken = torch.tensor(violation or [0.0] * len(cost))[None, :, None]
    return Evaluation(torch.tensor([cost]), broken, ("rule",))


def line(values: list[float]) -> torch.Tensor:
    """Candidates of one problem, one step and one action."""
    return torch.tensor(values).reshape(1, -1, 1, 1)


@pytest.mark.parametrize(
    ("settings", "wrong"),
    [
        (ICEMSettings, {"decay": 0.5}),
        (ICEMSettings, {"elites": 200}),
        (MPPISettings, {"temperature": 0.0}),
        (MPPISettings, {"smoothing": 4}),
        (MPPISettings, {"momentum_std": 1.5}),
        (CMASettings, {"samples": 1}),
        (CMASettings, {"std_fraction": math.nan}),
        (DiscreteSettings, {"levels": 1}),
        (DiscreteSettings, {"elites": 300}),
        (ShootingSettings, {"samples": 0}),
        (PredictiveSettings, {"std_fraction": 0.0}),
    ],
)
def test_settings_that_cannot_work_are_refused(settings: Any, wrong: dict[str, Any]) -> None:
    with pytest.raises(InputError):
        settings(**wrong)


def test_icem_population_decays_to_twice_the_elites() -> None:
    """The paper's N_i = max(N decay^-i, 2 K), and the mean among the last candidates."""
    proposal = ICEMProposal(ICEMSettings(samples=100, elites=20, iterations=6, decay=1.5))
    assert proposal.sizes() == (100, 66, 44, 40, 40, 40)
    watch = Watch(Bowl(torch.full((1, 3, 1), 0.4)))
    plan = solve(ICEM(box(1), proposal.settings), watch, torch.zeros(1, 3, 1))
    assert [asked.shape[1] for asked in watch.asked] == [1, 100, 66, 44, 40, 40, 40, 1]
    # Elites kept compete again without being evaluated again: what is left of them goes on to the next plan.
    assert plan.others is not None and plan.others.shape == (1, 6, 3, 1)
    costs = (plan.others - 0.4).square().sum(dim=(2, 3))[0]
    assert torch.equal(costs, costs.sort().values) and float(costs[0]) >= float(plan.cost[0])
    assert any(torch.equal(plan.others[0, 0], candidate) for candidate in watch.candidates[0])


def test_icems_mean_is_a_candidate_of_the_last_iteration_alone() -> None:
    proposal = ICEMProposal(ICEMSettings(samples=6, elites=2, iterations=2))
    state = proposal.init(torch.zeros(1, 2, 1), box(1), 2)
    samples = proposal.sample(state, 6, generators(1))
    state = proposal.update(state, samples, judged([3.0, 1.0, 2.0, 5.0, 4.0, 6.0]))
    last = proposal.sample(state, 4, generators(1))
    assert torch.equal(last[:, -1], state.cem.mean) and state.left == 1
    earlier = proposal.sample(proposal.init(torch.zeros(1, 2, 1), box(1), 2), 4, generators(1))
    assert not bool((earlier == 0).any())


def test_icem_learns_from_the_elites_of_the_step_before() -> None:
    """What the last plan's elites were shifted to is judged with the first population, ahead of nothing else."""
    goals = torch.full((1, 3, 1), 0.9)
    planner = ICEM(box(1), ICEMSettings(samples=20, elites=5, iterations=1, std_fraction=0.01))
    alone = solve(planner, Bowl(goals), torch.zeros(1, 3, 1))
    given = planner.plan(
        Bowl(goals), torch.zeros(1, 3, 1), budget=Budget(), generators=generators(1), suggestions=goals[:, None]
    )
    assert float(given.cost[0]) == 0 < float(alone.cost[0]) and given.evaluations == alone.evaluations


def test_mppi_weighs_by_exponential_cost() -> None:
    """By hand: costs 0 and 1 at temperature 1 and spread 1/2 weigh as 1 to e^-2."""
    found = weights(torch.tensor([1.0, 0.0, math.inf]), 1.0)
    torch.testing.assert_close(found, torch.tensor([math.exp(-2), 1.0, 0.0]) / (1 + math.exp(-2)))
    assert weights(torch.tensor([math.inf]), 1.0).tolist() == [0.0]
    assert weights(torch.tensor([2.0, 2.0]), 1.0).tolist() == [0.5, 0.5]
    proposal = MPPIProposal(MPPISettings(temperature=1.0, momentum_std=0.0, std_floor=0.0))
    state = proposal.init(torch.zeros(1, 1, 1), box(1, 10.0), 1)
    state = proposal.update(state, line([4.0, 2.0]), judged([1.0, 0.0]))
    share = math.exp(-2) / (1 + math.exp(-2))
    assert float(state.mean) == pytest.approx(4 * share + 2 * (1 - share))
    assert float(state.std) == pytest.approx(2 * math.sqrt(share * (1 - share)))


def test_mppi_gives_broken_constraints_no_weight_where_one_keeps_them() -> None:
    proposal = MPPIProposal(MPPISettings())
    state = proposal.init(torch.zeros(1, 1, 1), box(1, 10.0), 1)
    one = proposal.update(state, line([4.0, 2.0, 1.0]), judged([9.0, 0.0, 1.0], [0.0, 1.0, 1.0]))
    assert float(one.mean) == 4.0
    none = proposal.update(state, line([4.0, 2.0]), judged([math.inf, math.inf]))
    assert torch.equal(none.mean, state.mean) and torch.equal(none.std, state.std)


@pytest.mark.parametrize(("horizon", "window"), [(9, 5), (5, 5), (4, 7), (1, 5)])
def test_savitzky_golay_keeps_parabolas_and_smooths_the_rest(horizon: int, window: int) -> None:
    matrix = savitzky_golay(horizon, window, torch.zeros(1, dtype=torch.float64))
    time = torch.arange(horizon, dtype=torch.float64)
    for plan in (torch.ones(horizon).double(), time, 0.3 * time.square() - time):
        torch.testing.assert_close(matrix @ plan, plan, atol=1e-9, rtol=0)
    if (horizon, window) == (9, 5):  # the published coefficients: (-3, 12, 17, 12, -3) / 35
        torch.testing.assert_close(matrix[4, 2:7], torch.tensor([-3.0, 12, 17, 12, -3]).double() / 35)


def test_mppi_smooths_its_plan() -> None:
    """A goal that jumps from step to step: the smoothed mean jumps less."""
    goals = torch.tensor([0.8, -0.8] * 5).reshape(1, 10, 1)
    candidates = goals[:, None].repeat(1, 2, 1, 1)
    state = MPPIProposal(MPPISettings()).init(goals, box(1), 1)
    rough, smooth = (
        MPPIProposal(MPPISettings(smoothing=window)).update(state, candidates, judged([0.0, 0.0])) for window in (0, 5)
    )
    assert torch.equal(rough.mean, goals)
    assert float(smooth.mean.diff(dim=1).abs().mean()) < 0.6 * float(goals.diff(dim=1).abs().mean())


def test_cma_is_the_package_used_directly() -> None:
    """The same numbers as `cma` by itself with the same noise: nothing is lost or added on the way."""
    import cma
    import numpy as np

    settings = CMASettings(samples=8, iterations=10)
    goals = torch.tensor([[[0.3, -0.2], [0.1, 0.5]]], dtype=torch.float64)
    watch = Watch(Bowl(goals))
    plan = solve(CMAES(box(2), settings), watch, torch.zeros(1, 2, 2, dtype=torch.float64))
    generator = torch.Generator().manual_seed(0)
    options = {
        "bounds": [-1, 1], "popsize": 8, "seed": math.nan, "verbose": -9,
        "randn": lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64).numpy(),
    }  # fmt: skip
    search = cma.CMAEvolutionStrategy(np.zeros(4), 0.3, options)
    for population in watch.asked[1:11]:
        asked = search.ask()
        np.testing.assert_allclose(population[0].flatten(1).numpy(), np.stack(asked), atol=1e-12)
        search.tell(asked, [float(((x - goals.flatten().numpy()) ** 2).sum()) for x in asked])
    assert float(plan.cost[0]) < 0.05


def test_cma_is_told_what_was_judged_where_that_was_suggested(monkeypatch: pytest.MonkeyPatch) -> None:
    """The package learns from a suggestion as if it had asked for it: its position, and its rank."""
    import cma

    told: list[tuple[list[Any], list[float]]] = []
    original = cma.CMAEvolutionStrategy.tell

    def tell(self: Any, points: list[Any], ranks: list[float], *rest: Any, **more: Any) -> Any:
        told.append((points, ranks))
        return original(self, points, ranks, *rest, **more)

    monkeypatch.setattr(cma.CMAEvolutionStrategy, "tell", tell)
    goals = torch.tensor([[[1.2, -0.8]]], dtype=torch.float64)
    watch = Watch(Bowl(goals))
    CMAES(box(2, half=2.0), CMASettings(samples=6, iterations=1)).plan(
        watch, goals * 0, budget=Budget(), generators=generators(1), suggestions=goals[:, None]
    )
    (points, ranks), population = told[0], watch.asked[1][0, :, 0]
    torch.testing.assert_close(torch.tensor([list(point) for point in points]), population / 2, atol=1e-9, rtol=0)
    order = (population - goals[0]).square().sum(dim=-1).argsort()
    assert [int(i) for i in torch.tensor(ranks).argsort()] == order.tolist() and ranks[-1] == 0


def test_cma_learns_a_rotated_valley_that_cem_walks_along() -> None:
    """What a covariance is for: sum and difference of two actions, a thousand times steeper in one than the other."""
    from vjepa_mpc.planners import CEM, CEMSettings

    def valley(actions: torch.Tensor, problems: torch.Tensor) -> Evaluation:
        x, y = actions[:, :, 0].unbind(-1)
        return Evaluation(
            1e3 * (x - y).square() + (x + y - 1.4).square(), actions.new_zeros(*actions.shape[:2], 0)
        )

    budget = Budget(max_evaluations=600)
    learned = solve(CMAES(box(2), CMASettings(iterations=60)), valley, torch.full((1, 1, 2), -0.7), budget=budget)
    walked = solve(
        CEM(box(2), CEMSettings(samples=60, elites=8, iterations=10)), valley, torch.full((1, 1, 2), -0.7),
        budget=budget,
    )  # fmt: skip
    assert float(learned.cost[0]) < 1e-4 and float(learned.cost[0]) < float(walked.cost[0])


def test_discrete_cem_moves_to_the_frequencies_of_the_elites() -> None:
    """By hand: elites -1, -1 and 1 of the levels -1, 0, 1; a quarter of the even start kept."""
    settings = DiscreteSettings(samples=4, elites=3, levels=3, momentum=0.25, floor=0.0)
    proposal = DiscreteProposal(settings)
    state = proposal.init(torch.zeros(1, 1, 1), box(1), 1)
    state = proposal.update(state, line([-1.0, 1.0, 0.0, -1.0]), judged([1.0, 2.0, 9.0, 0.0]))
    expected = 0.25 / 3 + 0.75 * torch.tensor([2 / 3, 0.0, 1 / 3])
    torch.testing.assert_close(state.probability.flatten(), expected)
    assert float(proposal.final(state)) == -1.0


def test_choices_are_all_that_is_ever_asked_for() -> None:
    """Four moves of two actions: each candidate, the start and the answer are of the set."""
    moves = torch.tensor([[0.0, 0.0], [0.5, 0.0], [0.0, 0.5], [-0.5, -0.5]])
    goals = torch.tensor([[[0.6, 0.1], [-0.1, 0.4], [-0.5, -0.4]]])
    watch = Watch(Bowl(goals))
    planner = DiscreteCEM(Choices.of(moves), DiscreteSettings(samples=40, elites=8, iterations=6))
    plan = solve(planner, watch, torch.full((1, 3, 2), 0.1))
    assert plan.actions[0].tolist() == [[0.5, 0.0], [0.0, 0.5], [-0.5, -0.5]]
    allowed = (watch.candidates[..., None, :] == moves).all(dim=-1).any(dim=-1)
    assert bool(allowed.all())
    with pytest.raises(InputError, match="set of actions"):
        Choices.of(torch.zeros(0, 2))


def test_predictive_sampling_moves_to_the_best_candidate_and_no_further() -> None:
    watch = Watch(Bowl(torch.full((1, 2, 1), 0.8)))
    settings = PredictiveSettings(samples=30, iterations=2, std_fraction=0.1)
    plan = solve(PredictiveSampling(box(1), settings), watch, torch.zeros(1, 2, 1))
    start, first, second, final = watch.asked
    assert torch.equal(first[:, 0], start[:, 0])  # the nominal plan competes
    best = first[0, (first - 0.8).square().sum(dim=(2, 3))[0].argmin()]
    assert float((second[0] - best).abs().max()) < 0.5 and float((second[0].mean(dim=0) - best).abs().max()) < 0.08
    assert torch.equal(final[0, 0], plan.actions[0])


def test_random_shooting_fills_the_box_and_ends_there() -> None:
    watch = Watch(Bowl(torch.zeros(1, 2, 2)))
    bounds = Bounds(torch.tensor([0.0, -3.0]), torch.tensor([0.5, 9.0]))
    plan = solve(RandomShooting(bounds, ShootingSettings(samples=500, iterations=2)), watch, torch.zeros(1, 2, 2))
    assert plan.evaluations == 1001
    drawn = watch.candidates[0, 1:].flatten(0, 1)
    torch.testing.assert_close(drawn.mean(dim=0), torch.tensor([0.25, 3.0]), atol=0.3, rtol=0.05)
    torch.testing.assert_close(drawn.std(dim=0), torch.tensor([0.5, 12.0]) / math.sqrt(12), rtol=0.05, atol=0)
