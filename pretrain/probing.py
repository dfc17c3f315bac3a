"""Probing encoders on a store: its frames, what they show, how they look, and the scores of all probes."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from vjepa_mpc.core.errors import InputError
from vjepa_mpc.datasets.cache import FrameCache, only_camera
from vjepa_mpc.datasets.clips import ClipDataset, split_episodes
from vjepa_mpc.datasets.store import ZarrStore
from vjepa_mpc.encoder import FrameEncoder, PixelPatches, encode_clips
from vjepa_mpc.images import ImagePreparation
from vjepa_mpc.latents import LatentConfig, LatentSpace
from vjepa_mpc.planning import world_of
from vjepa_mpc.pretrain.hindsight import world_states
from vjepa_mpc.pretrain.inverse import GRID
from vjepa_mpc.pretrain.probes import (
    Examples,
    Score,
    Target,
    attentive_probe,
    check_numbers,
    linear_probe,
    scores,
    standardised,
)
from vjepa_mpc.pretrain.source import CacheProgress
from vjepa_mpc.pretrain.starting import open_encoder, robot_of

PLAIN = "plain"
ENCODED = 128  # clips at a time
NOTHING = "(mean)"
"""The row of answering every question by the training frames' mean."""
CONTACT = "contact"
"""The target that is 1 where bodies of the world touch, else 0."""

Advance = Callable[[int], None]
"""Told how much was done since it was last called: clips that were encoded, steps of a probe."""


@dataclass(frozen=True)
class ProbeSettings:
    """`frames` training and `held` held-out examples, each a clip of `clip` frames, `stride` control steps apart;
    tokens pooled to `grid` a side (None: 4, or the encoder's own where 4 does not divide it); `steps` of the attentive
    probe (0: none)."""

    frames: int = 3000
    held: int = 1000
    grid: int | None = None
    clip: int = 1
    stride: int = 1
    steps: int = 500
    seed: int = 0

    def __post_init__(self) -> None:
        grid = 1 if self.grid is None else self.grid
        if min(self.frames, self.held, self.clip, self.stride, grid) < 1 or self.steps < 0:
            raise InputError("Frames, clip, stride and grid must be at least 1, and the probe's steps at least 0.")


@dataclass(frozen=True)
class Probing:
    """Scores by encoder, probe, look and target; `looks`: how many held-out examples each has."""

    targets: tuple[Target, ...]
    scores: dict[str, dict[str, dict[str, dict[str, Score]]]]
    looks: dict[str, int]
    train: int
    episodes: tuple[int, int]
    """Training and held-out ones that the examples are of."""


def probe_encoders(
    encoders: Sequence[str], store: ZarrStore, settings: ProbeSettings, device: torch.device, *,
    camera: str | None = None, cache: Path | None = None, progress: Callable[[int, int], None] | None = None,
    caching: CacheProgress | None = None,
) -> Probing:  # fmt: skip
    """Probe every encoder (a name that `open_encoder` takes) on the same clips of a store."""
    doubled = next((name for i, name in enumerate(encoders) if name in encoders[:i]), None)
    if doubled is not None:
        raise InputError(f"The encoder {doubled} is named twice; name each once.")
    camera = only_camera(store, camera)
    size = min(store.spec.cameras[camera])
    for name in encoders:
        open_encoder(name, size, settings.seed)  # before anything takes time
    frames = FrameCache.build(store, camera, cache, None if caching is None else lambda *n: caching("frames", *n))
    sides = [
        _Side(store, ClipDataset(store, settings.clip, settings.stride, camera, episodes=episodes, frames=frames),
              count, np.random.default_rng((settings.seed, number)))
        for number, (episodes, count) in enumerate(
            zip(split_episodes(len(store)), (settings.frames, settings.held), strict=True)
        )
    ]  # fmt: skip
    targets, values = _questions(store, sides, settings)
    groups = _looks(store, sides[1].episode)
    advance = _counter(progress, len(encoders) * (sum(len(side.rows) for side in sides) + settings.steps))
    found: dict[str, dict[str, dict[str, dict[str, Score]]]] = {}
    for name in encoders:
        encoder, preparation, _ = open_encoder(name, size, settings.seed)
        encoder.to(device)
        train, held = (
            Examples(
                _tokens(encoder, preparation, side, settings, device, advance), own, torch.from_numpy(side.episode)
            )
            for side, own in zip(sides, values, strict=True)
        )
        check_numbers(train)
        check_numbers(held)
        data = standardised(targets, train, held)
        if not found:
            nothing = torch.zeros(len(held.values), len(data.mean))
            found[NOTHING] = {"none": scores(targets, data, nothing, held, groups)}
        read = {"linear": linear_probe(data, train.episode, np.random.default_rng((settings.seed, 2)))}
        if settings.steps:
            widths = tuple(target.width for target in targets)
            read["attentive"] = attentive_probe(data, widths, train.episode, settings.steps, settings.seed, advance)
        found[name] = {probe: scores(targets, data, answers, held, groups) for probe, answers in read.items()}
    return Probing(
        targets, found, {group: len(rows) for group, rows in groups.items()}, len(sides[0].episode),
        (len(np.unique(sides[0].episode)), len(np.unique(sides[1].episode))),
    )  # fmt: skip


def _counter(progress: Callable[[int, int], None] | None, total: int) -> Advance:
    done = 0

    def advance(by: int) -> None:
        nonlocal done
        done += by
        if progress is not None:
            progress(done, total)

    return advance


class _Side:
    """Some clips of a store: their frame `rows` [n, k] and the `episode` [n] of each."""

    def __init__(self, store: ZarrStore, clips: ClipDataset, count: int, generator: np.random.Generator) -> None:
        self.clips = clips
        self.chosen = np.sort(generator.choice(len(clips), min(count, len(clips)), replace=False))
        self.rows = clips.rows(self.chosen)
        self.episode = np.searchsorted(store.lengths().cumsum(), self.rows[:, -1], side="right")


