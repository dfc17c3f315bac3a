"""Files that are either whole or absent: write beside, flush to disk, rename over."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from vjepa_mpc.core.errors import InputError


def fsync_folder(folder: Path) -> None:
    """Flush a folder's entries, so that a rename inside it survives a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _system_error(error: Exception) -> OSError | None:
    """The operating system's refusal behind `error`, if any. torch and safetensors report a full disk by errors
    of their own: safetensors names the number, torch says only that it could not write as many bytes as it meant to."""
    if isinstance(error, OSError):
        return error
    numbered = re.search(r"\(os error (\d+)\)", str(error))
    if numbered:
        return OSError(int(numbered[1]), os.strerror(int(numbered[1])))
    if isinstance(error, RuntimeError) and "inline_container" in str(error):
        return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    return None


def _refusal(target: Path, error: OSError) -> InputError:
    return InputError(f"Cannot write {target}: {error.strerror or error}; what was there is kept.")


@contextlib.contextmanager
def atomic_path(target: Path | str) -> Iterator[Path]:
    """Yield a temporary path beside `target`; rename it over `target` when the block succeeds.

    A crash at any moment leaves the old `target` or the new one, never a part. The temporary file
    keeps the suffix of `target` (writers choose a format by it) and is removed on failure.
    """
    target = Path(target)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(
            dir=target.parent, prefix=f".{target.stem}.", suffix=f".partial{target.suffix}"
        )
    except OSError as error:
        raise InputError(f"Cannot write {target}: {error.strerror}; choose another output path.") from error
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        with temporary.open("rb") as stream:
            os.fsync(stream.fileno())
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)  # mkstemp makes 0600; the result should be as readable as any file
        os.replace(temporary, target)
        fsync_folder(target.parent)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if isinstance(error, Exception) and (known := _system_error(error)) is not None:
            raise _refusal(target, known) from error
        raise


def write_text(target: Path | str, text: str) -> None:
    """Replace `target` by `text`, atomically."""
    with atomic_path(target) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(target: Path | str, value: Any) -> None:
    """Replace `target` by `value` as indented JSON, atomically. NaN is refused: JSON has none."""
    write_text(target, json.dumps(value, indent=2, allow_nan=False) + "\n")


def read_json(source: Path | str) -> Any:
    """Read a JSON file; raise `InputError` naming it when it is missing or not JSON."""
    source = Path(source)
    try:
        return json.loads(source.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise InputError(f"{source} does not exist; check the path.") from error
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{source} is not readable JSON ({error}); restore it or make it again.") from error


@contextlib.contextmanager
def atomic_folder(target: Path | str) -> Iterator[Path]:
    """Yield a temporary folder beside `target`; put it in `target`'s place when the block succeeds.

    An existing `target` is moved aside first and removed last, so that one whole version always exists.
    """
    target = Path(target)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}.", suffix=".partial"))
    except OSError as error:
        raise InputError(f"Cannot write {target}: {error.strerror}; choose another output path.") from error
    try:
        yield temporary
        for file in temporary.rglob("*"):
            if file.is_file():
                with file.open("rb") as stream:
                    os.fsync(stream.fileno())
        umask = os.umask(0)
        os.umask(umask)
        for file in temporary.rglob("*"):
            if file.is_file():
                file.chmod(0o666 & ~umask)  # some writers make private files
        temporary.chmod(0o777 & ~umask)
        old = target.with_name(f".{target.name}.old")
        if target.exists():
            shutil.rmtree(old, ignore_errors=True)
            os.replace(target, old)
        os.replace(temporary, target)
        fsync_folder(target.parent)
        shutil.rmtree(old, ignore_errors=True)
    except BaseException as error:
        shutil.rmtree(temporary, ignore_errors=True)
        if isinstance(error, Exception) and (known := _system_error(error)) is not None:
            raise _refusal(target, known) from error
        raise
