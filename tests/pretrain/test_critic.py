"""The critic: control steps to a goal from logs in hindsight, its run, and what it says in plans."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from moving_dot import episode, training

from vjepa_mpc.cli.building import control_settings
from vjepa_mpc.core.errors import InputError
from vjepa_mpc.costs import GoalDistance, StepsToGoal, over_horizon
from vjepa_mpc.critic import Critic, CriticConfig
from vjepa_mpc.pretrain.critic import CriticSettings, HindsightBatches, expectile_error, temporal_error, train_critic
from vjepa_mpc.pretrain.source import Source
from vjepa_mpc.rollout import Rollout
from vjepa_mpc.world_model import SearchDefaults, WorldModel

CPU = torch.device("cpu")
PLACES, DIM = 12, 16
SMALL = CriticSettings(channels=8, width=32, lookahead=2)


class _Ring:
    """A log of a walk over twelve places on a ring, seen as random vectors: half of the episodes know the one half of
    the ring, half the other, and all dawdle. No episode goes all the way round."""

    def __init__(self, alike: bool = True) -> None:
        rng = np.random.default_rng(0)
        walks = []
        for number in range(80):
            low = 0 if number % 2 else PLACES // 2
            place = low + rng.integers(PLACES // 2 + 1)
            walk = [place]
            for _ in range(30):
                place = int(np.clip(place + rng.integers(-1, 2), low, low + PLACES // 2))
                walk.append(place)
            walks.append(np.array(walk) % PLACES)
        self.walks, self.alike = walks, alike
        self.places = np.concatenate(walks)
        self.looks = rng.normal(size=(PLACES, 1, DIM)).astype(np.float16)

    def lengths(self) -> np.ndarray:
        return np.array([len(walk) for walk in self.walks])

    def take(self, rows: np.ndarray) -> np.ndarray:
        return self.looks[self.places[rows]]


def batches(ring: _Ring, settings: CriticSettings, seed: int = 0, size: int = 256) -> HindsightBatches:
    alike = np.full(len(ring.walks), ring.alike)
    states = np.zeros((len(ring.places), 1), np.float32)
    every = range(len(ring.walks))
    return HindsightBatches(ring.take, states, ring.lengths(), alike, every, settings, size, seed)


def test_it_learns_the_shortest_ways_from_parts_of_longer_ones() -> None:
    """On a ring nobody went round, from walks that dawdle: three times as many steps as places, or more."""
    ring = _Ring()
    settings = replace(SMALL, expectile=0.05, lookahead=4, width=128, channels=64)
    data, none = batches(ring, settings), torch.zeros(256, 2, 0)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        critic, target = (Critic(CriticConfig(1, DIM, 0, 64, 128)) for _ in range(2))
    optimiser = torch.optim.Adam(critic.parameters(), 2e-3)
    for step in range(700):
        loss, *_ = temporal_error(critic, target, data.batch(step), none, settings)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        with torch.no_grad():
            for slow, fast in zip(target.parameters(), critic.parameters(), strict=True):
                slow.lerp_(fast, 0.05)
    looks = torch.from_numpy(ring.looks.astype(np.float32))
    first, second = torch.meshgrid(torch.arange(PLACES), torch.arange(PLACES), indexing="ij")
    with torch.no_grad():
        said = critic(looks[first], torch.zeros(PLACES, PLACES, 0), looks[second]).numpy()
    apart = (first - second).abs().numpy()
    apart = np.minimum(apart, PLACES - apart)
    assert np.corrcoef(said.ravel(), apart.ravel())[0, 1] > 0.95
    assert said.diagonal().max() < 0.7
    by_distance = [said[apart == steps].mean() for steps in range(PLACES // 2 + 1)]
    assert (np.diff(by_distance) > 0.5).all() and by_distance[-1] < 2.2 * PLACES / 2


def test_hindsight_says_what_the_log_holds() -> None:
    ring = _Ring()
    data = batches(ring, replace(SMALL, lookahead=5))
    for step in range(5):
        rows, ahead, goals, left = data._drawn(np.random.default_rng((0, step)), 256)
        episode_of = np.repeat(np.arange(len(ring.walks)), ring.lengths())
        assert (episode_of[rows + ahead] == episode_of[rows]).all() and ahead.min() >= 1 and ahead.max() <= 5
        passed = (goals >= rows) & (goals <= rows + ahead)
        assert (left[passed] == (goals - rows)[passed]).all() and (left[~passed] == -1).all()
        assert 0.3 < (episode_of[goals] != episode_of[rows]).mean() < 0.7
    again = batches(ring, replace(SMALL, lookahead=5))
    assert all(torch.equal(a, b) for a, b in zip(data.batch(3), again.batch(3), strict=True))
    assert not torch.equal(data.batch(3).now, data.batch(4).now)


def test_goals_of_another_look_are_not_asked_for() -> None:
    ring = _Ring(alike=False)
    rows, _, goals, _ = batches(ring, SMALL)._drawn(np.random.default_rng(1), 512)
    episode_of = np.repeat(np.arange(len(ring.walks)), ring.lengths())
    assert (episode_of[rows] == episode_of[goals]).all()


def test_the_expectile_is_that_of_its_definition() -> None:
    """Of 2 and 4, equally often, the 0.1-expectile is 2.2: 0.9 * 0.2 = 0.1 * 1.8."""
    wanted, exact = torch.tensor([2.0, 4.0]), torch.tensor([False, False])
    at = torch.tensor(2.2, requires_grad=True)
    expectile_error(at.expand(2), wanted, exact, 0.1).backward()
    assert at.grad is not None and abs(float(at.grad)) < 1e-6
    known = torch.tensor(3.0, requires_grad=True)
    expectile_error(known.expand(2), wanted, ~exact, 0.1).backward()
    assert known.grad is not None and abs(float(known.grad)) < 1e-6


@pytest.mark.parametrize(
    ("changes", "words"),
    [({"expectile": 0.0}, "expectile"), ({"expectile": 0.7}, "short ways"), ({"lookahead": 0}, "look ahead"),
     ({"elsewhere": 1.5}, "shares of goals"), ({"ema": 1.0}, "momentum")],
)  # fmt: skip
def test_settings_that_mean_nothing_are_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        replace(SMALL, **changes)


def trained(store: Path, plain: Path, out: Path, **more: Any) -> Any:
    model = WorldModel.from_pretrained(plain)
    return train_critic(model, Source(store), out, SMALL, training(6, optimizer="adamw"), CPU, **more)


def test_a_run_leaves_the_model_with_its_critic_and_goes_on_to_the_bit(
    store: Path, plain: Path, tmp_path: Path
) -> None:
    result, figures = trained(store, plain, tmp_path / "a")
    assert result.finished and set(figures) == {"order", "order_by_distance"}
    stopped, none = trained(store, plain, tmp_path / "b", stop_at=4)
    assert not stopped.finished and not none and not (tmp_path / "b/model").exists()
    trained(store, plain, tmp_path / "b")
    folders = plain, tmp_path / "a/model", tmp_path / "b/model"
    before, one, other = (WorldModel.from_pretrained(folder) for folder in folders)
    for name, tensor in one.state_dict().items():
        assert torch.equal(tensor, other.state_dict()[name]), name
    for name, tensor in before.state_dict().items():
        assert torch.equal(tensor, one.state_dict()[name]), name
    assert one.critic is not None and one.config.search is not None and one.config.search.critic == 0.3
    assert json.loads((tmp_path / "a/model/config.json").read_text())["training"]["critic"]["steps"] == 6
    assert control_settings(one, horizon=None).critic == 0.3 and control_settings(before, horizon=None).critic == 0.0
    assert control_settings(one, horizon=None, critic=0.0).critic == 0.0


def test_logs_of_another_robot_are_refused(plain: Path, tmp_path: Path) -> None:
    from moving_dot import spec

    from vjepa_mpc.datasets.store import ZarrStore

    named = replace(spec(), state_names=("u", "v"))
    with ZarrStore.create(tmp_path / "other.zarr", named) as writer:
        writer.append(episode(0))
    with pytest.raises(InputError, match="state_names"):
        trained(tmp_path / "other.zarr", plain, tmp_path / "run")
    seen = replace(spec(), cameras={"elsewhere": next(iter(spec().cameras.values()))})
    with ZarrStore.create(tmp_path / "seen.zarr", seen) as writer:
        whole = episode(0)
        writer.append(replace(whole, images={"elsewhere": next(iter(whole.images.values()))}))
    with pytest.raises(InputError, match="name one of them"):
        trained(tmp_path / "seen.zarr", plain, tmp_path / "run")
    with ZarrStore.create(tmp_path / "still.zarr", spec()) as writer:
        writer.append(replace(whole, **{name: getattr(whole, name)[:1] for name in ("states", "times")},
                              images={name: one[:1] for name, one in whole.images.items()}, actions=whole.actions[:0]))
        writer.append(whole)
    with pytest.raises(InputError, match="none has two frames"):
        trained(tmp_path / "still.zarr", plain, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_training_on_keeps_a_critic_that_still_counts_the_same(store: Path, plain: Path, tmp_path: Path) -> None:
    from vjepa_mpc.datasets.store import ZarrStore
    from vjepa_mpc.pretrain.starting import continued_model

    trained(store, plain, tmp_path)
    logs = ZarrStore.open(store)
    kept = continued_model(WorldModel.from_pretrained(tmp_path / "model"), logs, next(iter(logs.spec.cameras)))
    assert kept.critic is not None and kept.config.critic is not None
    slow = WorldModel.from_pretrained(tmp_path / "model")
    slow.config = replace(slow.config, robot=replace(slow.config.robot, control_period_s=1.0))
    lost = continued_model(slow, logs, next(iter(logs.spec.cameras)), other_period=True)
    assert lost.critic is None and lost.config.critic is None and lost.config.search is not None
    assert lost.config.search.critic is None


def test_plans_pay_for_the_steps_that_the_critic_foresees(store: Path, plain: Path, tmp_path: Path) -> None:
    trained(store, plain, tmp_path)
    model = WorldModel.from_pretrained(tmp_path / "model")
    latent = model.config.latent
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        latents = torch.randn(1, 3, 2, latent.positions, latent.dim)
        goal, states = torch.randn(1, latent.positions, latent.dim), torch.rand(1, 3, 2, 2)
    rollout, actions, problem = Rollout(latents, states), torch.zeros(1, 3, 2, 2), torch.tensor([0])
    cost = StepsToGoal(model, goal, 0.5, running=1.0, nearest=0.25)(rollout, actions, problem)
    for candidate in range(3):
        steps = [
            float(model.steps_to(latents[0, candidate, frame], states[0, candidate, frame], goal[0])) for frame in (0,
            1) ]
        wanted = 0.5 * (0.75 * (steps[0] + steps[1]) / 2 + 0.25 * min(steps))
        assert float(cost[0, candidate]) == pytest.approx(wanted, rel=1e-5)
    near = GoalDistance(goal, running=1.0, nearest=0.25)(rollout, actions, problem)
    assert near.shape == cost.shape and torch.equal(over_horizon(latents[..., 0, 0], 0.0, 0.0), latents[..., -1, 0, 0])


def test_a_model_without_a_critic_is_not_asked(plain: Path) -> None:
    model = WorldModel.from_pretrained(plain)
    with pytest.raises(InputError, match="no critic to ask"):
        control_settings(model, horizon=None, critic=0.5)
    with pytest.raises(InputError, match="train-critic"):
        model.steps_to(torch.zeros(1, 1, 1), torch.zeros(1, 2), torch.zeros(1, 1, 1))
    with pytest.raises(InputError, match="critic that it has not"):
        replace(model.config, search=SearchDefaults(critic=0.3))
    with pytest.raises(InputError, match="critic weight of 0 or more"):
        SearchDefaults(critic=-1.0)
    with pytest.raises(InputError, match="other latents"):
        replace(model.config, critic=CriticConfig(999, 3, 0))
    latent = model.config.latent
    with pytest.raises(InputError, match="999 features"):
        model.get_critic(Critic(CriticConfig(latent.positions, latent.dim, 999)))
    assert model.critic is None and model.config.critic is None
    with pytest.raises(InputError, match="at least 1"):
        Critic(CriticConfig(1, 0, 0))


def test_the_command_line(store: Path, plain: Path, tmp_path: Path, leave: Callable[..., Any]) -> None:
    short = "--steps", 2, "--batch", 8
    code, out, told = leave("train-critic", plain, store, *short, "--weight", 0.5, "--most", 40, "--out", tmp_path)
    assert code == 0 and "done after 2 steps" in out and "rank correlation" in told
    before, after = WorldModel.from_pretrained(plain), WorldModel.from_pretrained(tmp_path / "model")
    assert after.config.search is not None and after.config.search.critic == 0.5
    assert all(torch.equal(tensor, after.state_dict()[name]) for name, tensor in before.state_dict().items())
    assert "train-critic" in (tmp_path / "model/README.md").read_text()
    assert json.loads((tmp_path / "settings.json").read_text())["settings"]["critic"]["most"] == 40
    code, out, told = leave("train-critic", plain, store, *short, "--weight", "inf", "--out", tmp_path / "b")
    assert code == 2 and "critic weight" in told and not (tmp_path / "b").exists()
    code, out, told = leave("train-critic", plain, store, "--steps", 2, "--minutes", 1, "--out", tmp_path / "b")
    assert code == 2 and "not both" in told and "Traceback" not in told
    code, out, told = leave("train-critic", plain, tmp_path / "none.zarr", "--steps", 2, "--out", tmp_path / "b")
    assert code == 2 and "none.zarr" in told and "Traceback" not in told
    code, out, told = leave("evaluate", "--model", "reacher", "--critic", 0.3, "--pairs", 1)
    assert code == 2 and "no critic to ask" in told
