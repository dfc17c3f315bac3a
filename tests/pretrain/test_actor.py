"""The actor: ways to a goal from logs in hindsight, its run, and what it proposes to planners."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from moving_dot import LIMIT, episode, make_store, spec, training

from vjepa_mpc.acting import following
from vjepa_mpc.actor import Actor, ActorConfig, Mixture
from vjepa_mpc.apprentice import Driver
from vjepa_mpc.cli.building import control_settings, own_planner
from vjepa_mpc.controller import Controller, ControllerState, ControlSettings, folded
from vjepa_mpc.core.errors import InputError
from vjepa_mpc.datasets.store import ZarrStore
from vjepa_mpc.exploration import EpisodeSettings, simulate_episode
from vjepa_mpc.planners.base import ActionPlan
from vjepa_mpc.planners.cem import CEM, CEMSettings
from vjepa_mpc.policies import ActorPolicy
from vjepa_mpc.pretrain.actor import ActorLearner, BestWeights, likelihood_of, train_actor
from vjepa_mpc.pretrain.actor_data import (
    ActorSettings,
    RelabelledBatches,
    steps_left,
    store_examples,
    store_steps_left,
)
from vjepa_mpc.pretrain.source import Source
from vjepa_mpc.robots.base import Observation
from vjepa_mpc.robots.reacher import Reacher
from vjepa_mpc.world_model import SearchDefaults, WorldModel

CPU = torch.device("cpu")
PLACES, DIM = 12, 16
SMALL = ActorSettings(ahead=4, span=6, components=2, channels=8, width=32)


class _Ring:
    """Walks round a ring of twelve places, seen as random vectors: half of them the one way, half the other."""

    def __init__(self) -> None:
        rng = np.random.default_rng(0)
        turns = np.where(np.arange(40) % 2, 1, -1)
        walks = [(rng.integers(PLACES) + turn * np.arange(25)) % PLACES for turn in turns]
        self.places = np.concatenate(walks)
        self.actions = np.repeat(turns, 25)[:, None].astype(np.float32)
        self.lengths = np.full(40, 25)
        self.looks = rng.normal(size=(PLACES, 1, DIM)).astype(np.float16)

    def take(self, rows: np.ndarray) -> np.ndarray:
        return self.looks[self.places[rows]]

    def batches(self, settings: ActorSettings, seed: int = 0) -> RelabelledBatches:
        states = np.zeros((len(self.places), 1), np.float32)
        return RelabelledBatches(self.take, states, self.actions, self.lengths, range(40), settings, 256, seed)


def test_it_learns_the_short_way_round_and_both_where_both_are_as_long() -> None:
    """To the opposite place half of the walks go one way and half the other: their mean would go nowhere."""
    ring = _Ring()
    data, none = ring.batches(SMALL), torch.zeros(256, 0)
    actor = fresh_actor(ActorConfig(1, DIM, 0, 64, 128, 4, 2, actions=1))
    optimiser = torch.optim.Adam(actor.parameters(), 2e-3)
    for step in range(600):
        way = data.batch(step)
        loss = -actor(way.now, none, way.goal, none).log_likelihood(way.actions).mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    looks = torch.from_numpy(ring.looks.astype(np.float32))
    place, nothing = torch.arange(PLACES), torch.zeros(PLACES, 0)
    for away in range(-5, 6):
        with torch.no_grad():
            likeliest = actor(looks[place], nothing, looks[(place + away) % PLACES], nothing).in_order()[:, 0]
        wanted = torch.sign(torch.tensor(float(away))) * (torch.arange(4) < abs(away))
        assert float((likeliest[..., 0] - wanted).abs().max()) < 0.25, away
    with torch.no_grad():
        opposite = actor(looks[place], nothing, looks[(place + 6) % PLACES], nothing)
    first = opposite.means[:, :, 0, 0]
    assert bool((first.prod(dim=1) < -0.8).all()) and float(opposite.log_weights.exp().min()) > 0.3


def fresh_actor(config: ActorConfig, seed: int = 0) -> Actor:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Actor(config)


def test_hindsight_says_what_the_log_holds() -> None:
    ring, settings = _Ring(), replace(SMALL, ahead=5)
    numbered = np.arange(len(ring.places), dtype=np.float32)[:, None]
    ring.actions = numbered + 1
    data = ring.batches(settings)
    episode_of = np.repeat(np.arange(40), 25)
    rows, left = data._drawn(np.random.default_rng(0), 2000)
    assert (episode_of[rows + left] == episode_of[rows]).all() and left.min() == 0 and left.max() == settings.span
    for row, steps, way in zip(rows, left, data._done(rows, left)[..., 0], strict=True):
        taken = min(steps, 5)
        assert way[:taken].tolist() == [row + 1 + step for step in range(taken)] and not way[taken:].any()
    again = ring.batches(settings)
    assert all(torch.equal(a, b) for a, b in zip(data.batch(3)[:4], again.batch(3)[:4], strict=True))
    assert not torch.equal(data.batch(3).actions, data.batch(4).actions)
    assert torch.equal(data.held(50).actions, data.actions(50))


def mixture(rows: int = 3) -> Mixture:
    rng = torch.Generator().manual_seed(2)
    shape = rows, 4, 5, 2
    logits = torch.randn(rows, 4, generator=rng)
    means, scales = torch.randn(shape, generator=rng), 0.1 + torch.rand(shape, generator=rng)
    return Mixture(logits.log_softmax(-1), means, scales)


def test_the_likelihood_is_that_of_a_mixture() -> None:
    said, actions = mixture(), torch.randn(3, 5, 2, generator=torch.Generator().manual_seed(3))
    parts = torch.distributions.Independent(torch.distributions.Normal(said.means, said.scales), 2)
    whole = torch.distributions.MixtureSameFamily(torch.distributions.Categorical(logits=said.log_weights), parts)
    torch.testing.assert_close(said.log_likelihood(actions), whole.log_prob(actions))


def test_proposals_are_means_the_likeliest_first_then_draws_of_ones_own() -> None:
    said = mixture()
    before = torch.get_rng_state()
    found = said.proposals(5000, [torch.Generator().manual_seed(seed) for seed in range(3)])
    assert torch.equal(torch.get_rng_state(), before) and found.shape == (3, 5000, 5, 2)
    for row in range(3):
        order = said.log_weights[row].argsort(descending=True)
        assert torch.equal(found[row, :4], said.means[row, order])
        one = Mixture(said.log_weights[row : row + 1], said.means[row : row + 1], said.scales[row : row + 1])
        assert torch.equal(one.proposals(5000, [torch.Generator().manual_seed(row)])[0], found[row])
        mean = (said.log_weights[row].exp()[:, None, None] * said.means[row]).sum(0)
        torch.testing.assert_close(found[row, 4:].mean(0), mean, atol=0.1, rtol=0)
    assert torch.equal(said.proposals(2, []), found[:, :2])  # nothing is drawn


def test_plans_are_folded_to_the_steps_that_are_planned() -> None:
    actions = torch.arange(1.0, 6.0).expand(1, 2, 5)[..., None]
    assert folded(actions, 2, 2)[0, 0, :, 0].tolist() == [3.0, 7.0]
    assert folded(actions, 4, 2)[0, 1, :, 0].tolist() == [3.0, 7.0, 5.0, 0.0]  # what is not said holds still
    assert torch.equal(folded(actions, 5, 1), actions)


@pytest.mark.parametrize("changes", [{"ahead": 0}, {"components": 0}, {"actions": 0}, {"width": 0}])
def test_sizes_that_mean_nothing_are_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="at least 1"):
        replace(ActorConfig(1, 3, 0, actions=2), **changes)
    with pytest.raises(InputError, match="1 control step away"):
        replace(SMALL, span=0)


def trained(store: Path, plain: Path, out: Path, **more: Any) -> Any:
    model = WorldModel.from_pretrained(plain)
    return train_actor(model, Source(store), out, SMALL, training(6, optimizer="adamw"), CPU, **more)


@pytest.fixture(scope="module")
def acting(store: Path, plain: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("acting")
    trained(store, plain, out)
    return out / "model"


def test_a_run_leaves_the_model_with_its_actor_and_goes_on_to_the_bit(
    store: Path, plain: Path, acting: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vjepa_mpc.pretrain.actor.LOOK_EVERY", 2)
    result, figures = trained(store, plain, tmp_path / "a")
    names = {"likelihood", "likelihood_of_mean", "error", "error_of_mean", "best_after_steps"}
    assert result.finished and set(figures) == names
    stopped, none = trained(store, plain, tmp_path / "b", stop_at=3)
    assert not stopped.finished and not none and not (tmp_path / "b/model").exists()
    trained(store, plain, tmp_path / "b")
    folders = plain, tmp_path / "a/model", tmp_path / "b/model"
    before, one, other = (WorldModel.from_pretrained(folder) for folder in folders)
    for name, tensor in one.state_dict().items():
        assert torch.equal(tensor, other.state_dict()[name]), name
    for name, tensor in before.state_dict().items():
        assert torch.equal(tensor, one.state_dict()[name]), name
    assert one.actor is not None and one.config.search is not None and one.config.search.propose == 8
    assert json.loads((tmp_path / "a/model/config.json").read_text())["training"]["actor"]["steps"] == 6
    rows = [json.loads(line) for line in (tmp_path / "a/log.jsonl").read_text().splitlines()]
    assert len({row["held_out"] for row in rows}) > 1
    assert control_settings(one, horizon=None).propose == 8 and control_settings(before, horizon=None).propose == 0
    assert control_settings(one, horizon=None, propose=0).propose == 0


def test_goals_are_of_what_was_done_in_one_go() -> None:
    assert steps_left(np.array([6, 4]), [[0, 2, 3], []]).tolist() == [2, 1, 1, 2, 1, 0, 3, 2, 1, 0]
    assert steps_left(np.array([3]), [[0, 2, 3]]).tolist() == [2, 1, 0], "what begins at the last frame was never done"
    ring = _Ring()
    left = np.arange(len(ring.places))[::-1] % 5
    none = np.zeros((len(ring.places), 1), np.float32)
    given = ring.take, none, ring.actions, ring.lengths, range(40), SMALL, 500, 0
    rows, ahead = RelabelledBatches(*given, left)._drawn(np.random.default_rng(0), 500)
    assert (ahead <= left[rows]).all() and {0, 1, 2, 3, 4} == set(ahead.tolist())
    given = *given[:5], replace(SMALL, ends=0.75, span=3), *given[6:]
    rows, ahead = RelabelledBatches(*given, left)._drawn(np.random.default_rng(0), 500)
    farthest = left[rows].clip(max=3)
    assert (ahead <= farthest).all() and 0.75 < (ahead == farthest)[farthest > 0].mean() < 0.95
    with pytest.raises(InputError, match="ends"):
        replace(SMALL, ends=1.5)


def test_what_goes_somewhere_is_one_thing_to_do(tmp_path: Path) -> None:
    pieces: list[Any] = [
        [[0, "smooth"], [2, "hold"], [3, "script"], [5, "full_speed"], [6, "demonstration"]],
        None, [["reach", 0]], [{"first": 0}], ["reach", "hold"], [[0, "reach"], [4, "reach"]],
    ]  # fmt: skip
    with ZarrStore.create(tmp_path / "told.zarr", spec()) as writer:
        for told in pieces:
            metadata = {} if told is None else {"behaviours": told}
            writer.append(replace(episode(0, 8), metadata=metadata))
    left = store_steps_left(ZarrStore.open(tmp_path / "told.zarr")).reshape(len(pieces), 8)
    assert left[0].tolist() == [3, 2, 1, 2, 1, 1, 1, 0]
    assert (left[1:5] == np.arange(7, -1, -1)).all(), "metadata of another form says nothing"
    assert left[5].tolist() == [4, 3, 2, 1, 3, 2, 1, 0]
    assert store_examples(ZarrStore.open(tmp_path / "told.zarr")).all()


def test_what_an_apprentice_did_is_no_example(plain: Path, tmp_path: Path) -> None:
    driven: list[Any] = [
        [[0, "actor"], [3, "demonstration"], [6, "actor"]], [[0, "smooth"]], [[0, "actor"]],
        [[0, "actor"], [7, "hold"]],
    ]  # fmt: skip
    with ZarrStore.create(tmp_path / "driven.zarr", spec()) as writer:
        for told in driven:
            writer.append(replace(episode(len(writer), 8), metadata={"behaviours": told}))
    store = ZarrStore.open(tmp_path / "driven.zarr")
    example = store_examples(store)
    assert example.reshape(4, 8).astype(int).tolist() == [
        [0, 0, 0, 1, 1, 1, 0, 0], [1] * 8, [0] * 8, [0] * 7 + [1]
    ]  # fmt: skip
    assert store_examples(store, ["demonstration"]).sum() == 3 and not store_examples(store, ["script"]).any()
    left = store_steps_left(store)
    assert left[:8].tolist() == [3, 2, 1, 3, 2, 1, 1, 0], "nor is what it came to the end of a demonstration"

    def batches(episodes: Sequence[int]) -> RelabelledBatches:
        rows = np.zeros((32, 1), np.float32)
        return RelabelledBatches(_Ring().take, rows, rows, store.lengths(), episodes, SMALL, 500, 0, left, example)

    rows, _ = batches(range(4))._drawn(np.random.default_rng(0), 500)
    assert set(rows.tolist()) == {3, 4, 5, *range(8, 15)}, "last frames have no action"
    with pytest.raises(InputError, match="to learn from"):
        batches([2, 3])
    with ZarrStore.create(tmp_path / "all.zarr", spec()) as writer:
        for number in range(4):
            writer.append(replace(episode(number, 8), metadata={"behaviours": [[0, "actor"]]}))
    with pytest.raises(InputError, match=r"all\.zarr: .* an actor did them all"):
        trained(tmp_path / "all.zarr", plain, tmp_path / "out")
    some = replace(SMALL, behaviours=("demonstration", "script"))
    with pytest.raises(InputError, match="none of them is of demonstration, script; they hold actor"):
        train_actor(WorldModel.from_pretrained(plain), Source(tmp_path / "all.zarr"), tmp_path / "out", some,
                    training(6, optimizer="adamw"), CPU)  # fmt: skip
    assert not (tmp_path / "out").exists() and not list(tmp_path.glob("*.cache")), "before anything takes time"


@pytest.mark.parametrize(
    "told", [[[4, "demonstration"], [0, "actor"]], [[0, "actor"], [-3, "demonstration"]], [[0, "actor"], [8, "hold"]],
             [[0, "actor"], [0, "hold"]]],
)  # fmt: skip
def test_behaviours_out_of_order_say_nothing(told: list[Any], tmp_path: Path) -> None:
    with ZarrStore.create(tmp_path / "odd.zarr", spec()) as writer:
        writer.append(replace(episode(0, 8), metadata={"behaviours": told}))
    store = ZarrStore.open(tmp_path / "odd.zarr")
    assert store_examples(store).all() and store_steps_left(store)[0] == 7


def test_averaged_weights_follow_by_the_formula_and_are_the_ones_judged(
    plain: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def said(model: WorldModel, actor: Actor, batch: Any) -> Mixture:  # of the ring, which no model has seen
        return actor(batch.now, batch.states[:, :0], batch.goal, batch.states)

    monkeypatch.setattr("vjepa_mpc.pretrain.actor.predict", said)
    ring, model = _Ring(), WorldModel.from_pretrained(plain)
    data = ring.batches(replace(SMALL, ema=0.5))
    actor = fresh_actor(ActorConfig(1, DIM, 0, 8, 16, 4, 2, actions=1))
    learner = ActorLearner(model, actor, data, data.held(20), CPU)
    wanted, given = actor.read.bias.detach().clone(), torch.linspace(-1, 1, len(actor.read.bias))
    for step, momentum in enumerate([0.1, 2 / 11, 0.25]):  # (1 + step) / (10 + step), until that is `ema`
        with torch.no_grad():
            actor.read.bias.copy_(given * (step + 1))
        learner.after_step(step)
        wanted = momentum * wanted + (1 - momentum) * given * (step + 1)
        torch.testing.assert_close(learner.averaged.read.bias, wanted)
    learner.look(3)
    held = data.held(20)
    assert torch.equal(learner.kept.latest, likelihood_of(held, said(model, learner.averaged, held)))
    learner.kept.best.fill_(-torch.inf)
    learner.look(4)
    assert torch.equal(learner.kept.actor.read.bias, learner.averaged.read.bias)
    learner.after_step(100)
    torch.testing.assert_close(learner.averaged.read.bias, 0.5 * wanted + 0.5 * actor.read.bias)
    with pytest.raises(InputError, match="below 1"):
        replace(SMALL, ema=1.0)


def test_the_weights_that_say_most_of_other_episodes_are_kept() -> None:
    actor = fresh_actor(ActorConfig(1, DIM, 0, 8, 16, actions=1))
    kept = BestWeights(actor)
    for step, likelihood in enumerate([0.1, 0.7, 0.3], start=1):
        with torch.no_grad():
            actor.read.bias.fill_(float(step))
        kept.look(actor, torch.tensor(likelihood), step)
    assert int(kept.steps) == 2 and float(kept.actor.read.bias[0]) == 2.0
    assert float(kept.best) == pytest.approx(0.7) and float(kept.latest) == pytest.approx(0.3)


def test_logs_it_cannot_learn_from_are_refused(store: Path, plain: Path, tmp_path: Path) -> None:
    from moving_dot import spec

    from vjepa_mpc.datasets.store import ZarrStore

    named = replace(spec(), state_names=("u", "v"))
    with ZarrStore.create(tmp_path / "other.zarr", named) as writer:
        writer.append(episode(0))
    with pytest.raises(InputError, match="state_names"):
        trained(tmp_path / "other.zarr", plain, tmp_path / "run")
    with pytest.raises(InputError, match="at least 3 episodes"):
        trained(make_store(tmp_path / "two.zarr", episodes=2), plain, tmp_path / "run")
    with pytest.raises(InputError, match="0 or more proposals"):
        trained(store, plain, tmp_path / "run", propose=-1)
    assert not (tmp_path / "run").exists()


def test_training_on_keeps_an_actor_whose_steps_stay_the_same(store: Path, acting: Path) -> None:
    from vjepa_mpc.datasets.store import ZarrStore
    from vjepa_mpc.pretrain.starting import continued_model

    logs = ZarrStore.open(store)
    kept = continued_model(WorldModel.from_pretrained(acting), logs, next(iter(logs.spec.cameras)))
    assert kept.actor is not None and kept.config.actor is not None
    slow = WorldModel.from_pretrained(acting)
    slow.config = replace(slow.config, robot=replace(slow.config.robot, control_period_s=1.0))
    lost = continued_model(slow, logs, next(iter(logs.spec.cameras)), other_period=True)
    assert lost.actor is None and lost.config.actor is None and lost.config.search is not None
    assert lost.config.search.propose is None


def test_an_actor_is_dropped_for_a_robot_of_other_limits(monkeypatch: pytest.MonkeyPatch, store: Path) -> None:
    """It says shares of them; a pose's limits become the store's."""
    from vjepa_mpc.cli.building import SHIPPED_MODELS
    from vjepa_mpc.datasets.store import ZarrStore
    from vjepa_mpc.pretrain import starting

    own = WorldModel.from_pretrained(SHIPPED_MODELS / "panda-reach").config
    for factor in (1.0, 2.0):
        robot = replace(own.robot, action_high=tuple(factor * high for high in own.robot.action_high))
        monkeypatch.setattr(starting, "robot_of", lambda store, robot=robot: robot)
        model = WorldModel.from_pretrained(SHIPPED_MODELS / "panda-reach")
        found = starting.continued_model(model, ZarrStore.open(store), own.camera)
        assert (found.actor is not None) == (factor == 1.0)


def test_a_critic_and_an_actor_live_in_one_model(store: Path, acting: Path, tmp_path: Path) -> None:
    from vjepa_mpc.pretrain.critic import CriticSettings, train_critic

    model = WorldModel.from_pretrained(acting)
    settings = CriticSettings(channels=8, width=32, lookahead=2)
    train_critic(model, Source(store), tmp_path, settings, training(2, optimizer="adamw"), CPU)
    both = WorldModel.from_pretrained(tmp_path / "model")
    assert both.critic is not None and both.actor is not None and both.config.search is not None
    assert both.config.search.critic == 0.3 and both.config.search.propose == 8
    assert {"critic", "actor"} <= set(both.config.training)
    card = (tmp_path / "model/README.md").read_text()
    assert "docs/critic.md" in card and "docs/actor.md" in card


def test_what_a_model_proposes_is_physical_and_inside_the_limits(acting: Path) -> None:
    model = WorldModel.from_pretrained(acting)
    assert model.actor is not None
    with torch.no_grad():
        model.actor.read.bias.mul_(20)  # far beyond
    latent = model.config.latent
    rng = torch.Generator().manual_seed(0)
    latents = torch.randn(2, latent.positions, latent.dim, generator=rng)
    states, goal = torch.rand(2, 2, generator=rng), torch.randn(1, latent.positions, latent.dim, generator=rng)
    before = torch.get_rng_state()
    found = model.propose(latents, states, goal, 7, [torch.Generator().manual_seed(seed) for seed in (4, 5)])
    assert torch.equal(torch.get_rng_state(), before) and found.shape == (2, 7, 4, 2)
    assert float(found.abs().max()) == pytest.approx(LIMIT)
    alone = model.propose(latents[1:], states[1:], goal, 7, [torch.Generator().manual_seed(5)])
    torch.testing.assert_close(alone[0], found[1])
    with torch.no_grad():
        said = model.actor(latents, model.states.state_features(states), goal, states).in_order()
    torch.testing.assert_close(found[:, :2], (LIMIT * said).clamp(-LIMIT, LIMIT))
    with pytest.raises(InputError, match="one generator for each of 2 frames"):
        model.propose(latents, states, goal, 7)
    with pytest.raises(InputError, match="1 proposal or more"):
        model.propose(latents, states, goal, 0)


class _Watched(CEM):
    """Keeps what it is handed."""

    given: Sequence[torch.Tensor] = ()

    def plan(self, *arguments: Any, suggestions: torch.Tensor | None = None, **more: Any) -> ActionPlan:
        self.given = [*self.given, *([] if suggestions is None else [suggestions])]
        return super().plan(*arguments, suggestions=suggestions, **more)


def test_a_controller_hands_proposals_to_its_planner(acting: Path) -> None:
    model = WorldModel.from_pretrained(acting)  # two control steps a model step, two steps ahead
    planner = _Watched(model.action_bounds, CEMSettings(samples=12, elites=4, iterations=2))
    rng = np.random.default_rng(0)
    goal, seen = rng.integers(0, 255, (2, 16, 16, 3), dtype=np.uint8)
    view = Observation({"top": seen}, np.array([0.3, -0.2], np.float32), 0.0)
    controller = Controller(
        model, planner, goal, ControlSettings(horizon=2, propose=5), torch.Generator().manual_seed(3)
    )
    _, state = controller.step(view, ControllerState())
    states = torch.tensor([[0.3, -0.2]])
    wanted = model.propose(
        model.encode(seen[None]), states, controller.goal, 5, [torch.Generator().manual_seed(3)]
    )
    torch.testing.assert_close(planner.given[0], wanted.unflatten(2, (2, 2)).sum(3))
    earlier = torch.full((3, 2, 2), 0.125)
    controller.step(view, replace(controller.applied(np.zeros(2), state), others=earlier))
    assert planner.given[1].shape == (1, 8, 2, 2) and torch.equal(planner.given[1][0, :3], earlier)
    none = Controller(model, planner, goal, ControlSettings(horizon=2), torch.Generator().manual_seed(3))
    none.step(view, ControllerState())
    assert len(planner.given) == 2


def test_the_actor_by_itself_does_what_it_holds_likeliest(acting: Path) -> None:
    model = WorldModel.from_pretrained(acting)
    rng = np.random.default_rng(0)
    goal, seen = rng.integers(0, 255, (2, 16, 16, 3), dtype=np.uint8)
    policy = ActorPolicy(model)
    policy.begin(goal, np.zeros(2), 0)
    action = policy.act(Observation({"top": seen}, np.array([0.3, -0.2], np.float32), 0.0))
    wanted = model.propose(model.encode(seen[None]), torch.tensor([[0.3, -0.2]]), model.encode(goal[None]), 1)
    np.testing.assert_array_equal(action, wanted[0, 0, 0].double().numpy())
    assert policy.note(action)["evaluations"] == 0 and policy.note(action)["latent_cost"] > 0


def test_a_controller_does_what_the_actor_says_and_looks_where_that_leads(acting: Path) -> None:
    model = WorldModel.from_pretrained(acting)
    image, goal = (np.random.default_rng(seed).integers(0, 256, (16, 16, 3), dtype=np.uint8) for seed in (3, 4))
    seen = Observation({"top": image}, np.array([0.3, -0.2], np.float32), 0.0)
    for drawn in (None, True):
        assert model.config.search is not None
        model.searched(replace(model.config.search, actor_drawn=drawn))
        planner, settings = following(model)
        controller = Controller(model, planner, goal, settings, torch.Generator().manual_seed(5))
        policy, state, said = ActorPolicy(model), ControllerState(), set[bytes]()
        policy.begin(goal, np.zeros(2, np.float32), 5)
        for _ in range(8):
            decision, state = controller.step(seen, state)
            np.testing.assert_allclose(decision.action, policy.act(seen), atol=1e-6)
            assert decision.plan.evaluations == 1 and np.isfinite(float(decision.plan.cost[0]))
            state = controller.applied(decision.action, state)
            said.add(decision.action.round(5).tobytes())
        assert len(said) == (SMALL.components if drawn else 1)
    here = Controller(model, planner, image, settings, torch.Generator().manual_seed(5))
    policy.begin(image, np.zeros(2, np.float32), 5)
    decision, _ = here.step(seen, ControllerState())
    assert decision.latent_cost == 0 and decision.action.any()
    np.testing.assert_allclose(decision.action, policy.act(seen), atol=1e-6, err_msg="at the goal, too")


def test_models_may_be_used_to_their_actor(acting: Path, plain: Path) -> None:
    model, without = WorldModel.from_pretrained(acting), WorldModel.from_pretrained(plain)
    assert own_planner([model], None, said=False) == "cem"
    model.searched(SearchDefaults(planner="actor"))
    assert own_planner([model], None, said=False) == "actor" and own_planner([model], None, said=True) == "cem"
    assert own_planner([model], "icem", said=False) == "icem"
    assert own_planner([model, without], None, said=False) == "cem" == own_planner([], None, said=False)
    with pytest.raises(InputError, match="an actor that it has not"):
        replace(without.config, search=SearchDefaults(planner="actor"))
    with pytest.raises(InputError, match="not to 'cem'"):
        SearchDefaults(planner="cem")


def test_an_actor_finishes_what_it_began_before_it_looks_again(acting: Path) -> None:
    model = WorldModel.from_pretrained(acting)
    rng = np.random.default_rng(0)
    goal, *seen = rng.integers(0, 255, (4, 16, 16, 3), dtype=np.uint8)
    views = [Observation({"top": picture}, np.array([0.3, -0.2], np.float32), 0.0) for picture in seen]

    def said(view: Observation) -> np.ndarray:
        latents = model.encode(view.images["top"][None]), model.encode(goal[None])
        return model.propose(latents[0], torch.tensor([[0.3, -0.2]]), latents[1], 1)[0, 0].double().numpy()

    def done(policy: ActorPolicy) -> np.ndarray:
        policy.begin(goal, np.zeros(2), 0)
        return np.stack([policy.act(view) for view in views])

    wanted = np.stack([said(views[0])[0], said(views[0])[1], said(views[2])[0]])
    for policy in (ActorPolicy(model, steps=2), ActorPolicy(model.searched(SearchDefaults(actor_steps=2)))):
        np.testing.assert_array_equal(done(policy), wanted)
        np.testing.assert_array_equal(done(policy), wanted, "a new episode begins anew")
    planner, settings = following(model)
    controller, state = Controller(model, planner, goal, settings, torch.Generator()), ControllerState()
    for view, action in zip(views, wanted, strict=True):  # as `plan --planner actor` does
        decision, state = controller.step(view, state)
        np.testing.assert_allclose(decision.action, action, atol=1e-6)
        state = controller.applied(decision.action, state)
    np.testing.assert_array_equal(done(ActorPolicy(model, steps=1))[1], said(views[1])[0])
    with pytest.raises(InputError, match="4 control steps ahead: it cannot do 5"):
        ActorPolicy(model, steps=5)


def test_a_model_without_an_actor_is_not_asked(plain: Path) -> None:
    model = WorldModel.from_pretrained(plain)
    with pytest.raises(InputError, match="no actor to ask; `vjepa-mpc train-actor"):
        control_settings(model, horizon=None, propose=8)
    with pytest.raises(InputError, match="train-actor"):
        model.propose(torch.zeros(1, 1, 1), torch.zeros(1, 2), torch.zeros(1, 1, 1), 1)
    for asks in (SearchDefaults(propose=8), SearchDefaults(actor_steps=2)):
        with pytest.raises(InputError, match="actor that it has not"):
            replace(model.config, search=asks)
    with pytest.raises(InputError, match="0 plans or more"):
        ControlSettings(propose=-1)
    latent, states = model.config.latent, model.states.state_dim
    with pytest.raises(InputError, match="The actor is of other latents"):
        replace(model.config, actor=ActorConfig(999, 3, 0, actions=2))
    with pytest.raises(InputError, match="999 features"):
        model.get_actor(fresh_actor(ActorConfig(latent.positions, latent.dim, 999, actions=2)))
    with pytest.raises(InputError, match="3 values of an action"):
        model.get_actor(fresh_actor(ActorConfig(latent.positions, latent.dim, states, actions=3)))
    assert model.actor is None and model.config.actor is None


def test_the_command_line(store: Path, plain: Path, tmp_path: Path, leave: Callable[..., Any]) -> None:
    short = "--steps", 2, "--batch", 8
    code, out, told = leave("train-actor", plain, store, *short, "--propose", 3, "--span", 5, "--out", tmp_path)
    assert code == 0 and "done after 2 steps" in out and "the mean action" in told
    before, after = WorldModel.from_pretrained(plain), WorldModel.from_pretrained(tmp_path / "model")
    assert after.config.search is not None and after.config.search.propose == 3
    assert after.config.actor is not None and after.config.actor.ahead == 4  # two model steps of two control steps
    assert all(torch.equal(tensor, after.state_dict()[name]) for name, tensor in before.state_dict().items())
    assert "train-actor" in (tmp_path / "model/README.md").read_text()
    assert json.loads((tmp_path / "settings.json").read_text())["settings"]["actor"]["span"] == 5
    code, out, told = leave("train-actor", plain, store, *short, "--span", 5, "--json", "--out", tmp_path / "j")
    assert code == 0 and json.loads(out)["error_of_mean"] > 0
    for bad, words in (("--ahead", "1 control step ahead"), ("--span", "1 control step away")):
        code, out, told = leave("train-actor", plain, store, *short, bad, 0, "--out", tmp_path / "b")
        assert code == 2 and words in told and not (tmp_path / "b").exists()
    code, out, told = leave("train-actor", plain, store, *short, "--actor-steps", 5, "--out", tmp_path / "b")
    assert code == 2 and "5 steps before it looks again" in told and not (tmp_path / "b").exists()
    code, out, told = leave("train-actor", plain, store, *short, "--actor-steps", 2, "--out", tmp_path / "two")
    assert code == 0 and WorldModel.from_pretrained(tmp_path / "two/model").config.search.actor_steps == 2
    code, out, told = leave("train-actor", plain, store, "--steps", 2, "--minutes", 1, "--out", tmp_path / "b")
    assert code == 2 and "not both" in told and "Traceback" not in told
    code, out, told = leave("evaluate", "--model", "reacher", "--propose", 8, "--pairs", 1)
    assert code == 2 and "no actor to ask" in told
    code, out, told = leave("evaluate", "--model", "reacher", "--planner", "actor", "--pairs", 1)
    assert code == 2 and "no actor to play; `vjepa-mpc train-actor" in told
    code, out, told = leave("evaluate", "--model", "reacher", "--planner", "actor", "--samples", 8, "--pairs", 1)
    assert code == 2 and "plans nothing" in told
    code, out, told = leave("evaluate", "--model", "point-maze", "--actor-steps", 2, "--pairs", 1)
    assert code == 2 and "add --planner actor" in told
    goal = Path(__file__).parents[2] / "examples/goal.png"
    code, out, told = leave("plan", "--goal", goal, "--planner", "actor", "--out", tmp_path / "p")
    assert code == 2 and "no actor to play; `vjepa-mpc train-actor" in told
    code, out, told = leave("plan", "--goal", goal, "--planner", "actor", "--samples", 8, "--out", tmp_path / "p")
    assert code == 2 and "searches nothing" in told
    code, out, told = leave("bench", "scale", "--planner", "actor", "--out", tmp_path / "p")
    assert code == 2 and "name a planner here" in told


@pytest.fixture(scope="module")
def reaching(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny reacher with an actor that has learned nothing."""
    model = WorldModel.from_pretrained(tiny_model)
    latent = model.config.latent
    model.get_actor(
        fresh_actor(ActorConfig(latent.positions, latent.dim, model.states.state_dim, 8, 32, actions=2))
    )
    folder = tmp_path_factory.mktemp("reaching") / "model"
    model.save_pretrained(folder)
    return folder


