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
import torch.nn.functional as F
from jaxtyping import Bool, Float, Float32, Int64
from torch import Tensor, nn

from vjepa_mpc.actor import LEAST_SCALE, Actor, ActorConfig, Mixture, ObjectView
from vjepa_mpc.core.errors import InputError
from vjepa_mpc.datasets.cache import LatentCache
from vjepa_mpc.datasets.clips import split_episodes
from vjepa_mpc.datasets.store import ZarrStore
from vjepa_mpc.encoder import weights_hash
from vjepa_mpc.exploration import NO_EXAMPLE, WITH_A_GOAL
from vjepa_mpc.object_actor import ObjectActor, Reading, make_actor, view_of
from vjepa_mpc.pretrain.caching import cache_latents
from vjepa_mpc.pretrain.hindsight import (
    PAIRS,
    HindsightFrames,
    open_logs,
    run_on,
    with_steps,
    world_states,
    write_model,
)
from vjepa_mpc.pretrain.optimising import TrainSettings, follow
from vjepa_mpc.pretrain.run_folder import begin
from vjepa_mpc.pretrain.source import CacheProgress, Source
from vjepa_mpc.pretrain.trainer import Progress, TrainResult
from vjepa_mpc.robots.factory import find_task, task_names
from vjepa_mpc.world_model import SearchDefaults, WorldModel

AnyActor = Actor | ObjectActor

PROPOSE = 8  # plans of the actor among the first candidates
LOOK_EVERY = 100  # steps between looks at the episodes by which weights are chosen
LEAST_AHEAD, MOST_AHEAD = 4, 8


