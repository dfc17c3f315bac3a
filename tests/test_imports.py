"""The folder graph as docs/architecture.md draws it; importing does nothing; the help is fast."""

from __future__ import annotations

import ast
import json
import os
import resource
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "vjepa_mpc"
BASE = {"core"}
MEMBERS = {"core", "planners", "robots", "datasets"}
REST = {*MEMBERS, "rest"}
# Folder -> the folders of ours it may import from, besides itself. "rest" is what lies in vjepa_mpc/ itself.
ARROWS = {
    "core": set[str](),
    "planners": BASE,
    "robots": BASE,
    "datasets": BASE,
    "rest": MEMBERS,
    "pretrain": REST,
    "cli": {*REST, "pretrain"},
}
HEAVY = ("ray", "transformers", "matplotlib", "dm_control", "mujoco", "av", "tensorboard", "h5py", "pyarrow")


def _modules() -> dict[str, Path]:
    """Dotted name -> file of every module, through the links."""
    found = {}
    for folder, folders, files in os.walk(PACKAGE, followlinks=True):
        folders[:] = sorted(name for name in folders if name != "__pycache__")
        for file in sorted(files):
            if file.endswith(".py"):
                path = Path(folder) / file
                parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
                found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


MODULES = _modules()


def _folder(module: str) -> str:
    parts = module.split(".")
    if parts[1:] == ["__main__"]:
        return "cli"  # the command line by another door
    return parts[1] if len(parts) > 1 and parts[1] in ARROWS else "rest"


def _imports(path: Path, everywhere: bool) -> Iterator[str]:
    """Names imported by a file: anywhere in it, or only as the module itself is imported."""
    todo: list[ast.AST] = [ast.parse(path.read_text(encoding="utf-8"))]
    while todo:
        node = todo.pop()
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                yield inner if inner in MODULES else str(node.module)
        if not everywhere:
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                continue
            if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
                todo.extend(node.orelse)
                continue
        todo.extend(ast.iter_child_nodes(node))


@pytest.mark.parametrize("module", sorted(MODULES))
def test_arrows_between_folders_point_one_way(module: str) -> None:
    folder = _folder(module)
    allowed = {folder, *ARROWS[folder]}
    for name in _imports(MODULES[module], everywhere=True):
        top = name.split(".")[0]
        assert top not in ARROWS or top == "rest", f"{module} imports {name}: write vjepa_mpc.{name}"
        if top == "vjepa_mpc" and name != "vjepa_mpc":  # the bare package holds only the version
            assert _folder(name) in allowed, f"{module} ({folder}) may not import {name}"


def test_no_module_imports_itself_by_a_detour() -> None:
    graph = {name: set(_imports(path, everywhere=False)) & set(MODULES) for name, path in MODULES.items()}
    finished: set[str] = set()

    def visit(name: str, trail: tuple[str, ...]) -> None:
        assert name not in trail, " -> ".join((*trail, name))
        if name not in finished:
            for target in sorted(graph[name] - {name, "vjepa_mpc"}):
                visit(target, (*trail, name))
            finished.add(name)

    for name in graph:
        visit(name, ())


def _answer(script: str) -> dict[str, object]:
    """What a fresh interpreter prints as JSON, in the repository root."""
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, cwd=PACKAGE.parent, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    answer: dict[str, object] = json.loads(done.stdout)
    return answer


def test_importing_everything_has_no_effect() -> None:
    names = [name for name in MODULES if name != "vjepa_mpc.ray_workers"]  # imported only when Ray is used
    found = _answer(f"""
import importlib, json, os, random, signal, sys, threading
import gymnasium, numpy, torch  # gymnasium sets a variable of its own as it is imported
def world():
    return {{
        "environment": dict(os.environ), "folder": os.getcwd(), "random": str(random.getstate()),
        "numpy": str(numpy.random.get_state()), "torch": torch.random.get_rng_state().tolist(),
        "threads": torch.get_num_threads(), "dtype": str(torch.get_default_dtype()),
        "tasks": threading.active_count(), "sigint": str(signal.getsignal(signal.SIGINT)),
        "grad": torch.is_grad_enabled(), "deterministic": torch.are_deterministic_algorithms_enabled(),
    }}
before = world()
for name in {names!r}:
    importlib.import_module(name)
after = world()
print(json.dumps({{
    "changed": [key for key in before if before[key] != after[key]],
    "heavy": [name for name in {HEAVY!r} if name in sys.modules],
}}))
""")
    assert found == {"changed": [], "heavy": []}


def test_the_command_line_imports_nothing_heavy() -> None:
    heavy = {"torch", "numpy", "zarr", "PIL", "rich.progress", *HEAVY}
    found = _answer(f"""
import json, sys
from vjepa_mpc.cli.main import build_app
build_app()
print(json.dumps({{"heavy": sorted({heavy!r} & set(sys.modules))}}))
""")
    assert found == {"heavy": []}


def test_help_answers_in_well_under_a_second() -> None:
    seconds = []
    for _ in range(3):  # processor time, and the best of three: the machine may be busy
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run(
            [sys.executable, "-m", "vjepa_mpc.cli.main", "--help"], cwd=PACKAGE.parent, check=True, capture_output=True
        )
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        seconds.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    assert min(seconds) < 0.9
