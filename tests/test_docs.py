"""The documentation against the code: links lead somewhere, commands parse, options and imports exist.

A command in a fenced block is parsed by the real command line (values, required options and all); it is not run.
"""

from __future__ import annotations

import ast
import importlib
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

from vjepa_mpc.cli.building import CEM_DEFAULTS, CEM_DEFAULTS_MANY
from vjepa_mpc.cli.main import build_app

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("examples/*.md")])
IDS = [str(page.relative_to(ROOT)) for page in PAGES]
FENCE = re.compile(r"^[ ]*```(\w*)\n(.*?)^[ ]*```", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
SPAN = re.compile(r"`([^`\n]+)`")
OPTION = re.compile(r"(?<![\w-])--[a-z][a-z0-9-]*")
# Options of other programs that pages name without the program in front.
FOREIGN = {"--cov"}
ELSEWHERE = ("pip ", "ray ", "pytest ", "python ", "tensorboard ", "git ", "apt-get ", ".venv/bin/pip ")
CLI: Any = typer.main.get_command(build_app())


@pytest.fixture(params=PAGES, ids=IDS)
def page(request: pytest.FixtureRequest) -> Path:
    return request.param


def prose(page: Path) -> str:
    return FENCE.sub("", page.read_text(encoding="utf-8"))


def blocks(page: Path, *languages: str) -> list[str]:
    return [code for language, code in FENCE.findall(page.read_text(encoding="utf-8")) if language in languages]


def anchors(page: Path) -> set[str]:
    """The headings of a page as GitHub names them."""
    lines = [line for line in prose(page).splitlines() if re.match(r"#+ ", line)]
    return {re.sub(r"[^\w\- ]", "", line.lstrip("# ").lower()).replace(" ", "-") for line in lines}


def commands(text: str) -> Iterator[list[str]]:
    """The arguments of every `vjepa-mpc ...` in shell text."""
    for line in text.replace("\\\n", " ").splitlines():
        for part in re.split(r"&&|\|\|?|;(?=(?:[^\"]*\"[^\"]*\")*[^\"]*$)", line):
            words = shlex.split(part, comments=True)
            if words and Path(words[0]).name == "vjepa-mpc":
                yield words[1:]


def find(arguments: list[str]) -> tuple[Any, list[str]]:
    """The command that `arguments` begin with, and what is left of them."""
    command, rest = CLI, list(arguments)
    while rest and hasattr(command, "commands") and not rest[0].startswith("-"):
        assert rest[0] in command.commands, f"there is no command {' '.join(arguments)!r}"
        command = command.commands[rest.pop(0)]
    return command, rest


def parse(arguments: list[str]) -> None:
    """Parse a command line as it would be run: unknown options, bad values and missing ones raise."""
    command, rest = find(arguments)
    if not hasattr(command, "commands") and "--help" not in rest:
        command.make_context(command.name, rest)


def options(command: Any) -> set[str]:
    """The options of a command and all below it."""
    own = {name for parameter in command.params for name in (*parameter.opts, *parameter.secondary_opts)}
    below = (options(child) for child in getattr(command, "commands", {}).values())
    return {"--help"}.union(own, *below)


ALL_OPTIONS = options(CLI)


def unknown_options(text: str) -> list[str]:
    """Options named in inline code that no command has, or not the command named beside them."""
    wrong = []
    for span in SPAN.findall(text):
        if span.startswith(ELSEWHERE):
            continue
        known = ALL_OPTIONS | FOREIGN
        if span.startswith("vjepa-mpc "):
            known = options(find([word for word in span.split()[1:] if re.fullmatch(r"--?[a-z-]+|[a-z]+", word)])[0])
        wrong += [f"{name} in `{span}`" for name in OPTION.findall(span) if name not in known]
    return wrong


def test_every_page_is_found() -> None:
    assert {"README.md", "CHANGELOG.md", "docs/plan.md", "docs/tasks/reacher.md", "examples/README.md"} <= set(IDS)


def test_links_lead_somewhere(page: Path) -> None:
    for target in LINK.findall(prose(page)):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.exists() and ROOT in file.parents, f"{page.name} links to {target}, which is not there"
        assert not anchor or anchor in anchors(file), f"{page.name} links to {target}: no such heading"


def test_every_page_is_reached_from_the_readme() -> None:
    readme = ROOT / "README.md"
    linked = {(ROOT / link.partition("#")[0]).resolve() for link in LINK.findall(prose(readme))}
    assert {page for page in PAGES if "docs" in page.parts and page not in linked} == set()


def test_commands_parse(page: Path) -> None:
    for text in blocks(page, "sh", "bash", "console", ""):
        for arguments in commands(text):
            try:
                parse(arguments)
            except typer.TyperException as error:
                pytest.fail(f"vjepa-mpc {shlex.join(arguments)}: {error.format_message()}")


def test_options_named_exist(page: Path) -> None:
    assert unknown_options(prose(page)) == []


def test_python_examples_import_what_exists(page: Path) -> None:
    for code in blocks(page, "python"):
        for node in ast.walk(ast.parse(code)):
            if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("vjepa_mpc"):
                module = importlib.import_module(node.module)
                missing = [alias.name for alias in node.names if not hasattr(module, alias.name)]
                assert missing == [], f"{page.name}: {node.module} has no {missing}"


def test_the_readme_opens_with_the_command_that_plans_and_the_one_that_tests() -> None:
    first, second = blocks(ROOT / "README.md", "sh")[:2]
    assert [arguments[0] for arguments in commands(first)] == ["plan"]
    assert (ROOT / "examples/goal-folded.png").is_file() and "examples/goal-folded.png" in first
    assert second.strip().endswith("-m pytest") and '".[test]"' in second


def test_the_planners_page_has_the_command_lines_defaults() -> None:
    text = (ROOT / "docs/planners.md").read_text(encoding="utf-8")
    for defaults in (CEM_DEFAULTS, CEM_DEFAULTS_MANY):
        given = {name: defaults[name] for name in ("samples", "iterations", "elites")}
        assert " ".join(f"--{name} {value}" for name, value in given.items()) in text
    assert f"`momentum_std` {CEM_DEFAULTS_MANY['momentum_std']:g}" in text
    assert f"noise exponent {CEM_DEFAULTS['noise_exponent']:g} " in text


@pytest.mark.parametrize(
    "line",
    [
        "vjepa-mpc plan --goall x.png",
        "vjepa-mpc plan",
        "pip install . && .venv/bin/vjepa-mpc collect --episodes many --out a.zarr",
        "vjepa-mpc fly",
        "vjepa-mpc data infos a.zarr",
        "vjepa-mpc pretrain a.zarr b.zarr \\\n  --steps 3",
    ],
)
def test_wrong_commands_are_seen(line: str) -> None:
    with pytest.raises((typer.TyperException, AssertionError)):
        for arguments in commands(line):
            parse(arguments)


@pytest.mark.parametrize("text", ["give `--goall`", "`vjepa-mpc plan --episodes 3`", "`--minutess 5`"])
def test_wrong_options_are_seen(text: str) -> None:
    assert len(unknown_options(text)) == 1
    assert unknown_options("`--episodes 3`, `vjepa-mpc plan --goal img.png`, `ray start --head`, `--cov=.`") == []
