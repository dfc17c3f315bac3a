"""Courses of planners are kept and read back as they were, compared rightly, and drawn of the right problems."""

from __future__ import annotations

import copy
import importlib.util
import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny_world import save_tiny_model

from vjepa_mpc.core.errors import InputError
from vjepa_mpc.costs import PlanningCost
from vjepa_mpc.planner_bench import PENALTY, Judge, measure, measure_pycma
from vjepa_mpc.planner_courses import (
    DEFAULT,
    PUBLISHED,
    Course,
    algorithm_of_peer,
    bars,
    course_file,
    load_course,
    save_course,
    summary,
)
from vjepa_mpc.planner_problems import LEAST_HORIZON, OneByOne, Problems, pairs_through_model
from vjepa_mpc.planners import CEM, Bounds, Budget, CEMSettings, Evaluation, GradientPlanner, GradientSettings
from vjepa_mpc.predictor import PredictorConfig
from vjepa_mpc.robots.reacher import Reacher
from vjepa_mpc.robots.tasks import Pair
from vjepa_mpc.rollout import Context
from vjepa_mpc.world_model import WorldModel

WHAT = {"problems": "a set, 20", "planner": "cem+lbfgs", "seed": 0}


def course(planner: str, *costs: float, problems: str = "a set") -> Course:
    spent = tuple(1000 * (i + 1) for i in range(len(costs)))
    return Course(planner, problems, spent, tuple((cost, cost) for cost in costs), tuple(i * 0.1 for i in spent))


def test_a_course_is_read_back_as_it_was_and_other_terms_are_another_file(tmp_path: Path) -> None:
    made = Course("cem", "a set, 20", (1, 65), ((math.inf, 2.0), (0.25, 1.5)), (0.1, 0.2), 3.0, 0.5, 2)
    save_course(tmp_path, WHAT, made)
    assert load_course(tmp_path, WHAT) == made
    assert load_course(tmp_path, {**WHAT, "seed": 1}) is None
    assert course_file(tmp_path, WHAT) != course_file(tmp_path, {**WHAT, "planner": "cem-lbfgs"})
    kept = json.loads(course_file(tmp_path, WHAT).read_text())
    assert kept["what"] == WHAT and kept["course"]["best"][0] == [None, 2.0] and "commit" in kept["provenance"]


def test_an_altered_course_is_refused(tmp_path: Path) -> None:
    save_course(tmp_path, WHAT, course("cem", 2.0))
    path = course_file(tmp_path, WHAT)
    path.write_text(path.read_text().replace('"evaluations"', '"evaluation"'))
    with pytest.raises(InputError, match="not valid"):
        load_course(tmp_path, WHAT)


def test_bars_compare_a_quarter_of_the_published_evaluations_and_the_best_of_the_peers_settings() -> None:
    published = course(PUBLISHED, *[5.0] * 7, 1.0)
    table = [
        published, course(DEFAULT, 3.0, 0.9, 0.8), course("cem", 3.0, 2.0), course("mppi", 1.0, 1.0),
        course("swm-cem", 4.0, 2.5), course("swm-cem-small", 4.0, 1.9), course("swm-mppi", 1.0, 1.0),
    ]  # fmt: skip
    found = {bar.what: bar for bar in bars(table, 2000)}
    assert found["default at a quarter"].met and found["default at a quarter"].ours == 0.9
    assert not found["cem against the peer's"].met and found["cem against the peer's"].theirs == 1.9
    assert found["mppi against the peer's"].met and len(found) == 3
    late = [published, course(DEFAULT, 3.0, 1.1, 0.1)]  # good enough, but only after 3,000
    assert not bars(late, 2000)[0].met and not bars(late, 3000) and not bars(late, 1000), "it is a bar of a quarter"
    assert algorithm_of_peer("swm-gradient-adam") == "gradient" and algorithm_of_peer("cem") is None


def test_a_bar_says_on_how_many_problems_ours_is_the_lower_one() -> None:
    table = [
        Course("gradient", "a set", (1000,), ((1.0, 2.0, 3.0),), (0.1,)),
        Course("swm-gradient", "a set", (1000,), ((1.5, 1.9, 3.0),), (0.1,)),
    ]
    (bar,) = bars(table, 2000)
    assert bar.met and (bar.ours, bar.theirs) == (2.0, 1.9) and bar.difference == 0, "problem by problem"
    assert (bar.lower_on, bar.count) == (1, 3), "equal is not lower"
    worse = [table[0], replace(table[1], best=((1.5, 1.9, 2.5),))]
    assert not bars(worse, 2000)[0].met and bars(worse, 2000)[0].difference == pytest.approx(0.1)
    (early,) = bars(table, 500)
    assert early.ours is None and early.theirs is None and early.lower_on == 0 and not early.met
    stuck = [replace(table[0], best=((1.0, math.inf, math.inf),)), table[1]]
    assert not bars(stuck, 2000)[0].met and bars(stuck, 2000)[0].difference is None


