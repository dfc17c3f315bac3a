"""The benchmark: cells that never mix, a run that is resumed and extended, its price, its files and its page."""

from __future__ import annotations

import csv
import dataclasses
import json
import re
import shutil
import sys
from functools import partial
from pathlib import Path
from typing import Any

import cloudpickle
import pytest
import solvable_world
from solvable_world import SpelledRobot, settings, solvable_model

from vjepa_mpc.bench_files import EPISODE_TABLE, RESULTS, TABLE, load, save
from vjepa_mpc.bench_page import write_report
from vjepa_mpc.benchmark import (
    FILM_HEIGHT,
    Cell,
    draw_plans,
    films_of,
    hardware,
    levels_of,
    plans_of,
    play,
    price,
    rows,
)
from vjepa_mpc.core.errors import InputError
from vjepa_mpc.evaluation import ArenaSetup, EpisodeResult, Series, evaluate, evaluate_all
from vjepa_mpc.executor import Executor, LocalExecutor, RayExecutor
from vjepa_mpc.intervals import wilson_interval
from vjepa_mpc.planners.cem import CEM, CEMSettings
from vjepa_mpc.policies import NoOpPolicy, PlannedPolicy, Policy, RandomPolicy, ScriptedPolicy
from vjepa_mpc.results import steps_to_success, summarise
from vjepa_mpc.robots.dynamics import FACTORS
from vjepa_mpc.robots.reacher import ReachTask
from vjepa_mpc.robots.tasks import Manifest, Pair

# Workers cannot import these modules: they travel by value, as a user's script does.
cloudpickle.register_pickle_by_value(sys.modules[__name__])
cloudpickle.register_pickle_by_value(solvable_world)

TASK = ReachTask(step_budget=6)
MANIFEST = Manifest(
    "reach", 1, "reacher", "mine", 0,
    (Pair((0.0, 0.5), (0.9, 1.0)), Pair((2.0, -1.0), (2.9, -2.0), 7), Pair((-1.0, 0.3), (-0.4, 1.4))),
)  # fmt: skip


def planned() -> Policy:
    model = solvable_model(reached=0.02, history=2)
    planner = CEM(model.action_bounds, CEMSettings(samples=24, elites=4, iterations=3))
    return PlannedPolicy(model, planner, settings(horizon=2, hold_steps=2))


def cell(policy: Any, name: str, kind: Any, seed: int = 0, pairs: int = 3, **changes: Any) -> Cell:
    setup = ArenaSetup(SpelledRobot, policy, TASK, seed)
    return Cell("reacher", name, kind, setup, MANIFEST, pairs, **changes)


def cells(pairs: int = 3, seeds: int = 1) -> list[Cell]:
    return [
        *(cell(planned, "mine, cem", "planner", seed, pairs, played={"weights": "w"}) for seed in range(seeds)),
        cell(partial(RandomPolicy, TASK.spec), "random", "floor", pairs=pairs),
        cell(partial(NoOpPolicy, TASK.spec), "no-op", "floor", pairs=pairs),
        cell(partial(ScriptedPolicy, TASK), "scripted (ceiling)", "ceiling", pairs=pairs),
    ]


def record(some: list[Cell], folder: Path) -> dict[str, Any]:
    origin = {
        "vjepa_mpc": "0", "commit": "c", "packages": {"torch": "2"}, "python": "3.11", "platform": "here",
        "command": ["vjepa-mpc", "bench"],
    }  # fmt: skip
    return {
        "suite": "small", "complete": True, "price": "dear", "step_ms": {}, "workers": 1, "failures": [], "threads": 1,
        "rows": rows(some, folder), "hardware": hardware(), "provenance": origin,
    }  # fmt: skip


