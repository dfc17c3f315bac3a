"""The episode video: right pictures at the right place, whole or absent, playable after Ctrl-C."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np
import pytest

import vjepa_mpc.recorders as recorders
from vjepa_mpc.core.errors import InputError, NotFiniteError
from vjepa_mpc.recorders import BAR, GAP, RecordedStep, Recorder, VideoRecorder, plot_episode

RED, BLUE, GREEN = (220, 30, 30), (30, 30, 220), (30, 200, 30)


@dataclass(frozen=True)
class Step:
    step: int
    image: np.ndarray
    latent_cost: float = 1.0
    distance: float | None = None


def plain(colour: tuple[int, int, int], height: int = 64, width: int = 64) -> np.ndarray:
    return np.broadcast_to(np.array(colour, np.uint8), (height, width, 3)).copy()


def frames(path: Path) -> list[np.ndarray]:
    with av.open(str(path)) as container:
        return [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]


def record(recorder: Recorder, goal: np.ndarray, views: list[np.ndarray]) -> None:
    recorder.start(goal, {"seed": 0})
    for index, view in enumerate(views):
        recorder.step(Step(index, view, 1.0 / (index + 1), 0.1 if index % 2 else None))
    recorder.close()


def near(found: np.ndarray, colour: tuple[int, int, int], tolerance: float = 12) -> bool:
    return bool(np.abs(found.astype(int).reshape(-1, 3).mean(0) - colour).max() < tolerance)


def test_the_contract() -> None:
    assert isinstance(VideoRecorder("x.mp4", 10.0), Recorder)
    assert isinstance(Step(0, plain(RED)), RecordedStep)


@pytest.mark.parametrize("codec", ["libx264", "mpeg4"])
def test_goal_left_view_right_one_frame_a_step(
    tmp_path: Path, codec: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recorders, "_codec_name", lambda: codec)
    path = tmp_path / "deep" / "episode.mp4"
    record(VideoRecorder(path, 12.5), plain(RED), [plain(BLUE), plain(BLUE), plain(GREEN)])
    found = frames(path)
    assert len(found) == 3
    assert found[0].shape == (256 + 2 * BAR, 512 + GAP, 3)
    for frame, colour in zip(found, [BLUE, BLUE, GREEN], strict=True):
        inside = frame[BAR + 4 : BAR + 252]
        assert near(inside[:, 4:252], RED) and near(inside[:, 260 + GAP : 508 + GAP], colour)
        assert frame[:BAR].max() > 180, "no caption"
        assert frame[-BAR:, :, 2].max() > 120, "no cost curve"
    with av.open(str(path)) as container:
        assert float(container.streams.video[0].average_rate) == pytest.approx(12.5)
    assert os.listdir(path.parent) == ["episode.mp4"]


def test_h264_is_used_where_there_is_x264(tmp_path: Path) -> None:
    if "libx264" not in av.codecs_available:
        pytest.skip("this PyAV has no x264")
    record(VideoRecorder(tmp_path / "e.mp4", 10.0), plain(RED), [plain(BLUE)])
    with av.open(str(tmp_path / "e.mp4")) as container:
        context = container.streams.video[0].codec_context
        assert (context.name, context.pix_fmt) == ("h264", "yuv420p")


def test_enlarged_in_hard_pixels(tmp_path: Path) -> None:
    """Two columns of black and white stay two: no grey between them but the codec's own."""
    view = np.zeros((8, 8, 3), np.uint8)
    view[:, 4:] = 255
    record(VideoRecorder(tmp_path / "e.mp4", 5.0), view, [view])
    row = frames(tmp_path / "e.mp4")[0][BAR + 128, 256 + GAP : 512 + GAP].mean(-1)
    assert row[:124].max() < 20 and row[132:].min() > 235


@pytest.mark.parametrize(
    "goal, view, scale, expected",
    [
        ((480, 640), (480, 640), None, (480 + 2 * BAR, 1280 + GAP)),
        ((300, 500), (64, 64), None, (256 + 2 * BAR, 512 + GAP)),
        ((7, 9), (33, 35), None, (264 + 2 * BAR, 560 + GAP)),
        ((9, 7), (45, 47), 1, (46 + 2 * BAR, 94 + GAP)),
        ((64, 64), (64, 64), 2, (128 + 2 * BAR, 256 + GAP)),
    ],
)
def test_any_sizes_make_an_even_video(
    tmp_path: Path, goal: tuple[int, int], view: tuple[int, int], scale: int | None, expected: tuple[int, int]
) -> None:
    record(VideoRecorder(tmp_path / "e.mp4", 10.0, scale), plain(RED, *goal), [plain(BLUE, *view)] * 2)
    found = frames(tmp_path / "e.mp4")
    assert found[0].shape == (*expected, 3)
    middle, quarter = BAR + (expected[0] - 2 * BAR) // 2, (expected[1] - GAP) // 4
    assert near(found[0][middle - 2 : middle + 2, quarter - 2 : quarter + 2], RED)
    assert near(found[0][middle - 2 : middle + 2, 3 * quarter + GAP - 2 : 3 * quarter + GAP + 2], BLUE)


