"""Logs that lie, by somebody who means it: none hangs, fills the memory, reads what is not the log's, or costs the good
episodes. What is merely broken is in `test_broken_logs.py`."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_importing import run, settings
from toy_logs import (
    LENGTHS,
    RATE,
    picture,
    write_diffusion_policy,
    write_droid,
    write_lerobot_v2,
    write_lerobot_v3,
    write_ogbench,
    write_pictures,
    write_robomimic,
    write_video,
    write_video_folders,
)
from toy_trajectories import toy_episode, toy_spec

from vjepa_mpc.core.errors import InputError
from vjepa_mpc.datasets import importing
from vjepa_mpc.datasets.formats import lerobot
from vjepa_mpc.datasets.importing import prepare
from vjepa_mpc.datasets.logs import LogOptions
from vjepa_mpc.datasets.store import ZarrStore

V2_VIDEO = "videos/chunk-000/observation.images.top/episode_000001.mp4"
V2_DATA = "data/chunk-000/episode_000001.parquet"
V3_INDEX = "meta/episodes/chunk-000/file-000.parquet"
DEEP = "[" * 200_000


@pytest.fixture(autouse=True)
def no_flushing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda _: None)


def info(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], None]:
    def damage(log: Path) -> None:
        value = json.loads((log / "meta/info.json").read_text())
        change(value)
        (log / "meta/info.json").write_text(json.dumps(value))

    return damage


def text(file: str, content: str) -> Callable[[Path], object]:
    return lambda log: (log / file).write_text(content)


def pipe(file: str) -> Callable[[Path], None]:
    def damage(log: Path) -> None:
        (log / file).unlink()
        os.mkfifo(log / file)

    return damage


def column(name: str, values: list[Any]) -> Callable[[Path], None]:
    """Of the index of a v3.0 dataset, the column whose name ends so."""

    def damage(log: Path) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        table = pq.read_table(log / V3_INDEX)
        (place,) = [i for i, there in enumerate(table.column_names) if there.endswith(name)]
        pq.write_table(table.set_column(place, table.column_names[place], pa.array(values)), log / V3_INDEX)

    return damage


def play_list(log: Path) -> None:
    """FFmpeg would follow it to the link, and the link out of the log."""
    write_video(log.with_name("secret.mp4"), [picture(1, row) for row in range(LENGTHS[1])])
    os.symlink(log.with_name("secret.mp4"), (log / V2_VIDEO).with_name("x.mp4"))
    (log / V2_VIDEO).write_text("ffconcat version 1.0\nfile x.mp4\n")


def far_states(log: Path) -> None:
    rows = "".join(f"{i / RATE},1e300,0,0\n" for i in range(LENGTHS[1]))
    (log / "run9/states.csv").write_text(f"time,a,b,grip\n{rows}")


def big_integer(log: Path) -> None:
    value = json.loads((log / "01/states.json").read_text())
    value["states"][0][0] = 10**400
    (log / "01/states.json").write_text(json.dumps(value))


def v3(path: Path) -> Path:
    return write_lerobot_v3(path, "libx264")


def droid_state(value: Any) -> Callable[[Path], None]:
    def damage(log: Path) -> None:
        import h5py

        (file,) = (log / "LAB/success/2023-01-02").glob("*/trajectory.h5")
        with h5py.File(file, "a") as opened:
            del opened["observation/robot_state/gripper_position"]
            opened["observation/robot_state/gripper_position"] = value

    return damage


# How a log is written, what is done to its second episode, and the words of the report.
ONE_LOST: dict[str, tuple[Callable[[Path], Path], Callable[[Path], object], str]] = {
    "a video that is a pipe": (write_lerobot_v2, pipe(V2_VIDEO), "no file, but a pipe"),
    "a table that is a pipe": (write_lerobot_v2, pipe(V2_DATA), "no file, but a pipe"),
    "a picture that is a pipe": (write_pictures, pipe("run9/top/3.png"), "no file, but a pipe"),
    "states that are a pipe": (write_pictures, pipe("run9/states.csv"), "no file, but a pipe"),
    "a play list": (write_lerobot_v2, play_list, "cannot be decoded"),
    "a start of NaN": (v3, column("from_timestamp", [0.0, np.nan, 1.5]), "meta/ says of it is damaged .*second nan"),
    "a start at the end of time": (v3, column("from_timestamp", [0.0, 1e300, 1.5]), "is damaged .*second 1e.300"),
    "a length of NaN": (v3, column("length", [9.0, np.nan, 12.0]), "meta/ says of it is damaged"),
    "numbers of no float32": (write_pictures, far_states, r"states reach 1e\+300"),
    "a number of 400 digits": (write_video_folders, big_integer, "too large to convert"),
    "a nest of brackets": (write_video_folders, text("01/states.json", DEEP), "states.json cannot be read"),
    "two columns of a name": (write_pictures, text("run9/states.csv", "time,a,a,g\n0,0,0,0"), "two columns named 'a'"),
    "words for numbers": (write_droid, droid_state(np.array([b"x"] * LENGTHS[1])), "numbers cannot be read"),
    "one number for many": (write_droid, droid_state(1.0), "claims .* numbers; it is damaged"),
}


@pytest.mark.parametrize("name", list(ONE_LOST))
def test_the_others_are_kept(tmp_path: Path, name: str) -> None:
    write, damage, words = ONE_LOST[name]
    source = write(tmp_path / "log")
    damage(source)
    report = run(prepare(settings(source, tmp_path / "a.zarr")))
    (reason,) = report.skipped.values()
    with pytest.raises(InputError, match=words):
        raise InputError(reason)
    store = ZarrStore.open(tmp_path / "a.zarr")
    assert store.lengths().tolist() == [LENGTHS[0], LENGTHS[2]]
    assert max(store.spec.state_high) < 10  # what is left out leaves no mark on the bounds


ALL_LOST: dict[str, tuple[Callable[[Path], Path], Callable[[Path], object], str]] = {
    "a feature that is a number": (write_lerobot_v2, info(lambda v: v["features"].update(x=3)), "cannot be read as le"),
    "no template of videos": (write_lerobot_v2, info(lambda v: v.pop("video_path")), "'video_path'"),
    "brackets for info": (write_lerobot_v2, text("meta/info.json", DEEP), "is not readable JSON"),
    "brackets for episodes": (write_lerobot_v2, text("meta/episodes.jsonl", DEEP), "episodes.jsonl is damaged"),
    "an endless episode": (
        write_lerobot_v2, text("meta/episodes.jsonl", '{"episode_index": 0, "length": Infinity}'), "is damaged"
    ),
    "brackets for an array": (write_diffusion_policy, text("data/state/.zarray", DEEP), "zarray is damaged"),
}  # fmt: skip


@pytest.mark.parametrize("name", list(ALL_LOST))
def test_a_description_that_cannot_be_read_is_one_sentence(tmp_path: Path, name: str) -> None:
    write, damage, words = ALL_LOST[name]
    source = write(tmp_path / "log")
    damage(source)
    with pytest.raises(InputError, match=words):
        prepare(settings(source, tmp_path / "a.zarr", options=LogOptions(rate_hz=RATE)))


@pytest.mark.parametrize("rate", [0.0, -1.0, np.nan, np.inf])
def test_a_rate_that_is_none_is_refused(rate: float) -> None:
    with pytest.raises(InputError, match="--log-rate a positive number"):
        LogOptions(rate_hz=rate)


def test_a_claim_of_billions_of_episodes_is_not_written_out(tmp_path: Path) -> None:
    source = write_lerobot_v2(tmp_path / "log")
    info(lambda value: value.update(total_episodes=10**15))(source)
    report = run(prepare(settings(source, tmp_path / "a.zarr")))
    assert report.episodes == 3 and len(report.skipped) < 20_000
    assert any(name.endswith(f"to {10**15 - 1}") for name in report.skipped)


def test_parquet_files_that_unpack_to_gigabytes_are_not_unpacked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Equal rows take no space: neither the file's size nor what its headers say of bytes tells how many there are."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    source = v3(tmp_path / "log")
    file = source / "data/chunk-000/file-000.parquet"
    table, most = pq.read_table(file), 4 << 20
    many = table.slice(0, 1).take(pa.array(np.zeros(300_000, np.int64)))
    with pq.ParquetWriter(file, table.schema) as writer:
        writer.write_table(table)
        writer.write_table(many)
    headers = pq.ParquetFile(file).metadata.row_group(1)
    assert headers.total_byte_size < most < many.nbytes
    monkeypatch.setattr(lerobot, "_MAX_BYTES", most)
    report = run(prepare(settings(source, tmp_path / "a.zarr")))
    assert report.episodes == 2 and "unpacks to more than" in report.skipped["0"]


def break_robomimic(path: Path, change: Callable[[Any], None]) -> importing.ImportReport:
    import h5py

    source = write_robomimic(path / "a.hdf5")
    with h5py.File(source, "a") as file:
        change(file)
    return run(prepare(settings(source, path / "a.zarr", state=("obs/state",))))


def test_virtual_datasets_do_not_lead_to_other_files(tmp_path: Path) -> None:
    import h5py

    secret = write_robomimic(tmp_path / "secret.hdf5")

    def change(file: Any) -> None:
        for demo, member in (("demo_2", "state"), ("demo_10", "top_image")):
            shape = file[f"data/{demo}/obs/{member}"].shape
            layout = h5py.VirtualLayout(shape, "u1" if "image" in member else "f8")
            layout[:] = h5py.VirtualSource(str(secret), f"data/{demo}/obs/{member}", shape)
            del file[f"data/{demo}/obs/{member}"]
            file[f"data/{demo}/obs"].create_virtual_dataset(member, layout)

    report = break_robomimic(tmp_path, change)
    assert report.episodes == 1
    assert all("in another file, which is not followed" in reason for reason in report.skipped.values())


def test_what_is_no_array_of_numbers_costs_its_episode(tmp_path: Path) -> None:
    import h5py

    def change(file: Any) -> None:
        del file["data/demo_2/obs/state"], file["data/demo_10/obs/top_image"]
        file.create_group("data/demo_2/obs/state")
        file["data/demo_10/obs/top_image"] = h5py.Empty("u1")
        # numpy knows no bit fields: asking for the type of this one is a TypeError
        space = h5py.h5s.create_simple((LENGTHS[0],))
        h5py.h5d.create(file["data/demo_1/obs"].id, b"bits", h5py.h5t.STD_B8LE, space)

    report = break_robomimic(tmp_path, change)
    assert report.episodes == 1 and sorted(report.skipped) == ["demo_10", "demo_2"]


def test_names_of_any_bytes_are_taken(tmp_path: Path) -> None:
    source = write_pictures(tmp_path / "log")
    os.rename(source / "run9", os.fsencode(source) + b"/run9\xff")
    os.rename(source / "run8/top/3.png", source / "run8/top/\u00b23.png")  # a digit to some, a number to none
    assert run(prepare(settings(source, tmp_path / "a.zarr"))).episodes == 3


def test_a_folder_named_like_a_protocol_is_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    os.rename(write_video_folders(tmp_path / "log") / "00", tmp_path / "log/run:1")
    monkeypatch.chdir(tmp_path / "log")
    assert run(prepare(settings(Path(), tmp_path / "a.zarr"))).skipped == {}


def test_pictures_of_billions_of_pixels_and_odd_ends_are_refused(tmp_path: Path) -> None:
    source = write_ogbench(tmp_path / "a.npz")
    given = LogOptions(rate_hz=RATE)
    plan = prepare(settings(source, tmp_path / "a.zarr", options=given))
    log: Any = plan.converter.log
    log.cameras["observations"] = type(log.cameras["observations"])(20_000, 20_000)
    assert "claims pictures of 20000 x 20000 pixels" in plan.converter.convert("0").reason
    with np.load(source) as there:
        arrays = {name: there[name] for name in there.files}
    for ends in (np.float32(1), np.array(["a"] * sum(LENGTHS)), np.zeros((sum(LENGTHS), 2))):
        np.savez(source, **{**arrays, "terminals": ends})
        with pytest.raises(InputError, match=r"'terminals' of shape .*; it is damaged"):
            prepare(settings(source, tmp_path / "b.zarr", options=given))


def test_a_chunk_of_a_store_that_is_a_bomb_is_not_unpacked(tmp_path: Path) -> None:
    from numcodecs import Zstd

    with ZarrStore.create(tmp_path / "a.zarr", toy_spec(chunk_frames=8)) as writer:
        writer.append(toy_episode(0, 10))
    (tmp_path / "a.zarr/images/top/c.0.0.0.0").write_bytes(Zstd().encode(bytes(50_000_000)))
    with pytest.raises(InputError, match="unpacks to 50000000 bytes instead of"):
        ZarrStore.open(tmp_path / "a.zarr").read(0)
    (tmp_path / "a.zarr/images/top/c.0.0.0.0").write_bytes(Zstd().encode(b"short"))
    with pytest.raises(InputError, match="unpacks to 5 bytes instead of"):
        ZarrStore.open(tmp_path / "a.zarr").read(0)


def test_strange_files_in_a_store_do_not_stop_a_writer(tmp_path: Path) -> None:
    with ZarrStore.create(tmp_path / "a.zarr", toy_spec()) as writer:
        writer.append(toy_episode(0, 6))
    for name in ("c", "c.backup", "._c.0.0"):
        (tmp_path / "a.zarr/states" / name).write_bytes(b"x")
    with ZarrStore.append_to(tmp_path / "a.zarr") as writer:
        writer.append(toy_episode(1, 6))
    assert len(ZarrStore.open(tmp_path / "a.zarr")) == 2


@pytest.mark.parametrize("shape", ["(1000000000000, 3)", "(-1, 3)", "(" * 3000])
def test_a_table_that_lies_is_one_sentence(tmp_path: Path, shape: str) -> None:
    with ZarrStore.create(tmp_path / "a.zarr", toy_spec()) as writer:
        writer.append(toy_episode(0, 6))
    head = f"{{'descr': '<i8', 'fortran_order': False, 'shape': {shape}, }}\n".encode()
    data = b"\x93NUMPY\x01\x00" + len(head).to_bytes(2, "little") + head
    (tmp_path / "a.zarr/meta/episode_ends.npy").write_bytes(data)
    with pytest.raises(InputError, match=r"episode_ends\.npy is"):
        ZarrStore.open(tmp_path / "a.zarr")