@pytest.fixture(scope="module")
def played(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole run of four policies, read by most of the tests."""
    folder = tmp_path_factory.mktemp("bench")
    play(cells(), LocalExecutor(), folder)
    save(folder, record(cells(), folder))
    return folder


def told(some: list[Cell], folder: Path, executor: Executor | None = None) -> list[tuple[int, int]]:
    seen: list[tuple[int, int]] = []
    play(some, executor or LocalExecutor(), folder, lambda number, one: seen.append((number, one.index)))
    return seen


def without_times(results: list[EpisodeResult]) -> list[EpisodeResult]:
    return [dataclasses.replace(result, milliseconds=()) for result in results]


def test_first_plans_are_drawn_once_and_shown_on_the_page(played: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(played, folder)
    assert draw_plans(cells(), folder) == []
    drawn = plans_of(cells()[0].key, folder)
    ends = {held for _, held, _ in films_of(cells()[0].key, folder)}
    assert len(drawn) == len(ends) >= 1  # one of each kind of end that was filmed
    assert sum(len(plans_of(one.key, folder)) for one in cells()[1:]) == 0
    before = drawn[0][1].stat().st_mtime_ns
    assert draw_plans(cells(), folder) == [] and drawn[0][1].stat().st_mtime_ns == before
    write_report(load(folder))
    assert (folder / "report.html").read_text().count("data:image/png") == len(drawn)


def test_a_plan_that_cannot_be_drawn_is_told(played: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(played, folder)
    one = cells()[0]
    broken = dataclasses.replace(one, setup=dataclasses.replace(one.setup, robot=partial(int, "gone")))
    (sentence,) = draw_plans([broken], folder)
    assert "mine, cem" in sentence and "gone" in sentence


def test_series_on_the_same_workers_give_what_each_gives_alone() -> None:
    some = cells()
    together = evaluate_all([Series(one.manifest, one.setup, one.pairs) for one in some], LocalExecutor())
    alone = [evaluate(one.manifest, one.setup, LocalExecutor()) for one in some]
    assert [without_times(results) for results in together] == [without_times(results) for results in alone]


@pytest.mark.parametrize(
    "executor",
    [pytest.param(LocalExecutor(2), id="processes"), pytest.param(RayExecutor(2), id="ray", marks=pytest.mark.slow)],
)
def test_a_run_is_the_same_to_the_bit_wherever_it_is_played(executor: Executor, played: Path, tmp_path: Path) -> None:
    play(cells(), executor, tmp_path)
    for one in cells():
        assert without_times(one.finished(tmp_path)) == without_times(one.finished(played))


def test_a_run_is_resumed_and_extended_and_nothing_is_played_twice(played: Path, tmp_path: Path) -> None:
    assert told(cells(pairs=2), tmp_path) == [(number, index) for number in range(4) for index in (0, 1)]
    assert told(cells(pairs=2), tmp_path) == []
    assert told(cells(pairs=3), tmp_path) == [(number, 2) for number in range(4)]
    for one in cells():
        assert without_times(one.finished(tmp_path)) == without_times(one.finished(played))
    assert {number for number, _ in told(cells(seeds=2), tmp_path)} == {1}  # the second seed of the planner
    assert len(rows(cells(pairs=1), tmp_path)) == 4 and all(row["episodes"] == 1 for row in rows(cells(1), tmp_path))


def test_an_interruption_keeps_what_was_finished(tmp_path: Path) -> None:
    def stop(number: int, one: EpisodeResult) -> None:
        if (number, one.index) == (1, 1):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        play(cells(), LocalExecutor(), tmp_path, stop)
    assert [row["episodes"] for row in rows(cells(), tmp_path)] == [3, 2]
    assert told(cells(), tmp_path) == [(1, 2), *((number, index) for number in (2, 3) for index in range(3))]


@pytest.mark.parametrize(
    "changes",
    [
        {"played": {"weights": "other"}}, {"setup": ArenaSetup(SpelledRobot, planned, TASK, 1)},
        {"setup": ArenaSetup(SpelledRobot, planned, TASK, 0, {"light": 0.5})}, {"policy": "his, cem"},
        {"manifest": dataclasses.replace(MANIFEST, split="other")},
    ],
)  # fmt: skip
def test_what_episodes_depend_on_is_in_their_files_name(changes: dict[str, Any]) -> None:
    one = cells()[0]
    other = dataclasses.replace(one, **changes)
    assert other.key != one.key and re.fullmatch(r"[\w-]+", other.key)
    assert dataclasses.replace(one, pairs=1).key == one.key  # more pairs extend it


def test_the_table_by_hand(played: Path) -> None:
    table = {row["policy"]: row for row in load(played).rows}
    assert list(table) == ["mine, cem", "random", "no-op", "scripted (ceiling)"]
    low, high = wilson_interval(3, 3)
    assert table["scripted (ceiling)"]["held"] == {"count": 3, "rate": 1.0, "wilson_low": low, "wilson_high": high}
    assert table["no-op"]["held"]["count"] == 0 and table["no-op"]["steps_to_hit_median"] is None
    assert table["mine, cem"]["evaluations"] >= 3 * 6 * 3 * 24 and table["mine, cem"]["wanted"] == 3
    assert table["mine, cem"]["held_by_seed"] == {"0": table["mine, cem"]["held"]["count"]}


def test_several_seeds_are_one_row(tmp_path: Path) -> None:
    some = cells(pairs=1, seeds=3)
    play(some, LocalExecutor(), tmp_path)
    row = rows(some, tmp_path)[0]
    assert row["episodes"] == 3 and set(row["cells"]) == set(row["held_by_seed"]) == {"0", "1", "2"}
    assert [len(one) for one in save(tmp_path, record(some, tmp_path)).episodes(row).values()] == [1, 1, 1]


def result(distances: tuple[float, ...], times: tuple[float, ...] = (1.0,)) -> EpisodeResult:
    return EpisodeResult(
        0, 0.2, distances, TASK.hit(distances), TASK.held(distances), None, (), times, 0
    )  # fmt: skip


def test_steps_to_success_and_late_decisions_by_hand() -> None:
    swept = result((0.2, 0.01, 0.2, 0.02, 0.02, 0.02))  # radius 0.03
    assert steps_to_success(swept, TASK) == (2, 4) and swept.held
    assert steps_to_success(result((0.01,) * 6), TASK) == (1, 1)
    assert steps_to_success(result((0.2, 0.01, 0.2, 0.2, 0.2, 0.2)), TASK) == (2, None)
    assert steps_to_success(result((0.2,) * 6), TASK) == (None, None)
    period_ms = 1e3 * TASK.spec.control_period_s
    summary = summarise([swept, result((0.2,) * 6, (period_ms, period_ms + 1, 1.0))], TASK)
    assert summary["steps_to_hit_median"] == 2 and summary["steps_to_hold_median"] == 4
    assert summary["deadline_misses"] == {"count": 1, "rate": 0.25, "period_s": TASK.spec.control_period_s}


def test_the_price_counts_what_is_missing(played: Path, tmp_path: Path) -> None:
    nothing = price(cells(), played)
    assert (nothing.episodes, nothing.left, nothing.seconds, nothing.step_ms) == (12, 0, 0.0, {})
    play(cells(pairs=2)[:1], LocalExecutor(), tmp_path)
    some = price(cells(), tmp_path)
    assert (some.episodes, some.left) == (12, 10)
    assert set(some.step_ms) == {f"reacher: {one.policy}" for one in cells()}
    played = sum(n * each for n, each in zip((1, 3, 3, 3), some.each, strict=True))
    assert played <= some.seconds < played + 5  # worlds are built, too
    assert some.each[0] > some.each[2]  # planning costs more than doing nothing


def test_films_are_kept_of_the_first_successes_and_failures(played: Path) -> None:
    _, _, still, best = cells()
    assert [(index, held) for index, held, _ in films_of(best.key, played)] == [(0, True), (1, True)]
    assert films_of(still.key, played) == []  # of floors there is nothing to see
    import av

    with av.open(str(films_of(best.key, played)[0][2])) as film:
        (frames,) = [list(film.decode(video=0))]
    assert len(frames) == TASK.step_budget + 1 and frames[0].width == 2 * FILM_HEIGHT + 4


def test_the_files_say_the_same(played: Path) -> None:
    run = load(played)
    with (played / TABLE).open(newline="") as stream:
        table = list(csv.DictReader(stream))
    assert [float(line["held.rate"]) for line in table] == [row["held"]["rate"] for row in run.rows]
    with (played / EPISODE_TABLE).open(newline="") as stream:
        lines = list(csv.DictReader(stream))
    assert len(lines) == sum(row["episodes"] for row in run.rows) == 12
    for row in run.rows:
        own = [line for line in lines if line["policy"] == row["policy"]]
        assert sum(int(line["held"]) for line in own) == row["held"]["count"]


def test_the_page_holds_everything_and_asks_for_nothing(played: Path, tmp_path: Path) -> None:
    page = write_report(load(played), tmp_path / "page.html").read_text(encoding="utf-8")
    for text in ("mine, cem", "scripted (ceiling)", "median distance", MANIFEST.sha256[:16], "Wilson", "here", "dear"):
        assert text in page
    assert page.count("<video") == len(list((played / "films").iterdir())) and "held</span>" in page
    assert not re.search(r'(src|href)="(?!data:)', page) and "<script" not in page and "nan" not in page.lower()
    for tag in ("table", "tr", "td", "section", "figure", "svg", "div", "span"):
        assert len(re.findall(f"<{tag}[ >]", page)) == page.count(f"</{tag}>"), tag


def test_names_on_the_page_are_text_not_markup(tmp_path: Path) -> None:
    some = [cell(partial(NoOpPolicy, TASK.spec), "<b>no-op</b>", "floor", pairs=1)]
    play(some, LocalExecutor(), tmp_path)
    page = write_report(save(tmp_path, record(some, tmp_path))).read_text(encoding="utf-8")
    assert "<b>no-op" not in page and "&lt;b&gt;no-op" in page


def test_a_folder_that_is_none_or_lost_its_episodes_is_refused(played: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not exist"):
        load(tmp_path)
    (tmp_path / RESULTS).write_text("{}")
    with pytest.raises(InputError, match="no benchmark of this version"):
        load(tmp_path)
    copy = tmp_path / "copy"
    shutil.copytree(played, copy)
    (copy / "episodes" / f"{cells()[2].key}.jsonl").unlink()
    run = load(copy)
    with pytest.raises(InputError, match="other episodes of reacher, no-op"):
        run.episodes(run.rows[2])


def test_all_is_every_factor() -> None:
    assert levels_of("all", 0.5) == dict.fromkeys(FACTORS, 0.5)
    assert levels_of("light", 1.0) == {"light": 1.0} and levels_of("", 0.0) == {}
    assert json.dumps(hardware())
