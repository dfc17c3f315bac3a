"""Several episodes against one world model: one encode and one plan for all of them, everything else each one's own.

Controllers, costs, guardrails, governors, generators and memories stay those of single episodes; what is joined is the
encoder's and the predictor's work. An episode's result is that of the episode alone up to the last bits of matrix
products, which depend on how much is computed at once.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from operator import methodcaller
from typing import Any, TypeVar

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from vjepa_mpc.controller import Controller, ControllerState, Decision, Problem, View
from vjepa_mpc.core.errors import InputError
from vjepa_mpc.costs import PlanningCost
from vjepa_mpc.episodes import Diary, EpisodeResult, Moved, Picture
from vjepa_mpc.memory import with_smaller_chunks
from vjepa_mpc.planners.base import Evaluation
from vjepa_mpc.planners.evaluation import join
from vjepa_mpc.robots.base import Observation
from vjepa_mpc.robots.task import Task
from vjepa_mpc.robots.tasks import Pair
from vjepa_mpc.rollout import Context, Rollout
from vjepa_mpc.scenes import Failure, Order, Scenes

T = TypeVar("T")


class JoinedCost:
    """The costs of several controllers as one cost function: futures are imagined in one batch, and each problem is
    judged by its own terms and constraints.

    `costs` hold one problem each, of one world model, with the same chunk, legs and names of constraints, else
    `InputError`. No more than `chunk` candidates' futures, of all problems together, exist at a time.
    """

    def __init__(self, costs: Sequence[PlanningCost]) -> None:
        first = costs[0]
        if first.drafted is not None:
            raise InputError("A draft sifts the candidates of one problem at a time; leave --draft or --batch out.")
        for cost in costs[1:]:
            if cost.model is not first.model or (cost.chunk, cost.legs) != (first.chunk, first.legs):
                raise InputError("Problems are planned together with one world model, one chunk and as many legs only.")
            if [rule.name for rule in cost.constraints] != [rule.name for rule in first.constraints]:
                raise InputError("Problems are planned together under constraints of the same names only.")
        self.costs, self.chunk = tuple(costs), first.chunk
        contexts = [cost.context for cost in costs]
        joined = Context(*(torch.cat(parts) for parts in zip(*map(_parts, contexts), strict=True)))
        self._world = PlanningCost(
            first.model, joined, first.terms, first.constraints, chunk=first.chunk, legs=first.legs
        )

    def __call__(self, actions: Float[Tensor, "b n h a"], problems: Int[Tensor, "b"]) -> Evaluation:
        """Cost and violations; where memory runs out it is tried again with fewer at a time, as `PlanningCost` does."""
        first = min(self.chunk, actions.shape[0] * actions.shape[1])
        evaluation, worked = with_smaller_chunks(lambda chunk: self._in_chunks(actions, problems, chunk), first)
        if worked < first:
            self.chunk = worked
        return evaluation

    def by_problem(self, plans: Float[Tensor, "b h a"]) -> list[dict[str, Float[Tensor, "1 1"]]]:
        """Every term and constraint of one plan a problem, by its name."""
        actions, problems = plans[:, None], torch.arange(len(plans), device=plans.device)
        together = max(1, self.chunk)
        terms = []
        for part, rows in zip(actions.split(together), problems.split(together), strict=True):
            rollout = self._world.imagine(part, rows)
            terms += [cost.terms_of(*one) for cost, one in self._each(rollout, part, rows)]
        return terms

    def _in_chunks(self, actions: Tensor, problems: Tensor, chunk: int) -> Evaluation:
        """As many problems at once as fit whole; one that does not fit in parts."""
        together = max(1, chunk // actions.shape[1])
        found = []
        for some, rows in zip(actions.split(together), problems.split(together), strict=True):
            found.append(join([self._judged(part, rows) for part in some.split(max(1, chunk), dim=1)]))
        return Evaluation(
            torch.cat([one.cost for one in found]), torch.cat([one.violation for one in found]), found[0].names
        )

    def _judged(self, actions: Tensor, problems: Tensor) -> Evaluation:
        rollout = self._world.imagine(actions, problems)
        found = [cost.judge(*one) for cost, one in self._each(rollout, actions, problems)]
        return Evaluation(
            torch.cat([one.cost for one in found]), torch.cat([one.violation for one in found]), found[0].names
        )

    def _each(
        self, rollout: Rollout, actions: Tensor, problems: Tensor
    ) -> Iterator[tuple[PlanningCost, tuple[Rollout, Tensor, Tensor]]]:
        """Each problem's own cost, and its slice of the futures."""
        own = problems.new_zeros(1)
        for row, problem in enumerate(problems.tolist()):
            one = slice(row, row + 1)
            yield self.costs[problem], (Rollout(rollout.latents[one], rollout.states[one]), actions[one], own)


