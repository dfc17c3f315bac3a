"""A world model's actor drives while data is collected, until it is corrected (`exploration`, behaviour `actor`)."""

from __future__ import annotations

import zlib
from collections.abc import Callable

import numpy as np
import torch
from jaxtyping import Float

from vjepa_mpc.core.errors import InputError
from vjepa_mpc.policies import ActorPolicy
from vjepa_mpc.robots.base import Observation, SimulatedRobot
from vjepa_mpc.world_model import WorldModel


class Driver:
    """The actor of a model by itself. Goal pictures are taken in a world of their own, as the task's are: the world in
    which it drives goes on undisturbed."""

    def __init__(
        self, model: WorldModel, studio: SimulatedRobot, steps: int | None = None, drawn: bool | None = None
    ) -> None:
        """`steps` and `drawn` as `ActorPolicy` takes them. `InputError` for a model without an actor, or of another
        robot than `studio`."""
        if model.actor is None:
            raise InputError("This model has no actor that could drive; `vjepa-mpc train-actor` gives it one.")
        model.check_fits(studio.spec)
        self._studio, self._camera = studio, model.config.camera
        self._policy = ActorPolicy(model, steps=steps, drawn=drawn)

    def look(self, paint: Callable[[SimulatedRobot], None]) -> None:
        paint(self._studio)

    def begin(self, goal: Float[np.ndarray, "w"]) -> None:
        seen = self._studio.place(goal)
        seed = zlib.crc32(np.asarray(goal, dtype=np.float64).tobytes())  # another one for every goal
        self._policy.begin(seen.images[self._camera], seen.proprioception, seed)

    def act(self, observation: Observation) -> Float[np.ndarray, "a"]:
        return self._policy.act(observation)


def load_driver(folder: str, studio: SimulatedRobot, steps: int | None, drawn: bool | None) -> Driver:
    """The driver of a model's folder, on one thread of the CPU."""
    torch.set_num_threads(1)
    return Driver(WorldModel.from_pretrained(folder).for_planning(), studio, steps, drawn)
