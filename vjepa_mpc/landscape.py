"""The energy-landscape study of V-JEPA 2-AC (Assran et al. 2025, arXiv:2506.09985, section 4) for any model.

One model step from one picture: over a grid of actions, how far is what the model imagines from the goal? With
the action that a log holds marked, a valley around it says that the model has understood what actions do.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, UInt8

from vjepa_mpc.controller import fitting_chunk
from vjepa_mpc.core.errors import InputError, unknown_name
from vjepa_mpc.costs import GoalDistance, PlanningCost
from vjepa_mpc.datasets.store import ZarrStore
from vjepa_mpc.energy import EnergyLandscape, energy_slice, step_units
from vjepa_mpc.log_fit import check_numbers, check_period
from vjepa_mpc.planners.base import Bounds
from vjepa_mpc.rollout import Context
from vjepa_mpc.world_model import WorldModel

FREE_AXES = 2
ANOTHER_MODEL = "or give a model that was trained on such logs"


@dataclass(frozen=True)
class Moment:
    """A picture, the state in it, the picture to be reached one model step later, and the action that did
    (robot units; None when unknown)."""

    image: UInt8[np.ndarray, "height width 3"]
    state: Float[np.ndarray, "s"]
    goal: UInt8[np.ndarray, "goal_height goal_width 3"]
    action: Float[np.ndarray, "a"] | None = None


def logged_moment(model: WorldModel, store: ZarrStore, episode: int, frame: int) -> Moment:
    """Frame `frame` of an episode, the frame one model step later, and the sum of the actions between.

    `InputError` when there is no such episode, frame or camera, or the log's states or actions are other ones: of
    another state model, names, units or control period.
    """
    config = model.config
    check_numbers(config.robot, store.spec, ANOTHER_MODEL)
    check_period(config.robot, store.spec, ANOTHER_MODEL)
    if not 0 <= episode < len(store):
        raise InputError(f"There is no episode {episode} among {len(store)}; they are numbered from 0.")
    if config.camera not in store.spec.cameras:
        raise unknown_name("camera in this store", config.camera, store.spec.cameras)
    length = int(store.lengths()[episode])
    if not 0 <= frame < length - config.stride:
        raise InputError(
            f"Episode {episode} has {length} frames and a model step spans {config.stride}: give a frame from 0 to "
            f"{length - config.stride - 1}."
        )
    part = store.read(episode, frame, frame + config.stride + 1)
    action = part.actions.sum(axis=0)
    pictures = part.images[config.camera]
    return Moment(pictures[0], part.states[0].astype(np.float64), pictures[-1], action.astype(np.float64))


def study(model: WorldModel, moment: Moment, axes: Sequence[str] = (), points: int = 9) -> EnergyLandscape:
    """The energy of a grid of actions along `axes` (names; by default the first two that are free).

    All other actions are held at zero, as published; the logged action's own energy is that of the whole of it.
    A model that sees several past frames is shown this one repeated, at rest. Computed in the predictor's
    own type: load the model in float32 for numbers.
    """
    robot, bounds = model.config.robot, model.action_bounds
    chosen = _axes(model, axes)
    with torch.no_grad():
        now, goal = (model.encode(picture[None]) for picture in (moment.image, moment.goal))
        context, chunk = _at_rest(model, now, moment.state), fitting_chunk(model, 1, None)
        cost = PlanningCost(model, context, [GoalDistance(goal, running=0.0)], chunk=chunk)
        still = torch.zeros(1, len(robot.action_names), device=model.device)
        found = energy_slice(
            cost, still, bounds, axes=chosen, points=points, names=robot.action_names, units=step_units(model.config)
        )
        if moment.action is None:
            return replace(found, chosen=None)
        action = torch.as_tensor(moment.action, dtype=torch.float32, device=model.device)
        energy = cost(action[None, None, None], torch.zeros(1, dtype=torch.long, device=model.device)).cost
    where = tuple(float(moment.action[axis]) for axis in chosen)
    return replace(found, chosen=where, chosen_energy=float(energy), mark="logged action")


def plain(landscape: EnergyLandscape) -> dict[str, Any]:
    """A landscape for JSON. Energies as nested lists, the first axis outermost; a rejected action's is null."""
    finite = np.isfinite(landscape.energy)
    energy = np.where(finite, landscape.energy, 0.0).astype(object)
    energy[~finite] = None
    marked = None
    if landscape.chosen is not None:
        marked = {"action": list(landscape.chosen), "energy": landscape.chosen_energy}
    lowest = landscape.lowest()
    return {
        "axes": list(landscape.names),
        "units": list(landscape.units),
        "values": [values.tolist() for values in landscape.values],
        "energy": energy.tolist(),
        "logged": marked,
        "lowest": None if lowest is None else {"action": list(lowest), "energy": float(landscape.allowed().min())},
    }


def _axes(model: WorldModel, names: Sequence[str]) -> list[int]:
    robot, bounds = model.config.robot, model.action_bounds
    if not names:
        return _free(bounds)[:FREE_AXES]
    for name in names:
        if name not in robot.action_names:
            raise unknown_name(f"action of {robot.name}", name, robot.action_names)
    return [robot.action_names.index(name) for name in names]


def _free(bounds: Bounds) -> list[int]:
    return [axis for axis in range(len(bounds.low)) if float(bounds.low[axis]) < float(bounds.high[axis])]


def _at_rest(model: WorldModel, latent: torch.Tensor, state: Float[np.ndarray, "s"]) -> Context:
    """One picture as a history: repeated, with actions that hold still."""
    k, size = model.config.history, len(model.config.robot.action_names)
    states = torch.as_tensor(state, dtype=torch.float32, device=model.device)
    return Context(latent.expand(1, k, -1, -1), states.expand(1, k, -1), latent.new_zeros(1, k - 1, size))
