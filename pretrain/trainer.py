"""One plain training loop: progress, curves, checkpoints that are whole or absent, resuming to the bit.

A `Learner` owns the modules and says how batch number i becomes a loss; batch i and all randomness in it
are functions of (seed, i), so a run that is stopped anywhere and resumed equals one that never stopped.
"""

from __future__ import annotations

import json
import math
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from vjepa_mpc.core.errors import InputError, NotFiniteError, first_line, unknown_name
from vjepa_mpc.core.files import atomic_path

CHECKPOINT = "checkpoint.pt"
LOG = "log.jsonl"
OPTIMIZERS = ("adamw", "muon")


Figure = float | Tensor | Callable[[], float]


@runtime_checkable
class Learner(Protocol):
    """What is trained. `modules` holds every weight that a checkpoint must keep (frozen ones may be left out)."""

    @property
    def modules(self) -> nn.Module: ...

    def batch(self, step: int) -> Any:
        """The data of step `step`, on the CPU; called ahead of time from another thread."""
        ...

    def loss(self, batch: Any, step: int) -> tuple[Tensor, dict[str, Figure]]:
        """The loss of `batch` and figures to log; runs under autocast. A figure that takes time to compute is a
        function, called before the weights move, and only where it is logged."""
        ...

    def after_step(self, step: int) -> None:
        """Called once the optimiser has stepped (moving averages)."""
        ...

    def check(self, figures: Mapping[str, float]) -> None:
        """Called with every logged row; raises `InputError` when training on would be pointless."""
        ...


@dataclass(frozen=True)
class TrainSettings:
    """How long and how fast. Give `steps`, or `minutes`: those are turned into steps after warming up, once.

    The learning rate rises linearly over `warmup` steps, stays, and falls linearly to zero over the last
    `cooldown` share of the run (V-JEPA 2-AC's warm-up, constant, decay). `weight_decay` spares 1-D tensors.
    `optimizer`: "adamw" (V-JEPA's), or "muon" for the matrices inside repeated blocks and AdamW for the rest.
    """

    steps: int | None = None
    minutes: float | None = None
    batch: int = 64
    lr: float = 1e-3
    warmup: int = 200
    cooldown: float = 0.3
    optimizer: str = "adamw"
    weight_decay: float = 0.04
    betas: tuple[float, float] = (0.9, 0.999)
    clip: float = 1.0
    seed: int = 0
    bf16: bool = True
    checkpoint_every: int = 500
    log_every: int = 20

    def __post_init__(self) -> None:
        if (self.steps is None) == (self.minutes is None):
            raise InputError("Give either --steps or --minutes, not both and not neither.")
        if self.steps is not None and self.steps < 1:
            raise InputError(f"Training needs at least one step, not {self.steps}.")
        if self.minutes is not None and not 0 < self.minutes < math.inf:
            raise InputError(f"Training needs more than 0 minutes and an end, not {self.minutes}.")
        if self.batch < 1:
            raise InputError("The batch must hold at least one clip.")
        if not (math.isfinite(self.lr) and self.lr > 0):
            raise InputError(f"The learning rate must be positive, got {self.lr}.")
        if self.optimizer not in OPTIMIZERS:
            raise unknown_name("optimizer", self.optimizer, OPTIMIZERS)
        if self.checkpoint_every < 1 or self.log_every < 1:
            raise InputError("Checkpoints and log rows come every so many steps: give at least 1.")


@dataclass(frozen=True)
class TrainResult:
    """Where a run ended: `finished` is False when it was interrupted (its checkpoint holds `step`)."""

    step: int
    total: int
    finished: bool
    seconds: float
    figures: Mapping[str, float]


Progress = Callable[[int, int | None, Mapping[str, float]], None]
"""Called as progress(step, total or None while it is not known, latest figures)."""

TIMING_STEPS = 20  # steps that are timed before `minutes` becomes a step count; the first few are warm-up


def learning_rate(step: int, total: int | None, settings: TrainSettings) -> float:
    """Learning rate of step `step` (0-based); see `TrainSettings`."""
    rise = min(1.0, (step + 1) / max(1, settings.warmup))
    if total is None:
        return settings.lr * rise
    cool = max(1, round(settings.cooldown * total))
    fall = min(1.0, (total - step) / cool)
    return settings.lr * rise * fall