def _parts(context: Context) -> tuple[Tensor, Tensor, Tensor]:
    return context.latents, context.states, context.actions


def see_together(
    controllers: Sequence[Controller], observations: Sequence[Observation], states: Sequence[ControllerState]
) -> list[tuple[View, ControllerState]]:
    """`Controller.see` of several controllers of one world model, their pictures encoded in one batch."""
    model = controllers[0].model
    latents = model.encode(np.stack([one.images[model.config.camera] for one in observations]))
    poses = torch.as_tensor(
        np.stack([one.proprioception for one in observations]), dtype=torch.float32, device=model.device
    )
    return [
        controller.look(latents[row : row + 1], poses[row : row + 1], state)
        for row, (controller, state) in enumerate(zip(controllers, states, strict=True))
    ]


def decide_together(
    controllers: Sequence[Controller], views: Sequence[View], states: Sequence[ControllerState]
) -> list[tuple[Decision, ControllerState]]:
    """`Controller.decide` of several controllers that share world model, planner and settings, in one search.

    Those whose starts or suggestions are of other shapes than the first one's are planned for after it.
    """
    problems = [one.problem(view, state) for one, view, state in zip(controllers, views, states, strict=True)]
    alike: dict[tuple[object, ...], list[int]] = {}
    for row, problem in enumerate(problems):
        given = problem.suggestions
        alike.setdefault((problem.init.shape, None if given is None else given.shape), []).append(row)
    decided: dict[int, tuple[Decision, ControllerState]] = {}
    for rows in alike.values():
        found = _searched([(controllers[row], problems[row], views[row], states[row]) for row in rows])
        decided.update(zip(rows, found, strict=True))
    return [decided[row] for row in range(len(controllers))]


def _searched(
    some: Sequence[tuple[Controller, Problem, View, ControllerState]],
) -> list[tuple[Decision, ControllerState]]:
    problems = [problem for _, problem, _, _ in some]
    leader, cost = some[0][0], JoinedCost([problem.cost for problem in problems])
    suggested = {name: torch.cat([one.suggested()[name] for one in problems]) for name in problems[0].suggested()}
    plan = leader.planner.plan(
        cost, torch.cat([problem.init for problem in problems]), budget=leader.settings.budget,
        generators=[controller.generator for controller, *_ in some], **suggested,
    )  # fmt: skip
    with torch.no_grad():
        terms = cost.by_problem(plan.actions)
    return [
        controller.conclude(problem, plan.of_problem(row), terms[row], view, state)
        for row, (controller, problem, view, state) in enumerate(some)
    ]


MakeController = Callable[[Picture, int], Controller]
"""A controller towards a goal picture, with the seed of its generator."""


@dataclass
class _Player:
    """One episode on the deciding side."""

    make: MakeController
    diary: Diary
    controller: Controller | None = None
    state: ControllerState = field(default_factory=ControllerState)

    def begin(self, picture: Picture, _: Float[np.ndarray, "w"], seed: int) -> None:
        self.controller, self.state = self.make(picture, seed), ControllerState()

    def turn(self) -> Controller:
        """The controller of this step, a new one where another goal holds from now on."""
        self.diary.turn(self.begin)
        assert self.controller is not None, "a first goal begins at step 0"
        return self.controller


Ended = EpisodeResult | Failure


