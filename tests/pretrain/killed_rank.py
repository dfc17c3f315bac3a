"""One of two ranks of a training; the second kills itself in step 3, after the checkpoint of step 2.

`python killed_rank.py STORE OUT` with torchrun's variables set.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent))
from moving_dot import training
from rank_cases import CPU, OBJECTIVES, STEPS

from vjepa_mpc.core.errors import WorkerLostError
from vjepa_mpc.pretrain import ranks
from vjepa_mpc.pretrain.data import ClipBatches
from vjepa_mpc.pretrain.run import pretrain_encoder
from vjepa_mpc.pretrain.source import Source


def main(store: Path, out: Path) -> None:
    torch.set_num_threads(1)
    loaded = ClipBatches.batch

    def load(data: ClipBatches, step: int) -> object:
        if step == 4 and not ranks.first():  # read ahead of step 3
            os.kill(os.getpid(), signal.SIGKILL)
        return loaded(data, step)

    ClipBatches.batch = load  # type: ignore[method-assign, assignment]
    with ranks.joined(CPU):
        pretrain_encoder(Source(store), out, OBJECTIVES["vjepa-content"], training(STEPS, optimizer="muon"), CPU)


if __name__ == "__main__":
    try:
        main(Path(sys.argv[1]), Path(sys.argv[2]))
    except WorkerLostError as error:
        sys.exit(f"Error: {error}")
