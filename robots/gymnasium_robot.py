"""A Gymnasium environment as a robot: OGBench's, stable-worldmodel's, or anyone's, when its package is installed.

Named `gymnasium/<id>` wherever a robot is named, e.g. `gymnasium/cube-single-v0`. What an environment does not tell
(goals, what its numbers mean) is not made up: it can be looked at, moved and recorded; MuJoCo ones can be placed too.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8

from vjepa_mpc.core.errors import InputError, first_line
from vjepa_mpc.robots.base import Camera, Observation, RobotSpec

PREFIX = "gymnasium/"
CAMERA = "view"
PACKAGES = {"ogbench": "ogbench", "stable_worldmodel": "stable-worldmodel"}
"""Packages that register environments when they are imported, and what pip calls them."""


class GymnasiumRobot:
    """One environment; a control step is one of its steps, whatever it takes as actions.

    The picture is what it renders ("rgb_array"), brought to `camera_size` (None: as it comes). Proprioception is a
    flat observation, or `info["proprio"]`, or else nothing. `place` and `true_state` need an environment of
    Gymnasium's MuJoCo kind (`set_state(qpos, qvel)` and `data`), as OGBench's are: the state is qpos, then qvel.
    An episode that the environment ends is begun anew only by `reset`.
    """

    def __init__(self, env_id: str, camera_size: int | None = 64, seed: int = 0, backend: str = "auto") -> None:
        self._env = _make(env_id)
        self._id, self._seed, self._size, self._backend = env_id, seed, camera_size, backend
        self._closed = False
        try:
            self._time_s, self._period_s = 0.0, self._period()
            self._observed, self._info = self._env.reset(seed=seed)
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
        self._observed, self._info = self._env.reset(seed=seed)
        self._time_s = 0.0
        return self.observe()

    def observe(self) -> Observation:
        return Observation({CAMERA: self._picture()}, self._felt().astype(np.float32), self._time_s)

    def apply(self, action: Float[np.ndarray, "a"]) -> Float[np.ndarray, "a"]:
        """One step under `action`, clipped to the environment's bounds; returns what was sent.

        A wrong size or a non-finite value raises `InputError`, and nothing is sent.
        """
        wanted = self._spec.check_action(action)
        sent = np.clip(wanted, self._spec.action_low, self._spec.action_high)
        dtype = self._env.action_space.dtype
        self._observed, _, _, _, self._info = self._env.step(sent.astype(dtype))
        self._time_s += self._period_s
        return sent

    def stop(self) -> None:
        """An environment moves only while it is stepped: nothing to do."""

    def place(self, state: Float[np.ndarray, "w"]) -> Observation:
        """Put a MuJoCo environment into the state qpos, qvel."""
        inner, size = self._simulator(), len(self.true_state())
        checked = np.asarray(state, dtype=np.float64)
        if checked.shape != (size,) or not np.isfinite(checked).all():
            raise InputError(f"A state of {self._id} is {size} finite numbers (qpos, then qvel), got {checked.shape}.")
        positions = len(inner.data.qpos)
        inner.set_state(checked[:positions], checked[positions:])
        self._time_s = 0.0
        with contextlib.suppress(AttributeError):  # so that proprioception is of the new state
            self._observed = inner._get_obs()
        return self.observe()

    def true_state(self) -> Float[np.ndarray, "w"]:
        """A MuJoCo environment's qpos, then qvel."""
        data = self._simulator().data
        return np.concatenate([data.qpos, data.qvel]).astype(np.float64)

    def sample_state(self, generator: np.random.Generator) -> Float[np.ndarray, "w"]:
        """Where the environment's own reset puts it, by a seed from `generator`."""
        self._env.reset(seed=int(generator.integers(2**31)))
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
        frames = self._env.metadata.get("render_fps")
        dt = getattr(self._env.unwrapped, "dt", None)
        if dt is None and not frames:
            raise InputError(f"{self._id} does not say how long a step is (neither dt nor render_fps).")
        return float(dt if dt is not None else 1.0 / frames)

    def _felt(self) -> np.ndarray:
        observed = np.asarray(self._observed) if not isinstance(self._observed, dict) else np.zeros((0, 0))
        if observed.ndim == 1:
            return observed.astype(np.float64)
        return np.asarray(self._info.get("proprio", np.zeros(0)), dtype=np.float64).reshape(-1)

    def _picture(self) -> UInt8[np.ndarray, "height width 3"]:
        picture = np.asarray(self._env.render())
        if picture.ndim != 3 or picture.shape[2] != 3 or picture.dtype != np.uint8:
            raise InputError(f"{self._id} renders {picture.dtype} {picture.shape}, not colour pictures.")
        if self._size is None or picture.shape[:2] == (self._size, self._size):
            return picture.copy()
        from PIL import Image

        resized = Image.fromarray(picture).resize((self._size, self._size), Image.Resampling.BOX)
        return np.asarray(resized).copy()

    def _simulator(self) -> Any:
        inner = self._env.unwrapped
        if not hasattr(inner, "set_state") or not hasattr(inner, "data"):
            raise InputError(f"{self._id} cannot be put into a state: it lacks set_state(qpos, qvel) and data.")
        return inner


def _make(env_id: str) -> Any:
    """The environment with this id; packages known to register some are imported where they are installed."""
    import gymnasium

    missing = []
    for module, package in PACKAGES.items():
        if env_id in gymnasium.registry:
            break
        if importlib.util.find_spec(module) is None:
            missing.append(package)
            continue
        importlib.import_module(module)
    try:
        return gymnasium.make(env_id, render_mode="rgb_array", disable_env_checker=True)
    except gymnasium.error.UnregisteredEnv as error:
        ways = "".join(f", or pip install {package}" for package in missing)
        raise InputError(
            f"No environment {env_id!r} is registered with Gymnasium ({first_line(error)}): check the id{ways}."
        ) from error
    except (TypeError, gymnasium.error.Error, ImportError) as error:
        raise InputError(f"Gymnasium cannot make {env_id!r}: {first_line(error)}.") from error