def test_of_the_peers_settings_the_one_that_leaves_ours_the_least_counts() -> None:
    def solved(planner: str, *costs: float) -> Course:
        return Course(planner, "a set", (1000,), (costs,), (0.1,))

    table = [
        solved("cem", 1.0, 5.0, 9.0), solved("swm-cem", 1.1, 4.5, 9.1), solved("swm-cem-small", 0.9, 4.9, 20.0),
    ]  # fmt: skip
    (bar,) = bars(table, 2000)
    assert not bar.met and bar.difference == pytest.approx(0.1) and bar.theirs == 4.9


def test_evaluations_to_the_published_cost_are_by_what_searches_were_told() -> None:
    published = Course(PUBLISHED, "a set", (4000, 8000, 8000), ((2.0,), (1.0,), (1.2,)), (0.1, 0.2, 0.3))
    other = Course("cem", "a set", (1000, 2000, 2000), ((1.1,), (1.0,), (1.3,)), (0.1, 0.2, 0.3))
    assert summary([published, other], 2000)[1]["evaluations_to_published"] == 2000


def test_costs_that_are_never_allowed_are_no_numbers_in_json() -> None:
    row = summary([course(PUBLISHED, 1.0), course("cem", math.inf, math.inf)], 2000)[1]
    assert row["median"] is None and row["evaluations_to_published"] is None and row["count"] == 2
    json.dumps(row, allow_nan=False)


def fenced(actions: torch.Tensor, problems: torch.Tensor) -> Evaluation:
    """A bowl around 0.9 of a box from 0 to 2, forbidden above 0.5."""
    cost = (actions - 1.8).square().sum(dim=(2, 3))
    return Evaluation(cost, (actions - 0.5).clamp(min=0).sum(dim=(2, 3))[..., None], ("fence",))


def test_a_judge_projects_prices_and_counts_the_allowed_alone() -> None:
    work = Problems("fenced", fenced, torch.full((2, 1, 1), 0.4), Bounds(torch.zeros(1), torch.full((1,), 2.0)))
    judge = Judge(work)
    assert torch.allclose(judge.start, torch.full((2, 1, 1), -0.6))
    told = judge(torch.tensor([[[[-0.7]], [[3.0]]], [[[0.0]], [[0.5]]]], requires_grad=True))
    assert torch.allclose(told[0], torch.tensor([1.5**2, 0.2**2 + PENALTY * 1.5]), atol=1e-5), "3 is judged at 1"
    assert told.requires_grad
    spent, best, _ = judge.points[0]
    assert spent == 2 and best[0] == pytest.approx(2.25) and best[1] == math.inf
    reached = measure_pycma(work, 200)
    assert reached.best[-1] == pytest.approx((1.69, 1.69), abs=0.02), "never below what the fence allows"
    assert list(reached.evaluations) == sorted(reached.evaluations) and reached.evaluations[-1] <= 200
    assert list(reached.wall) == sorted(reached.wall)


def bowl(actions: torch.Tensor, problems: torch.Tensor) -> Evaluation:
    cost = actions.abs().sum(dim=(2, 3))
    return Evaluation(cost, actions.new_zeros(*cost.shape, 0))


def rounded(actions: torch.Tensor, problems: torch.Tensor) -> Evaluation:
    """The bowl, lower by 0.1 where slopes are asked for."""
    found = bowl(actions, problems)
    return Evaluation(found.cost - 0.1 * actions.requires_grad, found.violation)


ROUNDED = Problems(
    "rounded", rounded, torch.full((2, 1, 1), 0.9), Bounds(-torch.ones(1), torch.ones(1)), exact=bowl
)


def test_the_best_that_a_judge_was_shown_is_judged_exactly_in_the_end() -> None:
    judge = Judge(ROUNDED)
    for places in ([[[[0.5]], [[0.75]]], [[[0.5]], [[-0.25]]]], [[[[1.0]], [[0.25]]], [[[0.625]], [[0.5]]]]):
        judge(torch.tensor(places, requires_grad=True))
    assert judge.best.tolist() == pytest.approx([0.15, 0.15])
    reached = judge.course("theirs")
    assert reached.best[0] == pytest.approx((0.4, 0.15)) and reached.best[1] == pytest.approx((0.25, 0.25))
    assert reached.evaluations == (2, 4), "at no charge"
    judge(torch.tensor([[[[0.125]]], [[[0.5]]]]))
    assert judge.course("theirs").best[2] == pytest.approx((0.125, 0.25)), "an answer counts where it is the best"


def test_our_own_answers_are_judged_exactly_too() -> None:
    steep = GradientPlanner(ROUNDED.bounds, GradientSettings(starts=1, steps=3, learning_rate=0.05))
    reached = measure("gradient", steep, ROUNDED, 20)
    assert reached.best[2][0] < reached.best[-1][0], "slopes were asked for on the way"
    solved = steep.plan(
        bowl, ROUNDED.init, budget=Budget(), generators=[torch.Generator().manual_seed(i) for i in range(2)]
    )
    assert reached.best[-1] == pytest.approx(tuple(solved.actions.abs().flatten().tolist()))


