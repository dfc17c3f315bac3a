"""Imagine candidate action sequences with the predictor, without computing any frame twice.

Attention is block-causal, so the keys and values of past frames never change: caching them is exact. The
history's are computed once a problem and shared by all its candidates.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from vjepa_mpc.core.errors import InputError
from vjepa_mpc.predictor import ActionConditionedPredictor
from vjepa_mpc.predictor_blocks import KeyValues


@dataclass(frozen=True)
class Context:
    """What has been seen: the last k frames of b problems.

    `latents` [b, k, p, d] as the predictor takes them, `states` [b, k, s] in physical units, and the
    `actions` [b, k - 1, a] in physical units that led from each frame to the next.
    """

    latents: Float[Tensor, "b k p d"]
    states: Float[Tensor, "b k s"]
    actions: Float[Tensor, "b j a"]

    def __post_init__(self) -> None:
        shape, frames = self.latents.shape, self.latents.shape[1]
        if self.states.shape[:2] != shape[:2] or self.actions.shape[:2] != (shape[0], frames - 1):
            raise InputError(
                f"A context of {frames} frames takes {frames} states and {frames - 1} actions a problem, got latents "
                f"{tuple(shape)}, states {tuple(self.states.shape)}, actions {tuple(self.actions.shape)}."
            )

    def select(self, problems: Int[Tensor, "c"]) -> Context:
        """The contexts of the problems whose indices are given."""
        return Context(self.latents[problems], self.states[problems], self.actions[problems])


@dataclass(frozen=True)
class Rollout:
    """What is imagined: for b problems and n candidates the h frames after the context's last one.

    `latents` [b, n, h, p, d], renormalised; `states` [b, n, h, s] in physical units, integrated from the actions, or
    from what the predictor foretells of them to come to pass.
    """

    latents: Float[Tensor, "b n h p d"]
    states: Float[Tensor, "b n h s"]


@dataclass(frozen=True)
class _Dynamics:
    """The predictor with the maps around it; see `rollout`."""

    predictor: ActionConditionedPredictor
    integrate: Callable[[Tensor, Tensor], Tensor]
    state_features: Callable[[Tensor], Tensor]
    action_features: Callable[[Tensor, Tensor], Tensor]
    renormalise: Callable[[Tensor], Tensor]
    unit: Tensor | None

    def embed(self, latents: Tensor, actions: Tensor, states: Tensor, extrinsics: Tensor | None) -> Tensor:
        features = self.action_features(actions, states), self.state_features(states)
        return self.predictor.embed(latents, *features, extrinsics)

    def begin(
        self, latents: Tensor, actions: Tensor, states: Tensor, extrinsics: Tensor | None, start: int,
        caches: list[KeyValues],
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        """The first step of c actions from each of r frames: the next latents [r c, p, d], renormalised, and what
        came out of the blocks [r c, p, w]."""
        several = states[:, None].expand(-1, actions.shape[1], -1)
        features = self.action_features(actions, several), self.state_features(states)
        output = self.predictor.begin(latents, *features, extrinsics, start, caches)
        return self.renormalise(self.predictor.predict(output, latents[:, None]).flatten(0, 1)), output.flatten(0, 1)

    def advance(
        self, latents: Tensor, actions: Tensor, states: Tensor, extrinsics: Tensor | None, start: int,
        caches: list[KeyValues],
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        """A further step of m candidates: the next latents [m, p, d], renormalised, and what came out of the blocks."""
        seen = None if extrinsics is None else extrinsics[:, None]
        tokens = self.embed(latents[:, None], actions[:, None], states[:, None], seen)
        output = self.predictor.advance(tokens, start, caches)[:, 0]
        return self.renormalise(self.predictor.predict(output, latents)), output

    def move(self, states: Tensor, actions: Tensor, output: Tensor) -> Tensor:
        """Where m robots are after their actions."""
        if self.unit is not None:
            actions = actions + self.unit * self.predictor.shortfall(output)
        return self.integrate(states, actions)


def rollout(
    predictor: ActionConditionedPredictor,
    context: Context,
    actions: Float[Tensor, "b n h a"],
    *,
    integrate: Callable[[Tensor, Tensor], Tensor],
    state_features: Callable[[Tensor], Tensor],
    action_features: Callable[[Tensor, Tensor], Tensor],
    renormalise: Callable[[Tensor], Tensor],
    chunk: int,
    extrinsics: Float[Tensor, "b f e"] | None = None,
    unit: Float[Tensor, "a"] | None = None,
) -> Rollout:
    """Roll n candidate action sequences (physical units) of each problem forward from its context.

    `integrate(state [m, s], action [m, a])` gives the next state; `state_features(state)` and
    `action_features(action, state)` map physical [..., s] and [..., a] to what the predictor was trained on
    (V-JEPA 2-AC: themselves); `renormalise` is applied to each prediction [m, p, d] (parameter-free layer norm
    for V-JEPA 2-AC, identity for standardised latents). `extrinsics` cover the f = k - 1 + h frames fed in. `unit`:
    one control step's limits, for predictors that foretell `displacements`; what they say a robot comes farther or less
    far than told is added to the action before `integrate`. At
    most `chunk` candidates are rolled at once. Differentiable with respect to `actions` and the predictor's
    weights; the history is detached. Raises `InputError` when k - 1 + h exceeds the predictor's `max_frames`, and for
    tensors on different devices.
    """
    _check(predictor, context, actions, extrinsics, chunk)
    if predictor.config.displacements and unit is None:
        raise InputError("This predictor foretells displacements: a rollout needs the unit in which it tells them.")
    problems, candidates, horizon = actions.shape[:3]
    past = context.latents.shape[1] - 1
    told = unit if predictor.config.displacements else None
    dynamics = _Dynamics(predictor, integrate, state_features, action_features, renormalise, told)
    history = _history(dynamics, context, extrinsics)
    frames = past + horizon
    buffered = frames > 1 and not torch.is_grad_enabled()
    capacity = frames * predictor.config.tokens if buffered else None
    together = max(1, chunk // candidates)
    parts = []
    for first in range(0, problems, together):
        rows = slice(first, min(first + together, problems))
        beside = []
        for start in range(0, candidates, chunk):
            columns = slice(start, min(start + chunk, candidates))
            caches = [cache.repeated(rows, columns.stop - columns.start, capacity) for cache in history]
            beside.append(_imagine(dynamics, context, actions[rows, columns], rows, caches, extrinsics))
        parts.append(_joined(beside, 1))
    return _joined(parts, 0)


def _joined(parts: list[Rollout], dim: int) -> Rollout:
    """Rollouts side by side; a single one is not copied."""
    if len(parts) == 1:
        return parts[0]
    return Rollout(torch.cat([part.latents for part in parts], dim), torch.cat([part.states for part in parts], dim))


def _history(dynamics: _Dynamics, context: Context, extrinsics: Tensor | None) -> list[KeyValues]:
    """The keys and values, by block, of all context frames but the last (whose action is the candidate's)."""
    caches = [KeyValues() for _ in dynamics.predictor.predictor_blocks]
    past = context.latents.shape[1] - 1
    if past:
        with torch.no_grad():
            seen = None if extrinsics is None else extrinsics[:, :past]
            tokens = dynamics.embed(context.latents[:, :past], context.actions, context.states[:, :past], seen)
            dynamics.predictor.advance(tokens, 0, caches)
    return caches


def _imagine(
    dynamics: _Dynamics,
    context: Context,
    actions: Float[Tensor, "r c h a"],
    rows: slice,
    caches: list[KeyValues],
    extrinsics: Tensor | None,
) -> Rollout:
    """The futures of the problems in `rows`. The first step begins from one frame a problem, which is not copied."""
    copies, past = actions.shape[1], context.latents.shape[1] - 1
    latents, states = context.latents[rows, past].detach(), context.states[rows, past].detach()
    given = None if extrinsics is None else extrinsics[rows, past:]
    imagined, visited = [], []
    for step in range(actions.shape[2]):
        seen = None if given is None else given[:, step]
        if step == 0:
            latents, output = dynamics.begin(latents, actions[:, :, 0], states, seen, past, caches)
            states = states.repeat_interleave(copies, 0)
        else:
            seen = None if seen is None else seen.repeat_interleave(copies, 0)
            own = actions[:, :, step].flatten(0, 1)
            latents, output = dynamics.advance(latents, own, states, seen, past + step, caches)
        states = dynamics.move(states, actions[:, :, step].flatten(0, 1), output)
        imagined.append(latents.unflatten(0, (-1, copies)))
        visited.append(states.unflatten(0, (-1, copies)))
    if len(imagined) == 1:
        return Rollout(imagined[0][:, :, None], visited[0][:, :, None])
    return Rollout(torch.stack(imagined, dim=2), torch.stack(visited, dim=2))


def _check(
    predictor: ActionConditionedPredictor,
    context: Context,
    actions: Tensor,
    extrinsics: Tensor | None,
    chunk: int,
) -> None:
    problems, candidates, horizon = actions.shape[:3]
    seen, limit = context.latents.shape[1], predictor.config.max_frames
    if context.latents.shape[0] != problems:
        raise InputError(f"There are contexts of {context.latents.shape[0]} problems and actions of {problems}.")
    if min(problems, candidates, horizon, chunk) < 1:
        raise InputError(
            f"A rollout needs at least one problem, candidate, step and a chunk of 1, got chunk {chunk} "
            f"and actions {tuple(actions.shape)}."
        )
    if seen - 1 + horizon > limit:
        raise InputError(
            f"A history of {seen} frames and a horizon of {horizon} make {seen - 1 + horizon} frames, more "
            f"than the {limit} the predictor was built for; shorten one of them."
        )
    parts = {"the predictor": predictor.predictor_embed.weight, "latents": context.latents, "states": context.states}
    places = {name: part.device for name, part in {**parts, "actions": actions}.items()}
    if len(set(places.values())) > 1:
        told = ", ".join(f"{name} on {device}" for name, device in places.items())
        raise InputError(f"A rollout takes everything on one device: {told}; move them.")
    if extrinsics is not None and extrinsics.shape[:2] != (problems, seen - 1 + horizon):
        raise InputError(
            f"Extrinsics must cover {problems} problems and {seen - 1 + horizon} frames, got {tuple(extrinsics.shape)}."
        )
