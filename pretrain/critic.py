"""Training the critic: control steps to a goal, learned from logs in hindsight.

Any frame may be the goal of any other (Andrychowicz et al. 2017, arXiv:1707.01495). From a frame to a later one of its
episode the logs say how many steps were taken, which is seldom the fewest; to other goals they say nothing. So the
critic learns by temporal differences: steps(z_t, g) becomes k + steps(z_{t+k}, g), and of the ways that the logs hold
the short ones count for more, by expectile regression (Kostrikov et al. 2021, arXiv:2110.06169, eq. 5; of goals: Park
et al. 2023, arXiv:2307.11949; the low expectile here because steps are a cost). Parts of many ways become
one that nobody took.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Float32, Int64
from torch import Tensor, nn

from vjepa_mpc.core.errors import InputError
from vjepa_mpc.costs import latent_distance
from vjepa_mpc.critic import Critic, CriticConfig
from vjepa_mpc.datasets.cache import LatentCache
from vjepa_mpc.datasets.clips import split_episodes
from vjepa_mpc.datasets.store import ZarrStore
from vjepa_mpc.encoder import weights_hash
from vjepa_mpc.intervals import spearman
from vjepa_mpc.pretrain.caching import cache_latents
from vjepa_mpc.pretrain.hindsight import PAIRS, HindsightFrames, open_logs, run_on, with_steps, write_model
from vjepa_mpc.pretrain.optimising import TrainSettings, follow
from vjepa_mpc.pretrain.run_folder import begin
from vjepa_mpc.pretrain.source import CacheProgress, Source
from vjepa_mpc.pretrain.trainer import Progress, TrainResult
from vjepa_mpc.world_model import SearchDefaults, WorldModel

WEIGHT = 0.3  # latent distance that a foreseen control step costs in plans


@dataclass(frozen=True)
class CriticSettings:
    """`expectile`: below 0.5, the lower the more the shortest way of the logs counts. `lookahead`: control steps k
    between a frame and the one it learns from, drawn up to that. `ema`: of the target network, each step. `most`:
    control steps that no goal is farther than. `elsewhere`: the share of goals from other episodes. `channels`,
    `width`: see `CriticConfig`."""

    expectile: float = 0.1
    lookahead: int = 8
    ema: float = 0.99
    most: int = 150
    elsewhere: float = 0.5
    channels: int = 32
    width: int = 384

    def __post_init__(self) -> None:
        if not 0 < self.expectile <= 0.5:
            raise InputError(f"An expectile above 0 and at most 0.5 asks for short ways, not {self.expectile}.")
        if not 0 <= self.ema < 1 or not 0 <= self.elsewhere <= 1:
            raise InputError("The target's momentum must be at least 0 and below 1, shares of goals 0 to 1.")
        if not 1 <= self.lookahead <= self.most:
            raise InputError(f"A look ahead of {self.lookahead} steps must be at least 1 and at most {self.most}.")


class Hindsight(NamedTuple):
    """Frames `now` and `later` (`ahead` control steps after), goals, with the states of the first two; `left`: control
    steps from now to the goal where it lies on the way between them, else -1."""

    now: Float[Tensor, "b p d"]
    later: Float[Tensor, "b p d"]
    goal: Float[Tensor, "b p d"]
    states: Float[Tensor, "b 2 s"]
    ahead: Float[Tensor, "b"]
    left: Float[Tensor, "b"]


class HindsightBatches(HindsightFrames):
    """Batch number i of a run is a function of (seed, i) alone.

    Goals: the frame itself or a later one of its episode; and, for a share `elsewhere`, any frame of any episode that
    looks alike. An episode whose collection gave it a look of its own (`appearance_level` above 0) looks like no other.
    """

    def __init__(
        self, take: Callable[[np.ndarray], np.ndarray], states: Float32[np.ndarray, "rows s"],
        lengths: Int64[np.ndarray, "n"], alike: Bool[np.ndarray, "n"], episodes: Sequence[int],
        settings: CriticSettings, batch: int, seed: int,
    ) -> None:  # fmt: skip
        """`alike`: whether each of the store's episodes looks like others; the rest see `HindsightFrames`."""
        super().__init__(take, states, lengths, episodes)
        self.settings, self.size, self.seed = settings, batch, seed
        self._alike = alike
        self._shared = self._episodes[self._alike[self._episodes]]

    @staticmethod
    def of(
        store: ZarrStore, latents: LatentCache, episodes: Sequence[int], settings: CriticSettings, batch: int, seed: int
    ) -> HindsightBatches:
        """Those of a store's `episodes`."""
        alike = np.array([not store.metadata(one).get("appearance_level") for one in range(len(store))])
        states, lengths = store.states_and_actions()[0], np.asarray(store.lengths())
        return HindsightBatches(latents.take, states, lengths, alike, episodes, settings, batch, seed)

    def batch(self, step: int) -> Hindsight:
        """Batch `step`."""
        return self._taken(*self._drawn(np.random.default_rng((self.seed, step)), self.size))

    def held(self, count: int) -> tuple[Float[Tensor, "n p d"], Float[Tensor, "n p d"], Tensor, np.ndarray]:
        """`count` frames, later ones of the same episode, the states of the first, and the steps between."""
        rng = np.random.default_rng((self.seed, 1))
        episodes, lengths, first = self.moments(rng, count)
        after = 1 + (rng.random(count) * (lengths - 1 - first)).astype(np.int64)
        rows = self._starts[episodes] + first
        return self.latents(rows), self.latents(rows + after), self.states(rows), after

    def _drawn(self, rng: np.random.Generator, count: int) -> tuple[np.ndarray, ...]:
        episodes, lengths, now = self.moments(rng, count)
        ahead = np.minimum(rng.integers(1, self.settings.lookahead + 1, count), lengths - 1 - now)
        future = now + (rng.random(count) * (lengths - now)).astype(np.int64)
        elsewhere = rng.random(count) < self.settings.elsewhere
        theirs = rng.choice(self._shared, count) if len(self._shared) else episodes
        theirs = np.where(self._alike[episodes], theirs, episodes)
        any_frame = (rng.random(count) * self._lengths[theirs]).astype(np.int64)
        goal_episode, goal = np.where(elsewhere, theirs, episodes), np.where(elsewhere, any_frame, future)
        passed = (goal_episode == episodes) & (goal >= now) & (goal <= now + ahead)
        left = np.where(passed, goal - now, -1)
        return self._starts[episodes] + now, ahead, self._starts[goal_episode] + goal, left

    def _taken(self, rows: np.ndarray, ahead: np.ndarray, goals: np.ndarray, left: np.ndarray) -> Hindsight:
        return Hindsight(
            self.latents(rows), self.latents(rows + ahead), self.latents(goals),
            self.states(np.stack([rows, rows + ahead], axis=1)),
            torch.from_numpy(ahead).float(), torch.from_numpy(left).float(),
        )  # fmt: skip


