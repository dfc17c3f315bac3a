"""The ranks of a data-parallel training: processes that hold the same weights, each with its share of every batch.

`joined` makes this process one of them, by the variables that torchrun sets; `vjepa-mpc pretrain|train --workers` sets
the same. Everywhere else there is one rank, and all functions here do nothing: one process computes what it always did.

What keeps the result that of one process: batch i and all randomness in it are those of the whole batch, of which a
rank keeps its `share`; a rank's loss is a mean over its share, and gradients are averaged; a statistic of the batch
that is no mean over clips is made of means, each put through `average`, which has a gradient.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from jaxtyping import Float, Shaped
from torch import Tensor, nn

from vjepa_mpc.core.errors import InputError, WorkerLostError, first_line

PATIENCE = timedelta(days=1)
"""How long a rank waits for one that is alive (it may be encoding a store); one that died is noticed at once."""

BUCKET = 2**24
"""About so many gradients go together."""

BACKENDS = {"cpu": "gloo", "cuda": "cpu:gloo,cuda:nccl"}
"""How ranks talk, by the device that they train on."""

_asked_to_stop = threading.Event()


def count() -> int:
    """How many ranks there are: 1 in an ordinary process."""
    return dist.get_world_size() if _joined() else 1


def number() -> int:
    """Which one this is, from 0."""
    return dist.get_rank() if _joined() else 0


def first() -> bool:
    """Whether this is the one that writes files and speaks."""
    return number() == 0


@contextmanager
def joined(device: torch.device) -> Iterator[None]:
    """Within the block this process is one of the ranks that RANK and WORLD_SIZE tell of; alone if they do not. Those
    of a group that somebody else has put together (Ray Train) stay in it."""
    if _joined():
        yield
        _together(dist.barrier)
        return
    if "RANK" not in os.environ or int(os.environ.get("WORLD_SIZE", "1")) < 2:
        yield
        return
    backend = BACKENDS["cuda" if device.type == "cuda" else "cpu"]
    _together(lambda: dist.init_process_group(backend, timeout=PATIENCE))
    try:
        yield
        _together(dist.barrier)  # none leaves while another still needs it
    finally:
        dist.destroy_process_group()


def share(size: int) -> slice:
    """This rank's part of a batch of `size`; `InputError` where it does not divide."""
    if size % count():
        raise InputError(f"A batch of {size} cannot be shared evenly by {count()} workers; choose a multiple of these.")
    part = size // count()
    return slice(number() * part, (number() + 1) * part)


def average(value: Shaped[Tensor, "*n"]) -> Shaped[Tensor, "*n"]:
    """The mean over ranks; its gradient is the mean over ranks of the gradients."""
    if count() == 1:
        return value
    averaged: Tensor = _Average.apply(value)
    return averaged


def variance(values: Float[Tensor, "b *n"]) -> Float[Tensor, "*n"]:
    """Unbiased variance over the batch of all ranks: that within ranks, and that between their means."""
    if count() == 1:
        return values.var(dim=0)
    size, own = len(values), values.mean(dim=0)
    between = average((own - average(own)).square())
    return (average(values.var(dim=0)) * (size - 1) + between * size) / (size - 1 / count())


def average_gradients(parameters: Iterable[Tensor]) -> None:
    """Replace gradients by their mean over ranks."""
    if count() == 1:
        return
    bucket: list[Tensor] = []
    size = 0
    for gradient in [parameter.grad for parameter in parameters if parameter.grad is not None]:
        bucket.append(gradient)
        size += gradient.numel()
        if size >= BUCKET:
            _average_bucket(bucket)
            bucket, size = [], 0
    if bucket:
        _average_bucket(bucket)


def ask_to_stop() -> None:
    """Have this rank, and so all of them, save and stop after the step under way, as Ctrl-C does: for a process whose
    training is not in its main thread, where no signal reaches it."""
    _asked_to_stop.set()


def agree(stop: bool, total: int | None) -> tuple[bool, int | None]:
    """Whether any rank was asked to stop, and how many steps the first one says there are."""
    stop = stop or _asked_to_stop.is_set()
    if count() == 1:
        return stop, total
    said = torch.tensor([int(stop), (total or 0) if first() else 0])
    _together(lambda: dist.all_reduce(said))
    return bool(said[0]), int(said[1]) or None


def same(value: int) -> bool:
    """Whether all ranks gave the same number."""
    if count() == 1:
        return True
    ends = torch.tensor([value, -value])
    _together(lambda: dist.all_reduce(ends, dist.ReduceOp.MAX))
    return int(ends[0]) == -int(ends[1])


def follow_first(module: nn.Module) -> None:
    """Take over the first rank's weights and buffers."""
    if count() == 1:
        return
    for tensor in module.state_dict().values():
        _together(partial(dist.broadcast, tensor, 0))


@contextmanager
def first_before_the_others() -> Iterator[None]:
    """The block runs in the first rank, then in the others: what the first one leaves on disk, they find."""
    if not first():
        _together(dist.barrier)
    yield
    if first() and count() > 1:
        _together(dist.barrier)


class _Average(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, value: Tensor) -> Tensor:
        return _averaged(value)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return _averaged(gradient)


def _averaged(value: Tensor) -> Tensor:
    total = value.clone(memory_format=torch.contiguous_format)
    _together(lambda: dist.all_reduce(total))
    return total / count()


def _average_bucket(gradients: list[Tensor]) -> None:
    means = _averaged(torch.cat([gradient.flatten() for gradient in gradients]))
    for gradient, mean in zip(gradients, means.split([one.numel() for one in gradients]), strict=True):
        gradient.copy_(mean.view_as(gradient))


def _together(call: Callable[[], Any]) -> None:
    """Do what takes all ranks; `WorkerLostError` when one of them is gone."""
    try:
        call()
    except RuntimeError as error:
        reason = first_line(error)
        why = "" if "onnection" in reason else f" ({reason})"  # a closed connection says nothing more
        raise WorkerLostError(
            f"Another worker of this training stopped{why}; run the same command again to go on from the last "
            "checkpoint."
        ) from error


def _joined() -> bool:
    return dist.is_available() and dist.is_initialized()
