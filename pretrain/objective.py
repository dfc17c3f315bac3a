"""What the pretraining objectives share: the encoder's shape, clips and their preparation, inverse dynamics, health.

An objective is a `Learner` of its own that says what a batch holds beside its clips and what the loss is; it is
found by its name in `objectives.py`. All of them train the same encoder, write it in the same format, and are watched
by the same figures, so that they can be told apart by a table.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from vjepa_mpc.core.errors import InputError
from vjepa_mpc.datasets.clips import Clip
from vjepa_mpc.encoder import encode_frames, encoder_grid
from vjepa_mpc.images import ImagePreparation
from vjepa_mpc.pretrain import ranks
from vjepa_mpc.pretrain.data import Batches
from vjepa_mpc.pretrain.health import check_health, health
from vjepa_mpc.pretrain.inverse import ActionPairs, InverseDynamics, PairSource
from vjepa_mpc.pretrain.sigreg import sigreg

if TYPE_CHECKING:
    from transformers import VJEPA2Config, VJEPA2Model


@dataclass(frozen=True)
class EncoderSize:
    """Shape of the encoder: square pictures of `picture` pixels, `patch` pixels a patch; `mlp_ratio`: the width of its
    hidden layers to its own."""

    picture: int = 64
    patch: int = 8
    tubelet: int = 2
    width: int = 128
    depth: int = 6
    heads: int = 2
    mlp_ratio: float = 4.0

    @classmethod
    def of(cls, config: VJEPA2Config, picture: int | None = None) -> EncoderSize:
        """That of an encoder that is there; rotary positions let it see pictures of another size too."""
        patch = config.patch_size if isinstance(config.patch_size, int) else config.patch_size[0]
        return cls(
            picture or config.crop_size, patch, config.tubelet_size, config.hidden_size,
            config.num_hidden_layers, config.num_attention_heads, float(config.mlp_ratio),
        )  # fmt: skip

    def config(self, frames: int) -> VJEPA2Config:
        """As Hugging Face's configuration, without the mask predictor (it does not ship)."""
        from transformers import VJEPA2Config

        if min(self.picture, self.patch, self.width, self.depth, self.heads) < 1:
            raise InputError(f"Every part of the encoder's size must be at least 1, got {self}.")
        if self.picture % self.patch or self.width % self.heads:
            raise InputError(
                f"The picture ({self.picture}) must be a multiple of the patch ({self.patch}) and the width "
                f"({self.width}) of the heads ({self.heads})."
            )
        return VJEPA2Config(
            crop_size=self.picture,
            patch_size=self.patch,
            tubelet_size=self.tubelet,
            frames_per_clip=frames,
            hidden_size=self.width,
            num_hidden_layers=self.depth,
            num_attention_heads=self.heads,
            mlp_ratio=self.mlp_ratio,
            hidden_act="gelu",
            pred_num_hidden_layers=0,
            pred_hidden_size=self.width,
            pred_num_attention_heads=self.heads,
            pred_num_mask_tokens=1,
        )


@dataclass(frozen=True)
class ObjectiveSettings:
    """What every objective is told: the encoder's `size`; clips of `frames` frames, `stride` control steps apart;
    `contrast` (see `ImagePreparation`); the weight of inverse dynamics; the directions of SIGReg's statistic, which
    is logged whether or not it is part of the loss."""

    size: EncoderSize = EncoderSize()
    frames: int = 4
    stride: int = 2
    contrast: str = "picture"
    inverse_weight: float = 0.0
    sigreg_slices: int = 128

    def __post_init__(self) -> None:
        if self.size.tubelet < 1 or self.frames < 1 or self.frames % self.size.tubelet:
            raise InputError(f"Clips of {self.frames} frames do not divide into tubelets of {self.size.tubelet}.")
        if self.sigreg_slices < 1:
            raise InputError(f"SIGReg needs at least 1 direction, not {self.sigreg_slices}.")
        if self.inverse_weight < 0:
            raise InputError(f"The weight of inverse dynamics ({self.inverse_weight}) is not negative.")

    @property
    def grid(self) -> int:
        """Patches a side."""
        return self.size.picture // self.size.patch


class EncoderModules(nn.Module):
    """The encoder that is trained and, for actions of this scale, inverse dynamics; an objective adds its own."""

    encoder: VJEPA2Model
    inverse: InverseDynamics | None

    @staticmethod
    def inverse_for(config: VJEPA2Config, action_scale: Float[Tensor, "a"] | None) -> InverseDynamics | None:
        if action_scale is None:
            return None
        return InverseDynamics(encoder_grid(config), config.hidden_size, action_scale)