def test_an_actor_drives_towards_goal_pictures_that_leave_its_world_alone(reaching: Path) -> None:
    model, seen = WorldModel.from_pretrained(reaching), list[tuple[Observation, np.ndarray]]()
    settings = EpisodeSettings(
        robot="reacher", frames=40, behaviours=(("actor", 1.0),), appearance_fraction=1.0, actor=str(reaching),
        actor_weights="some",
    )  # fmt: skip

    class Noted(Driver):
        def act(self, observation: Observation) -> np.ndarray:
            seen.append((observation, super().act(observation)))
            return seen[-1][1]

    with Reacher(64, backend="rays") as robot, Reacher(64, backend="rays") as studio:
        episode, goals = None, []
        driver = Noted(model, studio)
        begin = driver.begin
        driver.begin = lambda goal: (goals.append(goal), begin(goal))  # type: ignore[method-assign]
        episode = simulate_episode(robot, settings, 0, driver)
        number, _ = episode.metadata["behaviours"][1]
        assert episode.metadata["behaviours"][0] == [0, "actor"] and number > 2
        studio.set_appearance(episode.metadata["appearance_seed"], 1.0)
        goal = studio.place(goals[0])
    policy = ActorPolicy(model)
    policy.begin(goal.images["top"], goal.proprioception, 0)
    for step, (observation, said) in enumerate(seen[:number]):
        np.testing.assert_array_equal(observation.images["top"], episode.images["top"][step])
        np.testing.assert_array_equal(policy.act(observation), said, "the goal's picture, in this episode's looks")
    limits = np.array(robot.spec.action_high)
    off = np.abs(episode.actions[:number] - np.stack([said for _, said in seen[:number]])) / limits
    assert 0 < off.max() < 0.15 * 5, "disturbed a little"
    model.drop_actor()
    with pytest.raises(InputError, match="has no actor that could drive"):
        Driver(model, studio)


@pytest.mark.slow
@pytest.mark.parametrize("how", [("--propose", 5, "--samples", 8, "--elites", 2, "--iterations", 1, "--horizon", 2),
                                 ("--planner", "actor")])  # fmt: skip
def test_it_plays_and_workers_change_nothing(how: tuple[Any, ...], reaching: Path, leave: Callable[..., Any]) -> None:
    line = "evaluate", "--model", reaching, "--pairs", 2, "--no-floors", "--backend", "rays", "--json", *how
    played = []
    for workers in (1, 2):
        code, out, told = leave(*line, "--workers", workers)
        assert code in (0, None), told
        (row,) = json.loads(out)["results"].values()
        played.append({name: row[name] for name in ("hit", "held", "final_distance_median_m", "evaluations_per_step")})
    assert played[0] == played[1]
    if "actor" in how:
        assert played[0]["evaluations_per_step"] == 0
