"""Broken and hostile logs: one sentence, good episodes kept, the bad ones in the report, nothing unpacked blindly."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from test_importing import run, settings
from toy_logs import (
    LENGTHS,
    RATE,
    assert_shows,
    picture,
    write_droid,
    write_lerobot_images,
    write_lerobot_v2,
    write_lerobot_v3,
    write_pictures,
    write_robomimic,
    write_video,
)

from vjepa_mpc.core.errors import InputError
from vjepa_mpc.datasets.importing import prepare
from vjepa_mpc.datasets.logs import LogOptions
from vjepa_mpc.datasets.opening import open_log
from vjepa_mpc.datasets.store import ZarrStore

V2_VIDEO = "videos/chunk-000/observation.images.top/episode_000001.mp4"
V2_DATA = "data/chunk-000/episode_000001.parquet"
V3_VIDEO = "videos/observation.images.top/chunk-000/file-000.mp4"


def cut(path: Path, keep: float = 0.6) -> None:
    data = path.read_bytes()
    path.write_bytes(data[: int(keep * len(data))])


def edit_table(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


def short_video(path: Path) -> None:
    write_video(path, [picture(1, row) for row in range(LENGTHS[1] - 1)])


def other_size(path: Path) -> None:
    write_video(path, [picture(1, row, (48, 48)) for row in range(LENGTHS[1])])


def replace_picture(path: Path) -> None:
    from PIL import Image

    Image.fromarray(picture(1, 3, (32, 32))).save(path)


def depths(path: Path) -> None:
    from PIL import Image

    Image.fromarray(np.full((64, 96), 4000, np.uint16)).save(path)


def bomb(path: Path) -> None:
    from PIL import Image

    Image.new("1", (12_000, 12_000)).save(path)


def not_a_number(path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pq.read_table(path)
    times = table["timestamp"].to_numpy().copy()
    times[2] = np.nan
    pq.write_table(table.set_column(2, "timestamp", pa.array(times)), path)


@pytest.fixture(autouse=True)
def no_flushing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Flushing to disk is most of the time here, and tested elsewhere."""
    monkeypatch.setattr(os, "fsync", lambda _: None)


Breaking = Callable[[Path], None]
# How a log is written, which file of its second episode is broken in which way, and the words of the report.
CASES: dict[str, tuple[Callable[[Path], Path], str, Breaking, str]] = {
    "v2 video cut": (write_lerobot_v2, V2_VIDEO, cut, "cannot be decoded|no frame at|no video"),
    "v2 video empty": (write_lerobot_v2, V2_VIDEO, lambda p: p.write_bytes(b""), "cannot be decoded"),
    "v2 video one frame short": (write_lerobot_v2, V2_VIDEO, short_video, r"has no frame at 0.500 s"),
    "v2 video of another size": (write_lerobot_v2, V2_VIDEO, other_size, "48 x 48 in row 0, the log 96 x 64"),
    "v2 video missing": (write_lerobot_v2, V2_VIDEO, lambda p: p.unlink(), "episode_000001.mp4 is missing"),
    "v2 parquet without footer": (write_lerobot_v2, V2_DATA, cut, "no footer: the recording was not finished"),
    "v2 parquet empty": (write_lerobot_v2, V2_DATA, lambda p: p.write_bytes(b""), "no footer"),
    "v2 parquet missing": (write_lerobot_v2, V2_DATA, lambda p: p.unlink(), "is missing"),
    "v2 time stamps NaN": (write_lerobot_v2, V2_DATA, not_a_number, "1 of its time stamps are NaN"),
    "pictures: one missing": (write_pictures, "run9/top/3.png", lambda p: p.unlink(), "5 pictures for 6 rows"),
    "pictures: one cut": (write_pictures, "run9/top/3.png", cut, "3.png is no picture"),
    "pictures: another size": (write_pictures, "run9/top/3.png", replace_picture, "32 x 32 in row 3"),
    "pictures: a bomb": (write_pictures, "run9/top/3.png", bomb, "claims 12000 x 12000 pixels"),
    "pictures: depths": (write_pictures, "run9/top/3.png", depths, "holds depths or other numbers .*, not colours"),
    "pictures: no table": (write_pictures, "run9/states.csv", lambda p: p.unlink(), "no states.csv"),
    "pictures: times back": (write_pictures, "run9/states.csv", lambda p: edit_table(p, "0.3,", "0.1,"), "not incr"),
    "pictures: a hole": (write_pictures, "run9/states.csv", lambda p: edit_table(p, "0.0,1.0,", "0.0,,"), "holds NaN"),
    "pictures: a word": (write_pictures, "run9/states.csv", lambda p: edit_table(p, "0.0,1.0,", "0.0,oops,"), "'oops'"),
    "pictures: no columns": (write_pictures, "run9/states.csv", lambda p: p.write_text("a\nx\n"), "no column of numb"),
    "pictures: one row": (write_pictures, "run9/states.csv", lambda p: p.write_text("time,a,b,grip\n0,1,2,3"), "fewer"),
}


