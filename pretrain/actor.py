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
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Float32, Int64
from torch import Tensor, nn

from vjepa_mpc.actor import LEAST_SCALE, Actor, ActorConfig, Mixture
from vjepa_mpc.core.errors import InputError
from vjepa_mpc.datasets.cache import LatentCache
from vjepa_mpc.datasets.clips import split_episodes
from vjepa_mpc.datasets.store import ZarrStore
from vjepa_mpc.encoder import weights_hash
from vjepa_mpc.exploration import NO_EXAMPLE, WITH_A_GOAL
from vjepa_mpc.pretrain.caching import cache_latents
from vjepa_mpc.pretrain.hindsight import PAIRS, HindsightFrames, open_logs, run_on, with_steps, write_model
from vjepa_mpc.pretrain.optimising import TrainSettings, follow
from vjepa_mpc.pretrain.run_folder import begin
from vjepa_mpc.pretrain.source import CacheProgress, Source
from vjepa_mpc.pretrain.trainer import Progress, TrainResult
from vjepa_mpc.world_model import SearchDefaults, WorldModel

PROPOSE = 8  # plans of the actor among the first candidates
LOOK_EVERY = 100  # steps between looks at the episodes by which weights are chosen
LEAST_AHEAD, MOST_AHEAD = 4, 8


@dataclass(frozen=True)
class ActorSettings:
    """`ahead`: control steps that the actor says. `span`: control steps that a goal is away at most. `ends`: the share
    of goals that are where what was done in one go ended (or `span` away). `ema`: of the averaged weights, each step.
    `components`, `channels`, `width`: see `ActorConfig`."""

    ahead: int = 8
    span: int = 16
    ends: float = 0.0
    ema: float = 0.999
    components: int = 4
    channels: int = 32
    width: int = 384

    def __post_init__(self) -> None:
        if self.span < 1:
            raise InputError(f"A goal must be allowed to be 1 control step away or more, not {self.span} (span).")
        if not 0 <= self.ends <= 1:
            raise InputError(f"The share of goals that are ends must lie in [0, 1], not {self.ends:g} (ends).")
        if not 0 <= self.ema < 1:
            raise InputError(f"The averaged weights' momentum (ema) must be at least 0 and below 1, not {self.ema:g}.")


def own_ahead(model: WorldModel) -> int:
    """As many control steps as plans of `model` take, within reason."""
    search = model.config.search or SearchDefaults()
    steps = model.default_horizon * (search.leg_steps or model.config.stride)
    return max(LEAST_AHEAD, min(MOST_AHEAD, steps))


class Relabelled(NamedTuple):
    """Frames, goals, the robot's states at the frames, and the actions from there on in units of the step limits: those
    on the way to the goal, then none."""

    now: Float[Tensor, "b p d"]
    goal: Float[Tensor, "b p d"]
    states: Float[Tensor, "b s"]
    actions: Float[Tensor, "b t a"]


