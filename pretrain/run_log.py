"""What a training writes down as it goes: JSON lines and TensorBoard curves."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType

from vjepa_mpc.core.files import atomic_path

LOG = "log.jsonl"


class RunLog:
    """Rows of figures, each written to `log.jsonl` and drawn by TensorBoard. `step`: where the run goes on."""

    def __init__(self, folder: Path, step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._rows = (folder / LOG).open("a", encoding="utf-8")
        self._curves = SummaryWriter(str(folder / "tensorboard"), purge_step=step)

    def __enter__(self) -> RunLog:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._rows.close()
        self._curves.close()

    def write(self, step: int, figures: Mapping[str, float]) -> None:
        self._rows.write(json.dumps(dict(figures)) + "\n")
        self._rows.flush()
        for key, value in figures.items():
            self._curves.add_scalar(key, value, step)


def forget_rows_after(log: Path, step: int) -> None:
    """Drop log rows that a resumed run will write again, and one that a crash cut short."""
    if not log.is_file():
        return
    rows = []
    for line in log.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            if json.loads(line)["step"] < step:
                rows.append(line)
        except (ValueError, KeyError, TypeError):
            continue
    with atomic_path(log) as temporary:
        temporary.write_text("".join(row + "\n" for row in rows), encoding="utf-8")
