"""`vjepa-mpc`: the table of commands, and what the user sees when one of them fails.

A command lives in its own module of this folder and imports only `typer` at module level, so that
`vjepa-mpc --help` imports neither torch nor Ray and answers in well under a second.
"""

from __future__ import annotations

import errno
import importlib
import os
import sys
from collections.abc import Sequence
from typing import Any

import typer
from typer.core import TyperGroup

from vjepa_mpc import __version__
from vjepa_mpc.core.errors import InputError, NotFiniteError, WorkerDiedError, WorkerLostError

PROGRAM = "vjepa-mpc"

# Every command: its name, and where it lives as "module:function" or "module:typer application".
# The order is that of the help. A name whose module is missing is an error.
COMMANDS: dict[str, str] = {
    "plan": "vjepa_mpc.cli.plan:plan",
    "landscape": "vjepa_mpc.cli.landscape:landscape",
    "collect": "vjepa_mpc.cli.collect:collect",
    "data": "vjepa_mpc.cli.data:app",
    "pretrain": "vjepa_mpc.cli.pretrain:pretrain",
    "train": "vjepa_mpc.cli.train:train",
    "train-critic": "vjepa_mpc.cli.train_critic:train_critic",
    "train-actor": "vjepa_mpc.cli.train_actor:train_actor",
    "probe": "vjepa_mpc.cli.probe:probe",
    "validate-model": "vjepa_mpc.cli.validate_model:validate_model",
    "convert": "vjepa_mpc.cli.convert:convert",
    "tasks": "vjepa_mpc.cli.tasks:app",
    "evaluate": "vjepa_mpc.cli.evaluate:evaluate",
    "calibrate": "vjepa_mpc.cli.calibrate:calibrate",
    "bench": "vjepa_mpc.cli.bench:app",
    "doctor": "vjepa_mpc.cli.doctor:doctor",
}

OK, FAILED, BAD_INPUT, LOST, INTERRUPTED = 0, 1, 2, 4, 130

_DISK_ERRORS = {
    errno.ENOSPC: "the disk is full; free some space or choose another output path",
    errno.EDQUOT: "the disk quota is used up; free some space or choose another output path",
    errno.EROFS: "the file system is read-only; choose another output path",
    errno.EACCES: "permission denied; choose a path you may use",
    errno.EMFILE: "too many open files; raise the limit with `ulimit -n`",
}


class _Interrupted(Exception):
    """Ctrl-C reached the command line: the command did not handle it itself."""


class _Root(TyperGroup):
    """Lets `main` tell Ctrl-C from a command that handled it and chose its own exit code."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt as interrupt:
            raise _Interrupted from interrupt


def _print_version(wanted: bool) -> bool:
    if wanted:
        typer.echo(f"{PROGRAM} {__version__}")
        raise typer.Exit
    return wanted


def _root(
    version: bool = typer.Option(
        False, "--version", callback=_print_version, is_eager=True, help="Print the version and leave."
    ),
) -> None:
    """Plan a robot's motions to a goal image, on a frozen V-JEPA world model."""


def build_app(commands: dict[str, str] = COMMANDS) -> typer.Typer:
    """Import the modules of `commands` and return the application. Raises ImportError for a missing one."""
    app = typer.Typer(name=PROGRAM, cls=_Root, no_args_is_help=True, pretty_exceptions_enable=False)
    app.callback()(_root)
    for name, place in commands.items():
        module, _, attribute = place.partition(":")
        command = getattr(importlib.import_module(module), attribute)
        if isinstance(command, typer.Typer):
            app.add_typer(command, name=name)
        else:
            app.command(name)(command)
    return app


def describe(error: BaseException) -> tuple[int, str] | None:
    """The exit code and the sentence for an error the user can act on; None when it is our own defect."""
    if isinstance(error, InputError):
        return BAD_INPUT, str(error)
    if isinstance(error, (NotFiniteError, WorkerDiedError)):
        return FAILED, str(error)
    if isinstance(error, WorkerLostError):
        return LOST, str(error)
    if isinstance(error, typer.TyperException):
        return _describe_usage(error)
    if isinstance(error, (_Interrupted, KeyboardInterrupt)):
        return INTERRUPTED, "Interrupted: files that were finished are kept, unfinished ones were removed."
    if isinstance(error, typer.Abort):
        return FAILED, "Stopped: no answer was given."
    if isinstance(error, OSError) and error.errno in _DISK_ERRORS:
        where = f"{error.filename}: " if error.filename else ""
        return BAD_INPUT, f"{where}{_DISK_ERRORS[error.errno]}."
    if isinstance(error, MemoryError):
        return BAD_INPUT, "Not enough memory; ask for fewer samples, a smaller batch or fewer workers."
    if type(error).__name__ == "OutOfMemoryError" and type(error).__module__.startswith("torch"):
        return BAD_INPUT, "The GPU's memory is full; ask for fewer samples, a smaller batch, or --device cpu."
    return None


def _describe_usage(error: Any) -> tuple[int, str]:
    """One sentence for what the option parser refused, with the nearest names and where to read on."""
    message = " ".join(error.format_message().split()) or "A command is missing"  # the help was shown
    possible = getattr(error, "possibilities", None)
    if possible:  # the parser's own wording differs between options and commands
        message = f"{error.message.rstrip('.')}. Did you mean {' or '.join(sorted(possible))}?"
    context = getattr(error, "ctx", None)
    end = "" if message.endswith((".", "?", ")")) else "."
    return error.exit_code, f"{message}{end} See '{context.command_path if context else PROGRAM} --help'."


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and leave the process with its exit code.

    0 done; 1 numbers stopped being finite; 2 bad input or a machine that cannot do it (one sentence on
    stderr); 4 another process of the same training is gone; 130 Ctrl-C; a command may choose others with
    `typer.Exit`. Any other exception is a defect of ours and shows its traceback.
    """
    # Threads that spin while they wait stall each other tenfold when another process keeps a core busy. Read
    # when the OpenMP library is loaded, that is before torch.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    try:
        given = list(sys.argv[1:] if arguments is None else arguments)
        command = typer.main.get_command(build_app())
        code = command(args=given or ["--help"], prog_name=PROGRAM, standalone_mode=False, obj=given)
    except BrokenPipeError:
        # The reader of a pipe left (`| head`): no news, and nothing may be flushed into it on the way out.
        sys.stdout = sys.stderr = None
        sys.exit(OK)
    except BaseException as error:
        described = describe(error)
        if described is None:
            raise
        code, sentence = described
        print(f"Error: {sentence}" if code != INTERRUPTED else sentence, file=sys.stderr)
    sys.exit(code if isinstance(code, int) else OK)


if __name__ == "__main__":
    main()
