"""The pretraining objectives by name: the one table that commands and runs look in."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from vjepa_mpc.core.errors import unknown_name
from vjepa_mpc.pretrain.ijepa import IJepaLearner, IJepaSettings
from vjepa_mpc.pretrain.lejepa import LeJepaLearner, LeJepaSettings
from vjepa_mpc.pretrain.objective import EncoderLearner, ObjectiveSettings
from vjepa_mpc.pretrain.vicreg import VicRegLearner, VicRegSettings
from vjepa_mpc.pretrain.vjepa import VJepaLearner, VJepaSettings


@dataclass(frozen=True)
class Objective:
    """The settings that belong to a learner."""

    settings: type[ObjectiveSettings]
    learner: type[EncoderLearner]


OBJECTIVES: dict[str, Objective] = {
    "vjepa": Objective(VJepaSettings, VJepaLearner),
    "ijepa": Objective(IJepaSettings, IJepaLearner),
    "lejepa": Objective(LeJepaSettings, LeJepaLearner),
    "vicreg": Objective(VicRegSettings, VicRegLearner),
}


def find_objective(name: str) -> Objective:
    """The objective called `name`; `InputError` with the nearest when there is none."""
    if name not in OBJECTIVES:
        raise unknown_name("objective", name, OBJECTIVES)
    return OBJECTIVES[name]


def name_of(settings: ObjectiveSettings) -> str:
    """The objective that `settings` are of."""
    return next(name for name, objective in OBJECTIVES.items() if objective.settings is type(settings))


def plain(settings: ObjectiveSettings) -> dict[str, Any]:
    """Name and settings of an objective, as run folders and encoders record them."""
    return {"name": name_of(settings), **asdict(settings)}
