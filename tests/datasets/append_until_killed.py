"""Run by the kill test: append episodes to the store given, print each index once `append` has returned."""

from __future__ import annotations

import sys
from pathlib import Path

from toy_trajectories import toy_episode

from vjepa_mpc.datasets.store import ZarrStore

if __name__ == "__main__":
    with ZarrStore.append_to(Path(sys.argv[1])) as writer:
        print(len(writer), flush=True)
        while True:
            index = len(writer)
            writer.append(toy_episode(index))
            print(index, flush=True)