@dataclass(frozen=True)
class ActorSettings:
    """`ahead`: control steps that the actor says. `span`: control steps that a goal is away at most. `ends`: the share
    of goals that are where what was done in one go ended (or `span` away). `ema`: of the averaged weights, each step.
    `components`, `channels`, `width`: see `ActorConfig`. `object`: it reads the pose of what the robot's task pushes,
    which the logs must say, and acts as seen from there (`ObjectActor`). `behaviours`: it learns of these alone (none
    named: of any but an actor's), as the logs' metadata says them."""

    ahead: int = 8
    span: int = 16
    ends: float = 0.0
    ema: float = 0.999
    components: int = 4
    channels: int = 32
    width: int = 384
    object: bool = False
    behaviours: tuple[str, ...] = ()

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
    on the way to the goal, then none. `poses`: x, y [m] and angle [rad] of what is pushed and the robot's state, in
    frame and goal, where they are learned."""

    now: Float[Tensor, "b p d"]
    goal: Float[Tensor, "b p d"]
    states: Float[Tensor, "b s"]
    actions: Float[Tensor, "b t a"]
    poses: Float[Tensor, "b 2 v"] | None = None


class RelabelledBatches(HindsightFrames):
    """Batch number i of a run is a function of (seed, i) alone. Goals: the frame itself or a later one, up to `span`
    control steps away, of what was done in one go: each distance as often as any that is left of it, but for the share
    `ends` of them, which are its end."""

    def __init__(
        self, take: Callable[[np.ndarray], np.ndarray], states: Float32[np.ndarray, "rows s"],
        actions: Float32[np.ndarray, "rows a"], lengths: Int64[np.ndarray, "n"], episodes: Sequence[int],
        settings: ActorSettings, batch: int, seed: int, left: Int64[np.ndarray, "rows"] | None = None,
        example: Bool[np.ndarray, "rows"] | None = None, poses: Float32[np.ndarray, "rows 3"] | None = None,
    ) -> None:  # fmt: skip
        """`actions` of all rows, in units of the step limits; `left`: control steps from each row to the end of what
        was done in one go (None: of the episode); `example`: whether what is done there is to be learned (None: all
        is); `poses` of what is pushed (None: they are not learned); the rest see `HindsightFrames`."""
        super().__init__(take, states, lengths, episodes, example)
        self._poses = poses
        self._actions, self.settings, self.size, self.seed = actions, settings, batch, seed
        self._left = steps_left(lengths, [()] * len(lengths)) if left is None else left

    @staticmethod
    def of(
        store: ZarrStore, latents: LatentCache, limits: Float32[np.ndarray, "a"], episodes: Sequence[int],
        settings: ActorSettings, batch: int, seed: int, poses: Float32[np.ndarray, "rows 3"] | None = None,
    ) -> RelabelledBatches:  # fmt: skip
        """Those of a store's `episodes`, for a robot with these step limits."""
        states, actions = store.states_and_actions()
        unit = np.where(limits > 0, limits, 1).astype(np.float32)
        lengths = np.asarray(store.lengths())
        left, example = store_steps_left(store), store_examples(store, settings.behaviours)
        return RelabelledBatches(
            latents.take, states, actions / unit, lengths, episodes, settings, batch, seed, left, example, poses
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
        ends = np.stack([rows, rows + left], axis=1)
        poses = None
        if self._poses is not None:
            poses = torch.cat([torch.from_numpy(self._poses[ends]), self.states(ends)], dim=-1)
        now, goal = self.latents(rows), self.latents(rows + left)
        return Relabelled(now, goal, self.states(rows), self._done(rows, left), poses)


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


def store_examples(store: ZarrStore, behaviours: Sequence[str] = ()) -> Bool[np.ndarray, "rows"]:
    """Of every row of a store whether what is done there is to be learned: where it is of these `behaviours` (none
    named: of any but `NO_EXAMPLE`, and what no metadata says the behaviour of)."""
    rows = []
    for length, segments in zip(store.lengths().tolist(), _behaviours(store), strict=True):
        example = np.full(length, not behaviours)
        ends = [*(first for first, _ in segments[1:]), length]
        for (first, kind), end in zip(segments, ends, strict=True) if segments else ():
            example[first:end] = kind in behaviours if behaviours else kind not in NO_EXAMPLE
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
    return said, F.mse_loss(torch.stack(read, dim=1), actor.reader.asked(_truth(batch)))


def _truth(batch: Relabelled) -> Reading:
    assert batch.poses is not None, "these batches were made without poses"
    return Reading(batch.poses[..., :3], batch.poses[..., 3:])


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
    poses, view = _poses(model, store, trained) if settings.object else (None, None)
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


def _poses(
    model: WorldModel, store: ZarrStore, trained: Sequence[int]
) -> tuple[Float32[np.ndarray, "rows 3"], ObjectView]:
    """The pose of what is pushed in every row, and how it is read, by the episodes that are learned from. `InputError`
    where the robot's task pushes nothing about a plane, or the logs do not say where it lies."""
    robot = model.config.robot
    pushed = find_task(robot.name).pushed if robot.name in task_names() else None
    if pushed is None:
        raise InputError(f"The task of {robot.name} moves no object about on a plane (--object); leave it out.")
    if len({float(limit) for limit in model.step_limits[list(pushed.push)]}) > 1:
        raise InputError(f"{robot.name} moves further along one axis than along the other; leave --object out.")
    poses = world_states(store)[:, list(pushed.pose)].astype(np.float32)
    lengths = store.lengths()
    starts = np.cumsum(lengths) - lengths
    rows = np.concatenate([np.arange(starts[one], starts[one] + lengths[one]) for one in trained])
    states, _ = store.states_and_actions()
    return poses, view_of(poses[rows], states[rows], pushed.place, pushed.push, pushed.same_after_rad)


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
    there = sorted({kind for segments in _behaviours(store) for _, kind in segments})
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


def misreadings(model: WorldModel, batch: Relabelled) -> dict[str, float]:
    """How far the poses read from the frames of a held-out `batch` are off: of the object's place [m] and angle [rad],
    the median and what nine of ten are below."""
    assert isinstance(model.actor, ObjectActor)
    reader = model.actor.reader
    read, true = reader.understood(reader(model.standardise(batch.now))).pose, _truth(batch).pose[:, 0]
    period = model.actor.view.same_after_rad
    place = (read - true)[:, :2].norm(dim=1)
    angle = (torch.remainder((read - true)[:, 2] + period / 2, period) - period / 2).abs()
    return {
        f"{name}_{share}": round(float(torch.quantile(off, q)), 4)
        for name, off in (("place_m", place), ("angle_rad", angle))
        for share, q in (("median", 0.5), ("p90", 0.9))
    }
