"""One plain training loop: progress, curves, checkpoints that are whole or absent, resuming to the bit.

A `Learner` owns the modules and says how batch number i becomes a loss; batch i and all randomness in it
are functions of (seed, i), so a run that is stopped anywhere and resumed equals one that never stopped. Several ranks
(see `ranks.py`) go through the same loop, each on its share of a batch; the first one writes.
"""

from __future__ import annotations

import math
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from vjepa_mpc.core.errors import InputError, NotFiniteError, first_line
from vjepa_mpc.core.files import atomic_path
from vjepa_mpc.flops import counted, peak
from vjepa_mpc.pretrain import ranks
from vjepa_mpc.pretrain.optimising import TrainSettings, learning_rate, make_optimisers
from vjepa_mpc.pretrain.run_log import LOG, RunLog, forget_rows_after

CHECKPOINT = "checkpoint.pt"


Figure = float | Tensor | Callable[[], float]


@runtime_checkable
class Learner(Protocol):
    """What is trained. `modules` holds every weight that a checkpoint must keep (frozen ones may be left out)."""

    @property
    def modules(self) -> nn.Module: ...

    def batch(self, step: int) -> Any:
        """The data of step `step`, this rank's share, on the CPU; called ahead of time from another thread."""
        ...

    def loss(self, batch: Any, step: int) -> tuple[Tensor, dict[str, Figure]]:
        """The loss of `batch` and figures to log; runs under autocast. A figure that takes time to compute is a
        function, called before the weights move, and only where it is logged. Loss and figures are averaged over ranks.
        """
        ...

    def after_step(self, step: int) -> None:
        """Called once the optimiser has stepped (moving averages)."""
        ...

    def check(self, figures: Mapping[str, float]) -> None:
        """Called with every logged row; raises `InputError` when training on would be pointless."""
        ...


@dataclass(frozen=True)
class TrainResult:
    """Where a run ended: `finished` is False when it was interrupted (its checkpoint holds `step`).

    `clips_a_second` of all ranks, and the share of the time in which this one waited for data, both since this process
    began (its first step, which is slower, aside); 0 where there was no more than that. `flops_a_second`: operations of
    matrix products, of all ranks; `utilisation`: their share of what the devices could do, as `peak` says; 0 where it
    was not asked for.
    """

    step: int
    total: int
    finished: bool
    seconds: float
    figures: Mapping[str, float]
    clips_a_second: float = 0.0
    data_wait: float = 0.0
    flops_a_second: float = 0.0
    utilisation: float = 0.0
    peak: str = ""


Progress = Callable[[int, int | None, Mapping[str, float]], None]
"""Called as progress(step, total or None while it is not known, latest figures)."""

TIMING_STEPS = 20  # steps that are timed before `minutes` becomes a step count; the first few are warm-up


@contextmanager
def stop_requests() -> Iterator[Callable[[], bool]]:
    """Within the block the first Ctrl-C (or SIGTERM) only sets a flag; a second one interrupts at once."""
    asked = False

    def ask(number: int, frame: FrameType | None) -> None:
        nonlocal asked
        if asked:
            raise KeyboardInterrupt
        asked = True

    if threading.current_thread() is not threading.main_thread():  # signals are somebody else's: ranks.ask_to_stop
        yield lambda: False
        return
    previous = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: asked
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


