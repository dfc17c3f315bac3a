"""What one algorithm or another does with what it has learned: promises that not every planner makes."""

from __future__ import annotations

import torch
from torch import Tensor

from vjepa_mpc.planners.base import Budget, Evaluation
from vjepa_mpc.planners.lbfgs import LBFGSProposal
from vjepa_mpc.planners.search import SearchPlanner
from vjepa_mpc.planners.testing.worlds import Bowl, PlannerFactory, Watch, box, generators, solve


def _free(cost: Tensor) -> Evaluation:
    return Evaluation(cost, cost.new_zeros(*cost.shape, 0))


def check_coasts(make: PlannerFactory) -> None:
    """Of planners with momentum: from a slope onto a plain they go on for a while. Who follows the newest slope alone
    stops within a step of it."""
    watch = Watch(lambda actions, problems: _free((-0.5 - actions).clamp(min=0).flatten(2).sum(dim=-1)))
    solve(make(box(2)), watch, torch.full((1, 1, 2), -0.9))
    # The start's own descent is the first of each population.
    farthest = max(float(asked[0, 0].min()) for asked in watch.asked[1:-1])
    assert farthest > 0.2, f"the slope ends at -0.5, and so did the descent, at {farthest:.3g}"


def check_gives_up_a_direction(make: PlannerFactory) -> None:
    """Of planners that shorten trials: where none brings anything, since slopes lie, they begin again with a long one.
    Who halves for ever wastes its trials on steps too short to tell."""
    start = torch.full((1, 2, 2), 0.1)

    def lying(actions: Tensor, problems: Tensor) -> Evaluation:
        told = (actions - actions.detach()).flatten(2).sum(dim=-1)
        return _free((actions.detach() - start[:, None]).abs().flatten(2).sum(dim=-1) + told)

    watch = Watch(lying)
    solve(make(box(2)), watch, start)
    far = torch.stack([(asked[0, 0] - start[0]).abs().max() for asked in watch.asked[2:-1]])
    long = int((far > 0.5 * far.max()).sum())
    assert long > 1, f"of {len(far)} trials, none of which brought anything, {long} was long"
    assert float(far.min()) > 1e-5, f"a trial was halved down to {float(far.min()):.3g}"


def check_cuts_its_memory(make: PlannerFactory) -> None:
    """Of L-BFGS: it remembers as many trials as it is told to, however many it makes."""
    planner = make(box(2))
    assert isinstance(planner, SearchPlanner) and isinstance(planner.proposal, LBFGSProposal)
    proposal, settings = planner.proposal, planner.proposal.settings
    start, weight = torch.full((1, 4, 2), 0.6).double(), torch.logspace(0, 3, 8).double().reshape(4, 2)
    state, rng = proposal.init(start, planner.bounds, settings.memory + 20), generators(1)
    for _ in range(settings.memory + 20):
        samples = proposal.sample(state, settings.starts, rng)
        found = Bowl(torch.zeros(1, 4, 2).double(), weight)(samples, torch.arange(1))
        slope = 2 * weight * samples
        state = proposal.update(state, samples, Evaluation(found.cost, found.violation, slope=slope))
    kept = len(state.pairs[0])
    assert 0 < kept <= settings.memory, f"{kept} trials are remembered, of {settings.memory} to be kept"


def check_learns_from_suggestions(make: PlannerFactory) -> None:
    """Of planners that learn a distribution: what was suggested teaches where the next population lies."""
    goal = torch.tensor([[[0.6, 0.5], [-0.5, -0.6]]])  # as far as can be from the same numbers in reverse
    near = 0.05 * torch.randn(1, 500, 2, 2, generator=torch.Generator().manual_seed(1))
    watch = Watch(Bowl(goal))
    make(box(2)).plan(
        watch, torch.zeros(1, 2, 2), budget=Budget(), generators=generators(1), suggestions=goal[:, None] + near
    )
    populations = [asked for asked in watch.asked if asked.shape[1] > 1]
    learned = float((populations[1].mean(dim=1) * goal).sum() / goal.square().sum())
    assert learned > 0.2, f"suggestions moved the next population by {learned:.3g} of the way to them"