def play_together(
    make: MakeController,
    scenes: Scenes,
    series: int,
    pairs: Sequence[tuple[int, Pair]],
    *,
    task: Task,
    seed: int,
    steps: int | None = None,
    filmed: bool = False,
) -> list[tuple[Ended, list[Picture] | None]]:
    """Play pairs of series number `series`, one in each scene, in step; what each came to, and its pictures.

    One whose scene fails, or whose plan does, leaves; the others go on. `InputError` ends all.
    """
    films: list[list[Picture] | None] = [[] if filmed else None for _ in pairs]
    lost: dict[int, Failure] = {}
    begun = _answers(
        scenes, series, {slot: methodcaller("begin", index, pair) for slot, (index, pair) in enumerate(pairs)}, lost
    )
    players = {
        slot: _Player(make, Diary(pairs[slot][0], task, seed, start, films[slot])) for slot, start in begun.items()
    }
    for _ in range(task.step_budget if steps is None else steps):
        turns = _each({slot: player.turn for slot, player in players.items() if slot not in lost}, lost)
        if not turns:
            break
        started = time.perf_counter()
        decisions = _decided({slot: (one, players[slot]) for slot, one in turns.items()}, lost)
        milliseconds = 1e3 * (time.perf_counter() - started)
        orders: dict[int, Order] = {slot: methodcaller("act", one.action) for slot, one in decisions.items()}
        for slot, moved in _answers(scenes, series, orders, lost).items():
            _note(players[slot], decisions[slot], moved, milliseconds)
    _answers(scenes, series, {slot: methodcaller("stop") for slot in players if slot not in lost}, lost)
    finished = {slot: partial(player.diary.result, len(pairs)) for slot, player in players.items() if slot not in lost}
    results = _each(finished, lost)
    return [(lost[slot] if slot in lost else results[slot], films[slot]) for slot in range(len(pairs))]


def _each(what: Mapping[int, Callable[[], T]], lost: dict[int, Failure]) -> dict[int, T]:
    """What each comes to; those that fail are noted as lost."""
    found = {}
    for slot, one in what.items():
        try:
            found[slot] = one()
        except InputError:
            raise
        except Exception as error:
            lost[slot] = Failure(error)
    return found


def _note(player: _Player, decision: Decision, moved: Moved, milliseconds: float) -> None:
    assert player.controller is not None
    player.state = player.controller.applied(moved.applied, player.state)
    player.diary.note(milliseconds, moved, decision.figures())


def _answers(scenes: Scenes, series: int, orders: Mapping[int, Order], lost: dict[int, Failure]) -> dict[int, Any]:
    """What scenes answer; those that fail are noted as lost."""
    answers = scenes.each(series, orders)
    lost.update({slot: answer for slot, answer in answers.items() if isinstance(answer, Failure)})
    return {slot: answer for slot, answer in answers.items() if slot not in lost}


def _decided(turns: Mapping[int, tuple[Controller, _Player]], lost: dict[int, Failure]) -> dict[int, Decision]:
    """Everyone's decision. Where the search fails each is decided alone, from the same state, to find out whose fault
    it is; that one is lost."""
    before = {slot: controller.generator.get_state() for slot, (controller, _) in turns.items()}
    try:
        return _step(turns)
    except InputError:
        raise
    except Exception as error:
        if len(turns) == 1:
            lost.update(dict.fromkeys(turns, Failure(error)))
            return {}
    decisions: dict[int, Decision] = {}
    for slot, (controller, player) in turns.items():
        controller.generator.set_state(before[slot])
        decisions |= _decided({slot: (controller, player)}, lost)
    return decisions


def _step(turns: Mapping[int, tuple[Controller, _Player]]) -> dict[int, Decision]:
    """`Controller.step` of all at once; the players' states change only once everything has been decided."""
    controllers = [controller for controller, _ in turns.values()]
    players = [player for _, player in turns.values()]
    seen = see_together(controllers, [one.diary.observation for one in players], [one.state for one in players])
    decided = decide_together(controllers, [view for view, _ in seen], [state for _, state in seen])
    for player, (_, state) in zip(players, decided, strict=True):
        player.state = state
    return {slot: decision for slot, (decision, _) in zip(turns, decided, strict=True)}
