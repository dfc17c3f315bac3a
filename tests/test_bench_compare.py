"""Comparing two benchmarks: the tests against SciPy and by enumeration, pairs that are the same, and refusals."""

from __future__ import annotations

import dataclasses
import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vjepa_mpc.bench_compare import compare
from vjepa_mpc.bench_files import RESULTS, SCHEMA, Run, load
from vjepa_mpc.cli import main as cli
from vjepa_mpc.core.errors import InputError
from vjepa_mpc.evaluation import EpisodeResult
from vjepa_mpc.intervals import bootstrap_interval, holm, sign_test, signed_rank_test

stats = pytest.importorskip("scipy.stats")


@pytest.mark.parametrize(("wins", "losses"), [(0, 0), (1, 0), (5, 1), (10, 2), (3, 3), (0, 12), (40, 61)])
def test_the_sign_test_is_the_binomials(wins: int, losses: int) -> None:
    wanted = stats.binomtest(wins, wins + losses).pvalue if wins + losses else 1.0
    assert sign_test(wins, losses) == pytest.approx(wanted, rel=1e-12)


@pytest.mark.parametrize("n", [1, 2, 7, 20, 45])
def test_the_signed_rank_test_is_wilcoxons(n: int) -> None:
    differences = np.random.default_rng(n).normal(0.3, 1.0, n)
    wanted = stats.wilcoxon(differences, method="exact").pvalue
    assert signed_rank_test(differences) == pytest.approx(wanted, rel=1e-9)


def test_equal_sizes_share_their_rank_and_zeros_are_left_out() -> None:
    sizes = np.array([1.0, 1.0, 2.0, 2.0, 2.0, 3.0])
    ranks = np.array([1.5, 1.5, 4.0, 4.0, 4.0, 6.0])
    for signs in ([1, 1, 1, 1, 1, 1], [1, -1, 1, 1, -1, 1], [-1, -1, 1, -1, -1, -1]):
        seen = ranks[np.array(signs) > 0].sum()
        every = [ranks[np.array(choice)].sum() for choice in itertools.product([False, True], repeat=6)]
        tails = np.mean(np.array(every) <= seen), np.mean(np.array(every) >= seen)
        found = signed_rank_test(np.concatenate([sizes * signs, [0.0, 0.0]]))
        assert found == pytest.approx(min(1.0, 2 * min(tails)))
    assert signed_rank_test(np.zeros(4)) == 1.0
    with pytest.raises(InputError, match="not a finite number"):
        signed_rank_test(np.array([1.0, np.nan]))


def test_holms_p_values_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.5, 0.9]) == [1.0, 1.0] and holm([]) == []


def test_the_bootstrap_covers_the_mean() -> None:
    generator = np.random.default_rng(0)
    covered = 0
    for _ in range(200):
        low, high = bootstrap_interval(generator.normal(1.0, 1.0, 60), generator, 1000)
        covered += low <= 1.0 <= high
    assert 180 <= covered <= 199  # 190 of 200 is its promise


def episode(index: int, held: bool, end: float) -> EpisodeResult:
    return EpisodeResult(index, 0.3, (0.2, end), held, held, None, (), (1.0,), 4)


@pytest.fixture
def made(tmp_path: Path) -> Callable[..., Run]:
    """A run's folder with given outcomes: {policy: [one list of (held, final distance) a seed]}."""

    def make(name: str, played: dict[str, list[list[tuple[bool, float]]]], **changes: Any) -> Run:
        folder = tmp_path / name
        (folder / "episodes").mkdir(parents=True)
        rows = []
        for number, (policy, seeds) in enumerate(played.items()):
            cells = {}
            for seed, outcomes in enumerate(seeds):
                cells[str(seed)] = f"cell-{number}-{seed}"
                lines = [json.dumps(dataclasses.asdict(episode(i, *one))) for i, one in enumerate(outcomes)]
                (folder / "episodes" / f"{cells[str(seed)]}.jsonl").write_text("\n".join(lines) + "\n")
            count = sum(map(len, seeds))
            row = {
                "task": "reacher", "policy": policy, "kind": "floor" if policy == "random" else "planner", "factor": "",
                "level": 0.0, "manifest": "dev", "sha256": "aa", "task_version": 1, "episodes": count, "wanted": count,
                "cells": cells,
            }  # fmt: skip
            rows.append(row | changes)
        (folder / RESULTS).write_text(json.dumps({"schema": SCHEMA, "rows": rows}))
        return load(folder)

    return make


