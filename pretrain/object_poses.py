"""Where the object of a task lies in logs, for actors that read it, and how well it is read."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float32

from vjepa_mpc.actor import ObjectView
from vjepa_mpc.core.errors import InputError
from vjepa_mpc.datasets.store import ZarrStore
from vjepa_mpc.object_actor import ObjectActor, Reading, view_of
from vjepa_mpc.pretrain.actor_data import Relabelled
from vjepa_mpc.pretrain.hindsight import world_states
from vjepa_mpc.robots.factory import find_task, task_names
from vjepa_mpc.world_model import WorldModel


def poses_of(
    model: WorldModel, store: ZarrStore, trained: Sequence[int]
) -> tuple[Float32[np.ndarray, "rows 3"], ObjectView]:
    """The pose of what is pushed in every row, and how it is read, by the episodes that are learned from. `InputError`
    where the robot's task pushes nothing about a plane, or the logs do not say where it lies."""
    robot = model.config.robot
    pushed = find_task(robot.name).pushed if robot.name in task_names() else None
    if pushed is None:
        raise InputError(f"The task of {robot.name} moves no object about on a plane (--object); leave it out.")
    if len({float(limit) for limit in model.step_limits[list(pushed.push)]}) > 1:
        raise InputError(f"{robot.name} moves further along one axis than along the other; leave --object out.")
    poses = world_states(store)[:, list(pushed.pose)].astype(np.float32)
    lengths = store.lengths()
    starts = np.cumsum(lengths) - lengths
    rows = np.concatenate([np.arange(starts[one], starts[one] + lengths[one]) for one in trained])
    states, _ = store.states_and_actions()
    ranges = [high - low for low, high in zip(robot.state_low, robot.state_high, strict=True)]
    return poses, view_of(poses[rows], states[rows], pushed.place, pushed.push, pushed.same_after_rad, ranges)


def truth_of(batch: Relabelled) -> Reading:
    assert batch.poses is not None, "these batches were made without poses"
    return Reading(batch.poses[..., :3], batch.poses[..., 3:])


def misreadings(model: WorldModel, batch: Relabelled) -> dict[str, float]:
    """How far the poses read from the frames of a held-out `batch` are off: of the object's place [m] and angle [rad],
    the median and what nine of ten are below."""
    assert isinstance(model.actor, ObjectActor)
    reader = model.actor.reader
    read, true = reader.understood(reader(model.standardise(batch.now))).pose, truth_of(batch).pose[:, 0]
    period = model.actor.view.same_after_rad
    place = (read - true)[:, :2].norm(dim=1)
    angle = (torch.remainder((read - true)[:, 2] + period / 2, period) - period / 2).abs()
    return {
        f"{name}_{share}": round(float(torch.quantile(off, q)), 4)
        for name, off in (("place_m", place), ("angle_rad", angle))
        for share, q in (("median", 0.5), ("p90", 0.9))
    }
