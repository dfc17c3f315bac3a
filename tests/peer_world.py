"""stable-worldmodel's loop in small, as its 0.1.1 behaves: one `info` changed in place, a flag of new episodes that is
never taken back, states of a data set written over it. Its environments spell two joint angles in their pictures."""

from __future__ import annotations

import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import gymnasium
import numpy as np
import pytest
from solvable_world import picture

from vjepa_mpc.robots.reacher import reacher_spec

LIMIT = np.array(reacher_spec(8).action_high)
CLOSE = 0.05


class SpelledEnv:
    """Two angles moved by shares of the reacher's limits; ends within `CLOSE` rad of the goal."""

    action_space = gymnasium.spaces.Box(-1.0, 1.0, (2,), np.float32)

    def __init__(self, size: int, limit: int) -> None:
        self.size, self.limit = size, limit
        self.rng = np.random.default_rng(0)

    @property
    def unwrapped(self) -> SpelledEnv:
        return self

    def reset(self, seed: int | None) -> dict[str, Any]:
        if seed is not None:
            self.rng = np.random.default_rng(seed)
        self.state = self.rng.uniform(-1, 1, 2)
        self.goal = self.state + self.rng.uniform(0.3, 0.8, 2)
        self.steps = 0
        return self.told(np.full(2, np.nan), False)

    def step(self, action: np.ndarray) -> tuple[dict[str, Any], bool, bool]:
        assert np.isfinite(action).all() and action.dtype == np.float32
        self.state = self.state + np.clip(action, -1, 1) * LIMIT
        self.steps += 1
        done = bool(np.abs(self.state - self.goal).max() < CLOSE)
        return self.told(action, done), done, self.steps >= self.limit

    def told(self, action: np.ndarray, done: bool) -> dict[str, Any]:
        return {
            "pixels": self.drawn(self.state), "goal": self.drawn(self.goal), "proprio": self.state.copy(),
            "action": action, "step_idx": self.steps, "terminated": done, "truncated": self.steps >= self.limit,
        }  # fmt: skip

    def drawn(self, state: np.ndarray) -> np.ndarray:
        canvas = np.zeros((self.size, self.size, 3), np.uint8)
        canvas[:8, :8] = picture(state)
        return canvas

    def _set_state(self, state: np.ndarray) -> None:
        self.state = np.array(state)

    def _set_goal_state(self, goal_state: np.ndarray) -> None:
        self.goal = np.array(goal_state)