class Trainer:
    """Runs a learner to its last step, in a folder that holds everything needed to go on."""

    def __init__(
        self, learner: Learner, settings: TrainSettings, folder: Path, device: torch.device, wandb: str | None = None
    ) -> None:
        """`wandb`: a project of Weights & Biases that the logged rows are sent to as well."""
        self.wandb = wandb
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
        if not ranks.same(self.step):
            raise InputError(f"The workers find different checkpoints in {folder}; --out must be a folder they share.")
        ranks.follow_first(learner.modules)
        if ranks.first():
            forget_rows_after(folder / LOG, self.step)

    @property
    def goes_on(self) -> bool:
        """Whether there are steps left to take."""
        return self.total is None or self.step < self.total

    def run(self, progress: Progress | None = None, *, stop_at: int | None = None) -> TrainResult:
        """Train until the last step, a stop request, or step `stop_at` (a rehearsal of being interrupted)."""
        started = time.perf_counter() - self.seconds
        clock, pace = _StepClock(self.step), _Pace(self.settings.batch * self.settings.accumulate)
        with ExitStack() as open_until_the_end:
            asked = open_until_the_end.enter_context(stop_requests())
            ahead = open_until_the_end.enter_context(ThreadPoolExecutor(1))
            log = RunLog(self.folder, self.step, self.wandb) if ranks.first() else None
            if log is not None:
                open_until_the_end.enter_context(log)
            upcoming = ahead.submit(self._batches, self.step)
            while self.total is None or self.step < self.total:
                with pace.waiting():
                    batches = upcoming.result()
                upcoming = ahead.submit(self._batches, self.step + 1)
                self._optimise(batches, log)
                self.seconds = time.perf_counter() - started
                clock.tick(self.step)
                pace.tick()
                total = self.total
                if total is None and self.settings.minutes is not None:
                    total = clock.total_steps(60 * self.settings.minutes)
                stop, total = ranks.agree(asked(), total)
                if self.total != total:
                    self.total = total
                    self.save()  # whatever happens now, the run keeps its length
                if progress is not None and ranks.first():
                    progress(self.step, self.total, {**self.figures, **pace.figures()})
                if stop or self.step == stop_at or (ranks.count() == 1 and asked()):  # alone, also what came since
                    break
                if self.step % self.settings.checkpoint_every == 0:
                    self.save()
        self.save()
        finished = self.total is not None and self.step >= self.total
        clips, waited = (pace.figures().get(name, 0.0) for name in ("clips_a_second", "data_wait"))
        return TrainResult(
            self.step, self.total or self.step, finished, self.seconds, dict(self.figures), clips, waited
        )

    def measured(self, result: TrainResult) -> TrainResult:
        """A finished run's result with what the arithmetic of one more batch comes to, whose gradients go nowhere. For
        when all is written: it may take more memory than training did."""
        if not (result.finished and result.clips_a_second):
            return result
        batch = self.learner.batch(self.step * self.settings.accumulate)
        whole = counted(lambda: self._gradients([batch], figured=False), self.device)
        each = whole * ranks.count() / self.settings.batch
        for parameter in self.learner.modules.parameters():
            parameter.grad = None
        most, whose = peak(self.device, self.settings.bf16)
        speed = each * result.clips_a_second
        return replace(result, flops_a_second=speed, utilisation=speed / (most * ranks.count()), peak=whose)

    def _batches(self, step: int) -> list[Any]:
        """What makes step `step`, numbered on through all steps."""
        several = self.settings.accumulate
        return [self.learner.batch(step * several + part) for part in range(several)]

    def _gradients(self, batches: Sequence[Any], *, figured: bool) -> tuple[Tensor, list[dict[str, float]]]:
        """Add up the gradients of the mean loss; it, and the figures of each batch where they are wanted. They are
        taken before the next batch, for until then they hold what they are computed from."""
        losses, figures = [], []
        for part, batch in enumerate(batches):
            with torch.autocast(self.device.type, torch.bfloat16) if self.settings.bf16 else nullcontext():
                loss, told = self.learner.loss(batch, self.step * len(batches) + part)
            (loss / len(batches)).backward()
            losses.append(loss.detach())
            if figured:
                self._latest = loss.detach()
                self._check_finite()  # of what is no number no figures can be taken
                figures.append(_floats(told))
        return torch.stack(losses).mean(), figures

    def _optimise(self, batches: Sequence[Any], log: RunLog | None) -> None:
        settings = self.settings
        rate = learning_rate(self.step, self.total, settings)
        for optimiser in self.optimisers:
            optimiser.zero_grad(set_to_none=True)
            for group in optimiser.param_groups:
                group["lr"] = rate
        logging = self.step % settings.log_every == 0 or self.step + 1 == self.total
        loss, figures = self._gradients(batches, figured=logging)
        trained = [p for p in self.learner.modules.parameters() if p.grad is not None]
        ranks.average_gradients(trained)
        norm = nn.utils.clip_grad_norm_(trained, settings.clip)
        self._latest = loss + norm
        if logging:
            self._check_finite()
            self.figures = _numbers({"step": self.step, "loss": loss, "lr": rate, "grad_norm": norm}, figures)
        for optimiser in self.optimisers:
            optimiser.step()
        self.learner.after_step(self.step)
        if logging:
            if log is not None:
                log.write(self.step, self.figures)
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
        """Write the checkpoint, atomically: weights, optimiser, step, and the step count once fixed. Older ones that
        are kept are called `checkpoint-STEP.pt`. `NotFiniteError` instead when the loss is no longer finite: a good
        checkpoint is never replaced by that."""
        self._check_finite()
        if not ranks.first():
            return
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

        self._keep()

    def _keep(self) -> None:
        """The latest checkpoint under its step's name too (which takes no room of its own), the oldest ones gone."""
        if self.settings.keep == 1:
            return
        named = self.folder / f"checkpoint-{self.step}.pt"
        named.unlink(missing_ok=True)
        os.link(self.folder / CHECKPOINT, named)
        kept = sorted(self.folder.glob("checkpoint-*.pt"), key=lambda path: int(path.stem.split("-")[1]))
        for old in kept[: -self.settings.keep]:
            old.unlink()

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
def _floats(figures: Mapping[str, Figure]) -> dict[str, float]:
    return {name: float(value() if callable(value) else value) for name, value in figures.items()}


def _numbers(row: Mapping[str, Figure], parts: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """A row for the log: its own figures, and those of the step's batches, averaged, also over ranks."""
    told = torch.tensor([list(part.values()) for part in parts], dtype=torch.float64).mean(dim=0)
    own = torch.tensor(list(_floats(row).values()), dtype=torch.float64)
    averaged = ranks.average(torch.cat([own, told])).tolist()
    return dict(zip((*row, *parts[0]), averaged, strict=True))


class _Pace:
    """How fast the steps of this process are, the first one aside, and how long they waited for data."""

    def __init__(self, batch: int) -> None:
        self.batch, self.steps, self.waited, self.started = batch, -1, 0.0, 0.0

    @contextmanager
    def waiting(self) -> Iterator[None]:
        began = time.perf_counter()
        yield
        self.waited += time.perf_counter() - began

    def tick(self) -> None:
        self.steps += 1
        if self.steps == 0:
            self.waited, self.started = 0.0, time.perf_counter()

    def figures(self) -> dict[str, float]:
        if self.steps < 1:
            return {}
        seconds = time.perf_counter() - self.started
        return {"clips_a_second": self.steps * self.batch / seconds, "data_wait": self.waited / seconds}


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
