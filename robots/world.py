"""What every simulated world on a MuJoCo model shares, so that a new one says only what is its own."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar, TypeVar

import numpy as np
from jaxtyping import Float

from vjepa_mpc.core.errors import InputError
from vjepa_mpc.robots.appearance import Factors, Painter
from vjepa_mpc.robots.base import Observation, RobotSpec
from vjepa_mpc.robots.dynamics import LOOKS, Dynamics, check_factors
from vjepa_mpc.robots.rendering import MujocoRenderer, import_mujoco
from vjepa_mpc.robots.touch import Touch

World = TypeVar("World", bound="MujocoWorld")


class MujocoWorld(ABC):
    """A simulated robot on one compiled `mujoco.MjModel`, seen by the first camera of its spec.

    A subclass writes `_rest`, `_measure`, `_move`, `stop`, `true_state`, `sample_state` and
    `end_effector`. `obstacles` says that the decoration stops the robot or is moved by it, and so must be seen in
    every look.
    `settings` are the subclass's own constructor arguments, for the records.
    """

    obstacles: ClassVar[bool] = True

    def __init__(self, spec: RobotSpec, model: Any, settings: Mapping[str, Any], backend: str) -> None:
        self._mujoco = import_mujoco()
        self._spec, self._model, self._settings = spec, model, dict(settings)
        self._data = self._mujoco.MjData(model)
        (self._camera,) = spec.cameras
        size = spec.cameras[self._camera]
        self._painter = Painter(model, self._camera, self.obstacles)
        self._dynamics = Dynamics(model)
        self._touch = Touch(model)
        self._renderer = MujocoRenderer(model, size.height, size.width, backend)
        self._generator = np.random.default_rng(settings["seed"])
        self._substeps = round(spec.control_period_s / model.opt.timestep)

    @abstractmethod
    def _rest(self, state: Float[np.ndarray, "w"]) -> None:
        """Write positions and controls of a checked world state into the freshly reset data."""

    @abstractmethod
    def _measure(self) -> Float[np.ndarray, "s"]:
        """The proprioception now, float64."""

    @abstractmethod
    def _move(self, wanted: Float[np.ndarray, "a"]) -> Float[np.ndarray, "a"]:
        """Simulate one control period under a checked action within the bounds; return what was commanded."""

    @abstractmethod
    def stop(self) -> None:
        """Brake, and hold the present pose."""

    @abstractmethod
    def true_state(self) -> Float[np.ndarray, "w"]:
        """The world's present state, as `place` takes it."""

    @abstractmethod
    def sample_state(self, generator: np.random.Generator) -> Float[np.ndarray, "w"]:
        """A random state in which the world can rest."""

    @abstractmethod
    def end_effector(self) -> Float[np.ndarray, "3"]:
        """The end effector's position in the world frame, m."""

    @abstractmethod
    def _check(self, state: Float[np.ndarray, "w"]) -> Float[np.ndarray, "w"]:
        """`state` when the world can be put there, else `InputError`."""

    @property
    def spec(self) -> RobotSpec:
        return self._spec

    @property
    def renderer_identity(self) -> str:
        return self._renderer.identity

    def settings(self) -> Mapping[str, Any]:
        """The constructor's arguments, with the back end that was chosen."""
        return {**self._settings, "backend": self._renderer.backend}

    def reset(self, seed: int | None = None) -> Observation:
        """Rest in a random state; `seed` starts the generator anew."""
        if seed is not None:
            self._generator = np.random.default_rng(seed)
        return self.place(self.sample_state(self._generator))

    def place(self, state: Float[np.ndarray, "w"]) -> Observation:
        self._put(self._check(state))
        return self.observe()

    def _put(self, state: Float[np.ndarray, "w"]) -> None:
        self._mujoco.mj_resetData(self._model, self._data)
        self._rest(state)
        self._mujoco.mj_forward(self._model, self._data)

    def observe(self) -> Observation:
        """The picture and the measured state of the same instant."""
        return Observation(
            images={self._camera: self._renderer.render(self._data, self._camera)},
            proprioception=self._measure().astype(np.float32),
            time_s=float(self._data.time),
        )

    def apply(self, action: Float[np.ndarray, "a"]) -> Float[np.ndarray, "a"]:
        """Move for one control period; return the action truly commanded after the robot's limits.

        A wrong size or a non-finite value raises `InputError`, and the robot holds its pose.
        """
        try:
            wanted = self._spec.check_action(action)
        except (ValueError, TypeError):
            self.stop()
            raise
        applied = self._move(np.clip(wanted, self._spec.action_low, self._spec.action_high))
        # mj_step leaves body poses one substep behind the joint positions: picture and state must agree.
        self._mujoco.mj_forward(self._model, self._data)
        return applied

    def _glide(self, start: Float[np.ndarray, "n"], end: Float[np.ndarray, "n"], jumps: int) -> None:
        """One control period in which the controls go from `start` to `end` in `jumps` during its first half."""
        part = self._substeps // (2 * jumps)
        for jump in range(1, jumps + 1):
            self._data.ctrl[:] = start + (end - start) * (jump / jumps)
            rest = self._substeps - part * (jumps - 1)
            self._mujoco.mj_step(self._model, self._data, rest if jump == jumps else part)

    def penetration_m(self) -> float:
        """How deep bodies in contact are inside each other now, at worst, m."""
        return max(0.0, -float(self._data.contact.dist.min())) if self._data.ncon else 0.0

    def touching(self) -> bool | None:
        """Whether bodies touch now; None in a world where none can."""
        return self._touch.now(self._data) if self._touch.possible else None

    def warned(self) -> bool:
        """Whether MuJoCo warned of anything (numbers that blow up, full buffers) since the world was placed."""
        return any(int(warning.number) for warning in self._data.warning)

    def snapshot(self) -> Float[np.ndarray, "n"]:
        """All that the simulation's future depends on, for `restore` (the world's clock included)."""
        kind = int(self._mujoco.mjtState.mjSTATE_INTEGRATION)
        kept = np.empty(self._mujoco.mj_stateSize(self._model, kind))
        self._mujoco.mj_getState(self._model, self._data, kept, kind)
        return kept

    def restore(self, kept: Float[np.ndarray, "n"]) -> None:
        """Go back to a `snapshot` of this world."""
        self._mujoco.mj_setState(self._model, self._data, kept, int(self._mujoco.mjtState.mjSTATE_INTEGRATION))
        self._mujoco.mj_forward(self._model, self._data)

    def set_appearance(self, seed: int | None, level: float = 1.0) -> None:
        """Redraw the world in the appearance of `seed` (see `sample_appearance`); None is the plain one."""
        self._renderer.upload_textures(self._painter.paint_seed(seed, level))
        # Positions of lights, camera and shapes on the floor are part of the kinematics.
        self._mujoco.mj_forward(self._model, self._data)

    def vary(self, seed: int | None, levels: Mapping[str, float] | None = None) -> None:
        """Redraw the world and change how it moves, each factor at its own level in [0, 1] (0 if not named).

        The factors are `FACTORS`: colours, texture, light, camera, distractors, friction and mass. A seed of None is
        the plain world. Place the world anew afterwards. `InputError` for an unknown factor or level.
        """
        all_levels = check_factors(levels or {})
        looks = Factors(**{name: all_levels[name] for name in LOOKS})
        self._renderer.upload_textures(self._painter.paint_seed(seed, factors=looks))
        on = 0.0 if seed is None else 1.0
        self._dynamics.vary(seed or 0, on * all_levels["friction"], on * all_levels["mass"])
        self._mujoco.mj_forward(self._model, self._data)

    def close(self) -> None:
        """Free the renderer. Safe to call again."""
        self._renderer.close()

    def __enter__(self: World) -> World:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def vary_world(robot: object, seed: int | None, levels: Mapping[str, float]) -> None:
    """`MujocoWorld.vary` for any robot: `InputError` for one that has no factors of variation."""
    if not isinstance(robot, MujocoWorld):
        raise InputError(f"{type(robot).__name__} has no factors of variation; leave --vary out.")
    robot.vary(seed, levels)
