"""Training the actor: what was done from a frame to come to a goal, learned from logs in hindsight.

A later frame of the same episode is what the actions between were a way to (Andrychowicz et al. 2017, arXiv:1707.01495;
as supervised learning: Ghosh et al. 2021, arXiv:1912.06088); once there, the way is to hold still. Logs are few beside
what a network can remember of them. So some episodes are not learned from: those weights are kept under which what was
done in them is likeliest, and others yet say at the end how well that went. Judged and kept are not the latest weights
but their moving average (Polyak and Juditsky 1992, "Acceleration of stochastic approximation by averaging"), which does
not jump about as they do.
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from vjepa_mpc.actor import LEAST_SCALE, Actor, ActorConfig, Mixture, ObjectView
from vjepa_mpc.core.errors import InputError
from vjepa_mpc.datasets.clips import split_episodes
from vjepa_mpc.datasets.store import ZarrStore
from vjepa_mpc.encoder import weights_hash
from vjepa_mpc.object_actor import ObjectActor, make_actor
from vjepa_mpc.pretrain.actor_data import (
    ActorSettings,
    Relabelled,
    RelabelledBatches,
    behaviours_of,
    store_examples,
    store_steps_left,
)
from vjepa_mpc.pretrain.caching import cache_latents
from vjepa_mpc.pretrain.hindsight import PAIRS, open_logs, run_on, with_steps, write_model
from vjepa_mpc.pretrain.object_poses import misreadings, poses_of, truth_of
from vjepa_mpc.pretrain.optimising import TrainSettings, follow
from vjepa_mpc.pretrain.run_folder import begin
from vjepa_mpc.pretrain.source import CacheProgress, Source
from vjepa_mpc.pretrain.trainer import Progress, TrainResult
from vjepa_mpc.world_model import SearchDefaults, WorldModel

AnyActor = Actor | ObjectActor

PROPOSE = 8  # plans of the actor among the first candidates
LOOK_EVERY = 100  # steps between looks at the episodes by which weights are chosen
LEAST_AHEAD, MOST_AHEAD = 4, 8


def own_ahead(model: WorldModel) -> int:
    """As many control steps as plans of `model` take, within reason."""
    search = model.config.search or SearchDefaults()
    steps = model.default_horizon * (search.leg_steps or model.config.stride)
    return max(LEAST_AHEAD, min(MOST_AHEAD, steps))


class BestWeights(nn.Module):
    """The weights under which the episodes not learned from were likeliest so far, that likelihood, the latest one (of
    an action's value, in nats), and after how many steps the best was found."""

    best: Tensor
    latest: Tensor
    steps: Tensor

    def __init__(self, actor: AnyActor) -> None:
        super().__init__()
        self.actor = copy.deepcopy(actor).requires_grad_(False)
        self.register_buffer("best", torch.tensor(-torch.inf))
        self.register_buffer("latest", torch.tensor(-torch.inf))
        self.register_buffer("steps", torch.tensor(0))

    @torch.no_grad()
    def look(self, actor: AnyActor, likelihood: Float[Tensor, ""], step: int) -> None:
        """Note the likelihood after `step` steps, and the weights where it is the best."""
        self.latest.copy_(likelihood)
        if likelihood > self.best:
            self.best.copy_(likelihood)
            self.steps.fill_(step)
            self.actor.load_state_dict(actor.state_dict())


class ActorLearner:
    """An actor, its averaged weights and the best of these so far, as a `Learner`; encoder and predictor are not
    touched. `chosen_by`: frames of episodes that are not learned from."""

    def __init__(
        self, model: WorldModel, actor: AnyActor, data: RelabelledBatches, chosen_by: Relabelled, device: torch.device
    ) -> None:
        self.model, self.actor, self.data, self.device = model, actor, data, device
        self.averaged = copy.deepcopy(actor).requires_grad_(False)
        self.chosen_by, self.kept = _on(chosen_by, device), BestWeights(actor).to(device)
        self.modules: nn.Module = nn.ModuleDict(
            {"actor": self.actor, "averaged": self.averaged, "kept": self.kept}
        )
        self.look(0)

    def batch(self, step: int) -> Relabelled:
        return self.data.batch(step)

    def loss(self, batch: Relabelled, step: int) -> tuple[Tensor, dict[str, Any]]:
        batch = _on(batch, self.device)
        said, misread = told(self.model, self.actor, batch)
        likelihood = likelihood_of(batch, said)
        figures = {"likelihood": likelihood.detach(), "held_out": self.kept.latest}
        if misread is None:
            return -likelihood, figures
        return misread - likelihood, {**figures, "misread": misread.detach()}

    def after_step(self, step: int) -> None:
        momentum = min(self.data.settings.ema, (1 + step) / (10 + step))  # begins with an average of few
        follow(self.averaged.parameters(), self.actor.parameters(), momentum)
        if (step + 1) % LOOK_EVERY == 0:
            self.look(step + 1)

    def look(self, step: int) -> None:
        """Judge the averaged weights after `step` steps by episodes that are not learned from."""
        with torch.no_grad():
            said = predict(self.model, self.averaged, self.chosen_by)
        self.kept.look(self.averaged, likelihood_of(self.chosen_by, said), step)

    def check(self, figures: Mapping[str, float]) -> None:
        """An actor that has learned nothing shows in the figures at the end; only NaN stops the run."""


def _on(batch: Relabelled, device: torch.device) -> Relabelled:
    moved = {name: part.to(device, non_blocking=True) for name, part in batch._asdict().items() if part is not None}
    return Relabelled(**moved)


def predict(model: WorldModel, actor: AnyActor, batch: Relabelled) -> Mixture:
    """What `actor` says of a batch's frames and goals."""
    now, goal = model.standardise(batch.now), model.standardise(batch.goal)
    mixture: Mixture = actor(now, model.states.state_features(batch.states), goal, batch.states)
    return mixture


def told(model: WorldModel, actor: AnyActor, batch: Relabelled) -> tuple[Mixture, Float[Tensor, ""] | None]:
    """What `actor` says of a batch, and how far off what it reads is (mean square, in units of the spreads); None where
    it reads no poses."""
    if not isinstance(actor, ObjectActor):
        return predict(model, actor, batch), None
    now, goal = model.standardise(batch.now), model.standardise(batch.goal)
    said, *read = actor.with_readings(now, goal, batch.states)
    return said, F.mse_loss(torch.stack(read, dim=1), actor.reader.asked(truth_of(batch)))


def likelihood_of(batch: Relabelled, mixture: Mixture) -> Float[Tensor, ""]:
    """The mean log-likelihood of an action's value, in nats."""
    return mixture.log_likelihood(batch.actions).mean() / batch.actions[0].numel()


def train_actor(
    model: WorldModel,
    source: Source,
    out: Path,
    settings: ActorSettings,
    training: TrainSettings,
    device: torch.device,
    *,
    propose: int | None = None,
    steps: int | None = None,
    drawn: bool | None = None,
    alone: bool | None = None,
    progress: Progress | None = None,
    caching: CacheProgress | None = None,
    stop_at: int | None = None,
) -> tuple[TrainResult, dict[str, float]]:
    """Train an actor on the latents that `model` makes of a store's frames; OUT/model is the model with it, planned
    with `propose` of its plans among the first candidates (None: as the model was, or `PROPOSE`), or, where it plays by
    itself, doing `steps` control steps before it looks again (None: as the model was, or one), and what it draws of its
    mixture where it is to be `drawn` (None: as the model was, or not). `alone`: the model is best played by it alone
    (None: as the model was).

    Also what it comes to on held-out episodes, see `held_out_figures`. `InputError` for logs of another robot or
    period, and fewer than three episodes.
    """
    store, camera = open_logs(model, source)
    model = model.to(device)
    search = model.config.search or SearchDefaults()
    offered = propose if propose is not None else PROPOSE if search.propose is None else search.propose
    search = replace(search, propose=offered)  # what cannot be is refused before anything takes time
    if steps is not None:
        search = replace(search, actor_steps=steps)
    if drawn is not None:
        search = replace(search, actor_drawn=drawn)
    if alone is not None:
        search = replace(search, planner="actor" if alone else None)
    if search.actor_steps and search.actor_steps > settings.ahead:
        raise InputError(f"The actor is to do {search.actor_steps} steps before it looks again: give as many --ahead.")
    trained, choosing, held_out = (with_steps(store, part) for part in _split(store))
    poses, view = poses_of(model, store, trained) if settings.object else (None, None)
    actor = _fresh(model, settings, training.seed, view).to(device)
    _check_examples(store, settings.behaviours, trained, choosing, held_out)
    recorded = {"actor": asdict(settings), "training": asdict(training), "camera": camera}
    example = store_examples(store, settings.behaviours)
    said = store_steps_left(store).tobytes() + (b"" if example.all() else example.tobytes())
    said += b"" if poses is None else poses.tobytes()
    goals = hashlib.sha256(said).hexdigest()[:16]  # metadata is in no store's hash
    begin(out, "actor", {**recorded, "goals": goals, "model": weights_hash(model), "data": store.content_hash()})
    latents = cache_latents(source, store, camera, model, weights_hash(model.encoder), training.bf16, None, caching)
    limits = model.step_limits.cpu().numpy()
    data, chosen_by, fresh = (
        RelabelledBatches.of(store, latents, limits, part, settings, training.batch, training.seed, poses)
        for part in (trained, choosing, held_out)
    )
    learner = ActorLearner(model, actor, data, chosen_by.held(PAIRS), device)
    result = run_on(learner, training, out, device, progress, stop_at)
    if not result.finished:
        return result, {}
    learner.look(result.step)
    model.get_actor(learner.kept.actor)
    figures = held_out_figures(model, _on(fresh.held(PAIRS), device), data.actions(PAIRS).to(device))
    figures["best_after_steps"] = int(learner.kept.steps)
    if isinstance(kept := model.actor, ObjectActor):
        kept.reads_within(figures["place_m_p90"], figures["angle_rad_p90"])
        model.get_actor(kept)
    model.searched(search)
    about = {**recorded, **figures, "data": store.content_hash(), "steps": result.step}
    write_model(model, "actor", about, out)
    return result, figures


def _fresh(model: WorldModel, settings: ActorSettings, seed: int, view: ObjectView | None) -> AnyActor:
    """An actor of `model`'s latents, states and actions with fresh weights."""
    latent = model.config.latent
    config = ActorConfig(
        latent.positions, latent.dim, model.states.state_dim, settings.channels, settings.width, settings.ahead,
        settings.components, actions=len(model.config.robot.action_names), object=view,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return make_actor(config)


def _split(store: ZarrStore) -> tuple[list[int], list[int], list[int]]:
    """Episodes that are learned from, those by which weights are chosen, and those held out for the end."""
    if len(store) < 3:
        raise InputError(
            f"{store.path}: an actor takes at least 3 episodes, to learn from, to choose by and to be judged by, got "
            f"{len(store)}; collect more."
        )
    rest, held_out = split_episodes(len(store))
    trained, choosing = ([rest[one] for one in part] for part in split_episodes(len(rest)))
    return trained, choosing, held_out


def _check_examples(store: ZarrStore, behaviours: Sequence[str], *parts: Sequence[int]) -> None:
    """`InputError` where a part of the episodes has no step to learn from."""
    example, lengths = store_examples(store, behaviours), store.lengths()
    starts = np.cumsum(lengths) - lengths
    for part in parts:
        if not any(example[starts[one] : starts[one] + lengths[one] - 1].any() for one in part):
            raise InputError(
                f"{store.path}: of the episodes learned from, of those to choose by or of those held out, none has a "
                f"step that is an example: {_why_none(store, behaviours)}"
            )


def _why_none(store: ZarrStore, behaviours: Sequence[str]) -> str:
    if not behaviours:
        return "an actor did them all; collect more, or longer ones, with demonstrations."
    there = sorted({kind for segments in behaviours_of(store) for _, kind in segments})
    told = f"they hold {', '.join(there)}" if there else "their metadata says nothing of behaviours"
    return f"none of them is of {', '.join(behaviours)}; {told}. Name another (--of), or leave it out."


@torch.no_grad()
def held_out_figures(model: WorldModel, batch: Relabelled, before: Float[Tensor, "n t a"]) -> dict[str, float]:
    """How well the actor foretells what was done in a held-out `batch`, and how well the mean action of `before`, of
    each control step by itself, with its standard deviation: `likelihood` of an action's value (mean logarithm, nats),
    and `error`, the mean absolute one of the likeliest component's mean, in units of the step limits."""
    assert model.actor is not None, "get_actor comes first"
    mixture = predict(model, model.actor, batch)
    mean, scale = before.mean(0), before.std(0).clamp(min=LEAST_SCALE)
    constant = Mixture(mean.new_zeros(1), mean[None], scale[None])
    figures = {
        "likelihood": likelihood_of(batch, mixture),
        "likelihood_of_mean": likelihood_of(batch, constant),
        "error": (mixture.in_order()[:, 0] - batch.actions).abs().mean(),
        "error_of_mean": (mean - batch.actions).abs().mean(),
    }
    found = {name: round(float(value), 4) for name, value in figures.items()}
    return found | (misreadings(model, batch) if isinstance(model.actor, ObjectActor) else {})
