"""How long imagining takes: the cached rollout, and beside it the plain loop over it or the published code.

Both in one process, on the same weights, threads and inputs, in turn; what counts is the ratio. The published code
is a clone of facebookresearch/vjepa2 that the caller names: nothing of it is in this repository.
"""

from __future__ import annotations

import importlib
import logging
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from vjepa_mpc.core.errors import InputError, unknown_name
from vjepa_mpc.core.poses import integrate_pose
from vjepa_mpc.costs import latent_distance
from vjepa_mpc.predictor import ActionConditionedPredictor, PredictorConfig
from vjepa_mpc.rollout import Context, rollout

PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16}
_TUBELET = 2
_PATCH = 16


@dataclass(frozen=True)
class RolloutCase:
    """One measurement: a predictor's shape, `candidates` at `horizon` steps from one frame, and the precision."""

    horizon: int
    precision: str = "float32"
    width: int = 384
    depth: int = 12
    heads: int = 6
    grid: int = 16
    latent_dim: int = 1408
    candidates: int = 16
    chunk: int = 256

    def __post_init__(self) -> None:
        if self.precision not in PRECISIONS:
            raise unknown_name("precision", self.precision, PRECISIONS)
        if min(self.horizon, self.depth, self.grid, self.latent_dim, self.chunk) < 1 or self.candidates < 2:
            raise InputError("A measurement needs sizes of at least 1, and 2 candidates.")


BARS = {("float32", 1): 1.1, ("float32", 2): 2.0, ("float32", 3): 2.7, ("float32", 5): 4.0,
        ("bfloat16", 1): 1.4, ("bfloat16", 2): 2.2, ("bfloat16", 3): 3.0, ("bfloat16", 5): 4.3}  # fmt: skip
"""How many times as long the published code should take by precision and horizon, for a `RolloutCase` of the usual
shape on two cores."""


@dataclass(frozen=True)
class RolloutTimes:
    """Seconds of judging all candidates once, for every repeat: `cached` is this package's rollout, `other` what it is
    compared with in turn: the published loop (`published`), or this package's predictor run on the whole trajectory
    again for every step. `difference`: the largest one between our first prediction and the published one, in
    layer-normed units."""

    case: RolloutCase
    cached: tuple[float, ...]
    other: tuple[float, ...]
    published: bool
    difference: float | None

    def ratio(self) -> float:
        """How many times as long the other way takes: the median over the repeats, in each of which the two ran one
        after the other, so that what else the machine did weighs on both."""
        return statistics.median(theirs / ours for ours, theirs in zip(self.cached, self.other, strict=True))

    def ratio_of_least(self) -> float:
        """The same of the least times of both."""
        return min(self.other) / min(self.cached)

    def bar(self) -> float | None:
        """What the ratio should be; None where none was set: other shapes, or nothing published beside."""
        usual = self.case == RolloutCase(self.case.horizon, self.case.precision)
        return BARS.get((self.case.precision, self.case.horizon)) if usual and self.published else None


def measure(case: RolloutCase, repeats: int, reference: Path | None = None) -> RolloutTimes:
    """Time a case, both ways in turn, `repeats` times after one that is not counted."""
    predictor, context, goal, actions = _made(case)
    difference = None
    with _published(reference) as modules, torch.no_grad():
        if modules is None:
            other: Callable[[], object] = lambda: _plain(predictor, context, goal, actions)  # noqa: E731
        else:
            other, difference = _reference(modules, case, context, goal, actions)
        ways = lambda: _cached(predictor, context, goal, actions, case.chunk), other
        times: tuple[list[float], list[float]] = [], []
        for repeat in range(repeats + 1):
            for work, seconds in zip(ways, times, strict=True):
                began = time.perf_counter()
                work()
                if repeat:
                    seconds.append(time.perf_counter() - began)
    return RolloutTimes(case, tuple(times[0]), tuple(times[1]), modules is not None, difference)


def summary(times: Sequence[RolloutTimes]) -> float:
    """The geometric mean of the ratios."""
    return statistics.geometric_mean([one.ratio() for one in times])


def _layer_norm(latents: Tensor) -> Tensor:
    return F.layer_norm(latents, latents.shape[-1:])