@pytest.mark.parametrize("name", list(CASES))
def test_the_good_episodes_are_kept_and_the_bad_one_is_explained(tmp_path: Path, name: str) -> None:
    write, file, damage, words = CASES[name]
    source = write(tmp_path / "log")
    damage(source / file)
    plan = prepare(settings(source, tmp_path / "a.zarr"))
    converted = [plan.converter.convert(episode) for episode in plan.survey.frames]
    reasons = {**plan.survey.reasons, **{item.name: item.reason for item in converted if item.reason}}
    (reason,) = reasons.values()
    assert re.search(words, reason) and "\n" not in reason, reason
    assert [len(item.episodes[0]) for item in converted if not item.reason] == [LENGTHS[0], LENGTHS[2]]


def test_a_video_of_many_episodes_that_is_cut_keeps_those_before_the_cut(tmp_path: Path) -> None:
    source = write_lerobot_v3(tmp_path / "log", "libx264")
    write_video(source / V3_VIDEO, [picture(e, r) for e in (0, 1) for r in range(LENGTHS[e])][:-1])
    report = run(prepare(settings(source, tmp_path / "a.zarr")))
    assert report.episodes == 1 and sorted(report.skipped) == ["1", "2"]
    ZarrStore.open(tmp_path / "a.zarr").verify(0)
    assert "has no frame at 1.400 s (the nearest is at 1.300 s)" in report.skipped["1"]


@pytest.mark.parametrize("lost", range(len(LENGTHS)))
def test_a_frame_lost_in_a_video_of_many_episodes_moves_none_of_the_others(tmp_path: Path, lost: int) -> None:
    source = write_lerobot_v3(tmp_path / "log", "libx264")
    shown = [(e, r) for e, length in enumerate(LENGTHS) for r in range(length) if (e, r) != (lost, 3)]
    write_video(source / V3_VIDEO, [picture(*place) for place in shown])
    log = open_log(source, None, LogOptions())
    for episode, length in enumerate(LENGTHS):
        frames = log.frames(str(episode), "observation.images.top", np.arange(length))
        if episode < lost:
            assert_shows(list(frames)[-1], episode, length - 1)
        else:
            with pytest.raises(InputError, match=r"not known|no frame at"):
                list(frames)


def test_an_episode_whose_part_of_a_video_is_short_does_not_end_with_the_next_ones_frame(tmp_path: Path) -> None:
    """As lerobot writes it: the next episode's part begins where this one's ends."""
    import pyarrow.parquet as pq

    source = write_lerobot_v3(tmp_path / "log", "libx264")
    shown = [(e, r) for e, length in enumerate(LENGTHS) for r in range(length) if (e, r) != (0, LENGTHS[0] - 1)]
    write_video(source / V3_VIDEO, [picture(*place) for place in shown])
    index = source / "meta/episodes/chunk-000/file-000.parquet"
    rows = pq.read_table(index).to_pylist()
    head = "videos/observation.images.top"
    for number, row in enumerate(rows):
        row[f"{head}/from_timestamp"] -= (number > 0) / RATE
        row[f"{head}/to_timestamp"] -= 1 / RATE
    pq.write_table(pa.Table.from_pylist(rows), index)
    report = run(prepare(settings(source, tmp_path / "a.zarr")))
    assert report.episodes == 2 and list(report.skipped) == ["0"]
    assert f"has {LENGTHS[0] - 1} frames for {LENGTHS[0]} rows" in report.skipped["0"]
    assert_shows(ZarrStore.open(tmp_path / "a.zarr").read(0).images["top"][-1], 1, LENGTHS[1] - 1)


def test_a_recording_without_footers_is_explained(tmp_path: Path) -> None:
    source = write_lerobot_v3(tmp_path / "log", "libx264")
    cut(source / "data/chunk-000/file-000.parquet")
    with pytest.raises(InputError, match="no footer: the recording was not finished"):
        prepare(settings(source, tmp_path / "a.zarr"))
    cut(source / "meta/episodes/chunk-000/file-000.parquet")
    with pytest.raises(InputError, match=r"episodes/chunk-000/file-000.parquet has no footer"):
        prepare(settings(source, tmp_path / "a.zarr"))
    assert not (tmp_path / "a.zarr").exists()


