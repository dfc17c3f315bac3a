"""Every built-in world and task: contract, physical sanity, determinism, factors of variation, frozen pairs."""

from __future__ import annotations

import math
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from vjepa_mpc.core.errors import InputError
from vjepa_mpc.exploration import EpisodeSettings, mixture_of, simulate_episode
from vjepa_mpc.robots.appearance import Painter, contrast, sample_appearance
from vjepa_mpc.robots.base import Observation, SimulatedRobot
from vjepa_mpc.robots.dynamics import FACTORS, LOOKS
from vjepa_mpc.robots.factory import available_tasks, find_task, make_robot
from vjepa_mpc.robots.jaco_arm import arm_missing
from vjepa_mpc.robots.jaco_place import JacoPlace
from vjepa_mpc.robots.jaco_push import JacoPush
from vjepa_mpc.robots.push_t import PushT, PushTTask
from vjepa_mpc.robots.stage import new_stage
from vjepa_mpc.robots.tasks import load_manifest, make_manifest, manifest_names, play_script
from vjepa_mpc.robots.two_rooms import TwoRooms, TwoRoomsTask
from vjepa_mpc.robots.world import MujocoWorld
from vjepa_mpc.sanity import bold

NAMES = available_tasks()
NEW = tuple(name for name in NAMES if name != "reacher")
NOTHING_TO_TOUCH = {"jaco-reach", "panda-reach", "keep-out"}
SHA = {
    "point-maze-dev": "548f6529", "point-maze-test": "07569ae4", "two-rooms-dev": "3e32e1db",
    "two-rooms-test": "c93db84c", "push-t-dev": "bae5f45b", "push-t-test": "91e9491f",
    "jaco-reach-dev": "6a2cc5c4", "jaco-reach-test": "e6191837", "ball-in-cup-dev": "06b578f6",
    "ball-in-cup-test": "0fcb60b1", "jaco-push-dev": "0fbf8283", "jaco-push-test": "2d515355",
    "jaco-place-dev": "e7a69829", "jaco-place-test": "41c26562", "panda-reach-dev": "3cfd60d7",
    "panda-reach-test": "802a2dd1",
}  # fmt: skip
SEEDS = {name: 11 + index for index, name in enumerate(SHA)}
SWINGING = ("ball-in-cup",)
"""Worlds in which something moves on by itself; the others are quasi-static."""


@pytest.fixture(params=NAMES, scope="module")
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def built(name: str) -> Iterator[MujocoWorld]:
    with make_robot(name, camera_size=48) as robot:  # type: ignore[attr-defined]
        yield robot


@pytest.fixture
def world(built: MujocoWorld) -> MujocoWorld:
    built.vary(None)
    built.reset(seed=0)
    return built


def picture(world: MujocoWorld) -> np.ndarray:
    (image,) = world.observe().images.values()
    return image.astype(int)


def test_follows_the_contract(name: str, world: MujocoWorld) -> None:
    task = find_task(name)
    assert isinstance(world, SimulatedRobot) and task.robot == name
    assert world.spec.name == name and world.spec.action_high == task.spec.action_high
    with make_robot(name, **world.settings()) as again:  # type: ignore[attr-defined]
        assert again.settings() == world.settings()
    assert world.observe().time_s == 0.0
    world.apply(np.zeros(len(world.spec.action_names)))
    assert world.observe().time_s == pytest.approx(world.spec.control_period_s)
    state = world.sample_state(np.random.default_rng(1))
    assert state.shape == (len(task.world.names),)
    world.place(state)
    assert world.true_state() == pytest.approx(state, abs=1e-9)
    assert task.distance(state, state) == pytest.approx(0.0, abs=1e-12)


def test_rest_is_rest(world: MujocoWorld) -> None:
    """A placed world stays as it is under no action, whatever touches what."""
    for seed in range(5):
        world.reset(seed=seed)
        before = world.true_state()
        for _ in range(5):
            world.apply(np.zeros(len(world.spec.action_names)))
        assert world.true_state() == pytest.approx(before, abs=2e-4)