class RelabelledBatches(HindsightFrames):
    """Batch number i of a run is a function of (seed, i) alone. Goals: the frame itself or a later one, up to `span`
    control steps away, of what was done in one go: each distance as often as any that is left of it, but for the share
    `ends` of them, which are its end."""

    def __init__(
        self, take: Callable[[np.ndarray], np.ndarray], states: Float32[np.ndarray, "rows s"],
        actions: Float32[np.ndarray, "rows a"], lengths: Int64[np.ndarray, "n"], episodes: Sequence[int],
        settings: ActorSettings, batch: int, seed: int, left: Int64[np.ndarray, "rows"] | None = None,
        example: Bool[np.ndarray, "rows"] | None = None,
    ) -> None:  # fmt: skip
        """`actions` of all rows, in units of the step limits; `left`: control steps from each row to the end of what
        was done in one go (None: of the episode); `example`: whether what is done there is to be learned (None: all
        is); the rest see `HindsightFrames`."""
        super().__init__(take, states, lengths, episodes, example)
        self._actions, self.settings, self.size, self.seed = actions, settings, batch, seed
        self._left = steps_left(lengths, [()] * len(lengths)) if left is None else left

    @staticmethod
    def of(
        store: ZarrStore, latents: LatentCache, limits: Float32[np.ndarray, "a"], episodes: Sequence[int],
        settings: ActorSettings, batch: int, seed: int,
    ) -> RelabelledBatches:  # fmt: skip
        """Those of a store's `episodes`, for a robot with these step limits."""
        states, actions = store.states_and_actions()
        unit = np.where(limits > 0, limits, 1).astype(np.float32)
        lengths = np.asarray(store.lengths())
        left, example = store_steps_left(store), store_examples(store)
        return RelabelledBatches(
            latents.take, states, actions / unit, lengths, episodes, settings, batch, seed, left, example
        )

    def batch(self, step: int) -> Relabelled:
        """Batch `step`."""
        return self._taken(*self._drawn(np.random.default_rng((self.seed, step)), self.size))

    def held(self, count: int) -> Relabelled:
        """`count` of them, always the same."""
        return self._taken(*self._drawn(np.random.default_rng((self.seed, 1)), count))

    def actions(self, count: int) -> Float[Tensor, "n t a"]:
        """The actions of `held` alone."""
        return self._done(*self._drawn(np.random.default_rng((self.seed, 1)), count))

    def _drawn(self, rng: np.random.Generator, count: int) -> tuple[np.ndarray, np.ndarray]:
        """Rows of frames, and the control steps to their goals."""
        episodes, _, now = self.moments(rng, count)
        rows = self._starts[episodes] + now
        most = np.minimum(self.settings.span, self._left[rows])
        away = (rng.random(count) * (most + 1)).astype(np.int64)
        return rows, np.where(rng.random(count) < self.settings.ends, most, away)

    def _done(self, rows: np.ndarray, left: np.ndarray) -> Float[Tensor, "n t a"]:
        steps = np.minimum(np.arange(self.settings.ahead), np.maximum(left - 1, 0)[:, None])  # no further than that
        taken = self._actions[rows[:, None] + steps]
        taken = np.where((np.arange(self.settings.ahead) < left[:, None])[..., None], taken, 0)
        return torch.from_numpy(taken.astype(np.float32))

    def _taken(self, rows: np.ndarray, left: np.ndarray) -> Relabelled:
        return Relabelled(self.latents(rows), self.latents(rows + left), self.states(rows), self._done(rows, left))


def steps_left(lengths: Int64[np.ndarray, "n"], begins: Sequence[Sequence[int]]) -> Int64[np.ndarray, "rows"]:
    """Control steps from each frame of episodes of these `lengths` until something else is done, which `begins` at
    these frames of each; until the end where nothing is said of it."""
    left = []
    for length, firsts in zip(lengths.tolist(), begins, strict=True):
        ends = np.array(sorted({*(first for first in firsts if 0 < first < length), length - 1}))
        frames = np.arange(length)
        following = np.minimum(np.searchsorted(ends, frames, side="right"), len(ends) - 1)
        left.append(np.maximum(ends[following] - frames, 0))
    return np.concatenate(left)


def store_steps_left(store: ZarrStore) -> Int64[np.ndarray, "rows"]:
    """`steps_left` of a store's episodes: what goes somewhere, as their metadata's `behaviours` say, is one thing to
    do, what lies between another. Metadata of any other form says nothing."""
    begins = []
    for segments in _behaviours(store):
        pairs = itertools.pairwise(segments)
        begins.append([here[0] for before, here in pairs if {before[1], here[1]} & set(WITH_A_GOAL)])
    return steps_left(store.lengths(), begins)


def store_examples(store: ZarrStore) -> Bool[np.ndarray, "rows"]:
    """Of every row of a store whether what is done there is to be learned: in `NO_EXAMPLE` it is not."""
    rows = []
    for length, segments in zip(store.lengths().tolist(), _behaviours(store), strict=True):
        example = np.ones(length, dtype=bool)
        ends = [*(first for first, _ in segments[1:]), length]
        for (first, kind), end in zip(segments, ends, strict=True) if segments else ():
            example[first:end] = kind not in NO_EXAMPLE
        rows.append(example)
    return np.concatenate(rows)


def _behaviours(store: ZarrStore) -> Iterator[list[tuple[int, str]]]:
    """Of each episode what was done from which frame on, in order; nothing where its metadata does not say so."""
    lengths = store.lengths()
    for episode in range(len(store)):
        segments = store.metadata(episode).get("behaviours")
        if not isinstance(segments, list) or not all(
            isinstance(piece, list) and len(piece) == 2 and type(piece[0]) is int and isinstance(piece[1], str)
            for piece in segments
        ):
            segments = []
        begins = [-1, *(first for first, _ in segments), int(lengths[episode])]
        if not all(one < other for one, other in itertools.pairwise(begins)):
            segments = []
        yield [(first, kind) for first, kind in segments]


