"""What a plan leaves behind: plan.json, episode.mp4 and energy.png, each whole or absent."""

from __future__ import annotations

import hashlib
import math
import os
import statistics
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, is_dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from vjepa_mpc.controller import Controller, Decision
from vjepa_mpc.core.errors import InputError
from vjepa_mpc.core.files import write_json
from vjepa_mpc.core.settings import provenance
from vjepa_mpc.energy import EnergyLandscape, energy_slice, plot_energy, step_units
from vjepa_mpc.loop import StepRecord
from vjepa_mpc.memory import peak_bytes
from vjepa_mpc.planning import Goal, OrderedOutcome
from vjepa_mpc.policies import actor_drawn
from vjepa_mpc.world_model import WEIGHTS, WorldModel

SCHEMA = "vjepa-mpc-plan-1"
RECORD, VIDEO, ENERGY = "plan.json", "episode.mp4", "energy.png"
ENERGY_POINTS = 25


def check_writable(folder: Path) -> None:
    """Refuse an output folder that nothing can be written to, before any work; leaves no trace."""
    existing = folder.absolute()
    while not os.path.lexists(existing):
        existing = existing.parent
    if not existing.is_dir():
        raise InputError(f"Cannot write to {folder}: {existing} is not a folder; choose another --out.")
    try:
        with tempfile.TemporaryFile(dir=existing) as probe:
            probe.write(b"0")
            probe.flush()
    except OSError as error:
        raise InputError(
            f"Cannot write to {folder} ({error.strerror or error}); choose another --out, or mend its folder."
        ) from error


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's bytes, as `sha256sum` prints it."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


@dataclass(frozen=True)
class Setting:
    """What was planned with, for the record. `goals` and what there is to warn of each: the last is the goal, those
    before it sub-goals. `options` are the command line's; `model` names the weights."""

    goals: Sequence[Goal]
    warnings: Sequence[str | None]
    goal_state: Float[np.ndarray, "s"] | None
    controller: Controller
    model: str
    folder: Path
    seed: int
    options: Mapping[str, Any]
    notes: Sequence[str]


def describe(setting: Setting) -> dict[str, Any]:
    """The part of plan.json that a closed loop and a single plan share."""
    controller, config = setting.controller, setting.controller.model.config
    calibration = config.calibration
    assert calibration is not None, "an untrained model was let through"
    robot = config.robot
    return {
        "goal": {
            "file": str(setting.goals[-1].path),
            "sha256": setting.goals[-1].sha256,
            "pixels": list(setting.goals[-1].image.shape[:2]),
            "score": controller.likeness.score,
            "score_limit": calibration.goal_score,
            "contrast": controller.likeness.contrast,
            "contrast_limit": calibration.contrast,
            "grain": controller.likeness.grain,
            "grain_limit": calibration.grain,
            "state": None if setting.goal_state is None else setting.goal_state.tolist(),
        },
        "sub_goals": [
            {"file": str(goal.path), "sha256": goal.sha256, "goal_warning": warning}
            for goal, warning in zip(setting.goals[:-1], setting.warnings[:-1], strict=True)
        ],
        "goal_warning": setting.warnings[-1],
        "notes": list(setting.notes),
        "model": {
            "source": setting.model,
            "folder": str(setting.folder),
            "weights_sha256": file_sha256(setting.folder / WEIGHTS),
            "encoder_sha256": config.encoder_sha256 or None,
            "camera_pixels": [robot.cameras[config.camera].height, robot.cameras[config.camera].width],
            "reached_cost": calibration.reached_cost,
            "renderer": config.renderer,
        },
        "robot": {
            "name": robot.name,
            "action_names": list(robot.action_names),
            "action_units": list(robot.action_units),
            "state_names": list(robot.state_names),
            "state_units": list(robot.state_units),
            "action_low": list(robot.action_low),
            "action_high": list(robot.action_high),
            "control_period_s": robot.control_period_s,
            "control_steps_a_model_step": config.stride,
            "control_steps_a_planned_step": controller.settings.steps_a_leg(config.stride),
        },
        "settings": {
            **_search(controller),
            "control": _plain(controller.settings),
            "seed": setting.seed,
            **setting.options,
        },
        "memory": {"candidates_at_a_time": controller.chunk, "peak_bytes": peak_bytes(controller.model.device)},
        "provenance": provenance(),
        "files": [],
    }


def _search(controller: Controller) -> dict[str, Any]:
    """Who is asked for plans, and how."""
    if controller.settings.act:
        return {"planner": "actor", "planner_settings": None, "actor_drawn": actor_drawn(controller.model, None)}
    settings = _plain(getattr(controller.planner, "settings", None))
    return {"planner": type(controller.planner).__name__, "planner_settings": settings}