def test_nothing_recorded_leaves_nothing(tmp_path: Path) -> None:
    recorder = VideoRecorder(tmp_path / "e.mp4", 10.0)
    recorder.close()
    recorder.start(plain(RED), {})
    recorder.close()
    recorder.close()
    assert os.listdir(tmp_path) == []


def test_an_older_video_stays_until_the_new_one_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "e.mp4"
    path.write_bytes(b"old")
    recorder = VideoRecorder(path, 10.0)
    recorder.start(plain(RED), {})
    recorder.step(Step(0, plain(BLUE)))
    assert path.read_bytes() == b"old"
    recorder.close()
    assert len(frames(path)) == 1


def test_a_recorder_records_again(tmp_path: Path) -> None:
    recorder = VideoRecorder(tmp_path / "e.mp4", 10.0)
    record(recorder, plain(RED), [plain(BLUE)] * 2)
    record(recorder, plain(RED, 32, 32), [plain(GREEN, 32, 32)] * 3)
    assert len(frames(tmp_path / "e.mp4")) == 3


def test_refusals(tmp_path: Path) -> None:
    for fps, scale in [(0.0, None), (float("nan"), None), (10.0, 0)]:
        with pytest.raises(InputError):
            VideoRecorder(tmp_path / "e.mp4", fps, scale)
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(InputError, match="another output path"):
        VideoRecorder(tmp_path / "file" / "e.mp4", 10.0).start(plain(RED), {})
    recorder = VideoRecorder(tmp_path / "e.mp4", 10.0)
    recorder.start(plain(RED), {})
    recorder.step(Step(0, plain(BLUE)))
    with pytest.raises(NotFiniteError):
        recorder.step(Step(1, plain(BLUE), float("nan")))
    recorder.close()
    assert len(frames(tmp_path / "e.mp4")) == 1, "what led there is kept"


def test_a_full_disk_is_one_sentence_and_leaves_the_old_video(tmp_path: Path) -> None:
    """A real limit of the operating system on file sizes: the write itself fails, half way."""
    resource = pytest.importorskip("resource")
    path = tmp_path / "e.mp4"
    path.write_bytes(b"old")
    recorder = VideoRecorder(path, 10.0)
    recorder.start(plain(RED), {})
    recorder.step(Step(0, np.random.default_rng(0).integers(0, 255, (256, 256, 3), np.uint8)))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))
        with pytest.raises(InputError, match="Cannot write"):
            recorder.close()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    recorder.close()
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["e.mp4"]


def test_ctrl_c_leaves_a_playable_video(tmp_path: Path) -> None:
    script = """
import sys, time
import numpy as np
from tests.test_recorders import Step
from vjepa_mpc.recorders import VideoRecorder
recorder = VideoRecorder(sys.argv[1], 10.0)
recorder.start(np.zeros((64, 64, 3), np.uint8), {})
try:
    for index in range(100_000):
        recorder.step(Step(index, np.full((64, 64, 3), index % 256, np.uint8)))
        if index == 5:
            print("running", flush=True)
        time.sleep(0.005)
finally:
    recorder.close()
"""
    path = tmp_path / "e.mp4"
    process = subprocess.Popen(
        [sys.executable, "-c", script, str(path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd=Path(__file__).parents[1],
    )
    assert process.stdout is not None and process.stdout.readline() == b"running\n"
    time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=30)
    assert process.returncode != 0
    assert len(frames(path)) >= 6
    assert os.listdir(tmp_path) == ["e.mp4"]


def test_plot_episode(tmp_path: Path) -> None:
    from PIL import Image

    plot_episode([3.0, 2.0, 1.0], [0.3, None, 0.1], tmp_path / "a.png", "m")
    plot_episode([3.0], [None], tmp_path / "b.png")
    for name in ("a.png", "b.png"):
        with Image.open(tmp_path / name) as image:
            image.load()
    with pytest.raises(InputError):
        plot_episode([], [], tmp_path / "c.png")
    assert not (tmp_path / "c.png").exists()