def test_one_index_file_of_two_is_broken(tmp_path: Path) -> None:
    source = write_lerobot_v3(tmp_path / "log", "libx264")
    import pyarrow.parquet as pq

    file = source / "meta/episodes/chunk-000/file-000.parquet"
    table = pq.read_table(file)
    pq.write_table(table.slice(0, 1), file)
    pq.write_table(table.slice(1, 2), file.with_name("file-001.parquet"))
    cut(file.with_name("file-001.parquet"))
    report = run(prepare(settings(source, tmp_path / "a.zarr")))
    assert report.episodes == 1 and sorted(report.skipped) == ["1", "2"]
    assert all("file-001.parquet has no footer" in reason for reason in report.skipped.values())


def test_videos_that_were_never_encoded_are_an_unfinished_recording(tmp_path: Path) -> None:
    """LeRobot may encode the videos of several episodes at once, later than their rows: what a crash leaves then."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    source = write_lerobot_v3(tmp_path / "log", "libx264")
    file = source / "meta/episodes/chunk-000/file-000.parquet"
    rows = pq.read_table(file)
    videos = [name for name in rows.column_names if name.startswith("videos/")]
    some = rows
    for name in videos:
        column = pa.array([*rows[name].to_pylist()[:2], None], rows[name].type)
        some = some.set_column(some.column_names.index(name), name, column)
    pq.write_table(some, file)
    report = run(prepare(settings(source, tmp_path / "a.zarr")))
    assert report.episodes == 2 and list(report.skipped) == ["2"]
    assert "top/chunk_index: the recording was not finished" in report.skipped["2"]
    pq.write_table(rows.drop_columns(videos), file)
    with pytest.raises(InputError, match=r"lacks the columns videos/.*chunk_index, .* not finished"):
        prepare(settings(source, tmp_path / "b.zarr"))


@pytest.mark.parametrize("keep", [0.0, 0.3, 0.9])
def test_a_cut_hdf5_is_one_sentence(tmp_path: Path, keep: float) -> None:
    source = write_robomimic(tmp_path / "a.hdf5")
    cut(source, keep)
    with pytest.raises(InputError, match="cut short or damaged"):
        prepare(settings(source, tmp_path / "a.zarr"))


def test_a_demonstration_that_lies_is_left_out(tmp_path: Path) -> None:
    import h5py

    source = write_robomimic(tmp_path / "a.hdf5")
    with h5py.File(source, "a") as file:
        del file["data/demo_2/obs/state"], file["data/demo_10/obs/top_image"]
        # A thousand billion numbers in no space at all.
        file["data/demo_2"].create_dataset("obs/state", (10**12, 3), "f4", chunks=(1000, 3), compression="gzip")
        file["data/demo_10/obs/top_image"] = np.zeros((4, 64, 96, 3), np.uint8)
    report = run(prepare(settings(source, tmp_path / "a.zarr", state=("obs/state",))))
    assert report.episodes == 1
    assert "more than a gigabyte" in report.skipped["demo_2"] and "4 pictures" in report.skipped["demo_10"]


@pytest.mark.parametrize(
    ("shape", "chunks", "words"),
    [
        ((15, 20_000, 20_000, 3), (1, 100, 100, 3), r"shape \[20000, 20000, 3\], elsewhere \[64, 96, 3\]"),
        ((15, 64, 96, 3), (100_000, 64, 96, 3), "claims chunks of .* a bomb"),
    ],
)
def test_pictures_of_hdf5_that_would_fill_the_memory_are_not_read(
    tmp_path: Path, shape: tuple[int, ...], chunks: tuple[int, ...], words: str
) -> None:
    import h5py

    source = write_robomimic(tmp_path / "a.hdf5")
    with h5py.File(source, "a") as file:
        del file["data/demo_10/obs/top_image"]
        most = (None, *shape[1:])
        file["data/demo_10"].create_dataset("obs/top_image", shape, "u1", chunks=chunks, maxshape=most)
    log = open_log(source, None, LogOptions())
    with pytest.raises(InputError, match=words):
        next(log.frames("demo_10", "obs/top_image", np.arange(2)))


def test_a_demonstration_without_rows_or_of_another_width_is_left_out(tmp_path: Path) -> None:
    import h5py

    source = write_robomimic(tmp_path / "a.hdf5")
    with h5py.File(source, "a") as file:
        narrow = file["data/demo_10/obs/state"][:, :2]
        del file["data/demo_2/obs/state"], file["data/demo_10/obs/state"]
        file["data/demo_2/obs/state"] = np.zeros((0, 3))
        file["data/demo_10/obs/state"] = narrow
    report = run(prepare(settings(source, tmp_path / "a.zarr", state=("obs/state",))))
    assert report.episodes == 1
    assert "no rows" in report.skipped["demo_2"] and "2 values a row, elsewhere 3" in report.skipped["demo_10"]


def test_hdf5_links_to_other_files_are_not_followed(tmp_path: Path) -> None:
    import h5py

    source, other = write_robomimic(tmp_path / "a.hdf5"), write_robomimic(tmp_path / "b.hdf5")
    with h5py.File(source, "a") as file:
        del file["data/demo_2/obs/state"], file["data/demo_10"]
        file["data/demo_2/obs/state"] = h5py.ExternalLink(str(other), "data/demo_2/obs/state")
        file["data/demo_10"] = h5py.ExternalLink(str(other), "data/demo_10")
    report = run(prepare(settings(source, tmp_path / "a.zarr", state=("obs/state",))))
    assert report.episodes == 1 and len(report.skipped) == 2
    assert all("link to elsewhere" in reason for reason in report.skipped.values())


@pytest.mark.parametrize("template", ["../secret/{file_index}.parquet", "/etc/passwd", "data/../../secret.parquet"])
def test_templates_cannot_lead_out(tmp_path: Path, template: str) -> None:
    source = write_lerobot_v3(tmp_path / "log", "libx264")
    info = json.loads((source / "meta/info.json").read_text())
    info["data_path"] = template
    (source / "meta/info.json").write_text(json.dumps(info))
    with pytest.raises(InputError, match="lies outside"):
        prepare(settings(source, tmp_path / "a.zarr"))


def test_a_template_with_a_hostile_width_is_refused(tmp_path: Path) -> None:
    source = write_lerobot_v3(tmp_path / "log", "libx264")
    info = json.loads((source / "meta/info.json").read_text())
    info["data_path"] = "data/{file_index:09999999999d}.parquet"
    (source / "meta/info.json").write_text(json.dumps(info))
    with pytest.raises(InputError, match="not understood"):
        prepare(settings(source, tmp_path / "a.zarr"))


def test_links_out_of_the_log_need_consent(tmp_path: Path) -> None:
    source = write_lerobot_v2(tmp_path / "log")
    shutil.move(source / V2_VIDEO, tmp_path / "elsewhere.mp4")
    os.symlink(tmp_path / "elsewhere.mp4", source / V2_VIDEO)
    report = run(prepare(settings(source, tmp_path / "a.zarr")))
    assert report.episodes == 2 and "--follow-links" in report.skipped["1"]
    followed = settings(source, tmp_path / "b.zarr", options=LogOptions(follow_links=True))
    assert run(prepare(followed)).episodes == 3


def test_a_droid_video_one_frame_short(tmp_path: Path) -> None:
    source = write_droid(tmp_path / "log")
    (video,) = (source / "LAB/success/2023-01-02").glob("*/recordings/MP4/222.mp4")
    short_video(video)
    report = run(prepare(settings(source, tmp_path / "a.zarr", cameras=("ext1",))))
    assert report.episodes == 2 and "5 frames for 6 rows" in next(iter(report.skipped.values()))


def test_broken_pictures_inside_parquet(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    source = write_lerobot_images(tmp_path / "log")
    table = pq.read_table(source / V2_DATA)
    cells = table["observation.images.top"].to_pylist()
    cells[2]["bytes"] = cells[2]["bytes"][:40]
    column = table.column_names.index("observation.images.top")
    kind = table.schema.field(column).type
    pq.write_table(table.set_column(column, "observation.images.top", pa.array(cells, kind)), source / V2_DATA)
    report = run(prepare(settings(source, tmp_path / "a.zarr")))
    assert report.episodes == 2 and "row 2, is no picture" in report.skipped["1"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "not readable JSON"),
        ("[]", "lacks features"),
        ('{"features": {}, "data_path": "x", "fps": 0}', "fps 0"),
        ('{"features": {"c": {"dtype": "video", "shape": [3]}}, "data_path": "x", "fps": 5}', "shape"),
    ],
)
def test_a_broken_description_is_one_sentence(tmp_path: Path, text: str, words: str) -> None:
    source = write_lerobot_v2(tmp_path / "log")
    (source / "meta/info.json").write_text(text)
    with pytest.raises(InputError, match=words):
        prepare(settings(source, tmp_path / "a.zarr"))


def test_when_nothing_can_be_read_the_first_reason_is_told(tmp_path: Path) -> None:
    source = write_pictures(tmp_path / "log")
    for file in source.glob("*/top/*.png"):
        file.write_bytes(b"no")
    with pytest.raises(InputError, match="no picture that can be read"):
        prepare(settings(source, tmp_path / "a.zarr"))
    with pytest.raises(InputError, match="Say what the state is with --state"):
        prepare(settings(write_robomimic(tmp_path / "b.hdf5"), tmp_path / "b.zarr"))
