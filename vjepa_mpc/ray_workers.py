"""Workers that are Ray actors. Imported only when Ray is used."""

from __future__ import annotations

import contextlib
import logging
import os
import socket
from collections.abc import Iterator
from typing import Any

import ray

from vjepa_mpc.core.errors import InputError
from vjepa_mpc.executor import Death, Worker

ANSWER_TIMEOUT_S = 8.0
_LOOK_S = 5.0  # so often a wait for an answer looks whether the cluster still has room
# RFC 9113, 3.4: a client opens with this line and a SETTINGS frame (here empty), a server with its own frame.
_HTTP2_SETTINGS = 4
_HTTP2_GREETING = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, _HTTP2_SETTINGS, 0, 0, 0, 0, 0])
# No usage reports; and ten tries, of a second each, for an address that answers but is not Ray.
_WHILE_CONNECTING = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_gcs_server_port_wait_time_s": "10"}


@contextlib.contextmanager
def session(
    workers: int, address: str | None, num_cpus: float, num_gpus: float, *, object_store_bytes: int | None = None
) -> Iterator[None]:
    """Have Ray running, with room for the workers; stop it afterwards if it was started here, where its object store
    takes at most `object_store_bytes` (by default Ray's share of the memory)."""
    if address is not None:
        check_answers(address)
    ours = not ray.is_initialized()
    if ours:
        _connect(address, workers * num_cpus, object_store_bytes)
    elif address not in (None, "auto", ray.get_runtime_context().gcs_address):
        raise InputError(f"This process uses another Ray than {address} already; call ray.shutdown() first.")
    try:
        _check_room(workers, num_cpus, num_gpus, address)
        yield
    finally:
        if ours:
            ray.shutdown()


def _connect(address: str | None, cpus: float, store: int | None) -> None:
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    if address is None:
        options.update(address="local", num_cpus=max(1, round(cpus)), include_dashboard=False)
        options.update({} if store is None else {"object_store_memory": store})
    else:
        options.update(address=address)
    added = {name: value for name, value in _WHILE_CONNECTING.items() if name not in os.environ}
    os.environ.update(added)
    try:
        ray.init(**options)
    except Exception as error:  # also bare ones, where this machine is too busy for Ray to start in time
        where = "on this machine" if address is None else f"at {address}"
        raise InputError(f"Ray {where} could not be reached ({_first_line(error)}); {_remedy(address)}.") from error
    finally:
        for name in added:
            del os.environ[name]


def _remedy(address: str | None) -> str:
    return "use --workers without Ray" if address is None else "start it with `ray start --head` or check the address"


def _first_line(error: BaseException) -> str:
    return str(error).strip().split("\n")[0].rstrip(".") or type(error).__name__


def check_answers(address: str) -> None:
    """See that a gRPC server (Ray speaks gRPC) greets us: `ray.init` waits minutes for a deaf one, and then
    ends the process."""
    if address == "auto" or os.environ.get("RAY_USE_TLS") == "1":
        return
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or not port.isdigit() or int(port) > 65535:
        raise InputError(f"{address!r} is no Ray address; give host:port, ray://host:port or auto.")
    try:
        with socket.create_connection((host, int(port)), timeout=ANSWER_TIMEOUT_S) as stream:
            stream.settimeout(ANSWER_TIMEOUT_S)
            stream.sendall(_HTTP2_GREETING)
            answer = stream.recv(4)
    except OSError as error:
        raise InputError(f"Nothing answers at {address} ({error.strerror or error}); {_remedy(address)}.") from error
    if len(answer) < 4 or answer[3] != _HTTP2_SETTINGS:
        raise InputError(f"What answers at {address} is not Ray; {_remedy(address)}.")


def _check_room(workers: int, num_cpus: float, num_gpus: float, address: str | None) -> None:
    """Actors that do not fit would wait for ever, without a word."""
    have = ray.cluster_resources()
    for kind, each in (("CPU", num_cpus), ("GPU", num_gpus)):
        if workers * each > have.get(kind, 0) + 1e-6:
            raise InputError(
                f"{workers} workers of {each:g} {kind} need {workers * each:g} {kind}s, and Ray has "
                f"{have.get(kind, 0):g}; ask for fewer workers."
            )


class _Actor:
    """A `Worker` that fetches its setup when it first needs it, so also after a restart."""

    def __init__(self, threads: int) -> None:
        self._threads = threads
        self._worker: Worker | None = None

    def call(self, setup: list[Any], work: bytes, item: bytes) -> bytes:
        if self._worker is None:
            self._worker = Worker(ray.get(setup[0]), self._threads)
        return self._worker.call(work, item)

    def close(self) -> None:
        if self._worker is not None:
            self._worker.close()


class Actors:
    """`vjepa_mpc.executor.Workers` on Ray. An actor that died is replaced, on another machine if its own is lost; where
    the cluster has become too small for all of them, those that find no place are let go."""

    def __init__(self, count: int, setup: bytes, threads: int, num_cpus: float, num_gpus: float) -> None:
        self.count = count
        self._needs = {"CPU": num_cpus, "GPU": num_gpus}
        actor: Any = ray.remote(_Actor).options(num_cpus=num_cpus, num_gpus=num_gpus, max_restarts=0)
        self._start = lambda: actor.remote(threads)
        self._actors: list[Any] = [self._start() for _ in range(count)]
        self._proved: set[int] = set()  # workers whose actor has answered: they have a place
        self._gone: set[int] = set()
        self._setup = [ray.put(setup)]  # in a list Ray hands over the reference; by itself, a copy every call
        self._work: tuple[bytes, Any] | None = None
        self._answers: dict[Any, int] = {}

    def send(self, worker: int, work: bytes, item: bytes) -> None:
        if self._work is None or self._work[0] is not work:
            self._work = (work, ray.put(work))
        self._answers[self._actors[worker].call.remote(self._setup, self._work[1], item)] = worker

    def receive(self) -> tuple[int, bytes | Death]:
        while True:
            ready, _ = ray.wait(list(self._answers), num_returns=1, timeout=_LOOK_S)
            if not ready:
                homeless = self._homeless()
                if homeless is None:
                    continue
                return homeless, Death("the cluster has no room for it any more", gone=True)
            worker = self._answers.pop(ready[0])
            try:
                answer: bytes = ray.get(ready[0])
            except ray.exceptions.RayError as error:
                return worker, self._replace(worker, error)
            self._proved.add(worker)
            return worker, answer

    def _replace(self, worker: int, error: Exception) -> Death:
        with contextlib.suppress(ray.exceptions.RayError):
            ray.kill(self._actors[worker])
        self._proved.discard(worker)
        self._actors[worker] = self._start()
        return Death(_first_line(error))

    def _homeless(self) -> int | None:
        """A worker that waits for a place which the cluster, with machines lost, does not have; it is given up."""
        have, alive = ray.cluster_resources(), self.count - len(self._gone)
        short = any(alive * each > have.get(kind, 0) + 1e-6 for kind, each in self._needs.items())
        waiting = [answer for answer, worker in self._answers.items() if worker not in self._proved]
        if not short or not waiting:
            return None
        worker = self._answers.pop(waiting[0])
        self._gone.add(worker)
        ray.kill(self._actors[worker])
        return worker

    def stop(self, at_once: bool) -> None:
        if not at_once:
            with contextlib.suppress(ray.exceptions.RayError):
                ray.get([actor.close.remote() for actor in self._here()], timeout=5)
        for actor in self._here():
            ray.kill(actor)

    def _here(self) -> list[Any]:
        return [actor for worker, actor in enumerate(self._actors) if worker not in self._gone]
