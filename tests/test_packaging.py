"""What is built and installed: one import name, each file once, and Hugging Face's `datasets` left alone."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
import tarfile
import tomllib
import venv
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]
LINKED = ("pretrain", "planners", "robots", "datasets")
BOTH = """
import importlib.util, json, datasets
import vjepa_mpc.planners, vjepa_mpc.robots, vjepa_mpc.pretrain, vjepa_mpc.datasets.episode
places = {name: __import__(name).__file__ for name in ("vjepa_mpc", "datasets")}
places["inner"] = vjepa_mpc.datasets.episode.__file__
places["owner"] = datasets.OWNER
print(json.dumps(places))
"""
BOTH_IN_RAY = """
def both(state, item):
    import datasets
    import vjepa_mpc.datasets.episode as episode
    import vjepa_mpc.planners, vjepa_mpc.robots, vjepa_mpc.pretrain
    return {"owner": datasets.OWNER, "inner": episode.__file__}

if __name__ == "__main__":
    import json
    from vjepa_mpc.executor import RayExecutor
    with RayExecutor(1).open(dict) as pool:
        print(json.dumps(pool.map(both, [0])[0]))
"""


def _run(*command: str | Path, cwd: Path) -> str:
    """What the command prints; its errors become the test's."""
    settings = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONHOME")}
    done = subprocess.run(list(map(str, command)), cwd=cwd, env=settings, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def _source_files() -> set[str]:
    """The package's files as a build that follows links must find them."""
    found = set()
    for folder, folders, files in os.walk(ROOT / "vjepa_mpc", followlinks=True):
        folders[:] = [name for name in folders if name != "__pycache__" and not name.startswith(".")]
        found |= {(Path(folder) / name).relative_to(ROOT).as_posix() for name in files if not name.startswith(".")}
    return found


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `sdist.tar.gz`, `direct.whl` (from the checkout) and the wheel made from the sdist."""
    folder = tmp_path_factory.mktemp("built")
    _run(sys.executable, "-m", "build", "--no-isolation", "--outdir", folder, ROOT, cwd=folder)
    _run(sys.executable, "-m", "build", "--no-isolation", "--wheel", "--outdir", folder / "direct", ROOT, cwd=folder)
    return folder


def _environment(folder: Path) -> Path:
    """A virtual environment that also sees this one's packages (though not what is installed editable here)."""
    venv.create(folder, with_pip=False, symlinks=True)
    site = folder / "lib" / f"python{sys.version_info.major}.{sys.version_info.minor}" / "site-packages"
    (site / "zz_parent.pth").write_text(sysconfig.get_path("purelib") + "\n", encoding="utf-8")
    return site


def _pip(folder: Path, *arguments: str | Path) -> None:
    options = ("install", "--quiet", "--no-deps", "--no-index", "--no-build-isolation", "--disable-pip-version-check")
    _run(sys.executable, "-m", "pip", "--python", folder / "bin" / "python", *options, *arguments, cwd=folder)


@pytest.fixture(scope="module")
def installed(built: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment with the wheel, beside a distribution that owns a top-level `datasets`."""
    folder = tmp_path_factory.mktemp("installed")
    site = _environment(folder)
    (wheel,) = built.glob("*.whl")
    _pip(folder, wheel)
    (site / "datasets").mkdir()
    (site / "datasets" / "__init__.py").write_text('OWNER = "someone else"\n', encoding="utf-8")
    return folder


def test_the_four_links_are_relative_and_datasets_is_no_top_level_package() -> None:
    for name in LINKED:
        assert os.readlink(ROOT / "vjepa_mpc" / name) == f"../{name}"
    assert not (ROOT / "datasets" / "__init__.py").exists()


def test_the_wheel_holds_every_file_once_and_nothing_else_at_the_top(built: Path) -> None:
    (wheel,) = built.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert len(names) == len(set(names))
    ours = {name for name in names if ".dist-info/" not in name}
    assert ours == _source_files()
    assert {name.split("/")[0] for name in ours} == {"vjepa_mpc"}
    assert {"vjepa_mpc/planners/base.py", "vjepa_mpc/py.typed", "vjepa_mpc/constraints.txt"} <= ours


def test_the_checkout_and_the_sdist_give_the_same_wheel(built: Path) -> None:
    (through_sdist,), (direct,) = built.glob("*.whl"), (built / "direct").glob("*.whl")
    one, other = zipfile.ZipFile(through_sdist), zipfile.ZipFile(direct)
    assert {info.filename: info.CRC for info in one.infolist()} == {i.filename: i.CRC for i in other.infolist()}


def test_the_sdist_has_no_second_copy(built: Path) -> None:
    (sdist,) = built.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        names = [name.split("/", 1)[1] for name in archive.getnames()]
    assert not [name for name in names if name.split("/")[0] in LINKED]
    assert "vjepa_mpc/planners/base.py" in names


@pytest.mark.parametrize("place", ["repository root", "elsewhere"])
def test_the_installed_wheel_and_hugging_face_datasets_are_both_importable(
    installed: Path, tmp_path: Path, place: str
) -> None:
    cwd = ROOT if place == "repository root" else tmp_path
    found = json.loads(_run(installed / "bin" / "python", "-c", BOTH, cwd=cwd))
    assert found["owner"] == "someone else"
    assert Path(found["datasets"]).is_relative_to(installed)
    home = ROOT if place == "repository root" else installed
    assert Path(found["vjepa_mpc"]).is_relative_to(home)
    assert Path(found["inner"]).is_relative_to(Path(found["vjepa_mpc"]).parent)


def test_both_are_importable_in_a_ray_worker_at_the_repository_root(installed: Path, tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(BOTH_IN_RAY, encoding="utf-8")
    found = json.loads(_run(installed / "bin" / "python", tmp_path / "script.py", cwd=ROOT).splitlines()[-1])
    assert found["owner"] == "someone else"
    assert found["inner"].endswith("vjepa_mpc/datasets/episode.py")


def test_no_other_name_of_ours_is_importable(installed: Path, tmp_path: Path) -> None:
    script = "import importlib.util as u; print([n for n in ('planners', 'robots', 'pretrain') if u.find_spec(n)])"
    assert _run(installed / "bin" / "python", "-c", script, cwd=tmp_path).strip() == "[]"


def test_the_console_script_runs_from_the_wheel(installed: Path, tmp_path: Path) -> None:
    assert _run(installed / "bin" / "vjepa-mpc", "--version", cwd=tmp_path).startswith("vjepa-mpc 0.")
    assert "plan" in _run(installed / "bin" / "vjepa-mpc", "--help", cwd=tmp_path)


def test_an_editable_install_is_the_checkout_and_adds_one_name_only(tmp_path: Path) -> None:
    folder = tmp_path / "editable"
    site = _environment(folder)
    _pip(folder, "--editable", ROOT)
    (site / "datasets").mkdir()
    (site / "datasets" / "__init__.py").write_text('OWNER = "someone else"\n', encoding="utf-8")
    found = json.loads(_run(folder / "bin" / "python", "-c", BOTH, cwd=tmp_path))
    assert Path(found["vjepa_mpc"]) == ROOT / "vjepa_mpc" / "__init__.py"
    assert found["owner"] == "someone else"
    script = "import importlib.util as u; print([n for n in ('planners', 'robots', 'pretrain') if u.find_spec(n)])"
    assert _run(folder / "bin" / "python", "-c", script, cwd=tmp_path).strip() == "[]"


def test_constraints_pin_a_version_that_every_requirement_allows() -> None:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = {canonicalize_name(name): version for name, version in (x.split("==") for x in lines if "==" in x)}
    assert not [version for version in pins.values() if "+" in version]  # a local build is nobody else's
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    for line in project["dependencies"] + project["optional-dependencies"]["test"]:
        requirement = Requirement(line)
        assert requirement.specifier.contains(pins[canonicalize_name(requirement.name)]), line
