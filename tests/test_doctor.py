"""`vjepa-mpc doctor`: every line true, every defect named with what mends it."""

from __future__ import annotations

import importlib.metadata
import json
from pathlib import Path

import pytest

from vjepa_mpc.cli import building, doctor
from vjepa_mpc.cli.main import main
from vjepa_mpc.core.errors import InputError
from vjepa_mpc.robots import rendering


def _by_name(findings: object) -> dict[str, doctor.Finding]:
    return {finding.name: finding for finding in findings}  # type: ignore[attr-defined]


@pytest.fixture
def packages(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """A pretended installation: package -> version."""
    pretended = {"mujoco": "3.17.0", "torch": "2.13.0+cpu", "ray": "2.60.0"}
    needed = ["mujoco<4,>=3.17", "torch>=2.6", "ray>=2.50", "pytest; extra == 'test'"]
    monkeypatch.setattr(importlib.metadata, "requires", lambda _: needed)

    def version(name: str) -> str:
        if name not in pretended:
            raise importlib.metadata.PackageNotFoundError(name)
        return pretended[name]

    monkeypatch.setattr(importlib.metadata, "version", version)
    return pretended


def test_the_tested_set_is_known_and_a_local_build_of_it_counts(packages: dict[str, str]) -> None:
    assert doctor.tested_versions()["torch"] == "2.13.0"
    assert list(doctor.check_packages()) == [doctor.Finding("packages", "ok", "the tested versions")]


def test_a_version_that_is_known_to_break_blocks_and_is_mended_by_pip(packages: dict[str, str]) -> None:
    packages["mujoco"] = "4.0.0"
    finding = _by_name(doctor.check_packages())["mujoco"]
    assert (finding.status, finding.mend) == ("blocked", 'pip install "mujoco<4,>=3.17"')
    assert "4.0.0" in finding.found


def test_a_missing_package_blocks_only_what_needs_it(packages: dict[str, str]) -> None:
    del packages["ray"], packages["torch"]
    found = _by_name(doctor.check_packages())
    assert found["ray"].status == "note" and found["torch"].status == "blocked"
    assert "pytest" not in found


def test_another_version_that_is_allowed_is_told_apart_from_the_tested_one(packages: dict[str, str]) -> None:
    packages["ray"] = "2.59.0"
    (finding,) = doctor.check_packages()
    assert finding.status == "note" and "ray 2.59.0 (tested: 2.60.0)" in finding.found


def test_without_opengl_the_remedy_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rendering, "choose_backend", lambda: "rays")
    monkeypatch.setattr(rendering, "gl_backends", lambda: {"egl": "libEGL.so.1 is missing", "rays": None})
    found = _by_name(doctor.check_rendering())
    assert found["pictures"].status == "note" and "apt-get install libegl1 libgl1" in found["pictures"].mend
    assert found["GL egl"].found == "libEGL.so.1 is missing"


def test_a_back_end_that_was_asked_for_and_fails_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> str:
        raise InputError("OpenGL back end 'egl' does not work here.")

    monkeypatch.setattr(rendering, "choose_backend", refuse)
    (finding,) = doctor.check_rendering()
    assert finding.status == "blocked" and "MUJOCO_GL" in finding.mend


def test_a_missing_and_a_truncated_model_block(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(building, "SHIPPED_MODEL", tmp_path)
    (finding,) = doctor.check_model()
    assert finding.status == "blocked" and "lacks the shipped" in finding.found
    (tmp_path / "config.json").write_text("{", encoding="utf-8")
    (finding,) = doctor.check_model()
    assert finding.status == "blocked" and str(tmp_path) in finding.found


def test_a_check_that_fails_is_a_finding(monkeypatch: pytest.MonkeyPatch) -> None:
    def check_ray() -> None:
        raise RuntimeError("boom\nand more")

    for name in ("packages", "torch", "processor", "gpu", "rendering", "model"):
        monkeypatch.setattr(doctor, f"check_{name}", lambda: iter(()))
    monkeypatch.setattr(doctor, "check_ray", check_ray)
    found = _by_name(doctor.examine())
    assert found["ray"] == doctor.Finding("ray", "blocked", "RuntimeError: boom", "pip install -c constraints.txt .")


@pytest.mark.parametrize(("status", "code"), [("ok", 0), ("note", 0), ("blocked", 2)])
@pytest.mark.parametrize("as_json", [True, False])
def test_the_exit_code_says_whether_planning_works(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], status: doctor.Status, code: int, as_json: bool
) -> None:
    finding = doctor.Finding("GL [egl]", status, "found [so]", "mend it")
    monkeypatch.setattr(doctor, "examine", lambda: iter([finding]))
    with pytest.raises(SystemExit) as left:
        main(["doctor", "--json"] if as_json else ["doctor"])
    assert left.value.code == code
    shown = capsys.readouterr().out
    if as_json:
        assert json.loads(shown) == {"usable": code == 0, "checks": [finding.__dict__]}
    else:
        assert "found [so]" in shown and "mend it" in shown


def test_this_machine_can_be_examined() -> None:
    found = _by_name(doctor.examine())
    assert {"Python", "torch", "threads", "bf16", "pictures", "Ray", "shipped model"} <= set(found)
    assert found["Python"].status == found["torch"].status == "ok"
    assert all(finding.mend for finding in found.values() if finding.status == "blocked")
