"""A world that can be solved exactly: pictures that spell the joint angles, and a model that reads them.

Everything the controller asks of a world model is answered without error, so what goes wrong in closed loop is
the loop's own doing.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from vjepa_mpc.encoder import PixelPatches
from vjepa_mpc.images import ImagePreparation
from vjepa_mpc.latents import LatentConfig
from vjepa_mpc.predictor import PredictorConfig
from vjepa_mpc.robots.base import Observation, RobotSpec
from vjepa_mpc.robots.reacher import CAMERA, ReachTask, reacher_spec
from vjepa_mpc.rollout import Context, Rollout
from vjepa_mpc.world_model import Calibration, WorldModel, WorldModelConfig

SIZE = 8


def picture(state: np.ndarray) -> np.ndarray:
    """Two joint angles, in [-2 pi, 2 pi] to 2e-4 rad, as the bytes of the first two pixels."""
    image = np.zeros((SIZE, SIZE, 3), np.uint8)
    for joint, angle in enumerate(state):
        level = round((float(angle) / (4 * math.pi) + 0.5) * 65535)
        image[0, joint, :2] = divmod(level, 256)
    return image


class SpelledModel(WorldModel):
    """Its latents are the joint angles, and its futures are exact."""

    def standardise(self, pooled: torch.Tensor) -> torch.Tensor:
        return pooled

    def pooled(self, images: np.ndarray | torch.Tensor) -> torch.Tensor:
        pixels = torch.as_tensor(np.asarray(images)).double()[:, 0, :2]
        return (4 * math.pi * ((256 * pixels[..., 0] + pixels[..., 1]) / 65535 - 0.5)).float()[:, None]

    def rollout(self, context: Context, actions: torch.Tensor, *, chunk: int = 256) -> Rollout:
        states = context.states[:, None, -1:] + actions.cumsum(2)
        return Rollout(states[:, :, :, None], states)


def solvable_model(*, stride: int = 1, history: int = 1, frames: int = 6, reached: float | None = 0.02) -> SpelledModel:
    """`reached`: the mean angle error (rad) that counts as at the goal."""
    encoder = PixelPatches(SIZE, SIZE)
    return SpelledModel(
        WorldModelConfig(
            robot=reacher_spec(SIZE), camera=CAMERA, preparation=ImagePreparation(SIZE),
            encoder=encoder.describe(), latent=LatentConfig(1, 1, encoder.dim), history=history, stride=stride,
            predictor=PredictorConfig(
                grid_height=1, grid_width=1, latent_dim=encoder.dim, width=6, depth=1, heads=1,
                max_frames=frames, action_dim=27, state_dim=25,
            ),
            calibration=None if reached is None else Calibration(reached, 1e3, 0.1),
        ),
        encoder,
    )  # fmt: skip


class SpelledRobot:
    """Moves exactly as told, within its limits; notes what it was told."""

    def __init__(self, state: tuple[float, float] = (0.0, 0.0)) -> None:
        self.state = np.array(state)
        self.asked: list[np.ndarray] = []
        self.calls: list[str] = []
        self.fail_at: int | None = None
        self.failure: BaseException = RuntimeError("the bus is gone")

    @property
    def spec(self) -> RobotSpec:
        return reacher_spec(SIZE)

    def reset(self, seed: int | None = None) -> Observation:
        return self.observe()

    def observe(self) -> Observation:
        return Observation({CAMERA: picture(self.state)}, self.state.astype(np.float32), 0.2 * len(self.asked))

    def apply(self, action: np.ndarray) -> np.ndarray:
        self.calls.append("apply")
        if len(self.asked) == self.fail_at:
            raise self.failure
        self.asked.append(action)
        done = np.clip(self.spec.check_action(action), self.spec.action_low, self.spec.action_high)
        self.state = self.state + done
        return done

    @property
    def renderer_identity(self) -> str:
        return "spelled"

    def place(self, state: np.ndarray) -> Observation:
        self.state = self.spec.check_state(state)
        return self.observe()

    def true_state(self) -> np.ndarray:
        return np.array(self.state)

    def sample_state(self, generator: np.random.Generator) -> np.ndarray:
        return generator.uniform(self.spec.state_low, self.spec.state_high)

    def set_appearance(self, seed: int | None, level: float = 1.0) -> None:
        self.calls.append(f"appearance {seed}")

    def end_effector(self) -> np.ndarray:
        return ReachTask().fingertip(self.state)

    def settings(self) -> Mapping[str, Any]:
        return {}

    def stop(self) -> None:
        self.calls.append("stop")

    def close(self) -> None:
        self.calls.append("close")


def settings(**changes: Any) -> Any:
    from vjepa_mpc.controller import ControlSettings

    return ControlSettings(**{"horizon": 3, **changes})