Made = Callable[..., Run]
GOOD = [(True, 0.01)] * 12
POOR = [(True, 0.01)] * 3 + [(False, 0.2)] * 9


def test_a_difference_is_found_and_none_is_not(made: Made) -> None:
    (row,) = compare(made("a", {"x, cem": [POOR], "random": [POOR]}), made("b", {"y, cem": [GOOD], "random": [POOR]}))
    assert (row.a, row.b, row.pairs, row.only_a, row.only_b) == ("x, cem", "y, cem", 12, 0, 9)
    assert (row.held_a, row.held_b) == (0.25, 1.0)
    assert row.held_p == pytest.approx(2 / 2**9) and row.distance_p == pytest.approx(2 / 2**9)
    assert row.held_holm == row.distance_holm == pytest.approx(4 / 2**9)
    assert row.farther == pytest.approx(-0.19 * 9 / 12) and row.farther_low < row.farther < row.farther_high < 0
    again = made("c", {"x, cem": [POOR]})
    (same,) = compare(again, again)
    assert (same.held_p, same.distance_p, same.farther, same.only_a, same.only_b) == (1.0, 1.0, 0.0, 0, 0)


def test_pairs_that_only_one_has_played_do_not_count(made: Made) -> None:
    (row,) = compare(made("a", {"x, cem": [POOR]}), made("b", {"y, cem": [GOOD[:5]]}))
    assert row.pairs == 5 and row.only_b == 2


def test_seeds_of_a_pair_are_one_observation(made: Made) -> None:
    """Five seeds that all say the same are no more evidence than one."""
    (row,) = compare(made("a", {"x, cem": [POOR] * 5}), made("b", {"y, cem": [GOOD]}))
    assert row.held_p == pytest.approx(2 / 2**9) and row.pairs == 12


def test_several_planners_are_matched_by_name_or_by_being_named(made: Made) -> None:
    a, b = made("a", {"x, cem": [POOR], "x, icem": [GOOD]}), made("b", {"x, icem": [GOOD], "x, mppi": [GOOD]})
    assert [(row.a, row.b) for row in compare(a, b)] == [("x, icem", "x, icem")]
    (row,) = compare(a, a, policy_a="x, cem", policy_b="x, icem")
    assert (row.a, row.b, row.only_b) == ("x, cem", "x, icem", 9)
    with pytest.raises(InputError, match="did you mean 'x, cem'"):
        compare(a, b, policy_a="x, cen", policy_b="x, icem")


def test_other_pairs_are_refused(made: Made) -> None:
    a = made("a", {"x, cem": [POOR]})
    with pytest.raises(InputError, match=r"sha256 aa .* bb .*not the same pairs"):
        compare(a, made("b", {"x, cem": [POOR]}, sha256="bb"))
    with pytest.raises(InputError, match=r"task_version 1 .* 2 "):
        compare(a, made("c", {"x, cem": [POOR]}, task_version=2))
    with pytest.raises(InputError, match=r"Nothing was played in both: .*a has reacher by x, cem; .*push-t by x, cem"):
        compare(a, made("d", {"x, cem": [POOR]}, task="push-t"))


def test_the_command_says_which_differences_are_real(made: Made, capfd: pytest.CaptureFixture[str]) -> None:
    a, b = made("a", {"x, cem": [POOR]}), made("b", {"y, cem": [GOOD]})

    def leave(*arguments: object) -> tuple[Any, str, str]:
        with pytest.raises(SystemExit) as left:
            cli.main(["bench", "compare", *map(str, arguments)])
        return left.value.code, *capfd.readouterr()

    code, out, _ = leave(a.folder, b.folder)
    assert code == 0 and "y, cem holds more" in out and "y, cem ends nearer" in out
    code, out, _ = leave(b.folder, a.folder)
    assert code == 0 and "y, cem holds more" in out and "y, cem ends nearer" in out
    code, out, _ = leave(a.folder, b.folder, "--alpha", "0.001")
    assert code == 0 and out.count("no difference shown") == 2
    code, out, _ = leave(a.folder, b.folder, "--json")
    (row,) = json.loads(out)["rows"]
    assert code == 0 and row["held_differs"] and row["distance_differs"] and row["pairs"] == 12
    code, out, err = leave(a.folder, a.folder.parent)
    assert code == 2 and out == "" and "does not exist" in err
