"""Replay buffers, npz and Minari files that are broken or hostile: a sentence each, nothing unpacked blindly."""

from __future__ import annotations

import json
import os
import re
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from toy_logs import (
    LENGTHS,
    RATE,
    assert_shows,
    write_diffusion_policy,
    write_diffusion_policy_zip,
    write_minari,
    write_ogbench,
)

from vjepa_mpc.core.errors import InputError
from vjepa_mpc.datasets.formats import zarr_v2
from vjepa_mpc.datasets.importing import ImportSettings, prepare
from vjepa_mpc.datasets.logs import Log, LogOptions
from vjepa_mpc.datasets.opening import open_log

GIVEN = LogOptions(rate_hz=RATE)


def all_of(log: Log, camera: str, vector: str) -> None:
    for name in log.episodes():
        rows = log.rows(name, [vector])
        list(log.frames(name, camera, np.arange(len(rows.times))))


def rewrite(path: Path, change: Callable[[str, bytes], bytes | None]) -> None:
    """A zip file with its members changed, or left out."""
    with zipfile.ZipFile(path) as archive:
        files = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            if (new := change(name, data)) is not None:
                archive.writestr(name, new)


def bomb_entry(name: str, data: bytes) -> bytes:
    return bytes(200_000_000) if name.endswith("data/img/2.0.0.0") else data


def lz4_bomb(name: str, data: bytes) -> bytes:
    return (1 << 30).to_bytes(4, "little") + data[4:] if name.endswith("data/img/2.0.0.0") else data


def gzip_bomb(name: str, data: bytes) -> bytes:
    import gzip

    return gzip.compress(bytes(50_000_000)) if name.endswith("data/state/2.0") else data


def huge_chunks(name: str, data: bytes) -> bytes:
    if not name.endswith("data/img/.zarray"):
        return data
    value = json.loads(data)
    return json.dumps({**value, "chunks": [10**9, *value["chunks"][1:]]}).encode()


def unknown_codec(name: str, data: bytes) -> bytes:
    if not name.endswith("data/img/.zarray"):
        return data
    return json.dumps({**json.loads(data), "compressor": {"id": "imagecodecs_jpegxl"}}).encode()


def cut_chunk(name: str, data: bytes) -> bytes:
    return data[: len(data) // 2] if name.endswith("data/img/2.0.0.0") else data


ZIP_CASES = {
    "entry is a bomb": (bomb_entry, "claims 200000000 bytes and should have at most"),
    "lz4 is a bomb": (lz4_bomb, "its array says .* damaged or a bomb"),
    "gzip is a bomb": (gzip_bomb, "its array says 60, ?|its array says 60; it is damaged or a bomb"),
    "huge chunks": (huge_chunks, "claims chunks of more than 512 MB"),
    "unknown codec": (unknown_codec, "packed by .*jpegxl.*; numbers packed by blosc"),
    "chunk cut": (cut_chunk, "cannot be unpacked|unpacks to"),
}


@pytest.mark.parametrize("name", list(ZIP_CASES))
def test_a_hostile_zip_is_refused_before_it_is_unpacked(tmp_path: Path, name: str) -> None:
    change, words = ZIP_CASES[name]
    path = write_diffusion_policy_zip(tmp_path / "a.zarr.zip")
    rewrite(path, change)
    with pytest.raises(InputError, match=words):
        all_of(open_log(path, None, GIVEN), "img", "state")


def test_good_episodes_of_a_broken_buffer_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda _: None)
    path = write_diffusion_policy(tmp_path / "log")
    (path / "data/img/3.0.0.0").write_bytes(b"torn")  # rows 21 to 27: the third episode's
    plan = prepare(ImportSettings(path, tmp_path / "a.zarr", options=GIVEN))
    results = [plan.converter.convert(name) for name in plan.survey.frames]
    assert [bool(item.reason) for item in results] == [False, False, True]
    (path / "data/img/0.0.0.0").unlink()  # never written: zeros, as Zarr has it
    frames = list(open_log(path, None, GIVEN).frames("0", "img", np.arange(9)))
    assert not frames[6].any()
    assert_shows(frames[7], 0, 7)


