"""`vjepa-mpc doctor`: what is missing on this machine, and the command that mends it."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import typer

Status = Literal["ok", "note", "blocked"]
DISTRIBUTION = "vjepa-mpc"
# Without one of these nothing can be planned; the others are needed by single commands.
_PLANNING = (
    "av", "dm-control", "jaxtyping", "matplotlib", "mujoco", "numpy", "pillow", "rich", "safetensors",
    "torch", "transformers", "typer",
)  # fmt: skip
_BF16_FLAGS = ("amx_bf16", "avx512_bf16")
_GL_MEND = "apt-get install libegl1 libgl1"


@dataclass(frozen=True)
class Finding:
    """One line of the answer: `status` "blocked" means that planning fails; `mend` is what to type or do."""

    name: str
    status: Status
    found: str
    mend: str = ""


def doctor(json: bool = typer.Option(False, "--json", help="Print JSON instead of a table.")) -> None:
    """Say what is missing on this machine, and the command that mends it.

    Exit code 0: planning works here; 2: something blocks it.
    """
    findings = list(examine())
    usable = all(finding.status != "blocked" for finding in findings)
    if json:
        import json as json_module

        answer = {"usable": usable, "checks": [asdict(finding) for finding in findings]}
        typer.echo(json_module.dumps(answer, indent=2))
    else:
        _print(findings, usable)
    if not usable:
        raise typer.Exit(2)


def examine() -> Iterator[Finding]:
    """All findings. A check that itself fails is a finding that blocks, not a traceback."""
    checks: tuple[Callable[[], Iterator[Finding]], ...] = (
        check_python, check_packages, check_torch, check_processor, check_gpu, check_rendering, check_ray, check_model,
    )  # fmt: skip
    for check in checks:
        try:
            yield from check()
        except Exception as error:
            name = check.__name__.removeprefix("check_")
            reason = (str(error).strip().splitlines() or [""])[0]
            yield Finding(name, "blocked", f"{type(error).__name__}: {reason}", _install())


def check_python() -> Iterator[Finding]:
    """The interpreter: one older than the package allows cannot have installed it."""
    yield Finding("Python", "ok", ".".join(map(str, sys.version_info[:3])))


def check_packages() -> Iterator[Finding]:
    """Each dependency against what the package needs, and against the versions it was tested with."""
    import importlib.metadata

    from packaging.requirements import Requirement

    tested = tested_versions()
    differing = []
    wrong = False
    for line in importlib.metadata.requires(DISTRIBUTION) or []:
        requirement = Requirement(line)
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        name = _normal(requirement.name)
        status: Status = "blocked" if name in _PLANNING else "note"
        try:
            found = importlib.metadata.version(requirement.name)
        except importlib.metadata.PackageNotFoundError:
            wrong = True
            yield Finding(name, status, f"missing; needed: {line}", _install(line))
            continue
        if not requirement.specifier.contains(found, prereleases=True):
            wrong = True
            yield Finding(name, status, f"{found}; needed: {line}", _install(line))
        elif name in tested and found.split("+")[0] != tested[name]:
            differing.append(f"{name} {found} (tested: {tested[name]})")
    if differing:
        listed = ", ".join(differing)
        yield Finding("packages", "note", f"allowed, but not the tested version: {listed}", _install())
    elif not wrong:
        yield Finding("packages", "ok", "the tested versions" if tested else "all there")


def tested_versions() -> dict[str, str]:
    """Package name -> tested version, from the constraints.txt that the package carries."""
    place = Path(__file__).resolve().parents[1] / "constraints.txt"
    lines = place.read_text(encoding="utf-8").splitlines() if place.is_file() else []
    pairs = [line.split("==") for line in lines if "==" in line and not line.startswith("#")]
    return {_normal(name): version.strip() for name, version in pairs}


def _normal(name: str) -> str:
    return name.strip().lower().replace("_", "-")


def _install(requirement: str = "") -> str:
    return f'pip install "{requirement}"' if requirement else "pip install -c constraints.txt ."


def check_torch() -> Iterator[Finding]:
    """Which build of torch, and how many threads it uses."""
    import torch

    from vjepa_mpc.cli.building import usable_cores

    build = f"for CUDA {torch.version.cuda}" if torch.version.cuda else "for the CPU"
    cores = usable_cores()
    threads = torch.get_num_threads()
    yield Finding("torch", "ok", f"{torch.__version__}, built {build}")
    if threads > cores:
        mend = f"export OMP_NUM_THREADS={cores}"
        yield Finding("threads", "note", f"{threads} threads on {cores} cores stall each other", mend)
    else:
        yield Finding("threads", "ok", f"{threads} of {cores} cores")


def check_processor() -> Iterator[Finding]:
    """Whether the processor multiplies bf16 matrices in hardware, which training uses (about 5x faster)."""
    try:
        flags = set(Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").split())
    except OSError:
        yield Finding("bf16", "note", "unknown: this system does not tell the processor's flags")
        return
    present = [flag for flag in _BF16_FLAGS if flag in flags]
    if present:
        yield Finding("bf16", "ok", f"in hardware ({', '.join(present)})")
    else:
        yield Finding("bf16", "note", "not in hardware: training on this processor runs about 5x slower")


def check_gpu() -> Iterator[Finding]:
    """The GPUs torch can use, and whether one is left unused by a CPU build."""
    import torch

    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            properties = torch.cuda.get_device_properties(index)
            yield Finding("GPU", "ok", f"{properties.name}, {properties.total_memory / 2**30:.0f} GiB")
    elif Path("/dev/nvidia0").exists():
        mend = "install a torch build that matches the driver (docs/install.md)"
        yield Finding("GPU", "note", "there is one, and this torch cannot use it", mend)
    else:
        yield Finding("GPU", "ok", "none; planning and the shipped model do not need one")


def check_rendering() -> Iterator[Finding]:
    """The OpenGL back ends, and the one that pictures are drawn with."""
    from vjepa_mpc.core.errors import InputError
    from vjepa_mpc.robots.rendering import choose_backend, gl_backends

    try:
        chosen = choose_backend()
    except InputError as error:
        yield Finding("pictures", "blocked", str(error), f"unset MUJOCO_GL, or: {_GL_MEND}")
        return
    if chosen == "rays":
        found = "drawn without OpenGL, which is slower and looks different from what the model was trained on"
        yield Finding("pictures", "note", found, _GL_MEND)
    else:
        yield Finding("pictures", "ok", f"drawn by {chosen}")
    for name, reason in gl_backends().items():
        if reason is None:
            yield Finding(f"GL {name}", "ok", "works")
        elif chosen == "rays":
            yield Finding(f"GL {name}", "note", reason)


def check_ray() -> Iterator[Finding]:
    """Whether Ray can be imported; only `--ray-address` and Ray workers need it."""
    try:
        import ray
    except Exception as error:  # a broken binary raises more than ImportError
        yield Finding("Ray", "note", f"cannot be imported ({error})", _install("ray"))
    else:
        yield Finding("Ray", "ok", str(ray.__version__))


def check_model() -> Iterator[Finding]:
    """Whether the shipped world model is there, whole, and loads."""
    import torch

    from vjepa_mpc.cli.building import SHIPPED_MODEL, load_model
    from vjepa_mpc.core.errors import InputError

    try:
        model = load_model(None, torch.device("cpu"))
    except InputError as error:
        yield Finding("shipped model", "blocked", str(error), "pip install --force-reinstall --no-deps .")
        return
    weights = list(model.state_dict().values())
    size = sum(file.stat().st_size for file in SHIPPED_MODEL.glob("*.safetensors")) / 1e6
    if not all(bool(torch.isfinite(tensor).all()) for tensor in weights):
        mend = "pip install --force-reinstall --no-deps ."
        yield Finding("shipped model", "blocked", "its weights hold NaN or infinity", mend)
    else:
        yield Finding("shipped model", "ok", f"{SHIPPED_MODEL.name}, {size:.1f} MB, loads")


def _print(findings: list[Finding], usable: bool) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for column in ("", "what", "found", "what mends it"):
        table.add_column(column, overflow="fold")
    marks = {"ok": "[green]ok[/]", "note": "[yellow]note[/]", "blocked": "[red]BLOCKED[/]"}
    for finding in findings:
        table.add_row(marks[finding.status], finding.name, escape(finding.found), escape(finding.mend))
    console = Console()
    console.print(table)
    if usable:
        console.print("Planning works here.")
    else:
        console.print("Planning does not work here yet: mend what is BLOCKED.")