def make_optimisers(modules: nn.Module, settings: TrainSettings) -> list[torch.optim.Optimizer]:
    """Optimisers that share the parameters which require gradients; biases and norms are not decayed.

    Muon (Jordan et al. 2024; steps of AdamW's size after Liu et al. 2025, arXiv:2502.16982, section 2.2) is
    for the matrices between hidden layers: those of repeated blocks (`nn.ModuleList`). What reads the input
    or writes the output stays with AdamW.
    """
    hidden: set[int] = set()
    if settings.optimizer == "muon":
        blocks = [module for module in modules.modules() if isinstance(module, nn.ModuleList)]
        hidden = {id(p) for block in blocks for p in block.parameters() if p.ndim == 2}
    trained = [p for p in modules.parameters() if p.requires_grad]
    plain = [p for p in trained if id(p) not in hidden]
    groups = [
        {"params": [p for p in plain if p.ndim > 1], "weight_decay": settings.weight_decay},
        {"params": [p for p in plain if p.ndim <= 1], "weight_decay": 0.0},
    ]
    optimisers: list[torch.optim.Optimizer] = [torch.optim.AdamW(groups, lr=settings.lr, betas=settings.betas)]
    matrices = [p for p in trained if id(p) in hidden]
    if matrices:
        muon = torch.optim.Muon(
            matrices, lr=settings.lr, weight_decay=settings.weight_decay, adjust_lr_fn="match_rms_adamw"
        )
        optimisers.append(muon)
    return optimisers


@contextmanager
def stop_requests() -> Iterator[Callable[[], bool]]:
    """Within the block the first Ctrl-C (or SIGTERM) only sets a flag; a second one interrupts at once."""
    asked = False

    def ask(number: int, frame: FrameType | None) -> None:
        nonlocal asked
        if asked:
            raise KeyboardInterrupt
        asked = True

    try:
        previous = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    except ValueError:  # not the main thread: signals are somebody else's
        yield lambda: False
        return
    try:
        yield lambda: asked
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


