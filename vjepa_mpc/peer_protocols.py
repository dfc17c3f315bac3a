"""Others' evaluation protocols, played as they are: stable-worldmodel's from states of a data set, OGBench's tasks.

What counts as success is theirs and differs from ours (`vjepa_mpc.evaluation`): the environment has ended in time.
Their figures and ours do not belong into one table. The packages are imported where they are used; written against
stable-worldmodel 0.1.1 and ogbench 1.2.2.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from importlib import metadata
from types import SimpleNamespace
from typing import Any

import numpy as np
from jaxtyping import Int

from vjepa_mpc.core.errors import InputError, first_line, unknown_name
from vjepa_mpc.intervals import proportion
from vjepa_mpc.peer_policy import NoOpPeer, PeerPolicy, RandomPeer
from vjepa_mpc.robots.gymnasium_robot import CAMERA, GymnasiumRobot

Policies = Mapping[str, Callable[[], PeerPolicy]]
RECORDED = 10  # times as many episodes as pairs are recorded at most
Told = Callable[[str, int], object]
"""Called with a policy's name and how many of its episodes are done."""


@dataclass(frozen=True)
class StateSetters:
    """How an environment of stable-worldmodel is put at a start and told its goal: methods, and for each argument the
    column it is read from (of the goal's step: goal_...) or a number; as in LeWM's published evaluation
    (arXiv:2603.19312). `state`: what a world model is told of the body. `recorder`: who plays the episodes that starts
    and goals are taken from where no data set is given (None: random actions)."""

    methods: Mapping[str, Mapping[str, str | int]]
    state: tuple[str, ...]
    world: Mapping[str, Any] = field(default_factory=dict)
    recorder: str | None = None
    recording: Mapping[str, Any] = field(default_factory=dict)


OGBENCH_STATE: tuple[str, ...] = ("proprio/effector_pos", "proprio/effector_yaw", "proprio/gripper_opening")
_CUBE = {"env_type": "single", "ob_type": "states", "multiview": False, "visualize_info": False}
STABLE_WORLDMODEL: dict[str, StateSetters] = {
    "swm/TwoRoom-v1": StateSetters(
        {"_set_state": {"state": "proprio"}, "_set_goal_state": {"goal_state": "goal_proprio"}}, ("proprio",),
        recorder="stable_worldmodel.envs.two_room:ExpertPolicy",
    ),
    "swm/PushT-v1": StateSetters(
        {"_set_state": {"state": "state"}, "_set_goal_state": {"goal_state": "goal_state"}}, ("proprio",),
        recorder="stable_worldmodel.envs.pusht:WeakPolicy",
    ),
    "swm/ReacherDMControl-v0": StateSetters(
        {"set_state": {"qpos": "qpos", "qvel": "qvel"}, "set_target_qpos": {"target_qpos": "goal_qpos"}}, ("qpos",),
        {"task": "qpos_match"},
    ),
    "swm/OGBCube-v0": StateSetters(
        {
            "set_state": {"qpos": "qpos", "qvel": "qvel"},
            "set_target_pos": {
                "cube_id": 0, "target_pos": "goal_privileged/block_0_pos",
                "target_quat": "goal_privileged/block_0_quat",
            },
        },
        OGBENCH_STATE,
        {**_CUBE, "terminate_at_goal": True}, "stable_worldmodel.envs.ogbench:ExpertPolicy",
        {**_CUBE, "terminate_at_goal": False, "mode": "data_collection"},
    ),
}  # fmt: skip


