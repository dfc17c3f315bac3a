"""The same work here, in several processes, or on Ray: same results, same order, same exceptions.

    with LocalExecutor(workers=2).open(setup) as pool:
        results = pool.map(fn, items)

`setup()` builds a worker's state (a model, a robot) once in each worker; `fn(state, item)` is then called
for every item. What `fn` returns must depend on its item alone, not on which worker had which items before.
Work travels by cloudpickle, so functions of a script work too; on a cluster of several machines the
modules they come from must be installed on each. Threads are pinned alike everywhere, because a matrix
product's last bit depends on their number.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from multiprocessing import connection
from typing import Any, Generic, Protocol, TypeVar, runtime_checkable

import cloudpickle

from vjepa_mpc.core.errors import InputError, WorkerDiedError

State = TypeVar("State")
Item = TypeVar("Item")
Result = TypeVar("Result")

# A worker that dies is started again, and its item retried, this often in a pool's life.
MAX_RESTARTS = 3
# Where failed items are given up one by one: so many deaths in a row, without a result, end the work.
DEATHS_IN_A_ROW = 20
# Items handed out or finished but not yet yielded, per worker: what bounds the memory of a stream.
_AHEAD = 4
# Worker processes on one machine: at most so many a core, but never refuse fewer than these.
_PER_CORE, _LEAST_ALLOWED = 4, 32
_THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


@dataclass(frozen=True)
class Outcome(Generic[Result]):
    """What became of item number `index` after so many `tries`: its result, or (`error`) why there is none."""

    index: int
    result: Result | None
    error: Exception | None
    tries: int


@dataclass(frozen=True)
class Death:
    """A worker died with an item in hand; another has taken its place, or (`gone`) none could."""

    reason: str
    gone: bool = False


@runtime_checkable
class Pool(Protocol):
    """Workers that hold their state. One stream at a time."""

    def stream(self, fn: Callable[[Any, Item], Result], items: Iterable[Item]) -> Iterator[Result]:
        """Yield `fn(state, item)` for each item, in the order of `items`, a bounded number ahead.

        The first item, in order, whose `fn` raised ends the stream with that same exception.
        """
        ...

    def map(
        self,
        fn: Callable[[Any, Item], Result],
        items: Iterable[Item],
        on_result: Callable[[Result], object] | None = None,
    ) -> list[Result]:
        """The list of what `stream` yields; `on_result` is called here with each result, in order."""
        ...

    def outcomes(
        self, fn: Callable[[Any, Item], Result], items: Iterable[Item], tries: int = 1
    ) -> Iterator[Outcome[Result]]:
        """Yield what becomes of every item as it is known, in whatever order: one that fails, by an exception or with
        its worker, is tried `tries` times in all, and never ends the others.

        `InputError` ends everything: it is the caller's mistake, not the item's. So does a machine on which worker
        after worker dies.
        """
        ...


@runtime_checkable
class Executor(Protocol):
    """Where work is done."""

    def open(self, setup: Callable[[], Any]) -> AbstractContextManager[Pool]:
        """Start the workers; leaving the block stops them, at once if by an exception (Ctrl-C too).

        A state that has a `close()` is closed.
        """
        ...


@dataclass(frozen=True)
class LocalExecutor:
    """Work on this machine: in this process for one worker, else in `workers` processes of `threads` each."""

    workers: int = 1
    threads: int = 1

    def __post_init__(self) -> None:
        _check_counts(self.workers, self.threads)
        _check_local(self.workers)

    @contextlib.contextmanager
    def open(self, setup: Callable[[], Any]) -> Iterator[Pool]:
        """See `Executor.open`."""
        if self.workers == 1:
            pool = _HerePool(setup, self.threads)
            try:
                yield pool
            finally:
                pool.close()
            return
        processes = Processes(self.workers, cloudpickle.dumps(setup), self.threads)
        with _stopping(processes):
            yield _WorkersPool(processes)


@dataclass(frozen=True)
class RayExecutor:
    """Work on Ray: on a Ray started for the time being on this machine, or on the cluster at `address`.

    `address` is "host:port", "ray://host:port" or "auto". Each of the `workers` actors reserves `num_cpus`
    and `num_gpus`, and runs `threads` threads. The setup (the weights) is put into the object store once.
    Raises `InputError` when the cluster does not answer within 20 s or is too small.
    """

    workers: int = 1
    address: str | None = None
    num_cpus: float = 1
    num_gpus: float = 0
    threads: int = 1

    def __post_init__(self) -> None:
        _check_counts(self.workers, self.threads)
        if self.address is None:
            _check_local(self.workers)

    def check(self) -> None:
        """See that something answers at the address, without connecting; `InputError` within seconds if not."""
        from vjepa_mpc import ray_workers

        if self.address is not None:
            ray_workers.check_answers(self.address)

    @contextlib.contextmanager
    def open(self, setup: Callable[[], Any]) -> Iterator[Pool]:
        """See `Executor.open`."""
        from vjepa_mpc import ray_workers

        with ray_workers.session(self.workers, self.address, self.num_cpus, self.num_gpus):
            actors = ray_workers.Actors(
                self.workers, cloudpickle.dumps(setup), self.threads, self.num_cpus, self.num_gpus
            )
            with _stopping(actors):
                yield _WorkersPool(actors)


def _check_counts(workers: int, threads: int) -> None:
    if workers < 1 or threads < 1:
        raise InputError(f"Workers and threads must be at least 1, got {workers} and {threads}.")


def _check_local(workers: int) -> None:
    """Processes far beyond the cores only fill the memory."""
    most = max(_LEAST_ALLOWED, _PER_CORE * (os.cpu_count() or 1))
    if workers > most:
        raise InputError(
            f"{workers} workers are more than this machine's {os.cpu_count()} cores can do with; ask for at most "
            f"{most} here, or give the address of a Ray cluster."
        )


class Worker:
    """What lives in a worker process or actor: answers pickled items with pickled results or exceptions.

    The state is built at the first item, so that what `setup` raises comes back as an item's exception.
    """

    def __init__(self, setup: bytes, threads: int) -> None:
        for name in _THREAD_VARIABLES:
            os.environ[name] = str(threads)  # read by libraries that are imported from now on
        self._setup = setup
        self._threads = threads
        self._state: Any = None
        self._ready = False
        self._work: tuple[bytes, Callable[[Any, Any], Any]] | None = None

    def call(self, work: bytes, item: bytes) -> bytes:
        """Pickled (True, result) or (False, exception, its traceback as text)."""
        try:
            if not self._ready:
                setup = cloudpickle.loads(self._setup)
                _pin_torch(self._threads)
                self._state = setup()
                _pin_torch(self._threads)
                self._ready = True
            if self._work is None or self._work[0] != work:
                self._work = (work, cloudpickle.loads(work))
            return cloudpickle.dumps((True, self._work[1](self._state, cloudpickle.loads(item))))
        except BaseException as error:
            return _pack(error)

    def close(self) -> None:
        """Close the state, if it was built and can be closed."""
        _close(self._state)


def _pack(error: BaseException) -> bytes:
    """The exception, or what stands for it, and its traceback as text."""
    text = "".join(traceback.format_exception(error))
    return cloudpickle.dumps((False, portable(error), text))


def portable(error: BaseException) -> Any:
    """The exception as it is, or, where it cannot travel between processes, a RuntimeError that quotes it."""
    try:
        if type(cloudpickle.loads(cloudpickle.dumps(error))).__name__ == type(error).__name__:
            return error
    except Exception:  # whatever its pickling raises, the sentence below still tells
        pass
    return RuntimeError(f"{type(error).__name__}: {error}")


def unpack(answer: bytes) -> Any:
    """What `Worker.call` answered: its result, or its exception, raised."""
    ok, value, *trace = cloudpickle.loads(answer)
    if ok:
        return value
    value.add_note("Raised in a worker:\n" + trace[0])
    raise value


def _close(state: object) -> None:
    close = getattr(state, "close", None)
    if callable(close):
        close()


def _pin_torch(threads: int) -> None:
    """Pin torch's threads, where torch is in use at all (importing it takes seconds)."""
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(threads)