def expectile_error(
    foreseen: Float[Tensor, "b"], wanted: Float[Tensor, "b"], exact: Bool[Tensor, "b"], expectile: float
) -> Float[Tensor, ""]:
    """Huber's error (squared within 5 steps, so that far goals do not outweigh near ones), `expectile` times where more
    steps are wanted than foreseen, 1 - `expectile` times where fewer. What is known exactly counts in full."""
    weight = torch.where(wanted > foreseen, expectile, 1.0 - expectile)
    weight = torch.where(exact, 1.0, weight)
    return (weight * F.huber_loss(foreseen, wanted, reduction="none", delta=5.0)).mean()


def temporal_error(
    critic: Critic, target: Critic, batch: Hindsight, features: Float[Tensor, "b 2 f"], settings: CriticSettings
) -> tuple[Float[Tensor, ""], Float[Tensor, "b"], Float[Tensor, "b"]]:
    """The error of a batch of standardised latents with the `features` of its states; the steps that the critic
    foresees, and those wanted: counted where the goal is on the way, else the slowly moving target's of `ahead` steps
    later."""
    with torch.no_grad():
        after = (batch.ahead + target(batch.later, features[:, 1], batch.goal)).clamp(max=settings.most)
    wanted = torch.where(batch.left >= 0, batch.left, after)
    foreseen = critic(batch.now, features[:, 0], batch.goal)
    return expectile_error(foreseen, wanted, batch.left == 0, settings.expectile), foreseen, wanted


