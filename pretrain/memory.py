"""What training a predictor needs in memory, counted before anything is loaded.

Weights, gradients and optimiser state follow from the number of parameters. Activations are counted, not estimated:
one step's loss is built on torch's "meta" device, which computes shapes and holds no numbers, and what autograd keeps
for the way back is added up.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from vjepa_mpc.datasets.clips import Clip
from vjepa_mpc.encoder import frame_encoder
from vjepa_mpc.predictor import ActionConditionedPredictor
from vjepa_mpc.pretrain.data import ClipBatches
from vjepa_mpc.pretrain.predictor import PredictorLearner, PredictorSettings
from vjepa_mpc.states import state_space
from vjepa_mpc.world_model import WorldModel, WorldModelConfig

_FLOAT = 4


@dataclass(frozen=True)
class MemoryNeed:
    """Bytes of one training process: the frozen `encoder` (held once), the predictor's `weights`, their `gradients`
    and the optimiser's two moments, and the `activations` of a step, in float32. With bfloat16 autocast the
    activations take between half and all of that."""

    encoder: int
    weights: int
    gradients: int
    optimiser: int
    activations: int

    @property
    def total(self) -> int:
        return self.encoder + self.weights + self.gradients + self.optimiser + self.activations


def training_memory(
    config: WorldModelConfig, settings: PredictorSettings, batch: int, *, recompute: bool = False, muon: bool = False
) -> MemoryNeed:
    """The need of a step on `batch` clips of `settings.frames` frames. Nothing of that size is allocated."""
    with torch.device("meta"):
        model = WorldModel(config, frame_encoder(config.encoder))
        model.states = state_space(config.robot, config.stride)
        model.predictor.requires_grad_(True)
        _tables_to(model.predictor, torch.device("meta"))
        model.predictor.recompute = recompute
        robot, latent = config.robot, (config.latent.positions, config.latent.dim)
        clip = Clip(
            torch.zeros(batch, settings.frames, *latent),
            torch.zeros(batch, settings.frames, len(robot.state_names)),
            torch.zeros(batch, settings.frames - 1, len(robot.action_names)),
        )
        learner = PredictorLearner(model, settings, _NoClips(), torch.device("meta"))
        activations = _kept(learner, clip, {id(parameter) for parameter in model.parameters()})
    if recompute:  # checkpoints hold their inputs themselves, out of autograd's sight
        frames = settings.frames - 1 + settings.rollout_steps
        inputs = config.predictor.depth * batch * frames * config.predictor.tokens * config.predictor.width
        activations += _FLOAT * inputs
    trained = [parameter for parameter in model.predictor.parameters()]
    weights = _FLOAT * sum(parameter.numel() for parameter in trained)
    hidden = [p for p in model.predictor.predictor_blocks.parameters() if p.ndim == 2] if muon else []
    moments = 2 * weights - _FLOAT * sum(p.numel() for p in hidden)  # muon keeps one for hidden matrices
    encoder = _FLOAT * sum(parameter.numel() for parameter in model.encoder.parameters())
    return MemoryNeed(encoder, weights, weights, moments, activations)


class _NoClips(ClipBatches):
    """A learner's data that is never asked for any."""

    def __init__(self) -> None:
        pass


def _tables_to(predictor: ActionConditionedPredictor, device: torch.device) -> None:
    predictor._cos, predictor._sin = predictor._cos.to(device), predictor._sin.to(device)


def _kept(learner: PredictorLearner, clip: Clip, parameters: set[int]) -> int:
    """Bytes that autograd keeps of one loss, parameters aside; what several operations keep counts once."""
    kept: dict[int, int] = {}
    alive: list[Tensor] = []  # so that no storage's address is used twice

    def note(tensor: Tensor) -> Tensor:
        base = tensor if tensor._base is None else tensor._base
        if id(base) not in parameters:
            storage = tensor.untyped_storage()
            kept[storage._cdata] = storage.nbytes()
            alive.append(tensor)
        return tensor

    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        learner.loss(clip, 0)
    return sum(kept.values())
