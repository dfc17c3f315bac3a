"""Every planner can be had by name, with its own settings, and the benchmark measures what it says."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from vjepa_mpc.cli.building import PLANNERS, leg_bounds, make_planner, plan_numbers, planner_and_control
from vjepa_mpc.cli.limiting import step_limits
from vjepa_mpc.core.errors import InputError
from vjepa_mpc.planner_bench import contenders, measure, measure_pycma
from vjepa_mpc.planner_courses import DEFAULT, PUBLISHED, summary
from vjepa_mpc.planner_problems import FUNCTIONS, drawn
from vjepa_mpc.planners import CEM, LBFGS, Blocks, Budget, ByKnots, Refined
from vjepa_mpc.planners.testing import Bowl, box, solve
from vjepa_mpc.world_model import WorldModel


@pytest.mark.parametrize("name", [*PLANNERS, "cem+lbfgs"])
def test_every_name_is_a_planner_that_plans(name: str) -> None:
    planner = make_planner(name, box(2), samples=20, iterations=2)
    plan = solve(planner, Bowl(torch.full((1, 2, 2), 0.3)), torch.zeros(1, 2, 2), budget=Budget(max_evaluations=30))
    assert float(plan.cost[0]) < 0.3601


def test_the_default_is_another_for_plans_of_many_numbers_at_as_many_evaluations(tiny_model: Path) -> None:
    few, many = (make_planner("cem", box(2), numbers=numbers) for numbers in (8, 9))
    for made in (few, many):
        assert made.settings.samples * made.settings.iterations == 768  # type: ignore[attr-defined]
    assert (few.settings.samples, many.settings.samples) == (192, 24)  # type: ignore[attr-defined]
    world = WorldModel.from_pretrained(tiny_model)  # two actions, seen six steps ahead
    assert [plan_numbers(world, None), plan_numbers(world, 3), plan_numbers(world, 1, 3)] == [12, 6, 6]
    chosen, _ = planner_and_control(
        world, None, "cem", horizon=None, samples=None, iterations=None, elites=None, settings=[]
    )
    assert chosen.settings == many.settings  # type: ignore[attr-defined]


def test_settings_reach_the_planner_in_their_own_type() -> None:
    made: Any = make_planner(
        "cma", box(2), samples=9, iterations=3, settings=["separable=true", "std_fraction=0.2", "chunk = 4"]
    )
    assert (made.settings.samples, made.settings.iterations, made.settings.separable) == (9, 3, True)
    assert made.settings.std_fraction == 0.2 and made.settings.chunk == 4 and made.chunk == 4
    made = make_planner("cem", box(2), settings=["std=0.1,0.2"])
    assert made.settings.std == (0.1, 0.2) and made.settings.samples == 192
    made = make_planner("gradient", box(2), samples=3, iterations=7)
    assert (made.settings.starts, made.settings.steps) == (3, 7)
    made = make_planner("cem+lbfgs", box(2), samples=50, settings=["memory=4", "elites=5"])
    assert isinstance(made, Refined) and isinstance(made.first, CEM) and isinstance(made.second, LBFGS)
    assert made.first.settings.samples == 50 and made.first.settings.elites == 5
    assert made.second.settings.memory == 4 and made.second.settings.starts == 4


def test_plans_can_be_decided_by_knots(tiny_model: Path) -> None:
    world, options = WorldModel.from_pretrained(tiny_model), {"samples": None, "iterations": None, "elites": None}

    def chosen(knots: str, **more: Any) -> Any:
        given: Any = {"horizon": None, **options, "settings": [], **more}  # six steps of two actions
        return planner_and_control(world, None, "cem", knots=knots, **given)[0]

    made = chosen("blocks:2")
    assert isinstance(made, ByKnots) and made.curve == Blocks(2) and made.settings.curve == "Blocks(steps=2)"
    assert made.settings.planner.samples == 192  # six numbers are few
    assert chosen("lines:5").settings.planner.samples == 24  # ten are many
    plan = solve(chosen("splines:4"), Bowl(torch.full((1, 6, 2), 0.1)), torch.zeros(1, 6, 2))
    assert plan.actions.shape == (1, 6, 2) and float(plan.cost[0]) < 1e-3
    for knots, words in (
        ("blocks:1", "as many decisions as there are steps to plan, 6"), ("lines:9", "6; give fewer"),
        ("curves:3", "kind of knots"), ("lines", "write it as lines:3"), ("lines:x", "write it as lines:3"),
        ("blocks:0", "at least 1"),
    ):  # fmt: skip
        with pytest.raises(InputError, match=words):
            chosen(knots)
    with pytest.raises(InputError, match="1; give fewer"):
        chosen("lines:1", horizon=1)
    with pytest.raises(InputError, match="--knots"):
        planner_and_control(world, "vjepa2-ac", "cem", horizon=1, settings=[], knots="lines:2", **options)


def test_an_action_can_be_held(tiny_model: Path) -> None:
    world = WorldModel.from_pretrained(tiny_model)
    strided = WorldModel(replace(world.config, stride=4), world.encoder)
    robot = world.config.robot
    first, second = robot.action_names
    limit = robot.action_high[1]
    cases = (world, 1, None, 1), (strided, 1, None, 4), (strided, 2, None, 2), (strided, 1, 3, 3)
    for model, legs, leg_steps, steps in cases:
        free = leg_bounds(model, legs, leg_steps)
        bounds = leg_bounds(model, legs, leg_steps, step_limits(robot, [f"{second}={limit / 2}"]))
        assert bounds.low[1] == bounds.high[1] == pytest.approx(steps * limit / 2)
        assert (bounds.low[0], bounds.high[0]) == (free.low[0], free.high[0])
    whole = leg_bounds(strided, 1, 3, step_limits(robot, [f"{second}={limit}"]))
    assert float(whole.high[1]) == pytest.approx(3 * limit)
    for fix, words in (
        (["wing=0"], "action of"), ([second], "has no number"), ([f"{first}=x"], "has no number"),
        ([f"{first}=nan"], "lies in"), ([f"{first}=99"], "a control step"),
        ([f"{first}=0", f"{second}=0"], "nothing is left"),
    ):  # fmt: skip
        with pytest.raises(InputError, match=words):
            step_limits(robot, fix)


@pytest.mark.parametrize(
    ("name", "more", "words"),
    [
        ("mmpi", {}, "did you mean 'mppi'"),
        ("cem+lbgs", {}, "did you mean 'lbfgs'"),
        ("cem+cma+lbfgs", {}, "more than two"),
        ("lbfgs", {"elites": 3}, "no elites"),
        ("mppi", {"settings": ["temprature=1"]}, "did you mean 'temperature'"),
        ("mppi", {"settings": ["temperature"]}, "lacks a value"),
        ("mppi", {"settings": ["temperature=warm"]}, "temperature=warm does not fit"),
        ("mppi", {"settings": ["temperature=-1"]}, "must be positive"),
    ],
)
def test_what_does_not_exist_is_refused_with_the_nearest_name(name: str, more: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words.replace("+", r"\+")):
        make_planner(name, box(2), **more)


def test_the_functions_have_their_answer_where_they_say() -> None:
    for name in FUNCTIONS:
        work = drawn(name, 2, seed=5)
        answers = work.cost_fn.answers.unflatten(1, work.init.shape[1:])  # type: ignore[attr-defined]
        cost = work.cost_fn(answers[:, None], torch.arange(2)).cost
        assert float(cost.abs().max()) < 1e-6, f"{name} is not 0 at its answer"
        assert float(work.cost_fn(work.init[:, None], torch.arange(2)).cost.min()) > 1
    with pytest.raises(InputError, match="did you mean 'ellipsoid-20'"):
        drawn("elipsoid-20", 1)


def test_courses_count_evaluations_and_never_rise() -> None:
    work = drawn("rosenbrock-20", 2)
    courses = [measure(name, contenders(100)[name](work.bounds), work, 100) for name in ("cem", "cma", "lbfgs")]
    courses.append(measure_pycma(work, 100))
    for course in courses:
        assert course.evaluations[-1] <= 100 and list(course.evaluations) == sorted(course.evaluations)
        medians = [course.median_at(spent) for spent in course.evaluations]
        # Of a descent only what was judged again without gradients counts at the end.
        assert all(a >= b - 1e-4 * abs(b) for a, b in itertools.pairwise(medians)), course.planner
        assert course.evaluations_to(-1.0) is None and course.evaluations_to(1e9) == course.evaluations[0]
        assert 0 < course.own_seconds <= course.seconds
    rows = summary(courses, 100)
    assert [row["planner"] for row in rows] == ["cem", "cma", "lbfgs", "pycma"]
    assert rows[0]["median_half"] is None, "50 evaluations are less than CEM's first population"
    assert all(row["median"] <= row["median_half"] for row in rows[1:])


def test_a_batch_is_measured_against_one_problem_after_the_other(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from vjepa_mpc.cli.main import main

    def run() -> list[dict[str, Any]]:
        asked = ["--on", "rastrigin-20", "--problems", "4", "--budget", "300", "--no-overhead", "--one-by-one"]
        named = ["--planner", "cem", "--planner", "lbfgs", "--planner", "pycma"]
        with pytest.raises(SystemExit) as left:
            main(["bench", "planners", *asked, *named, "--out", str(tmp_path)])
        assert left.value.code == 0
        found: list[dict[str, Any]] = json.loads((tmp_path / "planners.json").read_text())["batches"]
        return found

    gains = run()
    assert [(gain["planner"], gain["count"], gain["evaluations"]) for gain in gains] == [
        ("cem", 4, 300), ("lbfgs", 4, 300),
    ]  # fmt: skip
    assert all(gain["alone_s"] > 0 and gain["together_s"] > 0 and gain["apart"] <= 1e-5 for gain in gains)
    assert all(gain["times"] == gain["alone_s"] / gain["together_s"] for gain in gains)
    assert capsys.readouterr().out.count("4 problems in one call, rastrigin-20: ") == 2
    assert run() == gains, "measured again instead of read back"


def test_the_command_leaves_a_table_and_a_picture_and_goes_on_where_it_was(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from vjepa_mpc.cli.main import main

    def run(*planners: str) -> dict[str, Any]:
        asked = ["--on", "ellipsoid-20", "--problems", "2", "--budget", "2000", "--no-overhead", "--out", str(tmp_path)]
        with pytest.raises(SystemExit) as left:
            main(["bench", "planners", *(word for name in planners for word in ("--planner", name)), *asked])
        assert left.value.code == 0
        found: dict[str, Any] = json.loads((tmp_path / "planners.json").read_text())
        return found

    record = run("cem", PUBLISHED)
    assert [row["planner"] for row in record["rows"]] == ["cem", PUBLISHED]
    assert record["rows"][1]["evaluations"] == 8000 and record["rows"][1]["evaluations_to_published"] <= 8000
    assert (tmp_path / "planners.png").read_bytes().startswith(b"\x89PNG")
    assert "ellipsoid-20" in capsys.readouterr().out and not record["bars"]
    kept = {path: path.stat().st_mtime_ns for path in (tmp_path / "courses").iterdir()}
    again = run(DEFAULT, "cem", PUBLISHED)
    assert again["rows"][1:] == record["rows"] and again["bars"][0]["what"] == "default at a quarter"
    assert len(kept) == 2 and all(path.stat().st_mtime_ns == when for path, when in kept.items())
    assert "default at a quarter, ellipsoid-20" in capsys.readouterr().out
    for wrong, words in ((["--on", "elipsoid-20"], "ellipsoid-20"), (["--planner", "cmaa"], "'cma'")):
        with pytest.raises(SystemExit) as left:
            main(["bench", "planners", *wrong, "--out", str(tmp_path)])
        assert left.value.code == 2 and words in capsys.readouterr().err