def _made(case: RolloutCase) -> tuple[ActionConditionedPredictor, Context, Tensor, Tensor]:
    """Weights and inputs, the same for every way."""
    config = PredictorConfig(
        grid_height=case.grid, grid_width=case.grid, latent_dim=case.latent_dim, width=case.width, depth=case.depth,
        heads=case.heads, max_frames=max(8, case.horizon),
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        predictor = ActionConditionedPredictor(config).eval().requires_grad_(False)
    g = torch.Generator().manual_seed(1)
    latents = _layer_norm(torch.randn(2, 1, config.patches, case.latent_dim, generator=g))
    pose = torch.tensor([[[0.4, 0.1, 0.3, 0.1, -0.2, 0.3, 0.5]]])
    actions = 0.05 * torch.randn(1, case.candidates, case.horizon, 7, generator=g)
    context = Context(latents[:1], pose, torch.zeros(1, 0, 7))
    return predictor.to(PRECISIONS[case.precision]).prepare(), context, latents[1:, 0], actions


def _cached(
    predictor: ActionConditionedPredictor, context: Context, goal: Tensor, actions: Tensor, chunk: int
) -> Float[Tensor, "n"]:
    costs = []
    for part in actions.split(chunk, dim=1):
        future = rollout(
            predictor, context, part, integrate=integrate_pose, state_features=lambda state: state,
            action_features=lambda action, state: action, renormalise=_layer_norm, chunk=chunk,
        )  # fmt: skip
        costs.append(latent_distance(future.latents[0, :, -1], goal))
    return torch.cat(costs)


def _plain(
    predictor: ActionConditionedPredictor, context: Context, goal: Tensor, actions: Tensor
) -> Float[Tensor, "n"]:
    """The whole trajectory through the predictor again for every step."""
    count = actions.shape[1]
    latents, states = context.latents.expand(count, -1, -1, -1), context.states.expand(count, -1, -1)
    for step in range(actions.shape[2]):
        known = actions[0, :, : step + 1]
        following = _layer_norm(predictor(latents, known, states)[:, -1:])
        latents = torch.cat((latents, following), dim=1)
        states = torch.cat((states, integrate_pose(states[:, -1:], known[:, -1:])), dim=1)
    return latent_distance(latents[:, -1], goal)


@contextmanager
def _published(clone: Path | None) -> Iterator[dict[str, ModuleType] | None]:
    """The published modules that are compared with, imported from a clone and forgotten afterwards."""
    if clone is None:
        yield None
        return
    if not (clone / "src" / "models" / "ac_predictor.py").is_file():
        raise InputError(f"{clone} is no clone of facebookresearch/vjepa2 (it has no src/models/ac_predictor.py).")
    before = set(sys.modules)
    try:
        importlib.import_module("timm.models.layers")
    except ImportError:  # of timm one function is wanted, which at rate 0 hands its input through
        layers: Any = ModuleType("timm.models.layers")
        layers.drop_path = lambda x, *_: x
        sys.modules |= {name: ModuleType(name) for name in ("timm", "timm.models")} | {"timm.models.layers": layers}
    sys.path.insert(0, str(clone))
    disabled = logging.root.manager.disable
    logging.disable(logging.INFO)  # it reports every plan, into what is printed and into what is timed
    try:
        yield {
            "predictor": importlib.import_module("src.models.ac_predictor"),
            "loop": importlib.import_module("notebooks.utils.world_model_wrapper"),
        }
    except ImportError as error:
        raise InputError(f"The clone at {clone} cannot be imported ({error}); install what it needs.") from error
    finally:
        logging.disable(disabled)
        sys.path.remove(str(clone))
        for name in set(sys.modules) - before:
            if name.split(".")[0] in ("src", "notebooks", "timm"):
                del sys.modules[name]


def _reference(
    modules: dict[str, ModuleType], case: RolloutCase, context: Context, goal: Tensor, actions: Tensor
) -> tuple[Callable[[], object], float]:
    """The published loop on our weights (its predictor, sampling, poses and distance; one iteration of its planner),
    and how far its first prediction is from ours."""
    predictor, *_ = _made(RolloutCase(**{**vars(case), "precision": "float32"}))
    size = case.grid * _PATCH
    theirs = modules["predictor"].vit_ac_predictor(
        img_size=(size, size), patch_size=_PATCH, num_frames=_TUBELET * max(8, case.horizon), tubelet_size=_TUBELET,
        embed_dim=case.latent_dim, predictor_embed_dim=case.width, depth=case.depth, num_heads=case.heads,
    )  # fmt: skip
    theirs.load_state_dict(predictor.state_dict(), strict=True)
    theirs.eval()  # its weights want gradients, as published: autocast keeps what it cast only of such
    cast: Any = nullcontext()
    if case.precision == "bfloat16":
        cast = torch.autocast("cpu", torch.bfloat16)
    settings = {"rollout": case.horizon, "samples": case.candidates, "topk": 2, "cem_steps": 1, "maxnorm": 0.075}
    planner = modules["loop"].WorldModel(None, theirs, case.grid**2, None, mpc_args=settings, device="cpu")

    def plan() -> object:
        with cast, torch.random.fork_rng(devices=[]):
            return planner.infer_next_action(context.latents[:, 0][:, None], context.states, goal[:, None])

    with torch.no_grad():
        own = predictor(context.latents, actions[:, 0, :1], context.states)[:, 0]
        other = theirs(context.latents[:, 0], actions[:, 0, :1], context.states)
    return plan, float((_layer_norm(own) - _layer_norm(other)).abs().max())
