"""What an encoder does to the scheduling of threads is taken back."""

from __future__ import annotations

import os
import threading
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from vjepa_mpc.core.scheduling import same_scheduling

pytestmark = pytest.mark.skipif(not os.path.isdir("/proc/self/task"), reason="no /proc here")


def test_threads_have_after_the_block_what_they_had_before() -> None:
    """Anyone may make an ordinary thread a batch one, and back."""
    before, seen, stop = os.sched_getscheduler(0), list[int](), threading.Event()
    assert before == os.SCHED_OTHER, "the tests run with ordinary scheduling"
    with same_scheduling():
        os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
        begun = threading.Thread(target=stop.wait)  # with its parent's scheduling
        begun.start()
        assert begun.native_id is not None and os.sched_getscheduler(begun.native_id) == os.SCHED_BATCH
    seen += [os.sched_getscheduler(0), os.sched_getscheduler(begun.native_id)]
    stop.set()
    begun.join()
    assert seen == [before, before]
    with pytest.raises(ValueError, match="out of it"), same_scheduling():
        os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
        raise ValueError("out of it")
    assert os.sched_getscheduler(0) == before


def test_av1_leaves_nobody_at_the_highest_priority(tmp_path: Path) -> None:
    """As root its encoder makes whoever opens it a real-time thread; of others it leaves them alone."""
    before = os.sched_getscheduler(0)
    with av.open(str(tmp_path / "a.mp4"), "w") as container:
        stream: Any = container.add_stream("libsvtav1", rate=Fraction(10))
        stream.height, stream.width, stream.pix_fmt = 64, 64, "yuv420p"
        with same_scheduling():
            stream.codec_context.open()
        picture = av.VideoFrame.from_ndarray(np.zeros((64, 64, 3), np.uint8), format="rgb24")
        container.mux(stream.encode(picture))
        policies = {os.sched_getscheduler(int(thread)) for thread in os.listdir("/proc/self/task")}
        container.mux(stream.encode(None))
    assert os.sched_getscheduler(0) == before
    assert not policies & {os.SCHED_FIFO, os.SCHED_RR}  # other libraries may have threads of less urgent kinds