def test_buffers_that_are_no_buffers(tmp_path: Path) -> None:
    path = write_diffusion_policy(tmp_path / "log")
    with pytest.raises(InputError, match="--log-rate"):
        open_log(path, None, LogOptions()).rows("0", ["state"])
    os.symlink("/etc/hostname", path / "data/state/9.0")
    (path / "data/state/1.0").unlink()
    os.symlink("/etc/hostname", path / "data/state/1.0")
    with pytest.raises(InputError, match="leads out of the log"):
        open_log(path, None, GIVEN).rows("1", ["state"])
    (tmp_path / "b.zarr.zip").write_bytes(b"PK no")
    with pytest.raises(InputError, match="no zip file"):
        open_log(tmp_path / "b.zarr.zip", None, GIVEN)
    with zipfile.ZipFile(tmp_path / "c.zarr.zip", "w") as archive:
        archive.writestr("x", b"")
    with pytest.raises(InputError, match="holds no meta/episode_ends"):
        open_log(tmp_path / "c.zarr.zip", None, GIVEN)


def testzstd_sizes_are_read_from_the_header() -> None:
    from numcodecs import Zstd

    for size in (1, 200, 255, 256, 300, 65_791, 65_792, 1_000_000):
        assert zarr_v2.zstd_size(bytes(Zstd().encode(bytes(size)))) == size


def test_npz_files_are_streamed_forward_and_back(tmp_path: Path) -> None:
    log = open_log(write_ogbench(tmp_path / "a.npz"), None, GIVEN)
    for episode, row in ((0, 3), (0, 5), (2, 1), (1, 4), (1, 0), (2, 11)):
        assert_shows(next(iter(log.frames(str(episode), "observations", np.array([row])))), episode, row)


def pickled(path: Path) -> None:
    np.savez(path, terminals=np.ones(3), observations=np.array([{}], object), qpos=np.zeros((3, 2)))


def lying(path: Path) -> None:
    header = b"\x93NUMPY\x01\x00v\x00" + b"{'descr': '<f4', 'fortran_order': False, 'shape': (9000000000, 4), }"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("terminals.npy", header.ljust(127) + b"\n" + bytes(48))


def torn(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-30])


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lying, "has 176 bytes; it is damaged"),
        (torn, "no npz file"),
        (lambda path: np.savez(path, a=1), "no array 'terminals'"),
    ],
)
def test_npz_files_that_lie_are_refused(tmp_path: Path, damage: Callable[[Path], None], words: str) -> None:
    path = write_ogbench(tmp_path / "a.npz")
    damage(path)
    with pytest.raises(InputError, match=words):
        open_log(path, None, GIVEN)


def test_pickled_arrays_are_never_loaded(tmp_path: Path) -> None:
    pickled(tmp_path / "a.npz")
    log = open_log(tmp_path / "a.npz", None, GIVEN)
    assert set(log.vectors) == {"qpos"} and not log.cameras


def test_minari_files(tmp_path: Path) -> None:
    path = write_minari(tmp_path / "log")
    for place in (path, path / "data", path / "data/main_data.hdf5"):
        log = open_log(place, None, GIVEN)
        assert log.format == "minari" and log.episodes() == ["episode_8", "episode_9", "episode_10"]
    rows = log.rows("episode_9", ["actions", "observations/agent_pos"])
    assert len(rows.times) == LENGTHS[1] and not rows.vectors["actions"][-1].any()
    with pytest.raises(InputError, match="--log-rate"):
        open_log(path, None, LogOptions()).rows("episode_9", ["actions"])
    data = (path / "data/main_data.hdf5").read_bytes()
    (path / "data/main_data.hdf5").write_bytes(data[:300])
    with pytest.raises(InputError, match=re.compile("cut short or damaged")):
        open_log(path, None, GIVEN)