def test_bad_actions_are_refused_and_stop_the_robot(world: MujocoWorld) -> None:
    world.apply(np.array(world.spec.action_high))
    before = world.observe().proprioception
    state = world.true_state()
    for bad in ([0.01] * 9, [math.nan] * len(world.spec.action_names), [math.inf] * len(world.spec.action_names)):
        with pytest.raises(InputError, match=world.spec.name):
            world.apply(np.array(bad))
    world.apply(np.zeros(len(world.spec.action_names)))
    assert world.observe().proprioception == pytest.approx(before, abs=2e-3)
    assert world.spec.name in SWINGING or world.true_state() == pytest.approx(state, abs=2e-3)
    for wrong in ([0.0] * 9, [math.nan] * len(state), [99.0] * len(state)):
        with pytest.raises(InputError):
            world.place(np.array(wrong))


def test_snapshots_bring_back_the_whole_future(world: MujocoWorld) -> None:
    actions = list(bold(world.spec, np.random.default_rng(2), 20))
    for action in actions[:8]:
        world.apply(action)
    kept, runs = world.snapshot(), []
    for _ in range(2):
        world.restore(kept)
        for action in actions[8:]:
            world.apply(action)
        runs.append((world.true_state(), picture(world)))
    assert np.array_equal(runs[0][0], runs[1][0]) and np.array_equal(runs[0][1], runs[1][1])


def test_same_seed_same_run_in_another_process() -> None:
    code = f"""
import hashlib, numpy as np
from vjepa_mpc.robots.factory import make_robot
for name in {NAMES}:
    with make_robot(name, camera_size=32, seed=3) as robot:
        robot.vary(11, {{"colors": 1.0, "distractors": 1.0, "mass": 0.5}})
        digest = hashlib.sha256(next(iter(robot.reset().images.values())).tobytes())
        low, high = robot.spec.action_low, robot.spec.action_high
        for action in np.random.default_rng(0).uniform(low, high, (15, len(low))):
            robot.apply(action)
            digest.update(robot.observe().proprioception.tobytes() + robot.true_state().tobytes())
        digest.update(next(iter(robot.observe().images.values())).tobytes())
        print(name, digest.hexdigest())
"""
    runs = [subprocess.run([sys.executable, "-c", code], capture_output=True, text=True) for _ in range(2)]
    assert runs[0].returncode == 0, runs[0].stderr
    assert runs[0].stdout == runs[1].stdout and len(runs[0].stdout.splitlines()) == len(NAMES)


def play_boldly(world: MujocoWorld, steps: int) -> tuple[float, float]:
    """Deepest contact at the end of a step [m], and the share of steps after which something still moved."""
    generator = np.random.default_rng(5)
    deepest, moving = 0.0, 0
    for step, action in enumerate(bold(world.spec, generator, steps)):
        if step % 100 == 0:
            world.reset(seed=step)
        world.apply(action)
        state = world.true_state()
        # m/s and rad/s: a pusher that slips off the T a few cm from its middle leaves it turning at several rad/s.
        assert np.isfinite(state).all() and np.abs(world._data.qvel).max() < 10.0
        world._check(state)  # a state in which the world could be placed: in bounds, nothing inside anything
        if world._data.ncon:
            deepest = max(deepest, -float(world._data.contact.dist.min()))
        moving += bool(np.abs(world._data.qvel).max() > 0.05)
    assert not any(int(warning.number) for warning in world._data.warning)
    return deepest, moving / steps


@pytest.mark.parametrize("steps", [400, pytest.param(10_000, marks=pytest.mark.slow)])
def test_nothing_blows_up_or_sinks_in_and_steps_end_at_rest(world: MujocoWorld, steps: int) -> None:
    if world.spec.name == "reacher":
        pytest.skip("its limits and settling are in test_reacher.py")
    deepest, moving = play_boldly(world, steps)
    assert deepest < 1e-3  # m
    assert world.spec.name in SWINGING or moving < 0.02  # a ball that slips round a corner late in a step


