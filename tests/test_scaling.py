"""Scaling: shares by hand, the model against what can be worked out, and the measurement once for real."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import cloudpickle
import pytest
import solvable_world
from hypothesis import given
from hypothesis import strategies as st
from solvable_world import SpelledRobot, settings, solvable_model

from vjepa_mpc.cli import main as cli
from vjepa_mpc.core.errors import InputError
from vjepa_mpc.evaluation import ArenaSetup
from vjepa_mpc.planners.cem import CEM, CEMSettings
from vjepa_mpc.policies import PlannedPolicy, Policy
from vjepa_mpc.robots.reacher import ReachTask
from vjepa_mpc.robots.tasks import Pair
from vjepa_mpc.scale_bench import APART, LOCAL, RAY, Run, measure_workers, parts_of, ray_overhead, table
from vjepa_mpc.scaling import Parts, Span, assumptions, predict, ray_bar, shares, two_workers_bar

# Workers cannot import these modules: they travel by value, as a user's script does.
cloudpickle.register_pickle_by_value(sys.modules[__name__])
cloudpickle.register_pickle_by_value(solvable_world)


def parts(**changes: Any) -> Parts:
    given: dict[str, Any] = {
        "episode_s": (2.0,), "sharing": 1.0, "serial_s": 0.0, "latency_s": 0.0, "start_s": 0.0, "start_serial_s": 0.0,
    }  # fmt: skip
    return Parts(**(given | changes))


def test_shares_by_hand() -> None:
    """Two workers for 10 s: one at work from 1 to 4 and 5 to 9, the other from 2 to 10; 20 s in all."""
    spans = [Span(7, 5, 9), Span(8, 2, 10), Span(7, 1, 4)]
    found = shares(spans, 2, 0.0, 10.0)
    assert (found.busy, found.before, found.between, found.after) == pytest.approx((15 / 20, 3 / 20, 1 / 20, 1 / 20))
    lonely = shares(spans, 3, 0.0, 10.0)  # a third one that never had an item
    assert lonely.busy == pytest.approx(15 / 30) and lonely.after == pytest.approx(11 / 30)
    with pytest.raises(InputError, match="measure again"):
        shares(spans, 1, 0.0, 10.0)


@pytest.mark.parametrize(("workers", "episodes", "rounds"), [(1, 6, 6), (2, 6, 3), (4, 6, 2), (6, 6, 1), (512, 6, 1)])
def test_without_any_cost_a_run_is_as_many_rounds_as_it_must_be(workers: int, episodes: int, rounds: int) -> None:
    found = predict(parts(), workers, episodes)
    assert found.play_s == pytest.approx(2.0 * rounds)
    assert found.speedup == pytest.approx(episodes / rounds) and found.waiting == 0
    assert found.idle == pytest.approx(1 - episodes / (workers * rounds))
    assert found.efficiency == pytest.approx(found.useful)


def test_a_parent_that_is_too_slow_sets_the_pace() -> None:
    """An item every 0.1 s of the parent's: 2 s episodes keep 21 workers busy, and no more help."""
    slow = parts(serial_s=0.1)
    assert slow.most_workers == pytest.approx(21)
    found = predict(slow, 512, 1000)
    assert found.play_s == pytest.approx(1000 * 0.1 + 2.0)
    assert predict(slow, 100, 1000).play_s == pytest.approx(found.play_s)
    assert predict(slow, 20, 20_000).speedup == pytest.approx(20 * 2.0 / 2.1, rel=0.01)


def test_latency_start_up_and_a_shared_machine_cost_what_they_cost() -> None:
    late = predict(parts(latency_s=0.5), 2, 8)
    assert late.play_s == pytest.approx(4 * 2.5) and late.waiting == pytest.approx(0.2)
    shared = predict(parts(sharing=0.8), 4, 8)
    assert shared.play_s == pytest.approx(5.0) and shared.speedup == pytest.approx(3.2)
    assert shared.sharing == pytest.approx(0.2)
    begun = predict(parts(start_s=3.0, start_serial_s=0.25), 4, 8)
    assert begun.start_s == pytest.approx(4.0) and begun.speedup == pytest.approx(4.0)
    assert begun.whole_speedup == pytest.approx(16 / 8)
    assert predict(parts(bytes_an_episode=1000), 2, 8).bytes_a_second == pytest.approx(1000.0)


@given(
    st.lists(st.floats(0.1, 5), min_size=1, max_size=5), st.integers(1, 40), st.integers(1, 60),
    st.floats(0, 0.1), st.floats(0, 0.1), st.floats(0.3, 1),
)  # fmt: skip
def test_what_is_useful_and_what_is_lost_is_everything(
    seconds: list[float], workers: int, episodes: int, serial: float, latency: float, sharing: float
) -> None:
    given = parts(episode_s=tuple(seconds), serial_s=serial, latency_s=latency, sharing=sharing)
    found = predict(given, workers, episodes)
    assert found.useful + found.sharing + found.waiting + found.idle == pytest.approx(1)
    assert min(found.useful, found.waiting, found.idle) >= 0 and found.speedup <= workers * (1 + 1e-9)
    assert found == predict(given, workers, episodes)


def test_nothing_measured_nothing_predicted() -> None:
    for bad in ({"episode_s": ()}, {"sharing": 0.0}):
        with pytest.raises(InputError, match="needs at least"):
            predict(parts(**bad), 2, 2)
    with pytest.raises(InputError, match="needs at least"):
        predict(parts(), 0, 2)