@dataclass(frozen=True)
class DatasetProtocol:
    """stable-worldmodel's evaluation: `pairs` starts drawn from a data set, the goal `goal_offset` steps later in the
    same episode, at most `budget` steps. `data`: the data set as that package names it; None: episodes are
    recorded first. `size`: pixels of the square pictures; `together`: environments stepped at once."""

    env: str
    pairs: int = 50
    goal_offset: int = 25
    budget: int = 50
    data: str | None = None
    seed: int = 0
    size: int = 64
    together: int = 10

    def told(self) -> dict[str, Any]:
        """The protocol in words and numbers, for the record."""
        setters, who = self.setters(), "random actions"
        if setters.recorder:
            who = setters.recorder.replace(":", ".")
        return {
            "name": "stable-worldmodel", "version": version("stable-worldmodel"), "env": self.env,
            "goal_offset": self.goal_offset, "budget": self.budget, "seed": self.seed, "picture": self.size,
            "starts": self.data or f"of episodes recorded here by {who}",
            "success": "the environment ended at some step within the budget",
        }  # fmt: skip

    def setters(self) -> StateSetters:
        """`InputError` for an environment whose start and goal nobody has said how to set."""
        if self.env not in STABLE_WORLDMODEL:
            raise unknown_name("environment of this protocol", self.env, STABLE_WORLDMODEL)
        return STABLE_WORLDMODEL[self.env]

    def play(self, policies: Policies, on_episodes: Told = lambda name, done: None) -> list[dict[str, Any]]:
        """A row a policy, all on the same starts and goals."""
        package, setters = installed("stable_worldmodel", "stable-worldmodel"), self.setters()
        with closing(self._world(package, 1, 2 * self.budget, setters.world)) as world:
            for make in policies.values():  # one that does not fit is told before anything is recorded
                world.set_policy(make())
        data = self._recorded(package, setters) if self.data is None else self._loaded(package, self.data)
        episodes, starts = drawn(np.asarray(data.lengths), self.goal_offset, self.pairs, self.seed)
        calls, rows = _calls(self.env, setters, list(data.column_names)), []
        for name, make in policies.items():
            policy, done = make(), []
            for first in range(0, self.pairs, self.together):
                some = slice(first, first + self.together)
                with closing(self._world(package, len(episodes[some]), 2 * self.budget, setters.world)) as world:
                    world.reset(seed=self.seed + first)
                    world.set_policy(policy)
                    result = world.evaluate(
                        dataset=data, episodes_idx=episodes[some].tolist(), start_steps=starts[some].tolist(),
                        goal_offset=self.goal_offset, eval_budget=self.budget, callables=calls,
                    )  # fmt: skip
                done += [bool(one) for one in result["episode_successes"]]
                on_episodes(name, len(done))
            rows.append(row(name, done))
        return rows

    def _world(self, package: Any, count: int, steps: int, settings: Mapping[str, Any]) -> Any:
        return package.World(
            self.env, num_envs=count, image_shape=(self.size, self.size), max_episode_steps=steps, **settings
        )

    def _recorded(self, package: Any, setters: StateSetters) -> Recordings:
        if setters.recorder is None:
            recorder = package.policy.RandomPolicy(seed=self.seed)
        else:
            place, _, kind = setters.recorder.partition(":")
            recorder = getattr(importlib.import_module(place), kind)(seed=self.seed)
        recordings = Recordings()
        count, settings = min(self.pairs, self.together), setters.recording or setters.world
        with closing(self._world(package, count, 4 * self.goal_offset, settings)) as world:
            world.set_policy(recorder)
            for turn in range(RECORDED):  # some recorders' episodes end before a goal so far ahead
                world.collect(writer=recordings, episodes=self.pairs, seed=self.seed + 1000 * turn, progress=False)
                if np.maximum(recordings.lengths - self.goal_offset, 0).sum() >= self.pairs:
                    break
        return recordings

    def _loaded(self, package: Any, name: str) -> Any:
        try:
            return package.data.load_dataset(name)
        except Exception as error:  # of any of its formats
            raise InputError(
                f"stable-worldmodel cannot load the data set {name} ({type(error).__name__}: {first_line(error)})."
            ) from error


class Recordings:
    """Episodes in memory: a writer for stable-worldmodel's `World.collect`, a data set for its `World.evaluate`."""

    def __init__(self) -> None:
        self._episodes: list[dict[str, np.ndarray]] = []

    def __enter__(self) -> Recordings:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def write_episodes(self, episodes: Iterable[Mapping[str, Sequence[Any]]]) -> None:
        """Take episodes, each a list of values a column."""
        self._episodes += [{name: np.stack(values) for name, values in one.items()} for one in episodes]

    @property
    def lengths(self) -> Int[np.ndarray, "episodes"]:
        return np.array([len(next(iter(one.values()))) for one in self._episodes], dtype=np.int64)

    @property
    def column_names(self) -> list[str]:
        return list(self._episodes[0]) if self._episodes else []

    def load_chunk(
        self, episodes_idx: Int[np.ndarray, "n"], start: Int[np.ndarray, "n"], end: Int[np.ndarray, "n"]
    ) -> list[dict[str, Any]]:
        """Steps `start` to `end` of episodes; pictures as tensors [time, 3, height, width], which the loop expects."""
        import torch

        chunks = []
        for index, first, last in zip(episodes_idx, start, end, strict=True):
            chunk: dict[str, Any] = {name: values[first:last] for name, values in self._episodes[index].items()}
            for name in (name for name in chunk if name.startswith("pixels")):
                chunk[name] = torch.from_numpy(chunk[name]).permute(0, 3, 1, 2)
            chunks.append(chunk)
        return chunks


