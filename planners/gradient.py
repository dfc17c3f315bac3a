"""Gradient descent through the cost function, from several starts at once.

Adam (Kingma and Ba 2015, arXiv:1412.6980) on actions, projected onto the bounds after each step; planning
by gradient through a latent world model as in the gradient-descent planner of DINO-WM (Zhou et al. 2024,
arXiv:2411.04983).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from vjepa_mpc.core.errors import InputError, NotFiniteError
from vjepa_mpc.planners.base import ActionPlan, Bounds, Budget, CostFunction, Evaluation, IterationStatistics
from vjepa_mpc.planners.evaluation import BadCandidates, Best, Ledger, check_task
from vjepa_mpc.planners.noise import draw
from vjepa_mpc.planners.sampling import population_statistics

_NO_GRADIENT = "The cost function gives no gradient by the actions; make it differentiable or use CEM."


@dataclass(frozen=True)
class GradientSettings:
    """What the gradient planner may be told. Lengths are fractions of half of each action's range.

    `starts`: the given plan and `starts` - 1 perturbed ones (std `perturbation`). `steps` of Adam with
    `learning_rate`, falling to 0 along a half cosine. `gradient_clip`: largest norm of one start's
    gradient over horizon and actions. `action_noise`: std of noise added after each step. `penalty`:
    weight of the summed constraint violations in the objective descended (ranking stays feasibility
    first).
    """

    starts: int = 4
    steps: int = 20
    learning_rate: float = 0.2
    perturbation: float = 0.5
    gradient_clip: float = 1.0
    action_noise: float = 0.0
    penalty: float = 10.0

    def __post_init__(self) -> None:
        if self.starts < 1 or self.steps < 1:
            raise InputError(f"Gradient planning needs starts and steps >= 1; got {self.starts} and {self.steps}.")
        for name in ("learning_rate", "gradient_clip"):
            if not 0 < getattr(self, name) < math.inf:
                raise InputError(f"The gradient planner's {name} is {getattr(self, name)}; it must be positive.")
        for name in ("perturbation", "action_noise", "penalty"):
            if not 0 <= getattr(self, name) < math.inf:
                raise InputError(f"The gradient planner's {name} is {getattr(self, name)}; it must be >= 0.")


@dataclass(frozen=True)
class _Box:
    """The bounds as a map from [-1, 1] to actions, so that one learning rate suits every unit."""

    bounds: Bounds
    centre: Float[Tensor, "a"]
    half: Float[Tensor, "a"]

    @staticmethod
    def of(bounds: Bounds) -> _Box:
        return _Box(bounds, bounds.high / 2 + bounds.low / 2, bounds.high / 2 - bounds.low / 2)

    def actions(self, position: Float[Tensor, "*batch a"]) -> Float[Tensor, "*batch a"]:
        return self.bounds.clip(self.centre + self.half * position)

    def position(self, actions: Float[Tensor, "*batch a"]) -> Float[Tensor, "*batch a"]:
        wide = torch.where(self.half > 0, self.half, 1.0)
        return ((actions - self.centre) / wide).clamp(-1, 1)


class GradientPlanner:
    """Projected Adam from several starts inside `bounds` (action units).

    Each problem spends 1 + steps * starts + (starts + 1) evaluations, or exactly
    `budget.max_evaluations` if that is less: the start; every start's gradient at every step (one
    evaluation each); and, under no_grad, where the starts ended and the best seen on the way. With little
    budget fewer starts are used, and the last step may serve only some of them.
    """

    def __init__(self, bounds: Bounds, settings: GradientSettings | None = None) -> None:
        self.bounds = bounds
        self.settings = settings or GradientSettings()
        # torch imports its compiler, for seconds, when the first optimiser is made: here, not in a control step.
        torch.optim.Adam([torch.zeros(1)])

    def plan(
        self,
        cost_fn: CostFunction,
        init: Float[Tensor, "b h a"],
        *,
        budget: Budget,
        generators: Sequence[torch.Generator],
    ) -> ActionPlan:
        """The best plan seen, never worse than `init` clipped to the bounds.

        Raises `InputError` for a task that cannot be started or a cost without gradient, and
        `NotFiniteError`, with the candidates that led there, for NaN in a cost or a gradient.
        """
        if torch.is_inference_mode_enabled():
            raise InputError("Gradients cannot be taken under torch.inference_mode(); use torch.no_grad() instead.")
        bounds = check_task(init, self.bounds, budget, generators)
        with torch.no_grad():
            return self._descend(cost_fn, bounds.clip(init), _Box.of(bounds), budget, generators)

    def _descend(
        self,
        cost_fn: CostFunction,
        start: Float[Tensor, "b h a"],
        box: _Box,
        budget: Budget,
        generators: Sequence[torch.Generator],
    ) -> ActionPlan:
        ledger = Ledger(cost_fn, budget, start.shape[0], start.device)
        first = ledger.evaluate(start[:, None])
        decided = Best(start, first.cost[:, 0], first.violation[:, 0])
        starts, steps_evaluations, decision = self._shares(ledger)
        positions = self._starts(box.position(start), starts, generators)
        optimizer = torch.optim.Adam(positions, lr=self.settings.learning_rate)
        steps = math.ceil(steps_evaluations / starts)

        seen, last_s, stopped = decided, ledger.seconds, "iterations"
        records: list[IterationStatistics] = []
        for step in range(steps):
            # The decision has still to follow, and takes about as long as a step.
            if ledger.late(2 * last_s):
                stopped = "deadline"
                break
            began_s = ledger.seconds
            served = min(starts, steps_evaluations - step * starts)
            actions = box.actions(torch.stack(positions))[:, :served]
            evaluation, gradient = self._gradient(ledger, actions)
            seen = seen.improved_by(actions, evaluation)
            for group in optimizer.param_groups:
                group["lr"] = self.settings.learning_rate * (1 + math.cos(math.pi * step / steps)) / 2
            self._step(optimizer, positions, self._clipped(gradient * box.half), generators)
            records.append(population_statistics(seen, actions, evaluation, ledger))
            last_s = ledger.seconds - began_s
        if stopped == "iterations" and steps_evaluations < self.settings.steps * self.settings.starts:
            stopped = "max_evaluations"

        if decision and (records or stopped != "deadline"):
            last = box.actions(torch.stack(positions))
            candidates = torch.cat((seen.actions[:, None], last), dim=1)[:, -decision:]
            decided = decided.improved_by(candidates, ledger.evaluate(candidates))
        return ActionPlan(
            decided.actions,
            decided.cost,
            decided.violation,
            first.names,
            ledger.evaluations,
            ledger.seconds,
            stopped,
            tuple(records),
        )

    def _shares(self, ledger: Ledger) -> tuple[int, int, int]:
        """Starts, evaluations spent on gradients and evaluations kept for the decision, within the budget."""
        settings = self.settings
        wanted = settings.starts * settings.steps + settings.starts + 1
        left = ledger.affordable(wanted)
        # At least one step, then the decision on where each start ended and on the best seen.
        starts = min(settings.starts, max(1, left // 2))
        decision = min(starts + 1, left - 1 if left > 1 else left)
        return starts, min(left - decision, starts * settings.steps), decision

    def _starts(
        self, position: Float[Tensor, "b h a"], starts: int, generators: Sequence[torch.Generator]
    ) -> list[Tensor]:
        """Each problem's positions [starts, h, a] in [-1, 1]: the given one, then perturbed ones. One tensor
        a problem, so that the optimiser's arithmetic is the same, to the bit, alone and in a batch."""
        positions = position[:, None].repeat(1, starts, 1, 1)
        if starts > 1:
            positions[:, 1:] += self.settings.perturbation * draw(starts - 1, position, generators)
        return [part.clone() for part in positions.clamp(-1, 1)]

    def _gradient(
        self, ledger: Ledger, actions: Float[Tensor, "b n h a"]
    ) -> tuple[Evaluation, Float[Tensor, "b n h a"]]:
        """Evaluate candidates and differentiate cost + penalty * violation of each by its own actions."""
        with torch.enable_grad():
            leaf = actions.detach().clone().requires_grad_()
            evaluation = ledger.evaluate(leaf)
            total = evaluation.violation.sum(dim=-1)
            rejected = ~(torch.isfinite(evaluation.cost) & torch.isfinite(total))
            objective = torch.where(rejected, 0.0, evaluation.cost + self.settings.penalty * total)
            if not objective.requires_grad:
                raise InputError(_NO_GRADIENT)
            # Not backward(): that would pile gradients up in the world model's parameters.
            (gradient,) = torch.autograd.grad(objective.sum(), leaf, allow_unused=True)
        if gradient is None:
            raise InputError(_NO_GRADIENT)
        # A rejected candidate has no slope to follow; what comes out of inf - inf there means nothing.
        gradient = torch.where(rejected[:, :, None, None], 0.0, gradient)
        evaluation = Evaluation(evaluation.cost.detach(), evaluation.violation.detach(), evaluation.names)
        bad = ~torch.isfinite(gradient).flatten(2).all(dim=-1)
        if bool(bad.any()):
            problem = int(bad.any(dim=1).nonzero()[0])
            found = bad[problem]
            evidence = BadCandidates(
                problem,
                actions[problem, found].clone(),
                evaluation.cost[problem, found],
                evaluation.violation[problem, found],
                gradient[problem, found],
            )
            raise NotFiniteError(
                f"The cost's gradient is not finite for {int(found.sum())} candidates of problem {problem} "
                "(the error's evidence holds them); look for a square root or division at zero, or use CEM.",
                evidence,
            )
        return evaluation, gradient

    def _clipped(self, gradient: Float[Tensor, "b n h a"]) -> Float[Tensor, "b n h a"]:
        """Shorten each start's gradient to the norm allowed. The norm is taken problem by problem: sums over
        different shapes may differ in the last bit."""
        norms = torch.stack([part.flatten(1).square().sum(dim=1).sqrt() for part in gradient])
        scale = self.settings.gradient_clip / norms.clamp(min=self.settings.gradient_clip)
        return gradient * scale[:, :, None, None]

    def _step(
        self,
        optimizer: torch.optim.Optimizer,
        positions: list[Tensor],
        gradient: Float[Tensor, "b n h a"],
        generators: Sequence[torch.Generator],
    ) -> None:
        """One step of Adam, noise if asked for, and back into the box."""
        for position, slope in zip(positions, gradient, strict=True):
            # Starts the budget no longer serves get no slope and coast to rest.
            position.grad = torch.zeros_like(position)
            position.grad[: slope.shape[0]] = slope
        optimizer.step()
        if self.settings.action_noise:
            noise = draw(positions[0].shape[0], torch.stack(positions)[:, 0], generators)
            for position, drawn in zip(positions, noise, strict=True):
                position += self.settings.action_noise * drawn
        for position in positions:
            position.clamp_(-1, 1)