def run(way: str, workers: int, seconds: float, gap: float = 0.0, parent: float = 0.0, start: float = 5.0) -> Run:
    """Four episodes a worker of `seconds`, `gap` before each."""
    step = seconds + gap
    spans = [
        Span(worker, item * step + gap, (item + 1) * step) for worker in range(workers) for item in range(4)
    ]
    return Run(way, workers, 0.0, 4 * step, tuple(spans), 4 * workers * parent, start, 0.5 * workers)


RUNS = [
    run(APART, 1, 1.0), run(LOCAL, 1, 1.0), run(APART, 2, 1.25), run(LOCAL, 2, 1.25, gap=0.05, parent=0.01),
    run(RAY, 2, 1.25, gap=0.09, parent=0.02), run(APART, 4, 2.5), run(LOCAL, 4, 2.5, gap=0.5),
]  # fmt: skip


def test_parts_are_taken_from_the_runs_they_belong_to() -> None:
    found = parts_of(RUNS, LOCAL, 2, 100.0)
    assert found is not None and found.episode_s == pytest.approx((1.0,) * 4) and found.beside == 2
    assert (found.sharing, found.serial_s, found.latency_s) == pytest.approx((0.8, 0.01, 0.04))
    assert (found.start_s, found.start_serial_s) == pytest.approx((4.0, 0.5))
    four = parts_of(RUNS, LOCAL, 4, 100.0)
    assert four is not None and four.beside == 4 and four.sharing == pytest.approx(0.4)
    assert parts_of(RUNS[:2], LOCAL, 2, 100.0) is None
    again = predict(found, 2, 8)  # back to what was measured, but for how the parent's turns fall
    assert again.play_s == pytest.approx(4 * 1.30, rel=0.01)
    assert "keeps 80 % of its speed beside others, as 2 did here on 2 cores" in assumptions(found, 2)[0]


def test_the_table_tells_the_machine_from_the_code() -> None:
    rows = {(row["workers"], row["way"]): row for row in table(RUNS)}
    assert rows[2, APART]["speedup"] == pytest.approx(1.6)
    assert rows[2, LOCAL]["speedup"] == pytest.approx(2 / 1.3)
    assert rows[2, LOCAL]["of_what_the_machine_allows"] == pytest.approx(1.25 / 1.3)
    assert rows[2, LOCAL]["between"] == pytest.approx(3 * 0.05 / 5.2)
    assert rows[2, LOCAL]["parent_ms_an_item"] == pytest.approx(10.0) and rows[1, LOCAL]["parent_ms_an_item"] is None
    assert ray_overhead(RUNS) == pytest.approx(1.34 / 1.30 - 1) and ray_overhead(RUNS[:2]) is None


def test_bars_are_held_missed_or_not_judged() -> None:
    assert two_workers_bar(1.71, 2).held is True and two_workers_bar(1.69, 2).held is False
    assert two_workers_bar(None, 2).held is None and two_workers_bar(1.9, 1).held is None
    assert ray_bar(0.05, 1.0).held is True and ray_bar(0.06, 1.0).held is False
    assert ray_bar(0.2, 0.9).held is None and ray_bar(None, 3.0).held is None


def planned() -> Policy:
    model = solvable_model(reached=0.02, history=2)
    planner = CEM(model.action_bounds, CEMSettings(samples=24, elites=4, iterations=3))
    return PlannedPolicy(model, planner, settings(horizon=2, hold_steps=2))


def test_two_workers_are_measured_beside_two_processes() -> None:
    setup = ArenaSetup(SpelledRobot, planned, ReachTask(step_budget=6), 3)
    pairs = [(index, Pair((0.0, 0.5), (0.9, 1.0))) for index in range(5)]
    runs = measure_workers(setup, pairs, 2, steps=4)
    assert [(one.way, one.workers, one.episodes) for one in runs] == [(APART, 2, 5), (LOCAL, 2, 5)]
    for one in runs:
        assert len({span.worker for span in one.spans}) <= 2 and one.rate > 0 and one.start_s > 0
        told = one.shares()
        assert told.busy + told.before + told.between + told.after == pytest.approx(1)
        assert min(told.busy, told.before, told.between, told.after) >= 0
    assert parts_of(runs, LOCAL, 2, 0.0) is not None


def test_the_command_measures_prints_and_keeps(
    tiny_model: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    line = [
        "bench", "scale", "--model", str(tiny_model), "--workers", "1", "--batch", "2", "--pairs", "2", "--steps", "1",
        "--samples", "2", "--elites", "1", "--iterations", "1", "--backend", "rays", "--out", str(tmp_path / "out"),
    ]  # fmt: skip
    with pytest.raises(SystemExit) as left:
        cli.main(line)
    out, err = capfd.readouterr()
    assert left.value.code in (0, None), err
    assert "apart" in out and "not measured (needs --workers 1 and 2" in out and "Episodes decided together" in out
    record = json.loads((tmp_path / "out/scale.json").read_text())
    assert [(row["workers"], row["way"]) for row in record["rows"]] == [(1, APART), (1, LOCAL)]
    assert [one["batch"] for one in record["batches"]] == [1, 2] and record["traffic"]["setup_bytes"] > 10_000
    assert record["predictions"] == {} and (tmp_path / "out/scale.png").stat().st_size > 1000
    bad = {"--pairs 1000": "ask for at most", "--workers 10000": "10000 workers are more", "--batch 3": "raise --pairs"}
    for more, words in ((option.split(), words) for option, words in bad.items()):
        with pytest.raises(SystemExit) as left:
            cli.main([*line, *more])
        assert left.value.code == 2 and words in capfd.readouterr().err
