"""The actor that acts as seen from what it pushes: its axes, what it reads, its run, and what it refuses."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from moving_dot import PREDICTOR, training
from PIL import Image

from vjepa_mpc.actor import ActorConfig, Mixture, ObjectView
from vjepa_mpc.collect import CollectSettings, collect
from vjepa_mpc.core.errors import InputError
from vjepa_mpc.datasets.store import ZarrStore
from vjepa_mpc.exploration import EpisodeSettings
from vjepa_mpc.object_actor import ObjectActor, Reading, make_actor, turning, view_of
from vjepa_mpc.policies import ActorPolicy
from vjepa_mpc.pretrain.actor import train_actor
from vjepa_mpc.pretrain.actor_data import ActorSettings
from vjepa_mpc.pretrain.hindsight import world_states
from vjepa_mpc.pretrain.object_poses import poses_of
from vjepa_mpc.pretrain.run import train_world_model
from vjepa_mpc.pretrain.source import Source
from vjepa_mpc.robots.factory import find_task, make_robot
from vjepa_mpc.world_model import WorldModel

CPU = torch.device("cpu")
VIEW = ObjectView((0, 1), (0, 1), 2 * math.pi, (0.1, -0.2, 0.0, 0.1, 0.05), (0.08, 0.08, 0.1, 0.1, 0.02))
CONFIG = ActorConfig(4, 6, 3, 8, 32, 2, 3, actions=3, object=VIEW)
SMALL = ActorSettings(ahead=4, span=12, components=2, channels=8, width=32, object=True)


def fresh(config: ActorConfig = CONFIG) -> ObjectActor:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        actor = make_actor(config)
    assert isinstance(actor, ObjectActor)
    return actor


def drawn(*shape: int, seed: int = 1) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def turned_mixture(rows: int = 3) -> Mixture:
    """Over two actions that are turned and one that is not."""
    axes = torch.eye(3).repeat(rows, 1, 1)
    axes[:, :2, :2] = turning(torch.linspace(-2.0, 2.5, rows))
    log_weights = drawn(rows, 4).log_softmax(-1)
    return Mixture(log_weights, drawn(rows, 4, 5, 3, seed=2), 0.1 + drawn(rows, 4, 5, 3, seed=3).abs(), axes)


def test_a_turned_mixture_is_likely_where_it_says_and_says_what_is_likely() -> None:
    said, actions = turned_mixture(), drawn(3, 5, 3, seed=4)
    axes = said.axes
    assert axes is not None
    means = torch.einsum("nij,nktj->nkti", axes, said.means)
    spreads = torch.einsum("nij,nktj,nlj->nktil", axes, said.scales.square(), axes)
    steps = torch.distributions.MultivariateNormal(means, spreads)
    whole = torch.distributions.MixtureSameFamily(
        torch.distributions.Categorical(logits=said.log_weights), torch.distributions.Independent(steps, 1)
    )
    torch.testing.assert_close(said.log_likelihood(actions), whole.log_prob(actions), rtol=1e-3, atol=1e-3)
    order = said.log_weights.argsort(dim=1, descending=True)
    torch.testing.assert_close(said.in_order(), torch.stack([means[i, order[i]] for i in range(3)]))
    found = said.proposals(6000, [torch.Generator().manual_seed(i) for i in range(3)])
    torch.testing.assert_close(found[:, :4], said.in_order())
    for row in range(3):
        wanted = (said.log_weights[row].exp()[:, None, None] * means[row]).sum(0)
        assert float((found[row, 4:].mean(0) - wanted).abs().max()) < 0.1


def test_a_way_is_drawn_as_likely_as_it_is_and_is_one_of_them() -> None:
    said = turned_mixture()
    ways, weights = said.in_order(), said.log_weights.exp().sort(dim=1, descending=True).values
    generators = [torch.Generator().manual_seed(i) for i in range(3)]
    counts = torch.zeros(3, 4)
    before = torch.get_rng_state()
    for _ in range(2000):
        way = said.drawn_means(generators)
        counts += (way[:, None] - ways).abs().amax(dim=(2, 3)) < 1e-6
    assert torch.equal(torch.get_rng_state(), before) and bool((counts.sum(1) == 2000).all())
    assert float((counts / 2000 - weights).abs().max()) < 0.04
    one = Mixture(said.log_weights[1:2], said.means[1:2], said.scales[1:2], said.axes[1:2])  # type: ignore[index]
    again, alone = [torch.Generator().manual_seed(i) for i in range(3)], [torch.Generator().manual_seed(1)]
    for _ in range(5):
        torch.testing.assert_close(one.drawn_means(alone)[0], said.drawn_means(again)[1])


def test_what_is_read_is_what_was_asked() -> None:
    reader = fresh(replace(CONFIG, object=replace(VIEW, same_after_rad=math.pi))).reader
    truth = Reading(drawn(50, 3), drawn(50, 3, seed=2))
    read = reader.understood(reader.asked(truth))
    torch.testing.assert_close(read.pose[:, :2], truth.pose[:, :2])
    torch.testing.assert_close(read.robot, truth.robot)
    half = torch.remainder(read.pose[:, 2] - truth.pose[:, 2] + 1, math.pi) - 1
    assert float(half.abs().max()) < 1e-5 and float(read.pose[:, 2].abs().max()) <= math.pi / 2
    other = Reading(truth.pose + torch.tensor([0, 0, math.pi]), truth.robot)
    torch.testing.assert_close(reader.asked(other), reader.asked(truth), atol=1e-5, rtol=0)


def test_goals_are_there_as_far_as_can_be_read(monkeypatch: pytest.MonkeyPatch) -> None:
    actor = fresh(replace(CONFIG, object=replace(VIEW, same_after_rad=math.pi)))
    monkeypatch.setattr(actor.reader, "forward", lambda picture: picture[..., 0])  # what is read of it
    goal = torch.tensor([[0.0, 0.0, 1.5]])
    off = torch.zeros(7, 3)
    off[1:4, :2] = torch.tensor([[0.009, 0], [0.011, 0], [0, -0.011]])
    off[4:, 2] = torch.tensor([0.19, 0.21, -0.19])
    frames = actor.reader.asked(Reading(goal + off, 0.1 * drawn(7, 3)))[..., None]
    turned = Reading(goal + torch.tensor([0, 0, math.pi]), torch.zeros(1, 3))
    wanted = actor.reader.asked(turned).expand(7, -1)[..., None]
    assert not actor.shows_the_same(frames, wanted).any(), "it is not known how well it reads"
    actor.reads_within(0.01 / math.sqrt(2), 0.2 / math.sqrt(2))
    assert actor.config.object is not None and actor.config.object.within == pytest.approx((0.01, 0.2), abs=1e-5)
    assert actor.shows_the_same(frames, wanted).tolist() == [True, True, False, False, True, False, True]


def test_what_to_do_turns_and_moves_with_the_scene() -> None:
    """But for what is told of the place itself, whose weights are taken away."""
    actor = fresh()
    with torch.no_grad():
        kept = torch.tensor([True] * 6 + [True, False, True, False] + [False] * 5 + [False] * 3)
        kept[[14, 17]] = True  # the robot's height, here and there
        actor.enter.weight *= kept
    pose, state = 0.1 * drawn(7, 3), 0.1 * drawn(7, 3, seed=2)
    goal = Reading(0.1 * drawn(7, 3, seed=3), 0.1 * drawn(7, 3, seed=4))
    angle, shift = torch.tensor(2.2), torch.tensor([0.3, -0.1])
    axes = turning(angle)

    def moved(places: torch.Tensor, turns: bool) -> torch.Tensor:
        rest = places[:, 2:] + angle if turns else places[:, 2:]
        return torch.cat([places[:, :2] @ axes.T + shift, rest], dim=1)

    with torch.no_grad():
        here = actor.decide(pose, state, goal)
        goal_there = Reading(moved(goal.pose, True), moved(goal.robot, False))
        there = actor.decide(moved(pose, True), moved(state, False), goal_there)
    assert float(here.means.std()) > 0.01
    wanted, found = here.in_order(), there.in_order()
    torch.testing.assert_close(found[..., :2], wanted[..., :2] @ axes.T, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(found[..., 2], wanted[..., 2], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(there.log_weights, here.log_weights, atol=1e-5, rtol=1e-4)


def test_an_object_that_looks_the_same_is_turned_the_short_way() -> None:
    actor = fresh(replace(CONFIG, object=replace(VIEW, same_after_rad=math.pi)))
    pose, state = 0.1 * drawn(7, 3), 0.1 * drawn(7, 3, seed=2)
    goal = Reading(0.1 * drawn(7, 3, seed=3), 0.1 * drawn(7, 3, seed=4))
    half = Reading(goal.pose + torch.tensor([0, 0, math.pi]), goal.robot)
    with torch.no_grad():
        torch.testing.assert_close(
            actor.decide(pose, state, half).means, actor.decide(pose, state, goal).means, atol=1e-4, rtol=1e-4
        )


def test_it_learns_to_read_and_to_push_from_behind() -> None:
    """Pictures are a fixed code of the pose; what is done is a step along the object's own x axis."""
    actor, code = fresh(), drawn(7, 24, seed=5) / 3
    optimiser = torch.optim.Adam(actor.parameters(), 3e-3)
    generator = torch.Generator().manual_seed(0)

    def scene(rows: int) -> tuple[torch.Tensor, Reading]:
        values = torch.randn(rows, 5, generator=generator) * torch.tensor(VIEW.spread) + torch.tensor(VIEW.middle)
        angle = (torch.rand(rows, 1, generator=generator) * 2 - 1) * math.pi
        truth = Reading(torch.cat([values[:, :2], angle], dim=1), values[:, 2:])
        return (actor.reader.asked(truth) @ code).tanh().unflatten(1, (4, 6)), truth

    for _ in range(700):
        (latents, now), (aim, goal) = scene(256), scene(256)
        way = torch.zeros(256, 2, 3)
        way[..., 0], way[..., 1] = now.pose[:, 2:].cos(), now.pose[:, 2:].sin()
        mixture, read, read_goal = actor.with_readings(latents, aim, now.robot)
        pairs = (read, now), (read_goal, goal)
        misread = [(said - actor.reader.asked(truth)).square().mean() for said, truth in pairs]
        loss = sum(misread) - mixture.log_likelihood(way).mean() / 6
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    (latents, now), (aim, _) = scene(500), scene(500)
    with torch.no_grad():
        likeliest = actor(latents, now.robot, aim, now.robot).in_order()[:, 0, 0]
        read = actor.reader.understood(actor.reader(latents)).pose
    off = torch.remainder(read[:, 2] - now.pose[:, 2] + math.pi, 2 * math.pi) - math.pi
    assert float(off.abs().median()) < 0.1 and float((read - now.pose)[:, :2].norm(dim=1).median()) < 0.02
    wanted = torch.stack([now.pose[:, 2].cos(), now.pose[:, 2].sin(), torch.zeros(500)], dim=1)
    assert float((likeliest - wanted).abs().median()) < 0.1


