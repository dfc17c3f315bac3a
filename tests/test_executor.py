"""The executors' contract, held by each: here, in processes, on Ray; equal to the bit."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import textwrap
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import cloudpickle
import numpy as np
import pytest
import torch

from vjepa_mpc.core.errors import InputError, WorkerDiedError
from vjepa_mpc.executor import Executor, LocalExecutor, Pool, RayExecutor

# Workers cannot import this module: its functions travel by value, as those of a user's script do.
cloudpickle.register_pickle_by_value(sys.modules[__name__])


class State:
    """A worker's state: a matrix, and a token that no other state has."""

    def __init__(self) -> None:
        self.token = uuid.uuid4().hex
        self.matrix = torch.randn(64, 64, generator=torch.Generator().manual_seed(7))


def multiply(state: State, seed: int) -> torch.Tensor:
    """A product whose last bit depends on the number of threads and the kernel."""
    factor = torch.randn(64, 300, generator=torch.Generator().manual_seed(seed))
    return torch.tanh(state.matrix @ factor) @ factor.T


def threads(state: State, _: int) -> tuple[int, int, str]:
    time.sleep(0.02)
    return torch.get_num_threads(), os.getpid(), state.token


def slow_first(_: object, index: int) -> int:
    time.sleep(0.3 if index == 0 else 0.0)
    return index


def fail_at_three(_: State, index: int) -> int:
    if index >= 3:
        time.sleep(0.2 if index == 3 else 0.0)  # item 4 fails earlier, and item 3 is still the one reported
        raise InputError(f"item {index} is bad; leave it out.")
    return index


class TwoPartError(Exception):
    """Cannot be unpickled: its constructor wants two arguments."""

    def __init__(self, one: str, two: str) -> None:
        super().__init__(f"{one} and {two}")


def fail_oddly(_: State, __: int) -> int:
    raise TwoPartError("this", "that")


def write_into(_: State, array: np.ndarray) -> np.ndarray:
    array += 1  # an argument is the worker's own, and not read-only
    return array


def die_once(marker: Path) -> Callable[[object, int], int]:
    def work(_: object, index: int) -> int:
        if index == 2 and not marker.exists():
            marker.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return index

    return work


def die_always(_: object, __: int) -> int:
    os.kill(os.getpid(), signal.SIGKILL)
    return 0


def _executors() -> list[Any]:
    return [
        pytest.param(LocalExecutor(1), id="here"),
        pytest.param(LocalExecutor(2), id="processes"),
        pytest.param(RayExecutor(2), id="ray"),
    ]


@pytest.fixture(scope="module", params=_executors())
def opened(request: pytest.FixtureRequest) -> Iterator[tuple[Any, Pool]]:
    """One pool for all contract tests: starting Ray takes seconds."""
    with ExitStack() as stack:
        yield request.param, stack.enter_context(request.param.open(State))


def test_results_are_equal_to_the_bit_and_in_order(opened: tuple[Any, Pool]) -> None:
    threads_before = torch.get_num_threads()
    torch.set_num_threads(1)
    wanted = [multiply(State(), seed) for seed in range(9)]
    torch.set_num_threads(threads_before)
    seen: list[torch.Tensor] = []
    results = opened[1].map(multiply, range(9), on_result=seen.append)
    assert len(results) == len(seen) == 9
    for result, also, want in zip(results, seen, wanted, strict=True):
        assert result is also
        assert torch.equal(result, want)


def test_a_slow_first_item_is_still_first(opened: tuple[Any, Pool]) -> None:
    assert opened[1].map(slow_first, range(20)) == list(range(20))


def test_threads_are_pinned_and_the_state_is_built_once(opened: tuple[Any, Pool]) -> None:
    pinned = opened[1].map(threads, range(6)) + opened[1].map(threads, range(6))
    assert {count for count, _, _ in pinned} == {1}
    processes = {process for _, process, _ in pinned}
    assert len({(process, token) for _, process, token in pinned}) == len(processes) == opened[0].workers


def test_the_first_failure_in_order_comes_back_as_itself_and_the_pool_goes_on(
    opened: tuple[Any, Pool],
) -> None:
    seen: list[int] = []
    with pytest.raises(InputError) as caught:
        opened[1].map(fail_at_three, range(8), on_result=seen.append)
    assert str(caught.value) == "item 3 is bad; leave it out."
    assert seen == [0, 1, 2]
    assert opened[1].map(slow_first, range(4)) == [0, 1, 2, 3]


def test_an_exception_that_cannot_travel_is_quoted(opened: tuple[Any, Pool]) -> None:
    with pytest.raises(Exception, match="this and that"):
        opened[1].map(fail_oddly, [0])


def test_no_items_no_results(opened: tuple[Any, Pool]) -> None:
    assert opened[1].map(multiply, []) == []