class Loop:
    """`World`, and its pool of environments."""

    def __init__(
        self, env_name: str, num_envs: int, image_shape: tuple[int, int], max_episode_steps: int = 40, **settings: Any
    ) -> None:
        self.envs = [SpelledEnv(image_shape[0], max_episode_steps) for _ in range(num_envs)]
        self.pool = SimpleNamespace(num_envs=num_envs, single_action_space=SpelledEnv.action_space)
        self.infos: dict[str, Any] = {}
        self.sent: list[np.ndarray] = []
        self.closed = False

    def set_policy(self, policy: Any) -> None:
        self.policy = policy
        policy.set_env(self.pool)
        if getattr(policy, "seed", None) is not None:
            policy.set_seed(policy.seed)

    def reset(self, seed: int | None = None) -> None:
        told = [one.reset(None if seed is None else seed + i) for i, one in enumerate(self.envs)]
        self.infos = {name: np.stack([np.asarray(one[name]) for one in told])[:, None] for name in told[0]}

    def _steps(self, count: int, alive: np.ndarray) -> Any:
        for _ in range(count):
            actions = self.policy.get_action(self.infos)
            self.sent.append(actions)
            ended = np.zeros((2, len(self.envs)), dtype=bool)
            for i in np.flatnonzero(alive):
                told, *ended[:, i] = self.envs[i].step(actions[i])
                self._write(i, told)
            yield ended[0], alive & ended.any(0)

    def _write(self, i: int, told: dict[str, Any]) -> None:
        for name, value in told.items():
            self.infos[name][i, 0] = value

    def evaluate(self, dataset: Any = None, **given: Any) -> dict[str, Any]:
        if dataset is None:
            return self._episodes(given["episodes"], given["seed"])
        count, goals = len(self.envs), {}
        starts = np.array(given["start_steps"])
        chunks = dataset.load_chunk(np.array(given["episodes_idx"]), starts, starts + given["goal_offset"] + 1)
        self.reset()
        for i, chunk in enumerate(chunks):
            chunk["pixels"] = chunk["pixels"].permute(0, 2, 3, 1).numpy()
            known = {name: value[0] for name, value in chunk.items()}
            known |= {f"goal_{name}": value[-1] for name, value in chunk.items()}
            for call in given["callables"]:
                arguments = {n: known[a["value"]] if a["in_dataset"] else a["value"] for n, a in call["args"].items()}
                getattr(self.envs[i].unwrapped, call["method"])(**arguments)
            self._write(i, {name: known[name] for name in self.infos if name in chunk and name != "goal"})
            goals[i] = known["goal_pixels"]
            self._write(i, {"goal": goals[i]})
        won, alive = np.zeros(count, dtype=bool), np.ones(count, dtype=bool)
        for terminated, done in self._steps(given["eval_budget"], alive):
            for i, goal in goals.items():
                self._write(i, {"goal": goal})
            won |= terminated
            alive[done] = False
            if not alive.any():
                break
        return {"episode_successes": won}

    def _episodes(self, episodes: int, seed: int) -> dict[str, Any]:
        won: list[bool] = []
        self.reset(seed)
        for terminated, done in self._steps(10_000, np.ones(len(self.envs), dtype=bool)):
            for i in np.flatnonzero(done):
                won.append(bool(terminated[i]))
                self._write(i, self.envs[i].reset(None))
            if done.any():
                self.infos["_needs_flush"] = done
            if len(won) >= episodes:
                return {"episode_successes": np.array(won[:episodes])}
        raise AssertionError("no end")

    def collect(self, writer: Any, episodes: int, seed: int, progress: bool) -> None:
        self.reset(seed)
        taken: list[list[dict[str, Any]]] = [[] for _ in self.envs]
        finished: list[dict[str, Any]] = []
        for _, done in self._steps(10_000, np.ones(len(self.envs), dtype=bool)):
            for i, rows in enumerate(taken):
                rows.append({n: v[i, 0].copy() for n, v in self.infos.items() if not n.startswith("_")})
            for i in np.flatnonzero(done):
                finished.append({name: [row[name] for row in taken[i]] for name in taken[i][0]})
                taken[i] = []
                self._write(i, self.envs[i].reset(None))
            if len(finished) >= episodes:
                break
        with writer as open_writer:
            open_writer.write_episodes(finished[:episodes])

    def close(self) -> None:
        self.closed = True


class Wanderer:
    """Records episodes that go nowhere in particular."""

    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)

    def set_env(self, env: Any) -> None:
        self.count = env.num_envs

    def get_action(self, info: Any) -> np.ndarray:
        self.held = self.rng.uniform(-1, 1, (self.count, 2)) if info["step_idx"].max() % 5 == 0 else self.held
        return self.held.astype(np.float32)


def install(monkeypatch: pytest.MonkeyPatch) -> None:
    """The loop under the package's name."""
    package = ModuleType("stable_worldmodel")
    package.__dict__.update(World=Loop, policy=SimpleNamespace(RandomPolicy=Wanderer), data=SimpleNamespace())
    rooms = ModuleType("stable_worldmodel.envs.two_room")
    rooms.__dict__.update(ExpertPolicy=Wanderer)
    for name, module in (("stable_worldmodel", package), ("stable_worldmodel.envs", ModuleType("envs")),
                         ("stable_worldmodel.envs.two_room", rooms)):  # fmt: skip
        monkeypatch.setitem(sys.modules, name, module)
