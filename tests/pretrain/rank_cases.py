"""What is computed by one process and by two, and has to be the same: run as a script, it is one of the two.

`python rank_cases.py STORE OUT` with torchrun's variables set; the first rank saves what it found in OUT.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parent))
from moving_dot import ENCODER, PREDICTOR, SIZE, training

from vjepa_mpc.datasets.clips import ClipDataset
from vjepa_mpc.datasets.store import ZarrStore
from vjepa_mpc.images import ImagePreparation
from vjepa_mpc.pretrain import ranks
from vjepa_mpc.pretrain.data import ClipBatches
from vjepa_mpc.pretrain.health import effective_rank, health
from vjepa_mpc.pretrain.ijepa import IJepaSettings
from vjepa_mpc.pretrain.lejepa import BatchNorm, LeJepaSettings
from vjepa_mpc.pretrain.objectives import find_objective, name_of
from vjepa_mpc.pretrain.run import pretrain_encoder, train_world_model
from vjepa_mpc.pretrain.sigreg import content, sigreg
from vjepa_mpc.pretrain.source import Source
from vjepa_mpc.pretrain.vicreg import VicRegSettings, covariance, variance

CPU = torch.device("cpu")
COMMON: dict[str, Any] = {"size": ENCODER.size, "frames": 4, "sigreg_slices": 8}
NARROW = {"predictor_width": 24, "predictor_depth": 1, "predictor_heads": 1}
OBJECTIVES = {
    "vjepa": ENCODER,
    "vjepa-content": dataclasses.replace(ENCODER, sigreg_on="content", context_weight=0.5, inverse_weight=1.0),
    "ijepa": IJepaSettings(sigreg_weight=0.1, **COMMON, **NARROW),
    "lejepa": LeJepaSettings(projector_width=16, embedding=8, **COMMON),
    "vicreg": VicRegSettings(**COMMON),
}
STEPS = 4


def batch_norm(values: Tensor) -> Tensor:
    layer = BatchNorm(values.shape[-1])
    layer(values.flatten(0, -2))
    normed: Tensor = layer(values.flatten(0, -2))
    return (normed**3).mean() + layer.running_mean.sum() + layer.running_var.sum()


def sigreg_of(values: Tensor) -> Tensor:
    return sigreg(values.flatten(0, 1), slices=16, generator=torch.Generator().manual_seed(0))


def content_of(values: Tensor) -> Tensor:
    """With other positions kept in every clip, and the last ones in one rank only."""
    rng, clips = np.random.default_rng(1), 6
    kept = np.stack([np.sort(rng.choice(9, 4, replace=False)) for _ in range(clips)])
    ids = torch.from_numpy(np.concatenate([kept, kept + 9], axis=1))[ranks.share(clips)]
    return content(values[:, :8], ids, 9).pow(4).mean()


STATISTICS: dict[str, Callable[[Tensor], Tensor]] = {
    "sigreg": sigreg_of,
    "content": content_of,
    "variance": lambda values: variance(values, 1.5),
    "covariance": covariance,
    "batch norm": batch_norm,
}


def statistics() -> dict[str, Any]:
    """Value and gradient of each statistic, at the same batch of 6 by 10 by 5 numbers; of the ranks, put together."""
    values = torch.randn(6, 10, 5, generator=torch.Generator().manual_seed(0)) * torch.tensor([1.0, 0.2, 1, 2, 3])
    found: dict[str, Any] = {}
    for name, statistic in STATISTICS.items():
        whole = values.clone().requires_grad_()  # gradients land in this rank's share, and are zero elsewhere
        value = statistic(whole[ranks.share(6)])
        value.backward()
        ranks.average_gradients([whole])
        found[name] = (ranks.average(value.detach()), whole.grad)
    own = values[ranks.share(6)]
    figures = health(lambda: own)
    found["health"] = ranks.average(torch.tensor([figure() for figure in figures.values()], dtype=torch.float64))
    wide = torch.randn(6, 30, generator=torch.Generator().manual_seed(1))
    found["rank"] = torch.tensor(effective_rank(wide[ranks.share(6)]))
    return found


def first_gradients(store: Path) -> dict[str, Any]:
    """Loss and gradients of every objective's first two steps."""
    found: dict[str, Any] = {}
    for name, settings in OBJECTIVES.items():
        data = ClipBatches(ClipDataset(ZarrStore.open(store), settings.frames, settings.stride), 6, 0)
        learner = find_objective(name_of(settings)).learner(settings, data, ImagePreparation(SIZE), CPU, 0)
        for step in range(2):
            loss, figures = learner.loss(learner.batch(step), step)
            learner.modules.zero_grad()
            loss.backward()
            loss = loss.detach()
            ranks.average_gradients(learner.modules.parameters())
            numbers = [float(figure() if callable(figure) else figure) for figure in (loss, *figures.values())]
            found[f"{name} {step}"] = (
                ranks.average(torch.tensor(numbers, dtype=torch.float64)), gradients(learner.modules),
            )  # fmt: skip
    return found


def gradients(modules: nn.Module) -> dict[str, Tensor]:
    return {name: p.grad.clone() for name, p in modules.named_parameters() if p.grad is not None}


def trainings(store: Path, out: Path) -> None:
    """Whole runs; those in `OUT/killed` go on where they were left."""
    source = Source(store)
    for folder in ("vjepa", "killed"):
        pretrain_encoder(source, out / folder, OBJECTIVES["vjepa-content"], training(STEPS, optimizer="muon"), CPU)
    train_world_model(source, out / "model", "pixels", PREDICTOR, training(STEPS), CPU)


def main(store: Path, out: Path) -> None:
    torch.set_num_threads(1)
    with ranks.joined(CPU):
        found = {**statistics(), **first_gradients(store)}
        trainings(store, out)
        if ranks.first():
            torch.save(found, out / "found.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
