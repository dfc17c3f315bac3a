"""Ranking, bounds in another type, and what an unusable evaluation is answered with."""

from __future__ import annotations

import math

import hypothesis
import hypothesis.strategies as st
import pytest
import torch

from vjepa_mpc.core.errors import InputError, NotFiniteError
from vjepa_mpc.planners.base import Bounds, Budget, Evaluation
from vjepa_mpc.planners.evaluation import Best, Ledger, bounds_like, check_evaluation, first, join, rank

COSTS = st.sampled_from([-2.0, 0.0, 1.0, 3.0, math.inf])
VIOLATIONS = st.sampled_from([0.0, 0.0, 0.5, 1.0, math.inf])


def wanted_order(cost: list[float], violation: list[list[float]]) -> list[int]:
    """The ranking in plain Python: rejected last, then by summed violation, then by cost, then as given."""
    key = [math.inf if c == math.inf else sum(v) for c, v in zip(cost, violation, strict=True)]
    return sorted(range(len(cost)), key=lambda i: (key[i], cost[i], i))


@st.composite
def judgements(draw: st.DrawFn) -> tuple[torch.Tensor, torch.Tensor]:
    """Cost [b, n] and violation [b, n, k] with many ties and infinities."""
    b, n, k = draw(st.integers(1, 3)), draw(st.integers(1, 7)), draw(st.integers(0, 2))
    cost = [[draw(COSTS) for _ in range(n)] for _ in range(b)]
    violation = [[[draw(VIOLATIONS) for _ in range(k)] for _ in range(n)] for _ in range(b)]
    return torch.tensor(cost), torch.tensor(violation).reshape(b, n, k)


def evaluation_of(judged: tuple[torch.Tensor, torch.Tensor]) -> Evaluation:
    return Evaluation(*judged, tuple(f"limit{i}" for i in range(judged[1].shape[2])))


@hypothesis.given(judged=judgements())
def test_rank_is_feasible_first_and_rejected_last(judged: tuple[torch.Tensor, torch.Tensor]) -> None:
    evaluation = evaluation_of(judged)
    order = rank(evaluation)
    for problem in range(order.shape[0]):
        wanted = wanted_order(evaluation.cost[problem].tolist(), evaluation.violation[problem].tolist())
        assert order[problem].tolist() == wanted


@hypothesis.given(judged=judgements())
def test_first_is_as_good_as_the_first_of_the_ranking(judged: tuple[torch.Tensor, torch.Tensor]) -> None:
    evaluation = evaluation_of(judged)
    rows, index = torch.arange(evaluation.cost.shape[0]), first(evaluation)
    best = rank(evaluation)[:, 0]
    assert torch.equal(evaluation.cost[rows, index], evaluation.cost[rows, best])
    rejected = evaluation.cost[rows, best] == math.inf
    sums = evaluation.violation.sum(dim=-1)
    assert torch.equal(sums[rows, index][~rejected], sums[rows, best][~rejected])


@hypothesis.given(judged=judgements(), seen=st.integers(0, 6))
def test_best_so_far_is_the_best_of_all_populations(judged: tuple[torch.Tensor, torch.Tensor], seen: int) -> None:
    evaluation = evaluation_of(judged)
    b, n, _ = evaluation.violation.shape
    actions = torch.arange(float(b * n)).reshape(b, n, 1, 1)
    best = Best(actions[:, 0], evaluation.cost[:, 0], evaluation.violation[:, 0])
    for i in [*range(seen % n, n), *range(n)]:  # in some order, some twice
        part = Evaluation(evaluation.cost[:, i : i + 1], evaluation.violation[:, i : i + 1], evaluation.names)
        best = best.improved_by(actions[:, i : i + 1], part)
    for problem in range(b):
        winner = rank(evaluation)[problem, 0]
        assert best.cost[problem] == evaluation.cost[problem, winner]
        if evaluation.cost[problem].isinf().all():
            assert best.actions[problem] == actions[problem, 0]  # nothing replaces the start


def test_evaluations_that_cannot_be_ranked_are_refused() -> None:
    actions, violation = torch.zeros(1, 3, 2, 2), torch.zeros(1, 3, 1)
    with pytest.raises(InputError, match=r"cost \(1, 2\)"):
        check_evaluation(Evaluation(torch.zeros(1, 2), torch.zeros(1, 2, 1), ("a",)), actions)
    with pytest.raises(InputError, match="names 0 constraints and returns 1"):
        check_evaluation(Evaluation(torch.zeros(1, 3), violation), actions)
    with pytest.raises(InputError, match="negative"):
        check_evaluation(Evaluation(torch.zeros(1, 3), violation - 1, ("a",)), actions)
    with pytest.raises(NotFiniteError, match="1 of 3 candidates of problem 0"):
        check_evaluation(Evaluation(torch.tensor([[0.0, -math.inf, 1.0]]), violation, ("a",)), actions)
    check_evaluation(Evaluation(torch.tensor([[0.0, math.inf, 1.0]]), violation, ("a",)), actions)


def test_bounds_are_rounded_inwards() -> None:
    """0.1 is not a float32: the nearest one lies above it, the nearest to -0.1 below."""
    bounds = Bounds(*(torch.tensor([value], dtype=torch.float64) for value in (-0.1, 0.1)))
    inside = bounds_like(bounds, torch.zeros(1))
    assert inside.high.dtype == torch.float32
    assert float(inside.high) <= 0.1 < float(inside.high.nextafter(torch.ones(1)))
    assert float(inside.low) >= -0.1 > float(inside.low.nextafter(-torch.ones(1)))
    point = bounds_like(Bounds(bounds.high, bounds.high), torch.zeros(1))
    assert point.low == point.high == torch.tensor([0.1])


def test_ledger_leaves_chunks_out_after_the_deadline() -> None:
    calls = []

    def cost(actions: torch.Tensor, problems: torch.Tensor) -> Evaluation:
        calls.append(actions.shape[1])
        return Evaluation(actions.flatten(2).sum(dim=-1), actions.new_zeros(*actions.shape[:2], 0))

    actions = torch.arange(10.0).reshape(1, 10, 1, 1)
    whole = Ledger(cost, Budget()).evaluate(actions, torch.arange(1), chunk=4)
    assert calls == [4, 4, 2] and torch.equal(whole.cost[0], torch.arange(10.0))
    late = Ledger(cost, Budget(deadline_s=0.0))
    assert late.evaluate(actions, torch.arange(1), chunk=4).cost.shape == (1, 4) and late.evaluations == 4


def test_join_keeps_order_and_names() -> None:
    parts = [Evaluation(torch.full((1, n), float(n)), torch.full((1, n, 1), float(n)), ("a",)) for n in (1, 2)]
    whole = join(parts)
    assert whole.cost.tolist() == [[1.0, 2.0, 2.0]] and whole.names == ("a",)
    assert whole.violation.shape == (1, 3, 1)


def test_constraints_told_late_are_refused() -> None:
    """Told of one only where it is broken, the search would take what it knows of the start for all there is."""
    answers = iter([(), ("limit",)])

    def cost(actions: torch.Tensor, problems: torch.Tensor) -> Evaluation:
        names = next(answers)
        return Evaluation(actions.sum(dim=(2, 3)), actions.new_zeros(*actions.shape[:2], len(names)), names)

    ledger, actions = Ledger(cost, Budget()), torch.zeros(1, 2, 1, 1)
    ledger.evaluate(actions, torch.arange(1))
    with pytest.raises(InputError, match="name the same in every answer"):
        ledger.evaluate(actions, torch.arange(1))
