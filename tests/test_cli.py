"""What the user sees when something goes wrong: one sentence, the right exit code, no traceback."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import types
from pathlib import Path

import pytest
import typer

from vjepa_mpc.cli import main as cli
from vjepa_mpc.core.errors import InputError, unknown_name

ROOT = Path(__file__).resolve().parents[1]


def _raiser(error: BaseException) -> object:
    def command(steps: int = typer.Option(1, min=1, help="Steps."), name: str = typer.Option("x")) -> None:
        raise error

    return command


ERRORS: dict[str, BaseException] = {
    "input": InputError("goal.png is empty; give a picture."),
    "unknown": unknown_name("planner", "cme", ["cem", "cma", "gradient"]),
    "interrupt": KeyboardInterrupt(),
    "full": OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "out/plan.json"),
    "denied": PermissionError(errno.EACCES, os.strerror(errno.EACCES), "out"),
    "memory": MemoryError(),
    "three": typer.Exit(3),
    "defect": ZeroDivisionError("ours"),
}


@pytest.fixture(autouse=True)
def commands(monkeypatch: pytest.MonkeyPatch) -> None:
    module = types.ModuleType("some_commands")
    for name, error in ERRORS.items():
        setattr(module, name, _raiser(error))
        monkeypatch.setitem(cli.COMMANDS, name, f"some_commands:{name}")
    monkeypatch.setitem(sys.modules, "some_commands", module)


def _leave(*arguments: str) -> object:
    with pytest.raises(SystemExit) as left:
        cli.main(arguments)
    return left.value.code


@pytest.mark.parametrize(
    ("command", "code", "words"),
    [
        ("input", 2, "Error: goal.png is empty; give a picture.\n"),
        ("unknown", 2, "Error: " + str(ERRORS["unknown"]) + "\n"),
        ("full", 2, "Error: out/plan.json: the disk is full; free some space or choose another output path.\n"),
        ("denied", 2, "Error: out: permission denied; choose a path you may use.\n"),
        ("memory", 2, "Error: Not enough memory; ask for fewer samples, a smaller batch or fewer workers.\n"),
        ("three", 3, ""),
    ],
)
def test_errors_are_one_sentence_and_an_exit_code(
    capsys: pytest.CaptureFixture[str], command: str, code: int, words: str
) -> None:
    assert _leave(command) == code
    out, err = capsys.readouterr()
    assert (out, err) == ("", words)


def test_ctrl_c_leaves_with_130_and_a_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    assert _leave("interrupt") == 130
    err = capsys.readouterr().err
    assert err.startswith("Interrupted") and err.count("\n") == 1


def test_equally_near_names_are_all_offered() -> None:
    assert "did you mean 'cem' or 'cma'?" in str(ERRORS["unknown"])
    assert "did you mean" not in str(unknown_name("planner", "xyz", ["cem", "cma"]))


def test_threads_do_not_spin_while_they_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_WAIT_POLICY", "ACTIVE")
    _leave_version()
    assert os.environ["OMP_WAIT_POLICY"] == "ACTIVE", "what the user set stays"
    monkeypatch.delenv("OMP_WAIT_POLICY")
    _leave_version()
    assert os.environ["OMP_WAIT_POLICY"] == "PASSIVE"


def _leave_version() -> None:
    with pytest.raises(SystemExit):
        cli.main(["--version"])


def test_our_own_defects_keep_their_traceback() -> None:
    with pytest.raises(ZeroDivisionError):
        cli.main(["defect"])


@pytest.mark.parametrize(
    ("arguments", "offered"),
    [
        (["input", "--stpes", "3"], "Did you mean --steps?"),
        (["inptu"], "Did you mean 'input'?"),
        (["input", "--steps", "0"], "Invalid value for '--steps': Input should be greater than or equal to 1"),
        (["input", "--steps", "many"], "Invalid value for '--steps': Input should be a valid integer"),
        (["input", "--steps"], "requires an argument"),
        (["input", "extra"], "unexpected extra argument"),
        (["--nothing"], "No such option: --nothing."),
    ],
)
def test_misuse_is_one_sentence_that_offers_the_nearest(
    capsys: pytest.CaptureFixture[str], arguments: list[str], offered: str
) -> None:
    assert _leave(*arguments) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1
    assert err.startswith("Error: ") and offered in err and "--help'" in err


def test_help_lists_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in ([], ["--help"]):
        assert _leave(*arguments) == 0
        shown = capsys.readouterr().out
        assert all(f" {name} " in shown for name in cli.COMMANDS)


@pytest.mark.parametrize("command", [name for name in cli.COMMANDS if name not in ERRORS])
def test_every_command_explains_itself(capsys: pytest.CaptureFixture[str], command: str) -> None:
    assert _leave(command, "--help") == 0
    assert "Usage: vjepa-mpc" in capsys.readouterr().out


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    from vjepa_mpc import __version__

    assert _leave("--version") == 0
    assert capsys.readouterr().out == f"vjepa-mpc {__version__}\n"


def test_a_listed_command_without_its_module_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(cli.COMMANDS, "lost", "vjepa_mpc.cli.lost:lost")
    with pytest.raises(ModuleNotFoundError):
        cli.build_app()


def test_a_reader_that_leaves_early_is_no_news() -> None:
    line = f"{sys.executable} -m vjepa_mpc.cli.main --help | head -c 1 >/dev/null"
    done = subprocess.run(["bash", "-c", line], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.stderr == ""