@pytest.mark.parametrize("name", ["point-maze", "two-rooms", "push-t"])
def test_displacements_mean_metres(name: str) -> None:
    with make_robot(name, camera_size=8) as world:  # type: ignore[attr-defined]
        world.place(np.array([-0.2, -0.2, 0.1, 0.12, 0.0])[: len(world.true_state())])
        generator, total, start = np.random.default_rng(0), np.zeros(2), world.true_state()[:2]
        for action in generator.uniform(-0.006, 0.006, (12, 2)):
            before = world.true_state()[:2]
            applied = world.apply(action)
            assert applied == pytest.approx(action, abs=1e-12)
            assert world.true_state()[:2] - before == pytest.approx(applied, abs=2e-4)
            total += applied
        assert world.true_state()[:2] - start == pytest.approx(total, abs=1e-3)
        assert world.apply(np.array([1.0, 1.0])) == pytest.approx([0.04, 0.04])


def test_walls_stop_the_ball_and_let_it_slide() -> None:
    with TwoRooms(camera_size=8) as world:
        world.place(np.array([-0.05, -0.1]))
        for _ in range(4):
            applied = world.apply(np.array([0.04, 0.02]))
            assert applied == pytest.approx([0.04, 0.02])  # commanded, though the wall stops it
        x, y = world.true_state()
        assert x == pytest.approx(-0.025, abs=1e-3)  # 10 mm of wall and 15 mm of ball
        assert y == pytest.approx(-0.1 + 4 * 0.02, abs=2e-3)
        with pytest.raises(InputError, match="in a wall"):
            world.place(np.array([0.0, 0.0]))


def test_going_straight_at_the_goal_fails_in_two_rooms() -> None:
    """Greedy distance fails: the wall stops the ball beside the goal."""
    task = TwoRoomsTask()
    hits = 0
    with TwoRooms(camera_size=8) as world:
        for pair in load_manifest("two-rooms-dev").pairs[:10]:
            goal = np.array(pair.goal)
            world._put(np.array(pair.start))
            distances = []
            for _ in range(task.step_budget):
                delta = goal - world.true_state()
                world.apply(delta * min(1.0, 0.04 / max(np.abs(delta).max(), 1e-9)))
                distances.append(task.distance(world.true_state(), goal))
            hits += task.held(distances)
    assert hits == 0


def test_a_pushed_block_moves_as_quasi_static_mechanics_says() -> None:
    """Through the centre of mass it goes straight; beside it, it turns by k / r / (1 + k^2) a metre of push."""
    with PushT(camera_size=8) as world:
        world.place(np.array([0.0, -0.12, 0.0, 0.0, 0.0]))  # below the stem, whose end is at y = -0.0793
        for _ in range(4):
            world.apply(np.array([0.0, 0.02]))
        pushed = 0.08 - (0.12 - 0.0793 - 0.015)
        assert world.true_state()[2:] == pytest.approx([0.0, pushed, 0.0], abs=1e-3)
        beside = 0.045
        world.place(np.array([beside, -0.006, 0.0, 0.0, 0.0]))  # under the bar, which begins at y = 0.0107
        state = world.true_state()
        while state[4] == pytest.approx(0.0, abs=1e-4):
            state = world.true_state()
            world.apply(np.array([0.0, 0.001]))
        first = world.true_state()
        for _ in range(4):
            world.apply(np.array([0.0, 0.001]))
        k = beside / 0.04
        turned = world.true_state()[4] - first[4]
        assert turned == pytest.approx(0.004 * k / 0.04 / (1 + k**2), rel=0.15)