def test_no_gradient_goes_from_what_to_do_to_the_reader() -> None:
    actor = fresh()
    said = actor(drawn(4, 4, 6), drawn(4, 3), drawn(4, 4, 6, seed=2), drawn(4, 3))
    said.log_likelihood(drawn(4, 2, 3)).sum().backward()
    assert actor.enter.weight.grad is not None and float(actor.enter.weight.grad.abs().max()) > 0
    assert all(parameter.grad is None for parameter in actor.reader.parameters())


def test_tasks_say_where_what_they_push_lies() -> None:
    for name in ("push-t", "jaco-push"):
        task = find_task(name)
        pushed = task.pushed
        assert pushed is not None and task.world.names[pushed.pose[2]].endswith("angle")
        assert [task.world.names[i][-2:] for i in pushed.pose[:2]] == ["_x", "_y"]
        assert [task.spec.state_names[i] for i in pushed.place] == ["x", "y"]
        assert [task.spec.action_names[i] for i in pushed.push] == ["x_delta", "y_delta"]
    with make_robot("push-t", camera_size=8) as robot:  # counter-clockwise, along the robot's own axes
        robot.place(np.array([-0.2, -0.03, 0.0, 0.0, 0.0]))
        for _ in range(5):
            robot.apply(np.array([0.04, 0.0]))
        x, _, block_x, _, angle = robot.true_state()
        assert x > -0.05 and block_x > 0.005 and angle > 0.05, "pushed on its stem, to the right, it turns to the left"
    assert find_task("reacher").pushed is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"push": (0, 0)}, "an x and a y"), ({"place": (0, -1)}, "an x and a y"), ({"place": (0, 3)}, "a spread above"),
        ({"spread": (1.0, 1.0, 0.0, 1.0, 1.0)}, "a spread above"), ({"middle": (0.0,)}, "a spread above"),
        ({"place": (1, 1)}, "an x and a y"),
        ({"middle": (0.1, math.nan, 0.0, 0.1, 0.05)}, "finite"), ({"spread": (1.0, math.inf, 1.0, 1.0, 1.0)}, "finite"),
        ({"within": (0.1, 0.0)}, "above 0"), ({"within": (math.nan, 0.1)}, "above 0"),
        ({"same_after_rad": 1.0}, "whole share"), ({"same_after_rad": 0.0}, "whole share"),
    ],
)  # fmt: skip
def test_views_that_mean_nothing_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        replace(VIEW, **changes)