class Trainer:
    """Runs a learner to its last step, in a folder that holds everything needed to go on."""

    def __init__(
        self, learner: Learner, settings: TrainSettings, folder: Path, device: torch.device
    ) -> None:
        self.learner, self.settings, self.folder, self.device = learner, settings, folder, device
        self.optimisers = make_optimisers(learner.modules, settings)
        self.step = 0
        self.total = settings.steps
        self.figures: dict[str, float] = {}
        self.seconds = 0.0  # of all runs so far, up to their last checkpoint
        self._latest: Tensor | None = None  # the last step's loss plus gradient norm
        folder.mkdir(parents=True, exist_ok=True)
        if (folder / CHECKPOINT).is_file():
            self._load()
        _forget_rows_after(folder / LOG, self.step)

    def run(self, progress: Progress | None = None, *, stop_at: int | None = None) -> TrainResult:
        """Train until the last step, a stop request, or step `stop_at` (a rehearsal of being interrupted)."""
        from torch.utils.tensorboard import SummaryWriter

        started = time.perf_counter() - self.seconds
        curves = SummaryWriter(str(self.folder / "tensorboard"), purge_step=self.step)
        ends = [end for end in (stop_at,) if end is not None]
        clock = _StepClock(self.step)
        with (
            stop_requests() as asked,
            ThreadPoolExecutor(1) as ahead,
            (self.folder / LOG).open("a", encoding="utf-8") as log,
        ):
            upcoming = ahead.submit(self.learner.batch, self.step)
            while self.total is None or self.step < self.total:
                batch = upcoming.result()
                upcoming = ahead.submit(self.learner.batch, self.step + 1)
                self._optimise(batch, log, curves)
                self.seconds = time.perf_counter() - started
                clock.tick(self.step)
                if self.total is None and self.settings.minutes is not None:
                    self.total = clock.total_steps(60 * self.settings.minutes)
                    if self.total is not None:
                        self.save()  # whatever happens now, the run keeps its length
                if progress is not None:
                    progress(self.step, self.total, self.figures)
                if asked() or self.step in ends:
                    break
                if self.step % self.settings.checkpoint_every == 0:
                    self.save()
        curves.close()
        self.save()
        finished = self.total is not None and self.step >= self.total
        return TrainResult(self.step, self.total or self.step, finished, self.seconds, dict(self.figures))

    def _optimise(self, batch: Any, log: Any, curves: Any) -> None:
        settings = self.settings
        rate = learning_rate(self.step, self.total, settings)
        for optimiser in self.optimisers:
            optimiser.zero_grad(set_to_none=True)
            for group in optimiser.param_groups:
                group["lr"] = rate
        with torch.autocast(self.device.type, torch.bfloat16) if settings.bf16 else nullcontext():
            loss, figures = self.learner.loss(batch, self.step)
        loss.backward()
        trained = [p for p in self.learner.modules.parameters() if p.grad is not None]
        norm = nn.utils.clip_grad_norm_(trained, settings.clip)
        logging = self.step % settings.log_every == 0 or self.step + 1 == self.total
        self._latest = loss.detach() + norm
        if logging:
            self._check_finite()
            row = {"step": self.step, "loss": loss.detach(), "lr": rate, "grad_norm": norm, **figures}
            self.figures = _numbers(row)
        for optimiser in self.optimisers:
            optimiser.step()
        self.learner.after_step(self.step)
        if logging:
            log.write(json.dumps(self.figures) + "\n")
            log.flush()
            for key, value in self.figures.items():
                curves.add_scalar(key, value, self.step)
            self.learner.check(self.figures)
        self.step += 1

    def _check_finite(self) -> None:
        """Looked at when a number is needed anyway (a row, a checkpoint): asking at every step would make a GPU
        wait, and NaN in the weights stays."""
        if self._latest is not None and not math.isfinite(self._latest.item()):
            raise NotFiniteError(
                f"The loss or its gradient became {self._latest.item()} by step {self.step}; begin anew with a lower "
                f"--lr and another --out (the last checkpoint in {self.folder} is from before that)."
            )

    def save(self) -> None:
        """Write the checkpoint, atomically: weights, optimiser, step, and the step count once fixed.
        `NotFiniteError` instead when the loss is no longer finite: a good checkpoint is never replaced by that."""
        self._check_finite()
        with atomic_path(self.folder / CHECKPOINT) as temporary:
            torch.save(
                {
                    "step": self.step,
                    "total": self.total,
                    "seconds": self.seconds,
                    "modules": self.learner.modules.state_dict(),
                    "optimisers": [optimiser.state_dict() for optimiser in self.optimisers],
                },
                temporary,
            )

    def _load(self) -> None:
        path = self.folder / CHECKPOINT
        try:
            saved = torch.load(path, map_location=self.device, weights_only=True)
            self.learner.modules.load_state_dict(saved["modules"])
            for optimiser, state in zip(self.optimisers, saved["optimisers"], strict=True):
                optimiser.load_state_dict(state)
            self.step, self.total, self.seconds = saved["step"], saved["total"], saved.get("seconds", 0.0)
        except Exception as error:  # torch raises a dozen kinds for files that cannot be read
            reason = first_line(error)
            raise InputError(f"{path} does not fit this run ({reason}); choose another --out to begin anew.") from error


@torch.no_grad()
def _numbers(row: Mapping[str, Figure]) -> dict[str, float]:
    return {key: float(value() if callable(value) else value) for key, value in row.items()}


class _StepClock:
    """Times the first steps of a run asked for in minutes."""

    def __init__(self, first: int) -> None:
        self.first, self.started, self.timed = first, time.perf_counter(), 0.0
        self.warm = self.started
        self.done = 0

    def tick(self, step: int) -> None:
        self.done = step - self.first
        if self.done == TIMING_STEPS // 4:
            self.warm = time.perf_counter()

    def total_steps(self, seconds: float) -> int | None:
        """How many steps fit `seconds`; None until enough have been timed."""
        now = time.perf_counter()
        if self.done < TIMING_STEPS and now - self.started < 0.1 * seconds:
            return None
        timed = self.done - TIMING_STEPS // 4
        per_step = (now - self.warm) / timed if timed > 0 else (now - self.started) / max(1, self.done)
        left = seconds - (now - self.started)
        return self.first + self.done + max(1, int(left / per_step))


def _forget_rows_after(log: Path, step: int) -> None:
    """Drop log rows that a resumed run will write again, and one that a crash cut short."""
    if not log.is_file():
        return
    rows = []
    for line in log.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            if json.loads(line)["step"] < step:
                rows.append(line)
        except (ValueError, KeyError, TypeError):
            continue
    with atomic_path(log) as temporary:
        temporary.write_text("".join(row + "\n" for row in rows), encoding="utf-8")
