"""Errors that tell the caller what was wrong and the way out.

`InputError` is the caller's mistake (bad file, unknown name, mismatch): the command line prints its
one sentence and exits with code 2. Our own mistakes are `assert`s.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class InputError(ValueError):
    """What was given cannot be used; the message is one sentence that names the way out."""


class NotFiniteError(ArithmeticError):
    """A NaN appeared where a number is needed. `evidence` holds the values that led there."""

    def __init__(self, message: str, evidence: object = None) -> None:
        super().__init__(message)
        self.evidence = evidence


class WorkerLostError(RuntimeError):
    """Another process of the same training is gone: not this one's mistake, and it cannot go on alone."""


class WorkerDiedError(RuntimeError):
    """Worker processes kept dying (killed, often for lack of memory) without raising an exception."""


def unknown_name(kind: str, name: str, valid: Iterable[str]) -> InputError:
    """The error for a `kind` (robot, planner, ...) that does not exist: offers the nearest, lists the rest."""
    names = sorted(valid)
    like = {one: difflib.SequenceMatcher(None, one, name).ratio() for one in names}
    best = max(like.values(), default=0.0)
    near = [repr(one) for one in names if best >= 0.5 and like[one] > best - 0.01]  # equally near ones are all offered
    hint = f"did you mean {' or '.join(near)}? " if near else ""
    return InputError(f"There is no {kind} named {name!r}: {hint}The valid names are {', '.join(names)}.")


def first_line(error: BaseException) -> str:
    """The first line of an error's message without its full stop, or its kind when it has none: for quoting in a
    sentence."""
    return (str(error).strip() or type(error).__name__).splitlines()[0].removesuffix(".")