class _MapByStream:
    """`Pool.map` in terms of `Pool.stream`."""

    def stream(self, fn: Callable[[Any, Item], Result], items: Iterable[Item]) -> Iterator[Result]:
        raise NotImplementedError

    def map(
        self,
        fn: Callable[[Any, Item], Result],
        items: Iterable[Item],
        on_result: Callable[[Result], object] | None = None,
    ) -> list[Result]:
        results = []
        for result in self.stream(fn, items):
            results.append(result)
            if on_result is not None:
                on_result(result)
        return results


class _HerePool(_MapByStream):
    """One worker, in this process. What it pins of torch's threads, it puts back."""

    def __init__(self, setup: Callable[[], Any], threads: int) -> None:
        self._setup: Callable[[], Any] | None = setup
        self._state: Any = None
        self._threads = threads
        self._threads_before: int | None = None
        self._pin()

    def _pin(self) -> None:
        if "torch" in sys.modules and self._threads_before is None:
            self._threads_before = sys.modules["torch"].get_num_threads()
            _pin_torch(self._threads)

    def stream(self, fn: Callable[[Any, Item], Result], items: Iterable[Item]) -> Iterator[Result]:
        for item in items:
            yield self._call(fn, item)

    def _call(self, fn: Callable[[Any, Item], Result], item: Item) -> Result:
        if self._setup is not None:
            self._state = self._setup()
            self._setup = None
        self._pin()  # setup may have been what imported torch
        return fn(self._state, item)

    def outcomes(
        self, fn: Callable[[Any, Item], Result], items: Iterable[Item], tries: int = 1
    ) -> Iterator[Outcome[Result]]:
        """See `Pool.outcomes`; what kills this process kills all."""
        for index, item in enumerate(items):
            for tried in range(1, tries + 1):
                try:
                    outcome = Outcome(index, self._call(fn, item), None, tried)
                except InputError:
                    raise
                except Exception as error:
                    outcome = Outcome(index, None, error, tried)
                else:
                    break
            yield outcome

    def close(self) -> None:
        if self._threads_before is not None:
            _pin_torch(self._threads_before)
        _close(self._state)