class EncoderLearner(ABC):
    """An objective as a `Learner`: batch number i and all randomness in it are functions of (seed, i)."""

    remedy = "lower --lr"
    """What may help against a collapse, to finish the sentence that stops the run."""
    modules: EncoderModules

    def __init__(
        self,
        settings: ObjectiveSettings,
        data: Batches,
        preparation: ImagePreparation,
        device: torch.device,
        seed: int,
    ) -> None:
        if data.size < 2 * ranks.count():
            raise InputError(
                "Pretraining needs at least 2 clips a step for each worker: a collapse is seen in their spread."
            )
        self.settings, self.data, self.preparation, self.device, self.seed = settings, data, preparation, device, seed
        self._pairs = PairSource(data, seed) if settings.inverse_weight else None
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.modules = self.build(self._pairs.scale if self._pairs else None).to(device)

    @abstractmethod
    def build(self, action_scale: Float[Tensor, "a"] | None) -> EncoderModules:
        """The modules with fresh weights from torch's global generator, which is seeded."""

    @abstractmethod
    def batch(self, step: int) -> Any:
        """See `Learner`."""

    @abstractmethod
    def loss(self, batch: Any, step: int) -> tuple[Tensor, dict[str, Any]]:
        """See `Learner`."""

    @property
    def product(self) -> VJEPA2Model:
        """The encoder that is kept."""
        return self.modules.encoder

    def begin_with(self, encoder: VJEPA2Model) -> None:
        """Take over the weights of an encoder of this shape, also for what follows it.

        Raises `InputError` for one of another shape.
        """
        weights = encoder.encoder.state_dict()
        for own in {id(one): one for one in (self.modules.encoder, self.product)}.values():
            try:
                own.encoder.load_state_dict(weights)
            except RuntimeError as error:
                reason = str(error).splitlines()[-1].strip()
                raise InputError(f"The encoder to go on from is of another shape: {reason}") from error

    def after_step(self, step: int) -> None:  # noqa: B027
        """Nothing moves but the optimiser, unless an objective has a target encoder."""

    def check(self, figures: Mapping[str, float]) -> None:
        check_health(figures, self.remedy)

    def clips(self, step: int) -> tuple[Clip, ActionPairs | None]:
        """The clips of a step, and with inverse dynamics two pictures of each."""
        clip = self.data.batch(step)
        return clip, self._pairs.pairs(clip, step) if self._pairs else None

    def pictures(self, clips: UInt8[Tensor, "b t h w 3"]) -> UInt8[Tensor, "n h w 3"]:
        """Single pictures of clips, one a tubelet: as much for the encoder to read as the clips themselves."""
        return clips[:, :: self.settings.size.tubelet].flatten(0, 1)

    def pixels(self, pictures: UInt8[Tensor, "n h w 3"]) -> Float[Tensor, "n 3 s s"]:
        """Prepared, on the device."""
        return self.preparation.prepare(pictures.to(self.device, non_blocking=True))

    def statistic(self, embeddings: Float[Tensor, "n d"], step: int) -> Float[Tensor, ""]:
        """SIGReg's statistic along the directions of a step."""
        generator = torch.Generator().manual_seed(1_000_003 * self.seed + step)
        return sigreg(embeddings, slices=self.settings.sigreg_slices, generator=generator)

    def finished(
        self,
        loss: Tensor,
        figures: dict[str, Any],
        pairs: ActionPairs | None,
        features: Callable[[], Float[Tensor, "b n d"]],
    ) -> tuple[Tensor, dict[str, Any]]:
        """A step's loss with inverse dynamics added, and its figures with those of the `features`' health."""
        if pairs is not None and self.modules.inverse is not None:
            pixels = self.pixels(pairs.pictures.transpose(0, 1).flatten(0, 1))
            before, after = encode_frames(self.modules.encoder, pixels).chunk(2)
            actions = pairs.actions.to(self.device, non_blocking=True)
            figures["inverse"] = self.modules.inverse.loss(before, after, actions)
            loss = loss + self.settings.inverse_weight * figures["inverse"]
        told = {name: value.detach() if isinstance(value, Tensor) else value for name, value in figures.items()}
        return loss, {**told, **health(features)}