def episode_record(setting: Setting, outcome: OrderedOutcome, timing: Mapping[str, float]) -> dict[str, Any]:
    """plan.json of a closed loop: every step with actions in the robot's units, costs by term and times, and how each
    sub-goal ended (null: its turn never came)."""
    times = [record.milliseconds for record in outcome.records]
    rows = [_step(record, sent=index < outcome.actions) for index, record in enumerate(outcome.records)]
    shared = describe(setting)
    for index, sub_goal in enumerate(shared["sub_goals"]):
        ended, actions = outcome.stages[index] if index < len(outcome.stages) else (None, 0)
        sub_goal |= {"exit_reason": ended, "actions": actions}
    return {
        "schema": SCHEMA,
        "kind": "closed loop",
        "reached": outcome.ended == "reached",
        "exit_reason": outcome.ended,
        "error": None if outcome.error is None else f"{type(outcome.error).__name__}: {outcome.error}",
        "actions": outcome.actions,
        "steps": rows,
        "timing": {
            **{name: round(value, 3) for name, value in timing.items()},
            "step_ms_median": round(statistics.median(times), 2) if times else None,
            "step_ms_max": round(max(times), 2) if times else None,
        },
        **shared,
    }


def _step(record: StepRecord, *, sent: bool) -> dict[str, Any]:
    return {
        "step": record.step,
        "proprioception": [float(value) for value in record.proprioception],
        "wanted": record.wanted.tolist(),
        "applied": record.action.tolist() if sent else None,
        "latent_cost": record.latent_cost,
        "planned_cost": _finite(record.planned_cost),
        "costs": {name: _finite(value) for name, value in record.terms.items()},
        "distance_m": record.distance,
        "milliseconds": round(record.milliseconds, 2),
        "evaluations": record.evaluations,
        "reached": record.reached,
        "held_by": list(record.held_by),
        "executed": record.executed,
        "plan_age": record.plan_age,
        "late_ms": round(record.late_ms, 2),
    }


def single_record(
    setting: Setting,
    observation: Goal,
    state: Sequence[float],
    decisions: Sequence[Decision],
    timing: Mapping[str, float],
) -> dict[str, Any]:
    """plan.json of one plan from pictures: the actions to every goal in order, and what the last ones cost."""
    first, last = decisions[0], decisions[-1]
    plans = [decision.plan for decision in decisions]
    return {
        "schema": SCHEMA,
        "kind": "one plan",
        "observation": {
            "file": str(observation.path), "sha256": observation.sha256, "state": [float(value) for value in state],
        },
        "latent_cost": first.latent_cost,
        "looks_reached": first.latent_cost <= trained_cost(setting.controller.model),
        "wanted": first.action.tolist(),
        "actions": [action for plan in plans for action in plan.actions[0].double().cpu().tolist()],
        "planned_cost": _finite(float(plans[-1].cost[0])),
        "costs": {name: _finite(value) for name, value in last.terms.items()},
        "evaluations": sum(plan.evaluations for plan in plans),
        "stopped": plans[-1].stopped,
        "timing": {
            name: round(value, 3) for name, value in {**timing, "plan_s": sum(plan.seconds for plan in plans)}.items()
        },
        **describe(setting),
    }  # fmt: skip


def trained_cost(model: WorldModel) -> float:
    """The latent distance below which a view counts as at the goal."""
    assert model.config.calibration is not None, "an untrained model was let through"
    return model.config.calibration.reached_cost


def save_record(record: dict[str, Any], folder: Path, files: Sequence[str]) -> None:
    """Write plan.json, which names the files that belong to it."""
    record["files"] = [RECORD, *files]
    write_json(folder / RECORD, record)


def remove_others(folder: Path, record: dict[str, Any]) -> None:
    """Remove a video and a landscape that `record` does not name: they are of an earlier plan into this folder."""
    for name in {VIDEO, ENERGY} - set(record["files"]):
        (folder / name).unlink(missing_ok=True)


def save_energy(controller: Controller, decision: Decision, folder: Path) -> None:
    """Draw `plan_energy` into energy.png."""
    plot_energy(plan_energy(controller, decision), folder / ENERGY)


def plan_energy(controller: Controller, decision: Decision) -> EnergyLandscape:
    """The cost of one action held over the plan's horizon, as `decision` saw it.

    The axes are the first two actions that the planner's bounds leave free.
    """
    config, bounds = controller.model.config, controller.planner.bounds
    robot = config.robot
    steps = controller.settings.steps_a_leg(config.stride)  # without legs a model step's
    free = [axis for axis in range(len(robot.action_names)) if float(bounds.low[axis]) < float(bounds.high[axis])]
    return energy_slice(  # in float32: the steps of bfloat16 would show
        decision.cost, decision.plan.actions[0], bounds, axes=free[:2], points=ENERGY_POINTS, hold=True,
        names=robot.action_names, units=step_units(config, steps),
    )  # fmt: skip


def _finite(value: float) -> float | None:
    """JSON has no infinity: a rejected plan's cost is null."""
    return value if math.isfinite(value) else None


def _plain(value: Any) -> Any:
    return asdict(value) if is_dataclass(value) and not isinstance(value, type) else None