@runtime_checkable
class Workers(Protocol):
    """Processes or actors, each with at most one item in hand."""

    count: int

    def send(self, worker: int, work: bytes, item: bytes) -> None: ...

    def receive(self) -> tuple[int, bytes | Death]:
        """Wait for any answer: which worker, and what `Worker.call` returned. A dead worker is replaced, and its item
        is not sent again."""
        ...

    def stop(self, at_once: bool) -> None: ...


@contextlib.contextmanager
def _stopping(workers: Workers) -> Iterator[None]:
    try:
        yield
    except BaseException:
        workers.stop(at_once=True)
        raise
    workers.stop(at_once=False)


class _WorkersPool(_MapByStream):
    """Hands items to workers as they become free; `stream` gives results back in order."""

    def __init__(self, workers: Workers) -> None:
        self._workers = workers
        self._free = list(range(workers.count))
        self._busy: dict[int, tuple[int, bytes]] = {}  # worker: number and content of its item
        self._streaming = False

    @contextlib.contextmanager
    def _one_at_a_time(self) -> Iterator[None]:
        if self._streaming:
            raise RuntimeError("This pool is in the middle of a stream; finish it or open a second pool.")
        self._streaming = True
        try:
            while self._busy:  # what a stream that was broken off has left behind
                self._receive()
            yield
        finally:
            self._streaming = False

    def _send(self, work: bytes, index: int, item: bytes) -> None:
        worker = self._free.pop()
        self._workers.send(worker, work, item)
        self._busy[worker] = index, item

    def _receive(self) -> tuple[int, bytes, bytes | Death]:
        """Number and content of an item, and its answer; who gave it is free again."""
        worker, answer = self._workers.receive()
        if not (isinstance(answer, Death) and answer.gone):
            self._free.append(worker)
        index, item = self._busy.pop(worker)
        if not (self._free or self._busy):
            raise WorkerDiedError(f"No worker is left ({answer.reason if isinstance(answer, Death) else ''}).")
        return index, item, answer

    def stream(self, fn: Callable[[Any, Item], Result], items: Iterable[Item]) -> Iterator[Result]:
        with self._one_at_a_time():
            yield from self._in_order(cloudpickle.dumps(fn), enumerate(items))

    def _in_order(self, work: bytes, todo: Iterator[tuple[int, Any]]) -> Iterator[Any]:
        done: dict[int, bytes] = {}
        wanted = deaths = 0
        again: list[tuple[int, bytes]] = []
        while True:
            while self._free and len(done) + len(self._busy) < _AHEAD * self._workers.count:
                index, packed = again.pop() if again else _next_packed(todo)
                if index < 0:
                    break
                self._send(work, index, packed)
            if wanted in done:
                yield unpack(done.pop(wanted))
                wanted += 1
            elif self._busy:
                index, packed, answer = self._receive()
                if isinstance(answer, Death):
                    deaths += 1
                    _give_up(deaths, MAX_RESTARTS, answer)
                    again.append((index, packed))
                else:
                    done[index] = answer
            else:
                return

    def outcomes(
        self, fn: Callable[[Any, Item], Result], items: Iterable[Item], tries: int = 1
    ) -> Iterator[Outcome[Result]]:
        """See `Pool.outcomes`."""
        with self._one_at_a_time():
            yield from self._as_known(cloudpickle.dumps(fn), enumerate(items), tries)

    def _as_known(self, work: bytes, todo: Iterator[tuple[int, Any]], tries: int) -> Iterator[Outcome[Any]]:
        tried: dict[int, int] = {}
        again: list[tuple[int, bytes]] = []
        deaths = 0
        while True:
            while self._free:
                index, packed = again.pop() if again else _next_packed(todo)
                if index < 0:
                    break
                tried[index] = tried.get(index, 0) + 1
                self._send(work, index, packed)
            if not self._busy:
                return
            index, packed, answer = self._receive()
            outcome = _outcome(index, answer, tried[index])
            if isinstance(answer, Death):
                deaths += 1
                _give_up(deaths, DEATHS_IN_A_ROW, answer)
            elif outcome.error is None:
                deaths = 0
            if outcome.error is not None and tried[index] < tries:
                again.append((index, packed))
                continue
            yield outcome


