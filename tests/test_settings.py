"""Where a result came from: never an empty string for a commit."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import pytest

from vjepa_mpc import __version__
from vjepa_mpc.core import settings


def test_a_known_commit_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(settings, "commit", lambda: "abc-dirty")
    found = settings.provenance()
    assert found["commit"] == "abc-dirty" and "commit_unknown" not in found


def test_an_unknown_commit_is_null_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(settings, "commit", lambda: "")
    found = settings.provenance()
    assert found["commit"] is None and __version__ in found["commit_unknown"] and found["vjepa_mpc"] == __version__


@pytest.mark.parametrize(
    ("written", "commit"),
    [
        (json.dumps({"url": "https://h/x.git", "vcs_info": {"vcs": "git", "commit_id": "0123abc"}}), "0123abc"),
        (json.dumps({"url": "file:///tmp/x", "dir_info": {}}), ""), (None, ""), ("{", ""), ("[]", ""),
    ],
)  # fmt: skip
def test_pip_knows_the_commit_of_what_it_took_from_a_repository(
    monkeypatch: pytest.MonkeyPatch, written: str | None, commit: str
) -> None:
    def distribution(name: str) -> Any:
        assert name == "vjepa-mpc"
        return SimpleNamespace(read_text=lambda file: written if file == "direct_url.json" else None)

    monkeypatch.setattr(settings.metadata, "distribution", distribution)
    assert settings._installed_commit() == commit
