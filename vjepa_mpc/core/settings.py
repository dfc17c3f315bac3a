"""Settings as files: frozen dataclasses to JSON and back, checked, and where a result came from."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from vjepa_mpc.core.errors import InputError

T = TypeVar("T")
DISTRIBUTION = "vjepa-mpc"
RECORDED_PACKAGES = ("torch", "transformers", "mujoco", "dm_control", "numpy", "zarr")


def to_plain(settings: Any) -> dict[str, Any]:
    """A frozen dataclass as plain values for JSON."""
    return asdict(settings)


def from_plain(kind: type[T], values: Any, origin: Path | str) -> T:
    """Rebuild a dataclass from `to_plain`'s values; `InputError` names the field of `origin` that is wrong or
    that `kind` does not have (a misspelt setting would otherwise leave its default in force)."""
    try:
        built = TypeAdapter(kind).validate_python(values)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "its top level"
        raise InputError(f"{origin} is not valid at {where}: {first['msg']}.") from error
    unknown = _unknown_field(values, to_plain(built))
    if unknown:
        raise InputError(f"{origin} has an unknown field {unknown}; correct its spelling or take it out.")
    return built


def _unknown_field(given: Any, known: Any, path: str = "") -> str:
    """The first key of `given` that `known` lacks, as a dotted path; "" if there is none."""
    if not (isinstance(given, dict) and isinstance(known, dict)):
        return ""
    for key, value in given.items():
        where = f"{path}.{key}" if path else str(key)
        deeper = _unknown_field(value, known[key], where) if key in known else where
        if deeper:
            return deeper
    return ""


def split_settings(texts: Sequence[str]) -> dict[str, str]:
    """Names and values of `--set NAME=VALUE`; `InputError` where one lacks its value."""
    wanted = {}
    for text in texts:
        name, found, value = text.partition("=")
        if not found:
            raise InputError(f"--set {text} lacks a value; write --set NAME=VALUE.")
        wanted[name.strip()] = value.strip()
    return wanted


def from_text(kind: Any, name: str, text: str) -> Any:
    """The value of type `kind` that `--set name=text` stands for (tuples with commas); `InputError` if it is none."""
    plain: Any = text.split(",") if "tuple" in str(kind) else text
    try:
        return TypeAdapter(kind).validate_python(plain)
    except ValidationError as error:
        raise InputError(f"--set {name}={text} does not fit: {error.errors()[0]['msg']}.") from error


@cache
def commit() -> str:
    """The commit of the checkout this code runs from, with "-dirty" if changed; of a package that pip installed from
    a repository the commit it took; else ""."""
    folder = Path(__file__).resolve().parents[2]
    if not (folder / ".git").exists():
        return _installed_commit()
    git = ["git", "-C", str(folder)]
    try:
        head = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, timeout=10, check=True)
        status = subprocess.run(
            [*git, "status", "--porcelain", "--untracked-files=no"], capture_output=True, text=True, timeout=10
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return head.stdout.strip() + ("-dirty" if status.stdout.strip() else "")


def _installed_commit() -> str:
    """What pip wrote down of an install from a repository (PEP 610); "" for one from a wheel, an index or a folder."""
    try:
        origin = json.loads(metadata.distribution(DISTRIBUTION).read_text("direct_url.json") or "{}")
        return str(origin.get("vcs_info", {}).get("commit_id", ""))
    except (metadata.PackageNotFoundError, ValueError, AttributeError):
        return ""


def provenance() -> dict[str, Any]:
    """Versions, commit, machine and thread count, for every file that holds a result. Where no commit is known it is
    None and `commit_unknown` says why: then the version is what there is to go by."""
    import torch

    from vjepa_mpc import __version__

    versions = {}
    for name in RECORDED_PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = "absent"
    return {
        "vjepa_mpc": __version__,
        "commit": commit() or None,
        **({} if commit() else {"commit_unknown": f"version {__version__}: no git checkout, or git does not answer"}),
        "packages": versions,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cores": os.cpu_count(),
        "torch_threads": torch.get_num_threads(),
        "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
    }
