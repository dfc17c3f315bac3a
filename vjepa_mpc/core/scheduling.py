"""How the operating system shares out the processor to this process's threads, kept as it is."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress

_THREADS = "/proc/self/task"


@contextmanager
def same_scheduling() -> Iterator[None]:
    """Every thread has after the block the scheduling it had before, and threads begun in it that of their caller.

    SVT-AV1's encoder, where it may (as root, and so in most containers), makes the thread that opens it a real-time one
    of the highest priority, for good: what that thread and the processes that it starts do afterwards then goes before
    everything else on the machine. Nothing is done where there is no `/proc`.
    """
    before, own = _scheduling(), _of(0)
    try:
        yield
    finally:
        for thread, now in _scheduling().items():
            wanted = before.get(thread, own)
            if wanted is not None and now != wanted:
                with suppress(OSError):  # it has ended meanwhile
                    os.sched_setscheduler(thread, wanted[0], os.sched_param(wanted[1]))


def _scheduling() -> dict[int, tuple[int, int]]:
    """Policy and priority of each thread."""
    with suppress(OSError):
        threads = ((int(name), _of(int(name))) for name in os.listdir(_THREADS))
        return {thread: found for thread, found in threads if found is not None}
    return {}


def _of(thread: int) -> tuple[int, int] | None:
    with suppress(OSError, AttributeError):
        return os.sched_getscheduler(thread), os.sched_getparam(thread).sched_priority
    return None