def _questions(
    store: ZarrStore, sides: Sequence[_Side], settings: ProbeSettings
) -> tuple[tuple[Target, ...], list[Float[Tensor, "n t"]]]:
    """Targets that vary in the training examples, and their values at the last frame of each side's clips: the state,
    what else the simulated world held, with two frames or more their velocities, and whether bodies touched."""
    spec = store.spec
    targets = [Target(*parts) for parts in zip(spec.state_names, spec.state_units, spec.state_periodic, strict=True)]
    states, _ = store.states_and_actions()
    world = _world_targets(store)
    truth = None if not world else _world_states(store)
    table = states if truth is None else np.concatenate([states, truth], axis=1)
    targets += world
    values = [torch.from_numpy(table[side.rows[:, -1]].astype(np.float32)) for side in sides]
    if settings.clip > 1:
        span = settings.stride * spec.control_period_s
        for number, side in enumerate(sides):
            change = torch.from_numpy((table[side.rows[:, -1]] - table[side.rows[:, -2]]).astype(np.float32))
            wrapped = torch.remainder(change + math.pi, 2 * math.pi) - math.pi
            round_ = torch.tensor([target.periodic for target in targets])
            values[number] = torch.cat([values[number], torch.where(round_, wrapped, change) / span], dim=1)
        targets += [Target(f"{target.name} velocity", f"{target.unit}/s") for target in targets]
    if len(store) and all("contacts" in store.metadata(i) for i in range(len(store))):
        touched = np.concatenate([np.array(store.metadata(i)["contacts"], np.float32) for i in range(len(store))])
        values = [
            torch.cat([own, torch.from_numpy(touched[side.rows[:, -1], None])], dim=1)
            for own, side in zip(values, sides, strict=True)
        ]
        targets.append(Target(CONTACT, ""))
    kept = [i for i in range(len(targets)) if float(values[0][:, i].std()) > 1e-6]
    if not kept:
        raise InputError(f"Nothing that {store.path} records of the state varies: there is nothing to read.")
    return tuple(targets[i] for i in kept), [side[:, kept] for side in values]


def _world_targets(store: ZarrStore) -> list[Target]:
    """What the world's truth holds beyond the robot's state, where every episode recorded it."""
    world = world_of(robot_of(store))
    extra = [i for i, name in enumerate(world.names) if name not in store.spec.state_names]
    if not extra or any("world_states" not in store.metadata(i) for i in range(len(store))):
        return []
    return [
        Target(world.names[i], world.units[i], world.units[i] == "rad" and world.high[i] - world.low[i] > 6.28)
        for i in extra
    ]


def _world_states(store: ZarrStore) -> Float[np.ndarray, "rows w"]:
    world = world_of(robot_of(store))
    extra = [i for i, name in enumerate(world.names) if name not in store.spec.state_names]
    return world_states(store)[:, extra]


def _looks(store: ZarrStore, episode: Int64[np.ndarray, "n"]) -> dict[str, Tensor]:
    """Rows of the examples by look: all; plain and varied where there are both; varied ones by the factors that were
    changed, where the store has those."""
    names = {int(number): _look(store, int(number)) for number in np.unique(episode)}
    labels = np.array([names[int(number)] for number in episode])
    groups = {"all": torch.arange(len(episode))}
    if len(set(names.values())) > 1:
        groups |= {name: torch.from_numpy(np.flatnonzero(labels == name)) for name in sorted(set(names.values()))}
    return groups


def _look(store: ZarrStore, episode: int) -> str:
    notes = store.metadata(episode)
    if notes.get("appearance_seed") is None:
        return PLAIN
    return " + ".join(sorted(name for name, level in (notes.get("factors") or {}).items() if level)) or "varied"


@torch.no_grad()
def _tokens(
    encoder: FrameEncoder, preparation: ImagePreparation, side: _Side, settings: ProbeSettings, device: torch.device,
    advance: Advance,
) -> Float[Tensor, "n p d"]:  # fmt: skip
    """Tokens of a side's clips as `train` sees them, layer-normed and pooled; of every time of a clip, side by side."""
    grid = settings.grid or (GRID if encoder.grid % GRID == 0 else encoder.grid)
    space = LatentSpace(LatentConfig(encoder.grid, grid, encoder.dim, standardise=False)).to(device)
    parts = []
    for start in range(0, len(side.chosen), ENCODED):
        frames = side.clips.batch(side.chosen[start : start + ENCODED]).frames
        pixels = preparation.prepare(frames.flatten(0, 1), device).unflatten(0, frames.shape[:2])
        tokens = _encoded(encoder, pixels)
        parts.append(space.pool(tokens.flatten(0, 1)).unflatten(0, tokens.shape[:2]).flatten(1, 2).float().cpu())
        advance(len(frames))
    return torch.cat(parts)


def _encoded(encoder: FrameEncoder, pixels: Float[Tensor, "n k 3 s s"]) -> Float[Tensor, "n times p d"]:
    """A clip as the encoder reads it: tubelets of frames that follow each other; a single frame doubled."""
    count, length = pixels.shape[:2]
    if isinstance(encoder, PixelPatches) or length == 1:
        return encoder(pixels.flatten(0, 1)).unflatten(0, (count, length))
    tubelet = encoder.model.config.tubelet_size
    if length % tubelet:
        raise InputError(f"Clips of {length} frames do not divide into the encoder's tubelets of {tubelet}.")
    return encode_clips(encoder.model, pixels).unflatten(1, (length // tubelet, -1))
