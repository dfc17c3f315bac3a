"""`--workers N` of the two trainings: N processes that train as one, started, watched and stopped together.

A worker runs the same command line with the variables that torchrun sets (RANK, WORLD_SIZE, ...), so torchrun can start
workers as well, on several machines. The first worker speaks for all; what another one says is shown if it fails.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import IO, TYPE_CHECKING

import typer

from vjepa_mpc.core.errors import InputError, WorkerDiedError

if TYPE_CHECKING:
    import torch

WORKERS_HELP = "Processes that share every batch, one a GPU, or sharing the cores (default: this one alone)."
OK, LOST, INTERRUPTED = 0, 4, 130
GRACE_S = 10.0
"""So long the others may take to notice that one is gone, and after SIGTERM as long again."""

PLACED = "VJEPA_MPC_PLACED"
"""Set in a worker that Ray Train started."""

_LAUNCHED = "VJEPA_MPC_LAUNCHED"
_LOOK_S = 0.05


def launches(workers: int | None, on_ray: bool = False) -> bool:
    """Whether this process is the one to start workers, rather than to train; on Ray also to start a single one.
    `InputError` when it was told two different numbers of them."""
    if workers is not None and workers < 1:
        raise InputError(f"Training takes at least one worker, not {workers}.")
    if placed():
        return False
    if not is_worker():
        return workers is not None and (workers > 1 or on_ray)
    if workers is not None and str(workers) != os.environ.get("WORLD_SIZE"):
        raise InputError("torchrun says how many workers there are; leave --workers out.")
    return False


def is_worker() -> bool:
    """Whether this process is one of several workers."""
    return "RANK" in os.environ and int(os.environ.get("WORLD_SIZE", "1")) > 1


def placed() -> bool:
    """Whether Ray Train started this worker."""
    return PLACED in os.environ


def train_in_workers(
    workers: int, arguments: Sequence[str], *, ray: bool, ray_address: str | None, device: str
) -> None:
    """Run the command line `arguments` of vjepa-mpc in `workers` processes: here, see `run_workers`, or on Ray."""
    if ray or ray_address:
        from vjepa_mpc.cli.ray_training import train_in_ray

        return train_in_ray(workers, arguments, ray_address, device)
    run_workers(workers, [sys.executable, "-m", "vjepa_mpc", *arguments])


def run_workers(workers: int, command: Sequence[str]) -> None:
    """Run `command` in `workers` processes to their end.

    Ctrl-C and SIGTERM are passed on: the workers save and leave. Raises `typer.Exit` with the code of the worker that
    ended otherwise than well first, after showing what it said; `WorkerDiedError` for one that was killed.
    """
    with tempfile.TemporaryDirectory() as folder, ExitStack() as files:
        port = _free_port()
        team = [_start(rank, workers, port, command, Path(folder), files) for rank in range(workers)]
        try:
            with passed_on([worker.process for worker in team]) as asked:
                _wait(team)
        finally:
            for worker in team:
                worker.process.kill()
                worker.process.wait()
        if asked and any(worker.process.returncode != OK for worker in team):
            raise typer.Exit(INTERRUPTED)
        _judge(team)


@contextmanager
def training_worker(device: torch.device) -> Iterator[torch.device]:
    """Be one of the workers if this process was started as one; yields the device that is this one's."""
    import torch

    from vjepa_mpc.pretrain import ranks

    if os.environ.get(_LAUNCHED):
        threading.Thread(target=_leave_with_launcher, daemon=True).start()
    if device.type == "cuda" and device.index is None and "LOCAL_RANK" in os.environ:
        own = int(os.environ["LOCAL_RANK"])
        if own >= torch.cuda.device_count():
            raise InputError(f"There are more workers than the {torch.cuda.device_count()} GPUs here; start fewer.")
        device = torch.device("cuda", own)
        torch.cuda.set_device(device)
    with ranks.joined(device):
        yield device


@dataclass
class _Worker:
    process: subprocess.Popen[bytes]
    says: IO[bytes] | None  # what it writes to stderr; None: on the screen
    ended: float | None = None
    stopped: bool = field(default=False)  # by us


def _start(
    rank: int, workers: int, port: int, command: Sequence[str], folder: Path, files: ExitStack
) -> _Worker:
    from vjepa_mpc.cli.building import usable_cores

    environment = {
        "OMP_NUM_THREADS": str(max(1, usable_cores() // workers)),
        **({"GLOO_SOCKET_IFNAME": "lo"} if sys.platform == "linux" else {}),
        **os.environ,
        "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(workers), "LOCAL_WORLD_SIZE": str(workers),
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), _LAUNCHED: "1",
    }  # fmt: skip
    says = files.enter_context((folder / f"{rank}.txt").open("w+b")) if rank else None
    process = subprocess.Popen(
        list(command),
        env=environment,
        stdin=subprocess.PIPE,  # ends when this process does, however that comes about
        stdout=subprocess.DEVNULL if rank else None,
        stderr=says,
        start_new_session=True,  # Ctrl-C comes from here, once
    )
    return _Worker(process, says)


def _leave_with_launcher() -> None:
    """Leave at once when the process that started this one is gone: nobody else would stop it."""
    while os.read(0, 1):
        pass
    os._exit(LOST)


@contextmanager
def passed_on(processes: Sequence[subprocess.Popen[bytes]]) -> Iterator[list[int]]:
    """Within the block, signals to stop go to the processes; yields the list of those that came."""
    asked: list[int] = []

    def pass_on(number: int, frame: FrameType | None) -> None:
        asked.append(number)
        for process in processes:
            process.send_signal(number)

    previous = {number: signal.signal(number, pass_on) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield asked
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _wait(team: Sequence[_Worker]) -> None:
    """Until all have ended; once one has failed, the others get a while, then SIGTERM, then SIGKILL."""
    failed: float | None = None
    while any(worker.ended is None for worker in team):
        time.sleep(_LOOK_S)
        now = time.monotonic()
        for worker in team:
            if worker.ended is None and worker.process.poll() is not None:
                worker.ended = now
                if worker.process.returncode not in (OK, INTERRUPTED) and failed is None:
                    failed = now
        for worker in team:
            if failed is not None and worker.ended is None and now - failed > GRACE_S:
                worker.process.send_signal(signal.SIGKILL if now - failed > 2 * GRACE_S else signal.SIGTERM)
                worker.stopped = True


def _judge(team: Sequence[_Worker]) -> None:
    """Raise for the worker that failed first, not for those that noticed."""
    bad = [rank for rank, worker in enumerate(team) if worker.process.returncode != OK]
    if not bad:
        return
    guilty = [r for r in bad if team[r].process.returncode != LOST and not team[r].stopped]
    rank = min(guilty or bad, key=lambda r: (team[r].ended or 0.0, r))
    code, says = team[rank].process.returncode, team[rank].says
    if code < 0:
        name = signal.Signals(-code).name
        hint = " (when memory runs out, the system does that)" if -code == signal.SIGKILL else ""
        raise WorkerDiedError(
            f"Worker {rank} of {len(team)} was ended by {name}{hint}, and the others stopped; run the same command "
            "again to go on from the last checkpoint."
        )
    if says is not None and team[0].process.returncode != code:
        says.seek(0)
        print(f"Worker {rank} of {len(team)}:\n{says.read().decode(errors='replace').strip()}", file=sys.stderr)
    raise typer.Exit(code)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
