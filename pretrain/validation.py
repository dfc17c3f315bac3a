"""How well a world model foresees logged episodes, without robot or simulator.

On clips of a store: the latent error of its rollouts beside that of copying the last frame, the rank of the
logged actions' cost among random ones, and where the cheapest random actions would have ended. The last two
are what planning lives on; the error alone does not compare models whose latents differ.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from vjepa_mpc.controller import fitting_chunk
from vjepa_mpc.core.errors import InputError, NotFiniteError
from vjepa_mpc.costs import StateBox, latent_distance
from vjepa_mpc.datasets.cache import StoreFrames
from vjepa_mpc.datasets.clips import Clip, ClipDataset, split_episodes
from vjepa_mpc.datasets.store import ZarrStore
from vjepa_mpc.planning import world_of
from vjepa_mpc.pretrain.starting import robot_of
from vjepa_mpc.robots.factory import find_task, task_names
from vjepa_mpc.rollout import Context
from vjepa_mpc.world_model import WorldModel

Distance = Callable[[Float[np.ndarray, "s"], Float[np.ndarray, "s"]], float]


@dataclass(frozen=True)
class ValidationSettings:
    """`clips` drawn with `seed`; `candidates` random action sequences each; `horizon` model steps of `stride`
    control steps (None: the longest that the model can imagine, its own stride)."""

    clips: int = 200
    candidates: int = 256
    horizon: int | None = None
    stride: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if min(self.clips, self.candidates) < 1 or (self.horizon or 1) < 1 or (self.stride or 1) < 1:
            raise InputError("Clips, candidates, horizon and stride must be at least 1.")


@dataclass(frozen=True)
class Quartiles:
    low: float
    median: float
    high: float

    @classmethod
    def of(cls, values: Float[np.ndarray, "n"]) -> Quartiles:
        return cls(*(float(value) for value in np.quantile(values, (0.25, 0.5, 0.75))))


@dataclass(frozen=True)
class Figures:
    """Of one group of clips.

    `error` and `copy`, one a model step: mean latent distance to what came, of the prediction and of the last
    frame seen. `rank`: mean share of the random candidates whose cost at the end is below the logged actions'
    (0 is best, 0.5 chance; ties count half). `contrast`: median cost of the candidates over the logged actions'.
    `end_chosen`: distance between where the cheapest candidate ends and where the log did; `end_nearest` of the
    candidate that ends nearest, and `end_random` of all: its floor and what chance gives.
    """

    clips: int
    error: tuple[float, ...]
    copy: tuple[float, ...]
    rank: float
    contrast: Quartiles
    end_chosen: Quartiles
    end_nearest: Quartiles
    end_random: Quartiles


@dataclass(frozen=True)
class Validation:
    """Figures by group ("all"; "plain" and "varied" looks where a store has both), of `episodes` episodes.

    `unit` is that of the distances: m of the robot's task, or "range" (root mean square over state components,
    each in units of its range).
    """

    groups: dict[str, Figures]
    ranks: tuple[float, ...]
    episodes: int
    held_out: bool
    horizon: int
    stride: int
    unit: str


def validate_model(
    model: WorldModel,
    store: ZarrStore,
    settings: ValidationSettings,
    progress: Callable[[int, int], None] | None = None,
) -> Validation:
    """Measure `model` on clips of `store`: on the held-out episodes when it was trained on this very store,
    otherwise on all. `InputError`: another robot's store, no clip that long, a horizon beyond the model's."""
    model.check_fits(robot_of(store))
    horizon, stride = settings.horizon or model.longest_horizon, settings.stride or model.config.stride
    if horizon > model.longest_horizon or stride > model.config.stride:
        raise InputError(
            f"The model imagines {model.longest_horizon} steps of at most {model.config.stride} control steps; "
            f"horizon {horizon} at stride {stride} is beyond it."
        )
    held_out = model.config.training.get("data") == store.content_hash()
    episodes = split_episodes(len(store))[1] if held_out else list(range(len(store)))
    camera = model.config.camera
    clips = ClipDataset(
        store, model.config.history + horizon, stride, camera, episodes=episodes, frames=StoreFrames(store, camera)
    )
    generator = np.random.default_rng(settings.seed)
    chosen = np.sort(generator.choice(len(clips), min(settings.clips, len(clips)), replace=False))
    distance, unit = _distance(model)
    measure = _Measure(model, horizon, stride, settings.candidates, distance)
    rows, labels = [], []
    for number, index in enumerate(chosen):
        rows.append(measure(clips.batch(np.array([index])), generator))
        labels.append(_look(store, int(clips.rows(np.array([index]))[0, 0])))
        if progress is not None:
            progress(number + 1, len(chosen))
    names = sorted(set(labels))
    groups = {"all": _figures(rows)}
    if len(names) > 1:
        groups |= {
            name: _figures([row for row, own in zip(rows, labels, strict=True) if own == name]) for name in names
        }
    ranks = tuple(row.rank for row in rows)
    return Validation(groups, ranks, len(episodes), held_out, horizon, stride, unit)


@dataclass(frozen=True)
class _Row:
    """What one clip gave; see `Figures`."""

    error: Float[np.ndarray, "h"]
    copy: Float[np.ndarray, "h"]
    rank: float
    contrast: float
    chosen: float
    nearest: float
    random: float


@dataclass(frozen=True)
class _Measure:
    model: WorldModel
    horizon: int
    stride: int
    candidates: int
    distance: Distance

    @torch.no_grad()
    def __call__(self, clip: Clip, generator: np.random.Generator) -> _Row:
        model, seen = self.model, self.model.config.history
        latents = model.encode(clip.frames.flatten(0, 1))[None]
        states, actions = clip.states.to(model.device), clip.actions.to(model.device)
        context = Context(latents[:, :seen], states[:, :seen], actions[:, : seen - 1])
        logged = actions[:, None, seen - 1 :]
        tried = torch.cat([logged, self._draw(generator)], dim=1)
        foreseen = _foresee(model, context, tried, latents[:, -1], fitting_chunk(model, self.horizon, None))
        error = latent_distance(foreseen.logged, latents[0, seen:])
        copy = latent_distance(latents[0, seen:], latents[0, seen - 1 : seen])
        cost = foreseen.cost.cpu().numpy()
        allowed: Bool[np.ndarray, "n"] = (foreseen.excess[1:] <= 0).cpu().numpy()
        if not allowed.any():
            raise InputError(
                "None of the random actions keeps the robot inside its state limits; draw more --candidates."
            )
        if not np.isfinite(cost).all():
            broken = int((~np.isfinite(cost)).sum())
            raise NotFiniteError(f"The model's predictions are not finite for {broken} of {len(cost)} actions.", cost)
        others, ends = cost[1:][allowed], foreseen.ends[1:].cpu().numpy()[allowed]
        goal = states[0, -1].cpu().numpy()
        away = np.array([self.distance(end, goal) for end in ends])
        return _Row(
            error=error.cpu().numpy(),
            copy=copy.cpu().numpy(),
            rank=float((others < cost[0]).mean() + 0.5 * (others == cost[0]).mean()),
            contrast=float(np.median(others) / max(float(cost[0]), 1e-12)),
            chosen=float(away[others.argmin()]),
            nearest=float(away.min()),
            random=float(np.median(away)),
        )

    def _draw(self, generator: np.random.Generator) -> Float[Tensor, "1 n h a"]:
        """Uniform in the box of `stride` control steps."""
        robot = self.model.config.robot
        low, high = self.stride * np.array(robot.action_low), self.stride * np.array(robot.action_high)
        drawn = generator.uniform(low, high, (1, self.candidates, self.horizon, len(low)))
        return torch.from_numpy(drawn).float().to(self.model.device)


@dataclass(frozen=True)
class _Foreseen:
    """What candidates come to: the first one's imagined frames; of each its cost at the end, by how far it leaves the
    state limits, and the state it ends in."""

    logged: Float[Tensor, "h p d"]
    cost: Float[Tensor, "n"]
    excess: Float[Tensor, "n"]
    ends: Float[Tensor, "n s"]


def _foresee(
    model: WorldModel, context: Context, tried: Float[Tensor, "1 n h a"], goal: Float[Tensor, "1 p d"], chunk: int
) -> _Foreseen:
    """`chunk` candidates at a time: no more futures than that exist at once."""
    logged: Tensor | None = None
    parts: list[tuple[Tensor, Tensor, Tensor]] = []
    for part in tried.split(chunk, dim=1):
        rollout = model.rollout(context, part, chunk=chunk)
        if logged is None:
            logged = rollout.latents[0, 0].float()
        cost = latent_distance(rollout.latents[0, :, -1].float(), goal[0])
        parts.append((cost, StateBox(model.states)(rollout, part)[0], rollout.states[0, :, -1]))
    assert logged is not None
    return _Foreseen(logged, *(torch.cat(column) for column in zip(*parts, strict=True)))


def _figures(rows: Sequence[_Row]) -> Figures:
    def each(name: str) -> Float[np.ndarray, "n"]:
        return np.array([getattr(row, name) for row in rows])

    return Figures(
        clips=len(rows),
        error=tuple(float(value) for value in np.mean([row.error for row in rows], axis=0)),
        copy=tuple(float(value) for value in np.mean([row.copy for row in rows], axis=0)),
        rank=float(each("rank").mean()),
        contrast=Quartiles.of(each("contrast")),
        end_chosen=Quartiles.of(each("chosen")),
        end_nearest=Quartiles.of(each("nearest")),
        end_random=Quartiles.of(each("random")),
    )


def _look(store: ZarrStore, row: int) -> str:
    """Whether the episode that holds `row` shows the plain look or another."""
    episode = int(store.lengths().cumsum().searchsorted(row, side="right"))
    return "plain" if store.metadata(episode).get("appearance_seed") is None else "varied"


def _distance(model: WorldModel) -> tuple[Distance, str]:
    """The task's distance in m where the robot has a task judged on the robot's own state."""
    robot = model.config.robot
    if robot.name in task_names() and world_of(robot) == robot.proprioception:
        return find_task(robot.name).distance, "m"
    width = torch.tensor(robot.state_high) - torch.tensor(robot.state_low)

    def by_range(a: Float[np.ndarray, "s"], b: Float[np.ndarray, "s"]) -> float:
        change = model.states.difference(torch.from_numpy(a), torch.from_numpy(b)) / width
        return float(change.square().mean().sqrt())

    return by_range, "range"