def test_arrays_arrive_and_return_writable(opened: tuple[Any, Pool]) -> None:
    (result,) = opened[1].map(write_into, [np.zeros(300_000)])
    result += 1
    assert float(result.sum()) == 600_000


def test_a_stream_reads_a_bounded_number_of_items_ahead(opened: tuple[Any, Pool]) -> None:
    taken: list[int] = []

    def items() -> Iterator[int]:
        for index in range(1000):
            taken.append(index)
            yield index

    stream = opened[1].stream(slow_first, items())
    assert [next(stream) for _ in range(3)] == [0, 1, 2]
    assert len(taken) < 20
    stream.close()  # type: ignore[attr-defined]
    assert opened[1].map(slow_first, range(3)) == [0, 1, 2]


def test_a_killed_worker_comes_back_and_its_item_is_done(opened: tuple[Any, Pool], tmp_path: Path) -> None:
    if opened[0] == LocalExecutor(1):
        pytest.skip("the only worker is this process")
    assert opened[1].map(die_once(tmp_path / "died"), range(6)) == list(range(6))
    assert (tmp_path / "died").exists()


def test_workers_that_keep_dying_end_the_work() -> None:
    with pytest.raises(WorkerDiedError, match="fewer workers"), LocalExecutor(2).open(dict) as pool:
        pool.map(die_always, range(2))


def _failing_setup() -> State:
    raise InputError("the weights are truncated; fetch them again.")


@pytest.mark.parametrize("executor", [LocalExecutor(1), LocalExecutor(2)], ids=["here", "processes"])
def test_what_setup_raises_comes_back(executor: Executor) -> None:
    with pytest.raises(InputError, match="truncated"), executor.open(_failing_setup) as pool:
        pool.map(slow_first, range(2))


class Closable:
    """Counts its closings."""

    closed = 0

    def close(self) -> None:
        type(self).closed += 1


def test_a_state_that_can_be_closed_is_closed_and_threads_are_put_back() -> None:
    torch_threads = torch.get_num_threads()
    with LocalExecutor(1, threads=3).open(Closable) as pool:
        assert pool.map(lambda _, item: (item, torch.get_num_threads()), [1]) == [(1, 3)]
    assert Closable.closed == 1
    assert torch.get_num_threads() == torch_threads


def test_one_stream_at_a_time() -> None:
    with LocalExecutor(2).open(dict) as pool:
        stream = pool.stream(slow_first, range(4))
        next(stream)
        with pytest.raises(RuntimeError, match="middle of a stream"):
            pool.map(slow_first, range(4))


@pytest.mark.parametrize("arguments", [(0, 1), (1, 0)])
def test_counts_below_one_are_refused(arguments: tuple[int, int]) -> None:
    with pytest.raises(InputError, match="at least 1"):
        LocalExecutor(*arguments)


@pytest.mark.parametrize("address", ["nonsense", "host:notaport", "127.0.0.1:99999"])
def test_what_is_no_address_is_refused(address: str) -> None:
    with pytest.raises(InputError, match="is no Ray address"), RayExecutor(1, address).open(State):
        pass


def test_an_address_where_nothing_or_something_else_answers_fails_in_seconds() -> None:
    with socket.create_server(("127.0.0.1", 0)) as deaf:
        address = f"127.0.0.1:{deaf.getsockname()[1]}"
        started = time.monotonic()
        with pytest.raises(InputError, match=f"{address}.*timed out"), RayExecutor(1, address).open(State):
            pass
        assert time.monotonic() - started < 20
    with pytest.raises(InputError, match="Nothing answers"), RayExecutor(1, address).open(State):
        pass


def test_ctrl_c_is_answered_by_this_process_alone() -> None:
    with LocalExecutor(2).open(dict) as pool:
        (blocked,) = pool.map(lambda _, __: signal.SIGINT in signal.pthread_sigmask(signal.SIG_BLOCK, ()), [0])
    assert blocked
    assert signal.SIGINT not in signal.pthread_sigmask(signal.SIG_BLOCK, ())


def test_ctrl_c_stops_the_workers_at_once(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        textwrap.dedent("""
        import os, sys, time
        from vjepa_mpc.executor import LocalExecutor

        def work(_, item):
            os.write(1, f"{os.getpid()}\\n".encode())  # in one piece
            time.sleep(60)

        if __name__ == "__main__":
            try:
                with LocalExecutor(2).open(dict) as pool:
                    pool.map(work, range(4))
            except KeyboardInterrupt:
                print("interrupted", flush=True)
        """)
    )
    process = subprocess.Popen(
        [sys.executable, str(script)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
        env={**os.environ, "PYTHONPATH": os.getcwd()},
    )  # fmt: skip
    assert process.stdout is not None
    workers = [int(process.stdout.readline()) for _ in range(2)]
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to the whole group
    out, err = process.communicate(timeout=20)
    assert out.strip() == "interrupted"
    assert err == ""  # no tracebacks from the workers
    assert not any(_alive(worker) for worker in workers)


def _alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return True
