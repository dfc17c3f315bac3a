"""Foreseeing logs: a model that knows the world, one that ignores actions, and what is refused."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from moving_dot import make_store
from solvable_world import SIZE, SpelledModel, picture, solvable_model

from vjepa_mpc import controller
from vjepa_mpc.cli import main as cli
from vjepa_mpc.core.errors import InputError, NotFiniteError
from vjepa_mpc.datasets.cache import FrameCache, StoreFrames
from vjepa_mpc.datasets.episode import Episode, StoreSpec
from vjepa_mpc.datasets.store import ZarrStore
from vjepa_mpc.pretrain.validation import ValidationSettings, validate_model
from vjepa_mpc.rollout import Context, Rollout

EPISODES, LENGTH = 24, 9
SHARED = (
    "state_names", "state_units", "state_low", "state_high", "state_periodic",
    "action_names", "action_units", "action_low", "action_high", "control_period_s", "state_model",
)  # fmt: skip


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Spelled pictures of random joint moves; every other episode in another look."""
    path = tmp_path_factory.mktemp("spelled") / "logs.zarr"
    rng = np.random.default_rng(0)
    robot = solvable_model().config.robot
    shared = {name: getattr(robot, name) for name in SHARED}
    spec = StoreSpec(robot=robot.name, cameras={"top": (SIZE, SIZE)}, renderer="none", **shared)
    with ZarrStore.create(path, spec) as writer:
        for number in range(EPISODES):
            actions = rng.uniform(-0.3, 0.3, (LENGTH - 1, 2)).astype(np.float32)
            states = np.concatenate([np.zeros((1, 2)), np.cumsum(actions, axis=0)]).astype(np.float32)
            writer.append(
                Episode(
                    images={"top": np.stack([picture(state) for state in states])},
                    states=states,
                    actions=actions,
                    times=0.2 * np.arange(1.0, LENGTH + 1),
                    metadata={"appearance_seed": number if number % 2 else None},
                )
            )
    return path


class Blind(SpelledModel):
    """Thinks that nothing it does has an effect."""

    def rollout(self, context: Context, actions: torch.Tensor, *, chunk: int = 256) -> Rollout:
        known = super().rollout(context, actions, chunk=chunk)
        return replace(known, latents=context.latents[:, None, -1:].expand_as(known.latents))


class Broken(SpelledModel):
    """Imagines nothing that is a number."""

    def rollout(self, context: Context, actions: torch.Tensor, *, chunk: int = 256) -> Rollout:
        known = super().rollout(context, actions, chunk=chunk)
        return replace(known, latents=known.latents * math.nan)


def test_who_knows_the_world_is_never_outranked(store: Path) -> None:
    found = validate_model(solvable_model(stride=2), ZarrStore.open(store), ValidationSettings(clips=40, horizon=3))
    assert list(found.groups) == ["all", "plain", "varied"]
    assert found.groups["plain"].clips + found.groups["varied"].clips == found.groups["all"].clips == 40
    everything = found.groups["all"]
    assert max(everything.error) < 1e-3 and everything.rank == 0.0 and set(found.ranks) == {0.0}
    assert everything.copy[0] < everything.copy[1] < everything.copy[2]  # the arm wanders off
    assert everything.contrast.low > 100
    assert everything.end_nearest.median <= everything.end_chosen.median < 0.5 * everything.end_random.median
    assert (found.unit, found.horizon, found.stride, found.held_out) == ("m", 3, 2, False)


def test_scarce_memory_makes_chunks_and_no_other_figures(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    rollout = SpelledModel.rollout

    def watched(self: SpelledModel, context: Context, actions: torch.Tensor, *, chunk: int = 256) -> Rollout:
        seen.append(actions.shape[1])
        return rollout(self, context, actions, chunk=chunk)

    monkeypatch.setattr(SpelledModel, "rollout", watched)
    opened, asked = ZarrStore.open(store), ValidationSettings(clips=2, candidates=6, horizon=2)
    plenty = validate_model(solvable_model(), opened, asked)
    assert seen == [7, 7]
    seen.clear()
    monkeypatch.setattr(controller, "free_bytes", lambda device: 0)
    assert validate_model(solvable_model(), opened, asked) == plenty
    assert seen == [1] * 14, "more futures than fit existed at a time"


def test_who_ignores_actions_is_at_chance(store: Path) -> None:
    model = solvable_model(stride=2)
    model.__class__ = Blind
    everything = validate_model(model, ZarrStore.open(store), ValidationSettings(clips=60, horizon=1)).groups["all"]
    assert everything.rank == 0.5
    assert everything.error == everything.copy
    assert everything.end_chosen.median > 2 * everything.end_nearest.median


def test_predictions_that_are_no_numbers_are_loud(store: Path) -> None:
    model = solvable_model()
    model.__class__ = Broken
    with pytest.raises(NotFiniteError, match="257 of 257"):
        validate_model(model, ZarrStore.open(store), ValidationSettings(clips=1, horizon=1))


def test_the_store_it_was_trained_on_is_judged_on_held_out_episodes(store: Path) -> None:
    opened, model = ZarrStore.open(store), solvable_model()
    model.config = replace(model.config, training={"data": opened.content_hash()})
    found = validate_model(model, opened, ValidationSettings(clips=50, horizon=2))
    assert found.held_out and found.episodes == 1
    assert found.groups["all"].clips == LENGTH - 2  # every clip there is


def test_the_seed_decides(store: Path) -> None:
    opened, settings = ZarrStore.open(store), ValidationSettings(clips=10, candidates=8, horizon=2)
    one, same = (validate_model(solvable_model(), opened, settings) for _ in range(2))
    assert one == same
    assert one != validate_model(solvable_model(), opened, replace(settings, seed=1))


def test_frames_straight_from_the_store_are_those_of_the_cache(store: Path) -> None:
    opened, rows = ZarrStore.open(store), np.array([[0, LENGTH - 1], [LENGTH, 5 * LENGTH + 3]])
    direct, cached = StoreFrames(opened, "top"), FrameCache.build(opened)
    assert len(direct) == len(cached) and direct.store_hash == cached.store_hash
    assert np.array_equal(direct.take(rows), cached.take(rows))


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"horizon": 6}, "beyond it"),
        ({"stride": 2}, "beyond it"),
        ({"clips": 0}, "at least 1"),
    ],
)
def test_what_the_model_cannot_foresee_is_refused(store: Path, settings: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        validate_model(solvable_model(), ZarrStore.open(store), ValidationSettings(**settings))


def test_another_robots_logs_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="was trained for reacher"):
        validate_model(solvable_model(), ZarrStore.open(make_store(tmp_path / "dots.zarr")), ValidationSettings())


def test_the_command_writes_figures_and_a_picture(
    tmp_path: Path, tiny_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    logs = tmp_path / "logs.zarr"
    collect = ["collect", "--episodes", "3", "--frames", "8", "--out", str(logs), "--workers", "1"]
    for arguments in (
        collect,
        ["validate-model", str(tiny_model), str(logs), "--clips", "4", "--candidates", "5", "--horizon", "2",
         "--threads", "1", "--out", str(tmp_path / "v"), "--json"],
    ):  # fmt: skip
        with pytest.raises(SystemExit) as left:
            cli.main(arguments)
        assert left.value.code in (None, 0)
        printed = capsys.readouterr().out
    record = json.loads(printed)
    assert record == json.loads((tmp_path / "v" / "validation.json").read_text())
    assert record["groups"]["all"]["clips"] == 4 and len(record["ranks"]) == 4
    assert (tmp_path / "v" / "validation.png").read_bytes().startswith(b"\x89PNG")
