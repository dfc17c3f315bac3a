"""`--workers N --ray` of the two trainings: the workers of `workers.py`, placed, grouped and watched by Ray Train.

Each runs the same command line in a process of Ray's, with the variables that torchrun would set; so the folders named
there must be where every worker finds them. Ray Train forms the process group and stops all when one fails. What it has
no word for goes through an actor: what the first worker says, how each one ended, and a wish to stop, since a worker's
training is not in its process's main thread and no signal reaches it.
"""

from __future__ import annotations

import io
import os
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from dataclasses import dataclass
from typing import Any

import typer

from vjepa_mpc.cli.workers import INTERRUPTED, LOST, OK, PLACED, passed_on
from vjepa_mpc.core.errors import InputError, WorkerDiedError, first_line

OBJECT_STORE_BYTES = 200 * 2**20
"""Of a Ray started here: nothing large goes through it, data and weights come from the disk."""

_LOOK_S = 0.5
_ROOM_S = 60.0  # without a worker for so long, the reason is told
_DEFECT = 1


@dataclass(frozen=True)
class End:
    """How a worker left: its exit code, and the sentence or traceback that goes with it."""

    rank: int
    code: int
    words: str


class Line:
    """An actor between the command and its workers."""

    def __init__(self) -> None:
        self._said: list[tuple[bool, str]] = []
        self._arrived: set[int] = set()
        self._ends: list[End] = []
        self._stop = False

    def say(self, error: bool, text: str) -> None:
        self._said.append((error, text))

    def arrive(self, rank: int) -> None:
        self._arrived.add(rank)

    def end(self, end: End) -> None:
        self._ends.append(end)

    def stop(self) -> None:
        self._stop = True

    def stopping(self) -> bool:
        return self._stop

    def news(self) -> tuple[list[tuple[bool, str]], int, list[End]]:
        """What was said since the last call, how many workers have begun, and those that ended, in that order."""
        said, self._said = self._said, []
        return said, len(self._arrived), list(self._ends)