class BestWeights(nn.Module):
    """The weights under which the episodes not learned from were likeliest so far, that likelihood, the latest one (of
    an action's value, in nats), and after how many steps the best was found."""

    best: Tensor
    latest: Tensor
    steps: Tensor

    def __init__(self, actor: Actor) -> None:
        super().__init__()
        self.actor = copy.deepcopy(actor).requires_grad_(False)
        self.register_buffer("best", torch.tensor(-torch.inf))
        self.register_buffer("latest", torch.tensor(-torch.inf))
        self.register_buffer("steps", torch.tensor(0))

    @torch.no_grad()
    def look(self, actor: Actor, likelihood: Float[Tensor, ""], step: int) -> None:
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
        self, model: WorldModel, actor: Actor, data: RelabelledBatches, chosen_by: Relabelled, device: torch.device
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
        likelihood = likelihood_of(batch, predict(self.model, self.actor, batch))
        return -likelihood, {"likelihood": likelihood.detach(), "held_out": self.kept.latest}

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
    return Relabelled(*(part.to(device, non_blocking=True) for part in batch))


def predict(model: WorldModel, actor: Actor, batch: Relabelled) -> Mixture:
    """What `actor` says of a batch's frames and goals."""
    mixture: Mixture = actor(
        model.standardise(batch.now), model.states.state_features(batch.states), model.standardise(batch.goal)
    )
    return mixture


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
    progress: Progress | None = None,
    caching: CacheProgress | None = None,
    stop_at: int | None = None,
) -> tuple[TrainResult, dict[str, float]]:
    """Train an actor on the latents that `model` makes of a store's frames; OUT/model is the model with it, planned
    with `propose` of its plans among the first candidates (None: as the model was, or `PROPOSE`), or doing `steps`
    control steps before it looks again where it plays by itself (None: as the model was, or one).

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
    if search.actor_steps and search.actor_steps > settings.ahead:
        raise InputError(f"The actor is to do {search.actor_steps} steps before it looks again: give as many --ahead.")
    actor = _fresh(model, settings, training.seed).to(device)
    trained, choosing, held_out = (with_steps(store, part) for part in _split(store))
    _check_examples(store, trained, choosing, held_out)
    recorded = {"actor": asdict(settings), "training": asdict(training), "camera": camera}
    example = store_examples(store)
    said = store_steps_left(store).tobytes() + (b"" if example.all() else example.tobytes())
    goals = hashlib.sha256(said).hexdigest()[:16]  # metadata is in no store's hash
    begin(out, "actor", {**recorded, "goals": goals, "model": weights_hash(model), "data": store.content_hash()})
    latents = cache_latents(source, store, camera, model, weights_hash(model.encoder), training.bf16, None, caching)
    limits = model.step_limits.cpu().numpy()
    data, chosen_by, fresh = (
        RelabelledBatches.of(store, latents, limits, part, settings, training.batch, training.seed)
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
    model.searched(search)
    about = {**recorded, **figures, "data": store.content_hash(), "steps": result.step}
    write_model(model, "actor", about, out)
    return result, figures


def _fresh(model: WorldModel, settings: ActorSettings, seed: int) -> Actor:
    """An actor of `model`'s latents, states and actions with fresh weights."""
    latent = model.config.latent
    config = ActorConfig(
        latent.positions, latent.dim, model.states.state_dim, settings.channels, settings.width, settings.ahead,
        settings.components, actions=len(model.config.robot.action_names),
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Actor(config)


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


def _check_examples(store: ZarrStore, *parts: Sequence[int]) -> None:
    """`InputError` where a part of the episodes has no step to learn from."""
    example, lengths = store_examples(store), store.lengths()
    starts = np.cumsum(lengths) - lengths
    for part in parts:
        if not any(example[starts[one] : starts[one] + lengths[one] - 1].any() for one in part):
            raise InputError(
                f"{store.path}: of the episodes learned from, of those to choose by or of those held out, none has a "
                "step that is an example: an actor did them all; collect more, or longer ones, with demonstrations."
            )


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
    return {name: round(float(value), 4) for name, value in figures.items()}