def test_push_distance_is_the_worse_of_place_and_angle() -> None:
    task = PushTTask()
    goal = np.array([0.1, 0.1, 0.0, 0.0, 3.1])
    assert task.distance(np.array([-0.2, 0.0, 0.03, 0.04, 3.1]), goal) == pytest.approx(0.05)
    assert task.distance(np.array([0.1, 0.1, 0.0, 0.0, -3.1]), goal) == pytest.approx(
        task.lever_m * (2 * math.pi - 6.2)
    )
    turned = np.array([0.1, 0.1, 0.0, 0.0, 3.1 - math.radians(15)])
    assert task.distance(turned, goal) == pytest.approx(task.success_radius_m)


def test_looks_show_and_leave_dynamics_alone(world: MujocoWorld) -> None:
    states = []
    plain = picture(world)
    for factor in LOOKS:
        changed = 0
        for seed in range(4):
            world.vary(seed, {factor: 1.0})
            world.reset(seed=0)
            changed += bool((np.abs(picture(world) - plain) > 8).mean() > 0.002)
        assert changed >= 2, factor
        for action in bold(world.spec, np.random.default_rng(0), 12):
            world.apply(action)
        states.append(world.true_state())
    assert all(np.array_equal(state, states[0]) for state in states)
    world.vary(None)
    world.reset(seed=0)
    assert np.array_equal(picture(world), plain)


def test_friction_and_mass_change_motion_and_are_taken_back() -> None:
    with PushT(camera_size=8) as world:

        def pushed(seed: int | None, levels: dict[str, float]) -> np.ndarray:
            world.vary(seed, levels)
            world.place(np.array([0.05, -0.12, 0.0, 0.0, 0.0]))
            for _ in range(5):
                world.apply(np.array([-0.01, 0.04]))
            return world.true_state()

        plain = pushed(None, {})
        for factor in ("friction", "mass"):
            apart = [np.abs(pushed(3, {factor: level}) - plain).max() for level in (0.0, 0.3, 1.0)]
            assert apart[0] == 0.0 and min(apart[1:]) > 0.0 and max(apart) < 0.2, factor
        assert np.array_equal(pushed(None, {}), plain)
        for bad, message in (({"frcition": 1.0}, "did you mean 'friction'"), ({"mass": 1.5}, r"outside \[0, 1\]")):
            with pytest.raises(InputError, match=message):
                world.vary(0, bad)
    assert set(LOOKS) < set(FACTORS)


def test_walls_can_be_seen_in_every_look() -> None:
    with TwoRooms(camera_size=64) as world:
        for seed in range(30):
            world.vary(seed, {"colors": 1.0, "distractors": 0.0})
            image = picture(world)
            wall, floor = image[50, 31:33].mean(axis=0), image[50, [15, 48]].mean(axis=0)
            assert np.abs(wall - floor).max() > 25, seed


@pytest.mark.skipif(arm_missing() is not None, reason="dm_control is not here")
@pytest.mark.parametrize("build", [JacoPush, JacoPlace])
def test_what_is_to_be_moved_can_be_seen_in_every_look(build: type[MujocoWorld]) -> None:
    with build(camera_size=8, backend="rays") as world:  # type: ignore[call-arg]
        material, near = world._model.material("decoration"), 0
        for seed in range(40):
            look = sample_appearance(np.random.default_rng(seed))
            near += contrast(look.decoration, look.floor) < 0.35
            world.set_appearance(seed)
            red, green, blue = (float(value) for value in material.rgba[:3])
            assert contrast((red, green, blue), look.floor) >= 0.35 - 1e-6, seed
        assert near > 0  # looks whose own colour would not do


def test_a_model_without_what_is_painted_is_refused() -> None:
    spec = new_stage(0.005)
    spec.geom("ground").name = "floor"
    with pytest.raises(InputError, match=r"no geom 'ground', .* call vjepa_mpc.robots.stage.dress"):
        Painter(spec.compile(), "top")