def train_in_ray(workers: int, arguments: Sequence[str], address: str | None, device: str) -> None:
    """Run the command line `arguments` of vjepa-mpc in `workers` processes of Ray: of one started here for the time
    being, or of the cluster at `address`.

    The first Ctrl-C (or SIGTERM) lets the workers save and leave, the second ends them. Raises `InputError` where Ray
    Train is not installed, or Ray does not answer or is too small; `typer.Exit` with the code of the worker that failed
    first, after showing what it said; `WorkerDiedError` when one was lost.
    """
    from vjepa_mpc.cli.building import usable_cores
    from vjepa_mpc.executor import RayExecutor

    cores = max(1, usable_cores() // workers) if workers and address is None else 1
    RayExecutor(workers, address).check()
    _require_ray_train()
    import ray

    from vjepa_mpc import ray_workers

    gpus = int(device == "cuda")
    with (
        ray_workers.session(workers, address, cores, gpus, object_store_bytes=OBJECT_STORE_BYTES),
        tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as notes,  # Ray Train's; our checkpoints are in --out
    ):
        line: Any = ray.remote(Line).options(num_cpus=0).remote()
        on_gpus = device != "cpu" and ray.cluster_resources().get("GPU", 0) >= workers
        folder, given = os.getcwd(), list(arguments)
        trainer = _trainer(lambda: run_worker(line, given, folder), workers, cores, on_gpus, address is None, notes)
        fitting = _Fitting(trainer.fit)
        _follow(fitting, line, workers)
        _judge(fitting.error, ray.get(line.news.remote())[2], workers)


def _require_ray_train() -> None:
    try:
        import ray.train.torch  # noqa: F401
    except ImportError as error:
        raise InputError(
            "Ray Train is not installed: pip install 'vjepa-mpc[ray-train]', or leave --ray and --ray-address out."
        ) from error


def _trainer(work: Callable[[], None], workers: int, cores: int, on_gpus: bool, here: bool, notes: str) -> Any:
    """Ray Train's trainer, which never retries: the same command goes on from the last checkpoint."""
    from ray.train import RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    from vjepa_mpc.pretrain.ranks import BACKENDS, PATIENCE

    variables = {"OMP_WAIT_POLICY": os.environ.get("OMP_WAIT_POLICY", "PASSIVE")}
    if here and sys.platform == "linux":
        variables["GLOO_SOCKET_IFNAME"] = os.environ.get("GLOO_SOCKET_IFNAME", "lo")
    backend = BACKENDS["cuda" if on_gpus else "cpu"]
    run: dict[str, Any] = {"storage_path": notes, "worker_runtime_env": {"env_vars": variables}}
    return TorchTrainer(
        work,
        torch_config=TorchConfig(backend=backend, timeout_s=int(PATIENCE.total_seconds())),
        scaling_config=ScalingConfig(num_workers=workers, use_gpu=on_gpus, resources_per_worker=_needs(cores, on_gpus)),
        run_config=RunConfig(**run),
    )


def _needs(cores: int, gpu: bool) -> dict[str, float]:
    return {"CPU": cores, "GPU": 1} if gpu else {"CPU": cores}


class _Fitting(threading.Thread):
    """`fit` in a thread: in the main one it would answer Ctrl-C itself, and kill the workers before they save."""

    def __init__(self, fit: Callable[[], Any]) -> None:
        super().__init__(daemon=True)
        self.error: Exception | None = None
        self._fit = fit
        self.start()

    def run(self) -> None:
        try:
            self._fit()
        except Exception as error:
            self.error = error


def _follow(fitting: _Fitting, line: Any, workers: int) -> None:
    """Show what the first worker says until all have ended, and pass on the wish to stop."""
    import ray

    began, told_of_room, here, obeyed = time.monotonic(), False, 0, 0
    with passed_on([]) as asked:
        alive = True
        while alive:
            fitting.join(_LOOK_S)
            alive = fitting.is_alive()  # before the news, so that none is left unheard
            try:
                said, here, _ = ray.get(line.news.remote())
            except ray.exceptions.RayError as error:
                raise WorkerDiedError(f"Ray is gone ({first_line(error)}); {_ONCE_MORE}") from error
            for error_stream, text in said:
                typer.echo(text, nl=False, err=error_stream)
            if alive and len(asked) > obeyed:
                if obeyed or here < workers:  # the second time, or before there is anything to save
                    raise KeyboardInterrupt
                obeyed = len(asked)
                line.stop.remote()
                typer.echo("Stopping after this step; Ctrl-C once more stops at once.", err=True)
            if here < workers and not told_of_room and time.monotonic() - began > _ROOM_S:
                told_of_room = True
                typer.echo(f"{here} of {workers} workers have begun; Ray may have no room for more yet.", err=True)


_ONCE_MORE = "run the same command again to go on from the last checkpoint."


def _judge(error: Exception | None, ends: Sequence[End], workers: int) -> None:
    """Raise for the worker that failed first, not for those that noticed."""
    bad = [end for end in ends if end.code != OK]
    guilty = [end for end in bad if end.code not in (LOST, INTERRUPTED)]
    silent = sorted(set(getattr(error, "worker_failures", {})) - {end.rank for end in ends})
    if error is not None and not guilty and (silent or not bad):
        who = f"Worker {silent[0]} of {workers} on Ray was lost" if silent else "The workers on Ray were lost"
        reason = first_line(getattr(error, "worker_failures", {}).get(silent[0], error) if silent else error)
        raise WorkerDiedError(f"{who} ({reason}), and the others stopped; {_ONCE_MORE}") from error
    if not bad:
        return
    first = (guilty or bad)[0]
    if first.rank and first.words and not any(end.rank == 0 and end.code == first.code for end in ends):
        typer.echo(f"Worker {first.rank} of {workers}:", err=True)
    if first.words:
        typer.echo(first.words, err=True)
    raise typer.Exit(first.code)


def run_worker(line: Any, arguments: list[str], folder: str) -> None:
    """What each worker does, in a process of Ray Train's."""
    import ray
    from ray.train.torch import get_device

    from vjepa_mpc.cli.main import build_app

    rank = int(os.environ["RANK"])
    ray.get(line.arrive.remote(rank))
    os.environ[PLACED] = "1"
    if (device := get_device()).type == "cuda":
        os.environ["LOCAL_RANK"] = str(device.index or 0)
    sys.argv = ["vjepa-mpc", *arguments]  # which is written down in the run's folder
    with _obeying(line), redirect_stdout(_Voice(line, rank, False)), redirect_stderr(_Voice(line, rank, True)):
        try:
            if not os.path.isdir(folder):
                raise InputError(f"A worker on Ray does not find {folder}; begin in a folder that all machines share.")
            os.chdir(folder)
            command = typer.main.get_command(build_app())
            code = command(args=arguments, prog_name="vjepa-mpc", standalone_mode=False, obj=arguments) or OK
            end = End(rank, code, "")
        except BaseException as error:
            end = _end(rank, error)
    ray.get(line.end.remote(end))
    if end.code not in (OK, INTERRUPTED):
        raise RuntimeError(end.words or f"exit code {end.code}")  # so that Ray Train stops the others


def _end(rank: int, error: BaseException) -> End:
    """What the command line would have said."""
    from vjepa_mpc.cli.main import describe

    described = describe(error)
    if described is None:
        return End(rank, _DEFECT, "".join(traceback.format_exception(error)).rstrip())
    return End(rank, described[0], f"Error: {described[1]}")


@contextmanager
def _obeying(line: Any) -> Iterator[None]:
    """Within the block, the wish to stop reaches the training."""
    import ray

    from vjepa_mpc.pretrain import ranks

    over = threading.Event()

    def look() -> None:
        with suppress(ray.exceptions.RayError):  # then the command is gone, and Ray ends this process
            while not over.wait(_LOOK_S):
                if ray.get(line.stopping.remote()):
                    return ranks.ask_to_stop()

    threading.Thread(target=look, daemon=True).start()
    try:
        yield
    finally:
        over.set()


class _Voice(io.TextIOBase):
    """A stream whose lines go to the command; of the first worker only, as everywhere."""

    def __init__(self, line: Any, rank: int, error: bool) -> None:
        self._line, self._speaks, self._error, self._rest = line, rank == 0, error, ""

    def writable(self) -> bool:
        return True

    def write(self, text: str) -> int:
        lines, end, self._rest = (self._rest + text).rpartition("\n")
        if end and self._speaks:
            self._line.say.remote(self._error, lines + end)
        return len(text)