@pytest.fixture(scope="module")
def short_sighted(tmp_path_factory: pytest.TempPathFactory) -> WorldModel:
    """As the shipped model: it sees one frame and one model step of 15 control steps ahead."""
    shape = PredictorConfig(
        grid_height=2, grid_width=2, latent_dim=48, width=48, depth=1, heads=3, max_frames=2,
        action_dim=27, state_dim=25,
    )  # fmt: skip
    folder = save_tiny_model(tmp_path_factory.mktemp("short") / "model", predictor=shape, history=1, stride=15)
    return WorldModel.from_pretrained(folder)


PAIRS = [Pair((0.0, 1.0), (1.0, 0.5)), Pair((2.0, -1.0), (-1.0, 0.2), 5)]


def test_beyond_the_models_sight_its_predictions_are_fed_back(short_sighted: WorldModel) -> None:
    with Reacher(64, backend="rays") as robot:
        work = pairs_through_model(short_sighted, robot, PAIRS)
    assert isinstance(work.cost_fn, OneByOne) and work.init.shape == (2, LEAST_HORIZON, 2)
    assert work.bounds.high.tolist() == pytest.approx([0.9, 0.9]), "15 control steps, shared out among 5"
    actions = 0.5 * torch.randn(2, 3, LEAST_HORIZON, 2, generator=torch.Generator().manual_seed(0))
    found = work.cost_fn.imagine(actions, torch.arange(2))
    latents, states = work.cost_fn.context.latents.repeat(1, 3, 1, 1), work.cost_fn.context.states.repeat(1, 3, 1)
    for step in range(LEAST_HORIZON):  # the same by the plain rollout, one step each, every candidate a problem
        seen = Context(latents.flatten(0, 1)[:, None], states.flatten(0, 1)[:, None], torch.zeros(6, 0, 2))
        one = short_sighted.rollout(seen, actions[:, :, step].flatten(0, 1)[:, None, None])
        latents, states = one.latents[:, 0, 0].unflatten(0, (2, 3)), one.states[:, 0, 0].unflatten(0, (2, 3))
        torch.testing.assert_close(found.latents[:, :, step], latents)
        torch.testing.assert_close(found.states[:, :, step], states)


def test_a_slope_reaches_every_action_of_what_is_fed_back(short_sighted: WorldModel) -> None:
    with Reacher(64, backend="rays") as robot:
        work = pairs_through_model(short_sighted, robot, PAIRS[:1])
    actions = torch.full((1, 1, LEAST_HORIZON, 2), 0.1, requires_grad=True)
    (slope,) = torch.autograd.grad(work.cost_fn(actions, torch.arange(1)).cost.sum(), actions)
    assert (slope.abs() > 0).all()


def test_answers_through_a_model_are_judged_in_single_precision(short_sighted: WorldModel) -> None:
    model = copy.deepcopy(short_sighted).for_planning()
    with Reacher(64, backend="rays") as robot:
        work = pairs_through_model(model, robot, PAIRS)
    answers = 0.5 * torch.randn(2, LEAST_HORIZON, 2, generator=torch.Generator().manual_seed(0))
    rough = work.cost_fn(answers[:, None], torch.arange(2)).cost[:, 0]
    judged = work.judged(answers)
    assert not torch.equal(judged, rough)
    assert not torch.equal(judged, work.judged(answers.flip(0)).flip(0)), "each has its own goal"
    with torch.no_grad():
        for name, part in model.named_parameters():  # the same function, once it is rounded no more
            assert torch.equal(work.exact.model.get_parameter(name), part.float()), name
    torch.testing.assert_close(judged, rough, atol=0.02, rtol=0.02)


def test_within_the_models_sight_nothing_is_fed_back(tiny_model: Path) -> None:
    model = WorldModel.from_pretrained(tiny_model)  # sees 6 steps ahead, after 2 frames
    with Reacher(64, backend="rays") as robot:
        work = pairs_through_model(model, robot, PAIRS)
        assert type(work.cost_fn) is PlanningCost and work.init.shape == (2, 6, 2)
        assert work.bounds.high.tolist() == model.action_bounds.high.tolist()
        with pytest.raises(InputError, match="--horizon 6 or less"):
            pairs_through_model(model, robot, PAIRS, 7)
    solved = CEM(work.bounds, CEMSettings(samples=8, elites=2, iterations=2)).plan(
        work.cost_fn, work.init, budget=Budget(), generators=[torch.Generator().manual_seed(i) for i in range(2)]
    )
    assert solved.held_by == ((), ())


def test_the_peer_is_named_when_it_is_missing(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    from vjepa_mpc.cli.main import main

    if importlib.util.find_spec("stable_worldmodel") is not None:
        pytest.skip("it is installed here")
    for arguments, words in (
        (["--peer"], "stable-worldmodel cannot be used"),
        (["--planner", "swm-cem"], "say --peer"),
        (["--model", "x"], "say --on model"),
    ):
        with pytest.raises(SystemExit) as left:
            main(["bench", "planners", *arguments, "--out", str(tmp_path)])
        assert left.value.code == 2 and words in " ".join(capsys.readouterr().err.split())