def _next_packed(todo: Iterator[tuple[int, Any]]) -> tuple[int, bytes]:
    """The next item's number and content; -1 where there is none."""
    index, item = next(todo, (-1, None))
    return index, b"" if index < 0 else cloudpickle.dumps(item)


def _give_up(deaths: int, most: int, last: Death) -> None:
    if deaths > most:
        raise WorkerDiedError(
            f"Workers died {deaths} times ({last.reason}), often for lack of memory; use fewer workers."
        )


def _outcome(index: int, answer: bytes | Death, tries: int) -> Outcome[Any]:
    if isinstance(answer, Death):
        return Outcome(index, None, WorkerDiedError(f"Its worker died ({answer.reason})."), tries)
    try:
        return Outcome(index, unpack(answer), None, tries)
    except InputError:
        raise
    except Exception as error:
        return Outcome(index, None, error, tries)


class Processes:
    """Worker processes, each at the other end of a pipe; one that sees its pipe closed ends by itself. Items are sent
    to a worker by its number, so that what it holds can be addressed."""

    def __init__(self, count: int, setup: bytes, threads: int) -> None:
        self.count = count
        self._setup, self._threads = setup, threads
        self._running = [self._start() for _ in range(count)]
        self._working: set[int] = set()

    def _start(self) -> tuple[Any, connection.Connection]:
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe()
        process = context.Process(target=_serve, args=(theirs, self._setup, self._threads), daemon=True)
        # Children inherit a blocked SIGINT: Ctrl-C is answered here alone, without their tracebacks.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            process.start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        theirs.close()
        return process, ours

    def send(self, worker: int, work: bytes, item: bytes) -> None:
        self._working.add(worker)
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # dead: `receive` notices
            self._running[worker][1].send((work, item))

    def receive(self) -> tuple[int, bytes | Death]:
        waiting = {self._running[worker][1]: worker for worker in self._working}
        ready: Any = connection.wait(list(waiting))[0]
        worker = waiting[ready]
        self._working.discard(worker)
        try:
            return worker, ready.recv_bytes()
        except (EOFError, ConnectionResetError):
            return worker, self._replace(worker)

    def _replace(self, worker: int) -> Death:
        process, pipe = self._running[worker]
        pipe.close()
        process.join()
        self._running[worker] = self._start()
        return Death(f"exit code {process.exitcode}")

    def stop(self, at_once: bool) -> None:
        for process, pipe in self._running:
            pipe.close()
            if at_once:
                process.terminate()
        for process, _ in self._running:
            process.join(timeout=5)
            if process.is_alive():
                process.kill()
                process.join()


def _serve(pipe: connection.Connection, setup: bytes, threads: int) -> None:
    """The main function of a worker process."""
    worker = Worker(setup, threads)
    with contextlib.suppress(EOFError, BrokenPipeError, ConnectionResetError):
        while True:
            work, item = pipe.recv()
            pipe.send_bytes(worker.call(work, item))
    worker.close()