@pytest.mark.parametrize("manifest", SHA)
def test_manifests_are_frozen_and_fit(manifest: str) -> None:
    frozen = load_manifest(manifest)
    assert manifest in manifest_names() and len(frozen.pairs) == 100
    assert frozen.sha256[:8] == SHA[manifest]
    task = find_task(frozen.robot)
    for pair in frozen.pairs:
        assert task.distance(np.array(pair.start), np.array(pair.goal)) > task.success_radius_m


@pytest.mark.parametrize("manifest", SHA)
@pytest.mark.parametrize("pairs", [8, pytest.param(100, marks=pytest.mark.slow)])
def test_scripts_reach_and_hold_the_frozen_goals(manifest: str, pairs: int) -> None:
    frozen = load_manifest(manifest)
    task = find_task(frozen.robot)
    if task.missing:
        pytest.skip(task.missing)
    with make_robot(frozen.robot, camera_size=8) as world:  # type: ignore[attr-defined]
        for pair in frozen.pairs[:pairs]:
            distances = play_script(world, task, np.array(pair.start), np.array(pair.goal))
            assert task.held(distances), pair


def test_manifests_can_be_made_again() -> None:
    made = make_manifest("dev", 100, SEEDS["point-maze-dev"], task=find_task("point-maze"))
    assert made == load_manifest("point-maze-dev")  # its script refuses none
    pushes = make_manifest("dev", 3, SEEDS["push-t-dev"], task=PushTTask())
    assert pushes.pairs[0] == load_manifest("push-t-dev").pairs[0]


def test_goals_that_no_script_reaches_are_not_frozen() -> None:
    with pytest.raises(InputError, match="make its goals easier"):
        make_manifest("dev", 2, 0, task=PushTTask(), accept=lambda start, goal: False)


@pytest.mark.parametrize("name", ["push-t", "jaco-push"])
def test_a_demonstration_brings_the_pusher_to_its_place_too(name: str) -> None:
    task, generator, there = find_task(name), np.random.default_rng(5), 0
    with make_robot(name, camera_size=8) as world:  # type: ignore[attr-defined]
        for _ in range(4):
            start, goal = task.sample_pair(generator)
            world.place(start)
            show, felt = task.demonstration(goal), len(world.spec.state_names)
            for _ in range(90):
                world.apply(show(world.true_state()))
            assert task.distance(world.true_state(), goal) <= task.success_radius_m
            there += bool(np.abs(world.true_state()[:felt] - goal[:felt]).max() < 0.01)
    assert there >= 3, "a place that the block covers, by the little it is off, is not gone to"


def test_behaviours_are_mixed_as_asked() -> None:
    asked = (("demonstration", 0.33), ("smooth", 0.66))  # as one writes a third and two
    settings = EpisodeSettings(robot="push-t", frames=60, behaviours=asked)
    with make_robot("push-t", camera_size=8) as world:  # type: ignore[attr-defined]
        episodes = [simulate_episode(world, settings, index) for index in range(12)]
    kinds = [kind for episode in episodes for _, kind in episode.metadata["behaviours"]]
    assert set(kinds) == {"demonstration", "smooth"} and kinds.count("smooth") > kinds.count("demonstration")
    assert mixture_of(settings) == pytest.approx({"demonstration": 1 / 3, "smooth": 2 / 3}, abs=1e-6)
    for wrong, why in (
        ((("demonstrate", 1.0),), "demonstration"), ((("smooth", 0.5),), "sum to 1"), ((("hold", -1.0),), "above 0"),
        ((("hold", float("nan")),), "above 0"),
    ):  # fmt: skip
        with pytest.raises(InputError, match=why):
            EpisodeSettings(robot="push-t", behaviours=wrong)


