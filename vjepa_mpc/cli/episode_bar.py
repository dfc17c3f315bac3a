"""A progress bar that counts episodes."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

SILENT_S = 30.0
"""Without a terminal: after so many seconds a line is due, whatever was reached."""


class EpisodeBar:
    """A bar on stderr; hands out its update function. Without a terminal, where `lines` are wanted: one about every
    tenth of the way and at least every `SILENT_S`. A bar that is not to `stay` is gone in the end."""

    def __init__(
        self, words: str, *, stay: bool = False, lines: bool = False, clock: Callable[[], float] = time.monotonic
    ) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        self._console = Console(stderr=True)
        self._lines = lines and not self._console.is_terminal
        self._bar = Progress(
            TextColumn(words),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("episodes{task.fields[note]}, left:"),
            TimeRemainingColumn(),
            console=self._console,
            transient=not stay,
            disable=self._lines,
        )
        self._words, self._clock = words, clock
        self._said, self._last = 0, clock()
        self._task: Any = None

    def __enter__(self) -> EpisodeBar:
        return self

    def __exit__(self, *_: object) -> None:
        if self._task is not None:
            self._bar.stop()

    def __call__(self, done: int, total: int, note: str = "") -> None:
        """`note`: what there is to say of them so far."""
        if self._task is None:
            self._bar.start()
            self._task = self._bar.add_task("", total=total, note="")
        self._bar.update(self._task, completed=done, total=total, note=note and f", {note}")
        tenth = 10 * done // total if total else 0
        if self._lines and (tenth != self._said or self._clock() - self._last >= SILENT_S):
            self._said, self._last = tenth, self._clock()
            told = f"{self._words}: {done}/{total} episodes" + (note and f", {note}")
            self._console.print(told, soft_wrap=True, markup=False, highlight=False)
