"""The page is one file that needs nothing else, shows every part, and lets no text of a log become markup."""

from __future__ import annotations

import base64
import io
import os
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import av
import numpy as np
import pytest
from test_data_command import run
from toy_trajectories import toy_episode, toy_spec

from vjepa_mpc.datasets.store import ZarrStore


class Page(HTMLParser):
    """Counts elements, collects addresses, and sees that everything opened is closed."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: dict[str, int] = {}
        self.open: list[str] = []
        self.addresses: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] = self.tags.get(tag, 0) + 1
        self.addresses += [value or "" for name, value in attrs if name in ("src", "href", "data")]
        if tag not in ("meta", "polyline"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag != "polyline":
            assert self.open.pop() == tag


def test_the_page_holds_everything_it_shows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda _: None)
    spec = replace(toy_spec(), state_low=(-9.0, -9.0), state_high=(9.0, 9.0), state_names=("<b>q1</b>", "q2"))
    episodes = [replace(toy_episode(seed, 6), metadata={"task": "<script>alert(1)</script>"}) for seed in range(4)]
    episodes[2].images["top"][:] = 0
    with ZarrStore.create(tmp_path / "a.zarr", spec) as writer:
        writer.extend(episodes)
    assert "3 of 4 episodes" in run("view", str(tmp_path / "a.zarr"), "--episodes", "3")
    text = (tmp_path / "a.zarr.html").read_text()
    page = Page()
    page.feed(text)
    assert page.open == [] and "script" not in page.tags and "b" not in page.tags
    assert page.tags["video"] == 3 * len(spec.cameras) and page.tags["svg"] == 6
    assert all(address.startswith("data:video/mp4;base64,") for address in page.addresses)
    assert "black: episode 2, rows 0 to 5" in text and "Lengths 6 to 6" in text
    assert not re.search(r"https?://", text)
    first = base64.b64decode(page.addresses[0].partition(",")[2])
    with av.open(io.BytesIO(first)) as container:
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    assert len(frames) == 6 and frames[0].shape == (6, 4, 3)
    assert np.abs(frames[0].mean() - episodes[0].images["top"][0].mean()) < 25
    assert "Not run" in (run("view", str(tmp_path / "a.zarr"), "--no-check"), (tmp_path / "a.zarr.html").read_text())[1]


def test_a_damaged_store_is_shown_with_what_is_left_of_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with ZarrStore.create(tmp_path / "a.zarr", toy_spec()) as writer:
        writer.extend([toy_episode(seed, 4) for seed in range(3)])
    (tmp_path / "a.zarr/states/c.1.0").unlink()
    (tmp_path / "a.zarr/images/top/c.2.0.0.0").write_bytes(b"torn")
    monkeypatch.chdir(tmp_path / "a.zarr")
    assert "a.zarr.html: 3 of 3 episodes" in run("view", ".")
    text = (tmp_path / "a.zarr.html").read_text()
    assert "<title>a.zarr</title>" in text and "1 episodes cannot be read" in text
    assert "chunk states/c.1.0 is missing" in text and "images/top/c.2.0.0.0 is short" in text
