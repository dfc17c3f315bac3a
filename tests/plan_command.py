"""Running `vjepa-mpc plan` in this process, quickly: for tests of the command."""

from __future__ import annotations

import pytest
import torch

from vjepa_mpc.cli.main import main

GOAL_STATE, START = (0.6, -1.1), "-1.0,1.5"
FAST = ("--samples", "6", "--elites", "2", "--iterations", "2", "--horizon", "2", "--backend", "rays", "--threads", "1")


def run(*arguments: object) -> int:
    """The exit status of `vjepa-mpc plan`; torch's threads are left as they were."""
    threads = torch.get_num_threads()
    try:
        with pytest.raises(SystemExit) as left:
            main(["plan", *map(str, arguments)])
    finally:
        torch.set_num_threads(threads)
    assert isinstance(left.value.code, int)
    return left.value.code
