"""A Gymnasium environment as a robot: OGBench's, stable-worldmodel's, or anyone's, when its package is installed.

Named `gymnasium/<id>` wherever a robot is named, e.g. `gymnasium/cube-single-v0`. What an environment does not tell
(goals, what its numbers mean) is not made up: it can be looked at, moved and recorded; MuJoCo ones can be placed too.
What an environment draws from NumPy's global generator (OGBench's mazes do) it draws from one of its own here.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import inspect
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8

from vjepa_mpc.core.errors import InputError, first_line
from vjepa_mpc.robots.base import Camera, Observation, RobotSpec

PREFIX = "gymnasium/"
CAMERA = "view"
PACKAGES = {"ogbench": ("ogbench", ""), "stable_worldmodel": ("stable-worldmodel", "swm")}
"""Packages that register environments when they are imported, what pip calls them, and the namespace of their ids."""


class GymnasiumRobot:
    """One environment; a control step is one of its steps, whatever it takes as actions.

    The picture is what it renders ("rgb_array"), brought to `camera_size` (None: as it comes). Proprioception is a
    flat observation, or "proprio" in a named one or in `info`, or else nothing. An environment of Gymnasium's MuJoCo
    kind (`set_state(qpos, qvel)` and `data`), as OGBench's are, is placed in qpos, then qvel. Others begin where their
    own reset puts them: what `place` takes is then the seed of that reset, and the truth is not to be had.
    An episode that the environment ends is begun anew only by `reset`.
    """

    def __init__(self, env_id: str, camera_size: int | None = 64, seed: int = 0, backend: str = "auto") -> None:
        self._env = _make(env_id)
        self._id, self._seed, self._size, self._backend = env_id, seed, camera_size, backend
        self._closed, self._drawn = False, np.random.RandomState(seed)
        try:
            self._time_s, self._period_s = 0.0, self._period()
            self._begin(seed)
            self._spec = self._described()
        except Exception:
            self.close()
            raise
        self._held = np.zeros(len(self._spec.action_names))

    @property
    def spec(self) -> RobotSpec:
        return self._spec

    @property
    def renderer_identity(self) -> str:
        return f"gymnasium-{self._id}"

    def settings(self) -> Mapping[str, Any]:
        return {"env_id": self._id, "camera_size": self._size, "seed": self._seed, "backend": self._backend}

    def reset(self, seed: int | None = None) -> Observation:
        """The environment's own reset."""
        self._begin(seed)
        return self.observe()

    @property
    def goal_tasks(self) -> int:
        """How many numbered tasks the environment has, as OGBench's have; 0: none."""
        return int(getattr(self._env.unwrapped, "num_tasks", 0))

    @property
    def action_space(self) -> Any:
        """The environment's own."""
        return self._env.action_space

    @property
    def info(self) -> Mapping[str, Any]:
        """What the environment said beside its last observation."""
        return self._info

    @property
    def ended(self) -> bool:
        """Whether the environment has ended the episode, by its goal or its limit of steps."""
        return self._ended

    def begin_task(self, task: int, seed: int) -> tuple[Observation, UInt8[np.ndarray, "height width 3"]]:
        """Begin task number `task` (from 1) of an OGBench environment: what is seen, and the goal's picture."""
        if not 1 <= task <= self.goal_tasks:
            raise InputError(f"{self._id} has {self.goal_tasks} numbered tasks, and no number {task}.")
        self._begin(seed, {"task_id": task, "render_goal": True})
        goal, begun = self._info.get("goal_rendered"), getattr(self._env.unwrapped, "cur_task_id", task)
        if begun != task:
            raise InputError(f"{self._id} plays its task {begun} alone, not {task}.")
        if goal is None:
            raise InputError(f"{self._id} draws no picture of its goals (goal_rendered).")
        return self.observe(), self._sized(np.asarray(goal))

    def _begin(self, seed: int | None, options: dict[str, Any] | None = None) -> None:
        if seed is not None:
            self._drawn = np.random.RandomState(seed % 2**32)
            # Its own generator too: some resets (stable-worldmodel's cube) draw from it without handing on the seed.
            self._env.unwrapped.np_random = np.random.default_rng(seed)
        with self._own_globals():
            self._observed, self._info = self._env.reset(seed=seed, options=options)
        self._time_s, self._ended = 0.0, False

    @contextlib.contextmanager
    def _own_globals(self) -> Iterator[None]:
        """Within, NumPy's global generator is this environment's; the process's own is left as it was."""
        before = np.random.get_state()
        np.random.set_state(self._drawn.get_state())
        try:
            yield
        finally:
            self._drawn.set_state(np.random.get_state())
            np.random.set_state(before)

    def observe(self) -> Observation:
        return Observation({CAMERA: self._picture()}, self._felt().astype(np.float32), self._time_s)

    def apply(self, action: Float[np.ndarray, "a"]) -> Float[np.ndarray, "a"]:
        """One step under `action`, clipped to the environment's bounds; returns what was sent.

        A wrong size or a non-finite value raises `InputError`, and nothing is sent.
        """
        wanted = self._spec.check_action(action)
        sent = np.clip(wanted, self._spec.action_low, self._spec.action_high)
        dtype = self._env.action_space.dtype
        with self._own_globals():
            self._observed, _, done, cut, self._info = self._env.step(sent.astype(dtype))
        self._ended = bool(done or cut)
        self._time_s += self._period_s
        return sent

    def stop(self) -> None:
        """An environment moves only while it is stepped: nothing to do."""

    def place(self, state: Float[np.ndarray, "w"]) -> Observation:
        """Put a MuJoCo environment into the state qpos, qvel; begin any other anew by the seed that `state` holds."""
        given = np.asarray(state, dtype=np.float64)
        if not self._can_be_placed():
            if given.shape != (1,) or not 0 <= given[0] < 2**31 or given[0] % 1:
                raise InputError(f"{self._id} cannot be put into a state: begin it anew by one whole number, a seed.")
            return self.reset(int(given[0]))
        inner, size = self._simulator(), len(self.true_state())
        if given.shape != (size,) or not np.isfinite(given).all():
            raise InputError(f"A state of {self._id} is {size} finite numbers (qpos, then qvel), got {given.shape}.")
        positions = len(inner.data.qpos)
        inner.set_state(given[:positions], given[positions:])
        self._time_s = 0.0
        with contextlib.suppress(AttributeError):  # so that proprioception is of the new state
            self._observed = inner._get_obs()
        return self.observe()

    def true_state(self) -> Float[np.ndarray, "w"]:
        """A MuJoCo environment's qpos, then qvel; `InputError` for any other."""
        data = self._simulator().data
        return np.concatenate([data.qpos, data.qvel]).astype(np.float64)

    def sample_state(self, generator: np.random.Generator) -> Float[np.ndarray, "w"]:
        """Where the environment's own reset puts it, by a seed from `generator`; see `place`."""
        seed = int(generator.integers(2**31))
        if not self._can_be_placed():
            return np.array([float(seed)])
        self._begin(seed)
        return self.true_state()

    def set_appearance(self, seed: int | None, level: float = 1.0) -> None:
        """Environments have their own look alone: `InputError` for another."""
        if seed is not None:
            raise InputError(f"{self._id} cannot be repainted; collect with --appearance plain.")

    def end_effector(self) -> Float[np.ndarray, "3"]:
        """Unknown to Gymnasium."""
        raise InputError(f"{self._id} does not say where its end effector is.")

    def close(self) -> None:
        """Safe to call again."""
        if not self._closed:
            self._closed = True
            self._env.close()

    def __enter__(self) -> GymnasiumRobot:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _described(self) -> RobotSpec:
        from gymnasium.spaces import Box

        space = self._env.action_space
        if not isinstance(space, Box) or len(space.shape) != 1 or not np.isfinite([space.low, space.high]).all():
            raise InputError(f"{self._id} takes actions of {space}; a bounded vector of numbers is needed.")
        count, felt = space.shape[0], len(self._felt())
        height, width = self._picture().shape[:2]
        return RobotSpec(
            name=PREFIX + self._id,
            action_names=tuple(f"action_{index}" for index in range(count)),
            action_low=tuple(float(value) for value in space.low),
            action_high=tuple(float(value) for value in space.high),
            action_units=("",) * count,
            state_names=tuple(f"state_{index}" for index in range(felt)),
            state_low=(-1e6,) * felt,
            state_high=(1e6,) * felt,
            state_units=("",) * felt,
            state_periodic=(False,) * felt,
            control_period_s=self._period_s,
            cameras={CAMERA: Camera(height, width)},
            state_model="observed",  # not a sum of actions: a world model needs to be told how it follows from them
        )

    def _period(self) -> float:
        """The seconds of a step: pictures a second as Gymnasium asks for them; dm_control's and OGBench's arms' own
        word; `dt`, which elsewhere may be a part of a step (stable-worldmodel's push-T), and so comes last."""
        frames = self._env.metadata.get("render_fps")
        if frames:
            return 1.0 / float(frames)
        inner = self._env.unwrapped
        for owner in (inner, getattr(inner, "env", None)):
            said = getattr(owner, "control_timestep", None)
            if said is not None:
                return float(said() if callable(said) else said)
        if getattr(inner, "dt", None) is None:
            raise InputError(f"{self._id} does not say how long a step is (neither render_fps nor dt).")
        return float(inner.dt)

    def _felt(self) -> np.ndarray:
        named = isinstance(self._observed, Mapping)
        observed = np.zeros((0, 0)) if named else np.asarray(self._observed)
        if observed.ndim == 1:
            return observed.astype(np.float64)
        felt = (self._observed if named else {}).get("proprio", self._info.get("proprio", np.zeros(0)))
        return np.asarray(felt, dtype=np.float64).reshape(-1)

    def _picture(self) -> UInt8[np.ndarray, "height width 3"]:
        return self._sized(np.asarray(self._env.render()))

    def _sized(self, picture: np.ndarray) -> UInt8[np.ndarray, "height width 3"]:
        if picture.ndim != 3 or picture.shape[2] != 3 or picture.dtype != np.uint8:
            raise InputError(f"{self._id} renders {picture.dtype} {picture.shape}, not colour pictures.")
        if self._size is None or picture.shape[:2] == (self._size, self._size):
            return picture.copy()
        from PIL import Image

        resized = Image.fromarray(picture).resize((self._size, self._size), Image.Resampling.BOX)
        return np.asarray(resized).copy()

    def _simulator(self) -> Any:
        inner = self._env.unwrapped
        if not self._can_be_placed():
            raise InputError(f"{self._id} does not tell its state: no set_state(qpos, qvel) and data.")
        return inner

    def _can_be_placed(self) -> bool:
        inner = self._env.unwrapped
        if not hasattr(inner, "set_state") or not hasattr(inner, "data"):
            return False
        try:
            inspect.signature(inner.set_state).bind(None, None)  # OGBench's scenes want the buttons' states as well
        except TypeError:
            return False
        return True


def _make(env_id: str) -> Any:
    """The environment with this id; packages known to register some are imported where they are installed."""
    import gymnasium

    missing, broken = [], ""
    for module, (package, namespace) in PACKAGES.items():
        if env_id in gymnasium.registry or env_id.rpartition("/")[0] != namespace:
            continue
        if importlib.util.find_spec(module) is None:
            missing.append(package)
            continue
        try:
            importlib.import_module(module)  # even one that fails half-way may have registered its environments
        except Exception as error:
            broken += f"; {package} cannot be imported: {first_line(error)}"
    try:
        return gymnasium.make(env_id, render_mode="rgb_array", disable_env_checker=True)
    except gymnasium.error.UnregisteredEnv as error:
        ways = "".join(f", or pip install {package}" for package in missing)
        raise InputError(
            f"No environment {env_id!r} is registered with Gymnasium ({first_line(error)}{broken}): check the id{ways}."
        ) from error
    except (TypeError, gymnasium.error.Error, ImportError) as error:
        raise InputError(f"Gymnasium cannot make {env_id!r}: {first_line(error)}.") from error