class CriticLearner:
    """A critic and its slowly moving target as a `Learner`; encoder and predictor are not touched."""

    def __init__(
        self, model: WorldModel, critic: Critic, settings: CriticSettings, data: HindsightBatches, device: torch.device
    ) -> None:
        self.model, self.critic, self.settings, self.data, self.device = model, critic, settings, data, device
        self.target = copy.deepcopy(self.critic).requires_grad_(False)
        self.modules: nn.Module = nn.ModuleDict({"critic": self.critic, "target": self.target})

    def batch(self, step: int) -> Hindsight:
        return self.data.batch(step)

    def loss(self, batch: Hindsight, step: int) -> tuple[Tensor, dict[str, Any]]:
        batch = Hindsight(*(part.to(self.device, non_blocking=True) for part in batch))
        now, later, goal = (self.model.standardise(part) for part in (batch.now, batch.later, batch.goal))
        batch = batch._replace(now=now, later=later, goal=goal)
        features = self.model.states.state_features(batch.states)
        error, foreseen, wanted = temporal_error(self.critic, self.target, batch, features, self.settings)
        return error, {"steps": foreseen.detach().mean(), "wanted": wanted.mean()}

    def after_step(self, step: int) -> None:
        follow(self.target.parameters(), self.critic.parameters(), self.settings.ema)

    def check(self, figures: Mapping[str, float]) -> None:
        """A critic that has learned nothing shows in the figures at the end; only NaN stops the run."""


def train_critic(
    model: WorldModel,
    source: Source,
    out: Path,
    settings: CriticSettings,
    training: TrainSettings,
    device: torch.device,
    *,
    weight: float | None = None,
    progress: Progress | None = None,
    caching: CacheProgress | None = None,
    stop_at: int | None = None,
) -> tuple[TrainResult, dict[str, float]]:
    """Train a critic on the latents that `model` makes of a store's frames; OUT/model is the model with it, planned
    with at a cost of `weight` a foreseen step (None: as the model was, or `WEIGHT`).

    Also what the critic says of held-out episodes: `order`, Spearman's rank correlation of the steps it foresees from a
    frame to a later one with those taken, and `order_by_distance`, that of the latent distance. `InputError` for logs
    of another robot or period.
    """
    store, camera = open_logs(model, source)
    model = model.to(device)
    search = model.config.search or SearchDefaults()
    price = weight if weight is not None else WEIGHT if search.critic is None else search.critic
    search = replace(search, critic=price)  # what cannot be is refused before anything takes time
    critic = _fresh(model, settings, training.seed).to(device)
    trained, held_out = (with_steps(store, part) for part in split_episodes(len(store)))
    recorded = {"critic": asdict(settings), "training": asdict(training), "camera": camera}
    begin(out, "critic", {**recorded, "model": weights_hash(model), "data": store.content_hash()})
    latents = cache_latents(source, store, camera, model, weights_hash(model.encoder), training.bf16, None, caching)
    data = HindsightBatches.of(store, latents, trained, settings, training.batch, training.seed)
    result = run_on(CriticLearner(model, critic, settings, data, device), training, out, device, progress, stop_at)
    if not result.finished:
        return result, {}
    model.get_critic(critic)
    fresh = HindsightBatches.of(store, latents, held_out, settings, training.batch, training.seed)
    figures = foreseen_order(model, fresh)
    model.searched(search)
    about = {**recorded, **figures, "data": store.content_hash(), "steps": result.step}
    write_model(model, "critic", about, out)
    return result, figures


def _fresh(model: WorldModel, settings: CriticSettings, seed: int) -> Critic:
    """A critic of `model`'s latents and states with fresh weights."""
    latent = model.config.latent
    config = CriticConfig(latent.positions, latent.dim, model.states.state_dim, settings.channels, settings.width)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Critic(config)


@torch.no_grad()
def foreseen_order(model: WorldModel, data: HindsightBatches) -> dict[str, float]:
    """How well the critic, and the latent distance, order later frames of an episode by the steps that were taken."""
    frames, goals, states, taken = data.held(PAIRS)
    frames, goals, states = (part.to(model.device) for part in (frames, goals, states))
    frames, goals = model.standardise(frames), model.standardise(goals)
    said = {"order": model.steps_to(frames, states, goals), "order_by_distance": latent_distance(frames, goals)}
    rng = np.random.default_rng(0)
    orders = {name: spearman(value.cpu().numpy(), taken.astype(np.float32), rng, 1) for name, value in said.items()}
    return {name: round(one.rho, 4) for name, one in orders.items() if one is not None}