def test_an_actor_pushes_by_actions_that_it_has() -> None:
    with pytest.raises(InputError, match="numbered"):
        replace(CONFIG, object=replace(VIEW, push=(0, 3)))
    with pytest.raises(InputError, match="never moves"):
        view_of(np.zeros((5, 3)), np.zeros((5, 2)), (0, 1), (0, 1), math.pi, (1.0, 1.0))
    poses, states = np.random.default_rng(0).normal(size=(9, 3)), np.zeros((9, 2))
    spread = view_of(poses, states, (0, 1), (0, 1), math.pi, (2.0, 1.0)).spread
    assert spread[2:] == (0.02, 0.01), "what hardly varied is not told in rounding errors"


@pytest.fixture(scope="module")
def logs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("logs") / "push.zarr"
    episode = EpisodeSettings(
        robot="push-t", frames=30, appearance="plain", camera_size=16, behaviours=(("demonstration", 1.0),)
    )
    collect(CollectSettings(out, 6, episode=episode))
    return out


@pytest.fixture(scope="module")
def base(logs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("base")
    train_world_model(Source(logs), out, "pixels", PREDICTOR, training(2), CPU)
    return out / "model"


def trained(logs: Path, base: Path, out: Path, **more: Any) -> Any:
    model = WorldModel.from_pretrained(base)
    return train_actor(model, Source(logs), out, SMALL, training(6, optimizer="adamw"), CPU, **more)


def test_a_run_goes_on_to_the_bit_and_its_model_plays(logs: Path, base: Path, tmp_path: Path) -> None:
    result, figures = trained(logs, base, tmp_path / "a", drawn=True)
    assert result.finished and 0 < figures["place_m_median"] < 0.5 and 0 < figures["angle_rad_p90"] <= 3.15
    trained(logs, base, tmp_path / "b", drawn=True, stop_at=3)
    trained(logs, base, tmp_path / "b", drawn=True)
    one, other = (WorldModel.from_pretrained(tmp_path / name / "model") for name in "ab")
    for name, tensor in one.state_dict().items():
        assert torch.equal(tensor, other.state_dict()[name]), name
    assert isinstance(one.actor, ObjectActor) and one.actor.view == other.actor.view  # type: ignore[union-attr]
    poses, view = poses_of(one, ZarrStore.open(logs), range(6))
    assert poses.shape == (180, 3) and view.folds == 1 and len(view.middle) == 4
    np.testing.assert_allclose(poses, world_states(ZarrStore.open(logs))[:, 2:], atol=1e-6)
    assert one.config.search is not None and one.config.search.actor_drawn
    assert one.actor.view.within == pytest.approx(
        [math.sqrt(2) * figures[name] for name in ("place_m_p90", "angle_rad_p90")], abs=1e-5
    )
    with make_robot("push-t", camera_size=16) as robot:
        goal = robot.place(find_task("push-t").sample_pair(np.random.default_rng(0))[1])
        seen = robot.place(np.array([-0.2, -0.2, 0.0, 0.0, 0.5]))

    def way(seed: int, steps: int = 12) -> np.ndarray:
        policy = ActorPolicy(one)
        policy.begin(goal.images["top"], goal.proprioception, seed)
        return np.stack([policy.act(seen) for _ in range(steps)])

    policy, reached = ActorPolicy(one), []
    policy.begin(goal.images["top"], goal.proprioception, 0)
    for view in (goal, goal, goal, seen, goal):
        policy.act(view)
        reached.append(policy.note(np.zeros(2))["reached"])
    assert reached == [0, 0, 1, *([1, 1] if one.near(*encoded(one, seen, goal), math.inf) else [0, 0])]
    assert np.array_equal(way(0), way(0)), "equal seeds, equal episodes"
    assert len({way(0)[step].tobytes() for step in range(12)}) == SMALL.components, "it draws"
    likeliest = ActorPolicy(one, drawn=False)
    likeliest.begin(goal.images["top"], goal.proprioception, 0)
    assert len({likeliest.act(seen).tobytes() for _ in range(12)}) == 1


def encoded(model: WorldModel, *seen: Any) -> list[torch.Tensor]:
    return [model.encode(one.images["top"][None]) for one in seen]


def test_logs_and_robots_that_do_not_fit_are_refused(
    logs: Path, base: Path, store: Path, plain: Path, tmp_path: Path
) -> None:
    model = WorldModel.from_pretrained(base)
    actor = fresh(replace(CONFIG, positions=model.config.latent.positions, latent_dim=model.config.latent.dim,
                          state_dim=model.states.state_dim, actions=2))  # fmt: skip
    with pytest.raises(InputError, match="reads 3 values of the robot's state"):
        model.get_actor(actor)
    with ZarrStore.create(tmp_path / "silent.zarr", ZarrStore.open(logs).spec) as writer:
        for number in range(3):
            writer.append(replace(ZarrStore.open(logs).read(number), metadata={}))
    with pytest.raises(InputError, match="episode 0 does not say the world's state"):
        trained(tmp_path / "silent.zarr", base, tmp_path / "out")
    for told in ([[0.0]] * 30, [[None] * 5] * 30, "text", [[0.0] * 5] * 29, [[0.0] * 6] * 30):
        name = f"{len(list(tmp_path.iterdir()))}.zarr"
        with ZarrStore.create(tmp_path / name, ZarrStore.open(logs).spec) as writer:
            for number in range(3):
                writer.append(replace(ZarrStore.open(logs).read(number), metadata={"world_states": told}))
        with pytest.raises(InputError, match=r"rows of x, y, block_x, block_y, block_angle"):
            trained(tmp_path / name, base, tmp_path / "out")
    with pytest.raises(InputError, match="moves no object about on a plane"):
        trained(store, plain, tmp_path / "out")


def test_the_command_line(logs: Path, base: Path, tmp_path: Path, leave: Callable[..., Any]) -> None:
    out = tmp_path / "run"
    line = ("train-actor", base, logs, "--object", "--actor-drawn", "--mode-1", "--steps", 3, "--batch", 4,
            "--channels", 4, "--width", 16, "--ahead", 4, "--device", "cpu", "--out", out)  # fmt: skip
    code, _, told = leave(*line)
    assert code in (0, None) and "The object is read to" in told
    search = WorldModel.from_pretrained(out / "model").config.search
    assert search is not None and search.actor_drawn and search.planner == "actor"
    cem = "--planner", "cem", "--actor-drawn"
    code, _, told = leave("evaluate", "--task", "push-t", "--model", out, *cem, "--pairs", 1)
    assert code == 2 and "of the actor by itself; add --planner actor" in told
    line = "evaluate", "--task", "push-t", "--model", out, "--pairs", 1, "--no-floors", "--json"
    code, printed, told = leave(*line)
    assert code in (0, None) and "Played by the model's actor" in told
    (row,) = json.loads(printed)["results"].values()
    assert row["evaluations_per_step"] == 0
    kept = *line[:-4], "--no-floors", "--out", tmp_path / "kept"
    leave(*kept, "--pairs", 1)
    code, _, told = leave(*kept, "--pairs", 2)
    assert code in (0, None) and "1/2" in told and "2/2" in told, "it goes on from what is kept"
    code, printed, _ = leave(*line, "--actor-likeliest")
    (other,) = json.loads(printed)["results"].values()
    assert row["final_distance_median_m"] != other["final_distance_median_m"], "it draws unless told otherwise"
    with make_robot("push-t", camera_size=16) as robot:
        seen = robot.place(find_task("push-t").sample_pair(np.random.default_rng(0))[1])
        Image.fromarray(seen.images["top"]).save(tmp_path / "goal.png")
    drive = "plan", "--model", out, "--goal", tmp_path / "goal.png"
    code, _, told = leave(*drive, "--max-steps", 3, "--out", tmp_path / "p")
    assert code in (0, 3) and "Played by the model's actor" in told
    settings = json.loads((tmp_path / "p/plan.json").read_text())["settings"]
    assert settings["planner"] == "actor" and settings["planner_settings"] is None and settings["actor_drawn"]
    few = "--samples", 6, "--iterations", 1, "--elites", 2, "--max-steps", 1
    code, _, told = leave(*drive, *few, "--out", tmp_path / "q")
    assert code in (0, 3) and "Planned by cem; what this model is best at is its actor" in told


def test_a_drawing_actor_drives_by_its_draws(logs: Path, base: Path, tmp_path: Path) -> None:
    trained(logs, base, tmp_path / "a", drawn=True)
    stores = []
    for drawn in (True, False):
        episode = EpisodeSettings(
            robot="push-t", frames=20, appearance="plain", camera_size=16, behaviours=(("actor", 1.0),),
            actor=str(tmp_path / "a/model"), actor_weights="some", actor_drawn=drawn,
        )  # fmt: skip
        collect(CollectSettings(tmp_path / f"{drawn}.zarr", 2, episode=episode))
        stores.append(ZarrStore.open(tmp_path / f"{drawn}.zarr"))
    first, other = (store.read(0) for store in stores)
    assert first.metadata["behaviours"][0] == other.metadata["behaviours"][0] == [0, "actor"]
    np.testing.assert_array_equal(first.states[0], other.states[0])
    driven = min([*episode.metadata["behaviours"], [19]][1][0] for episode in (first, other))
    assert driven > 1 and not np.array_equal(first.actions[:driven], other.actions[:driven])


def test_what_an_actor_drives_by_is_in_the_recipe(tmp_path: Path) -> None:
    out = tmp_path / "some"
    settings = EpisodeSettings(robot="push-t", frames=5, camera_size=16, actor=str(out), actor_weights="some",
                               behaviours=(("actor", 1.0),))  # fmt: skip
    assert "actor_drawn" not in CollectSettings(out, 1, episode=settings).recipe()
    assert CollectSettings(out, 1, episode=replace(settings, actor_drawn=True)).recipe()["actor_drawn"] is True
