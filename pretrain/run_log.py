"""What a training writes down as it goes: JSON lines, TensorBoard curves, and Weights & Biases where asked for."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from vjepa_mpc.core.errors import InputError
from vjepa_mpc.core.files import atomic_path

LOG = "log.jsonl"


class RunLog:
    """Rows of figures, each written to `log.jsonl` and drawn by TensorBoard. `step`: where the run goes on.
    `project`: also sent to this project of Weights & Biases; `InputError` when that is not installed."""

    def __init__(self, folder: Path, step: int, project: str | None = None) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._remote = None if project is None else _remote(folder, project)
        self._rows = (folder / LOG).open("a", encoding="utf-8")
        self._curves = SummaryWriter(str(folder / "tensorboard"), purge_step=step)

    def __enter__(self) -> RunLog:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._rows.close()
        self._curves.close()
        if self._remote is not None:
            self._remote.finish(exit_code=0 if error is None else 1)

    def write(self, step: int, figures: Mapping[str, float]) -> None:
        self._rows.write(json.dumps(dict(figures)) + "\n")
        self._rows.flush()
        for key, value in figures.items():
            self._curves.add_scalar(key, value, step)
        if self._remote is not None:
            self._remote.log(dict(figures), step=step)


def _remote(folder: Path, project: str) -> Any:
    """A run of Weights & Biases that is this folder's, however often the training is resumed."""
    try:
        import wandb
    except ImportError as error:
        raise InputError("Weights & Biases is not installed: `pip install wandb`, or leave --wandb out.") from error
    key = hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:16]
    return wandb.init(project=project, name=folder.name, id=key, resume="allow", dir=str(folder))


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