def drawn(
    lengths: Int[np.ndarray, "episodes"], offset: int, pairs: int, seed: int
) -> tuple[Int[np.ndarray, "pairs"], Int[np.ndarray, "pairs"]]:
    """Episodes and starts, drawn without repetition from all steps that have another one `offset` later."""
    room = np.maximum(lengths - offset, 0)
    if room.sum() < pairs:
        raise InputError(
            f"{len(lengths)} episodes of at most {lengths.max(initial=0)} steps hold {room.sum()} starts with a goal "
            f"{offset} steps later, {pairs} are asked for; give longer episodes (--data), fewer --pairs or a smaller "
            "--goal-offset."
        )
    flat = np.sort(np.random.default_rng(seed).choice(int(room.sum()), pairs, replace=False))
    ends = room.cumsum()
    episodes = np.searchsorted(ends, flat, side="right")
    return episodes, flat - (ends - room)[episodes]


def _calls(what: str, setters: StateSetters, columns: Sequence[str]) -> list[dict[str, Any]]:
    """The setters as the loop takes them. Files have their columns' names with _ for /."""

    def argument(value: str | int) -> dict[str, Any]:
        if isinstance(value, int):
            return {"value": value, "in_dataset": False}
        column = value.removeprefix("goal_")
        found = column if column in columns else column.replace("/", "_")
        if found not in columns:
            raise InputError(f"The data set has no {column}, which {what} is set by; it has {', '.join(columns)}.")
        return {"value": value.removesuffix(column) + found, "in_dataset": True}

    return [
        {"method": method, "args": {name: argument(value) for name, value in arguments.items()}}
        for method, arguments in setters.methods.items()
    ]


@dataclass(frozen=True)
class TaskProtocol:
    """OGBench's goals of one environment: each of its tasks `episodes` times, to the environment's own end or limit of
    steps. `size`: pixels of the square pictures."""

    env: str = "cube-single-v0"
    episodes: int = 10
    seed: int = 0
    size: int = 64

    def told(self) -> dict[str, Any]:
        """The protocol in words and numbers, for the record."""
        return {
            "name": "ogbench", "version": version("ogbench"), "env": self.env, "episodes_a_task": self.episodes,
            "seed": self.seed, "picture": self.size, "success": "the environment's own success at its last step",
        }  # fmt: skip

    def play(self, policies: Policies, on_episodes: Told = lambda name, done: None) -> list[dict[str, Any]]:
        """A row a policy, with its successes in each task; the same seeds for all."""
        installed("ogbench", "ogbench")
        rows = []
        with GymnasiumRobot(self.env, camera_size=self.size, seed=self.seed) as robot:
            count = robot.goal_tasks
            if not count:
                raise InputError(f"{self.env} has no numbered tasks; OGBench's have, as cube-single-v0.")
            made = {name: make() for name, make in policies.items()}
            for policy in made.values():  # one that does not fit is told before anything is played
                policy.set_env(SimpleNamespace(num_envs=1, single_action_space=robot.action_space))
            for name, policy in made.items():
                done: list[bool] = []
                for task in range(1, count + 1):
                    for number in range(self.episodes):
                        done.append(_to_the_end(robot, policy, task, self.seed + 1000 * task + number))
                        on_episodes(name, len(done))
                by_task = {
                    str(task + 1): proportion(sum(part), len(part)) for task, part in enumerate(_parts(done, count))
                }
                rows.append({**row(name, done), "by_task": by_task})
        return rows


def _to_the_end(robot: GymnasiumRobot, policy: PeerPolicy, task: int, seed: int) -> bool:
    """One episode; whether the environment calls its last step a success."""
    observation, goal = robot.begin_task(task, seed)
    steps, looks = 0, not isinstance(policy, RandomPeer | NoOpPeer)  # pictures take most of the time
    while not robot.ended:
        info = {name: np.asarray(value)[None, None] for name, value in robot.info.items()}
        info |= {"pixels": observation.images[CAMERA][None, None], "goal": goal[None, None]}
        info["step_idx"] = np.array([[steps]])
        (action,) = policy.get_action(info)
        robot.apply(action)
        steps += 1
        if looks:
            observation = robot.observe()
    return bool(robot.info.get("success", False))


def _parts(done: Sequence[bool], count: int) -> Iterator[Sequence[bool]]:
    each = len(done) // count
    return (done[first : first + each] for first in range(0, len(done), each))


def row(name: str, done: Sequence[bool]) -> dict[str, Any]:
    """What is kept of a policy's episodes."""
    return {
        "policy": name, "episodes": len(done), "success": proportion(sum(done), len(done)),
        "successes": [int(one) for one in done],
    }  # fmt: skip


def version(package: str) -> str:
    """The installed version of a distribution, "unknown" where there is none by that name."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "unknown"


def installed(module: str, package: str) -> Any:
    """The module; `InputError` with the way to have it where it cannot be imported."""
    try:
        return importlib.import_module(module)
    except Exception as error:  # whatever a package's own imports come to
        raise InputError(
            f"{package} cannot be used ({type(error).__name__}: {first_line(error)}); pip install {package}, best in "
            "an environment of its own beside this package (docs/robots.md, Gymnasium)."
        ) from error