@pytest.mark.parametrize("name", ["push-t", "jaco-push"])
def test_a_demonstration_lasts_until_its_goal_is_shown(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    task, goals = find_task(name), []
    plain = type(task).demonstration

    def noted(self: Any, goal: np.ndarray) -> Any:
        goals.append(goal)
        return plain(self, goal)

    monkeypatch.setattr(type(task), "demonstration", noted)
    settings = EpisodeSettings(robot=name, frames=240, behaviours=(("demonstration", 1.0),))
    with make_robot(name, camera_size=8) as world:  # type: ignore[attr-defined]
        episode = simulate_episode(world, settings, 3)
    begins = [first for first, _ in episode.metadata["behaviours"]]
    assert len(begins) == len(goals) > 2
    states = np.array(episode.metadata["world_states"])
    lasted = np.diff(begins)
    there = [task.shown(states[end], goal) for end, goal in zip(begins[1:], goals, strict=False)]
    near = [task.distance(states[end], goal) < 0.02 for end, goal in zip(begins[1:], goals, strict=False)]
    assert all(done or steps == 90 for done, steps in zip(near, lasted, strict=True)) and sum(there) > len(there) / 2


class _Restless:
    """An apprentice that goes to and fro, and notes what it is told."""

    def __init__(self) -> None:
        self.goals: list[np.ndarray] = []
        self.painted, self.acted = 0, 0

    def look(self, paint: Any) -> None:
        self.painted += 1

    def begin(self, goal: np.ndarray) -> None:
        self.goals.append(goal)

    def act(self, observation: Observation) -> np.ndarray:
        assert set(observation.images) == {"top"}
        self.acted += 1
        return np.array([0.03 * (-1) ** self.acted, 0.0])


def test_a_demonstration_takes_over_from_an_apprentice_to_the_same_goal(monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[np.ndarray] = []
    plain = PushTTask.demonstration

    def noted(self: Any, goal: np.ndarray) -> Any:
        shown.append(goal)
        return plain(self, goal)

    monkeypatch.setattr(PushTTask, "demonstration", noted)
    settings = EpisodeSettings(
        robot="push-t", frames=400, behaviours=(("actor", 1.0),), actor="somewhere", actor_weights="1"
    )
    apprentice = _Restless()
    with make_robot("push-t", camera_size=8) as world:  # type: ignore[attr-defined]
        episode = simulate_episode(world, settings, 3, apprentice)
        again = simulate_episode(world, settings, 3, _Restless())
    segments = episode.metadata["behaviours"]
    begins, kinds = zip(*segments, strict=True)
    assert kinds == ("actor", "demonstration") * (len(kinds) // 2) + ("actor",) * (len(kinds) % 2) and len(kinds) > 5
    assert len(shown) == 2 * (len(kinds) // 2)
    assert all((one == other).all() for one, other in zip(apprentice.goals, shown, strict=False))
    lasted = np.diff([*begins, 399])
    driven = [steps for steps, kind in zip(lasted, kinds, strict=True) if kind == "actor"]
    assert sum(driven) == apprentice.acted and max(driven) <= 60 and len(set(driven)) > 2
    assert episode.digest() == again.digest() and apprentice.painted == 1


def test_an_apprentice_needs_a_model() -> None:
    driven = (("actor", 1.0),)
    for wrong in ({"behaviours": driven}, {"actor": "somewhere"}, {"behaviours": driven, "actor": "somewhere"}):
        with pytest.raises(InputError, match="belong together"):
            EpisodeSettings(robot="push-t", **wrong)  # type: ignore[arg-type]


def test_what_a_picture_shows() -> None:
    pushing, turning = find_task("jaco-push"), find_task("reacher")
    goal = np.array([0.0, -0.45, 0.1, 0.02, -0.45, 3.0])
    assert pushing.shown(goal + np.array([0.005, 0, 0, 0, 0.005, 0.05 - 2 * np.pi]), goal)
    assert pushing.shown(goal - np.array([0, 0, 0, 0, 0, np.pi]), goal), "half a turn of a brick"
    assert not find_task("push-t").shown(np.array([0.0, 0, 0, 0, 3.0 - np.pi]), np.array([0.0, 0, 0, 0, 3.0]))
    for index in range(6):
        assert not pushing.shown(goal + 0.3 * np.eye(6)[index] * (5 if index == 5 else 1), goal), index
    low, high = np.array(turning.spec.state_low), np.array(turning.spec.state_high)
    assert turning.shown(np.array([low[0], 0.5]), np.array([high[0], 0.5])), "a joint that turns on"
    assert not turning.shown(np.array([0.0, low[1]]), np.array([0.0, high[1]])), "and one that does not"


def test_a_script_needs_its_task() -> None:
    place = "vjepa_mpc.robots.push_t:PushT"
    for kind in ("script", "demonstration"):
        with pytest.raises(InputError, match="needs the task"):
            mixture_of(EpisodeSettings(robot=place, behaviours=((kind, 1.0),)))


@pytest.mark.parametrize("name", NEW)
def test_collected_episodes_mix_the_tasks_behaviours(name: str) -> None:
    task = find_task(name)
    settings = EpisodeSettings(robot=name, frames=25)
    with make_robot(name, camera_size=8) as world:  # type: ignore[attr-defined]
        episodes = [simulate_episode(world, settings, index) for index in range(12)]
        again = simulate_episode(world, settings, 0)
    assert again.digest() == episodes[0].digest()
    kinds = {kind for episode in episodes for _, kind in episode.metadata["behaviours"]}
    assert {"smooth", "script"} <= kinds <= set(mixture_of(settings))
    assert ("contacts" in episodes[0].metadata) == (name not in NOTHING_TO_TOUCH)
    if name not in NOTHING_TO_TOUCH:
        contacts = np.array([episode.metadata["contacts"] for episode in episodes])
        assert contacts.shape == (12, 25) and 0.01 < contacts.mean() < 0.9
    for episode in episodes:
        assert (episode.states >= np.array(task.spec.state_low, np.float32)).all()
        assert (episode.states <= np.array(task.spec.state_high, np.float32)).all()
    if task.world.names == task.spec.state_names:
        assert "world_states" not in episodes[0].metadata
        return
    truth = np.array([episode.metadata["world_states"] for episode in episodes])
    assert truth.shape == (12, 25, len(task.world.names))
    felt = len(task.spec.state_names)
    assert truth[..., :felt] == pytest.approx(np.array([episode.states for episode in episodes]), abs=1e-6)
    moved = np.abs(np.diff(truth[..., felt : felt + 2], axis=1)).max(axis=(1, 2)) > 0.005
    assert moved.mean() > 0.3  # the block, brick or ball is moved about, not only looked at


def test_touching_is_a_matter_of_millimetres() -> None:
    """The pusher's radius (15 mm) above the upper edge of an unturned T's bar (at 40.7 mm), and a little more."""
    with PushT(camera_size=8) as world:
        for gap_m, touching in ((0.0005, True), (0.0015, True), (0.0025, False), (0.05, False)):
            world.place(np.array([0.03, 0.0407 + 0.015 + gap_m, 0.0, 0.0, 0.0]))
            assert world.touching() is touching, gap_m
        world.place(np.array([0.0, -0.15, 0.25 - 0.06 - 0.001, 0.0, 0.0]))
        assert world.touching()  # the block lies at the border


def test_pictures_of_a_state_are_of_that_instant(world: MujocoWorld) -> None:
    for action in bold(world.spec, np.random.default_rng(4), 12):
        world.apply(action)
    moved, state = picture(world), world.true_state()
    world.place(np.clip(state, find_task(world.spec.name).world.low, find_task(world.spec.name).world.high))
    # The elbow of seven joints may stand elsewhere for the same pose, where a long turn was cut short.
    most = 0.02 if world.spec.name == "panda-reach" else 0.003
    assert (np.abs(picture(world) - moved) > 8).mean() < most
