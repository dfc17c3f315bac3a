"""The contract of a log format, run over every format; and what each understands besides."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import cloudpickle
import numpy as np
import pytest
from scipy.spatial.transform import Rotation
from toy_logs import (
    LENGTHS,
    NAMES,
    RATE,
    SIZE,
    WRITERS,
    assert_shows,
    picture,
    state,
    write_droid,
    write_lerobot_images,
    write_lerobot_v3,
    write_video,
)

from vjepa_mpc.core.errors import InputError
from vjepa_mpc.datasets.formats import lerobot
from vjepa_mpc.datasets.importing import ImportSettings, prepare
from vjepa_mpc.datasets.logs import CameraInfo, Log, LogOptions, fingerprint
from vjepa_mpc.datasets.opening import FORMATS, open_log

GIVEN = LogOptions(rate_hz=RATE)  # what a user must say of logs that have no time stamps


@pytest.fixture(scope="module", params=list(WRITERS))
def written(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str, str]:
    write, field, camera = WRITERS[request.param]
    return write(tmp_path_factory.mktemp("logs") / request.param), field, camera


@pytest.fixture
def opened(written: tuple[Path, str, str]) -> tuple[Log, str, str]:
    path, field, camera = written
    return open_log(path, None, GIVEN), field, camera


def test_it_is_recognised_and_implements_the_contract(written: tuple[Path, str, str]) -> None:
    path, _, _ = written
    log = open_log(path, None, GIVEN)
    assert isinstance(log, Log)
    kinds = [kind for kind in FORMATS if kind.recognises(path)]
    assert isinstance(log, kinds[0])
    assert type(open_log(path, log.format, GIVEN)) is type(log)


def test_episodes_are_those_written_in_order(opened: tuple[Log, str, str]) -> None:
    log, field, _ = opened
    assert len(log.episodes()) == len(LENGTHS) == len(set(log.episodes())) and not log.broken
    assert log.episodes() == log.episodes()
    for episode, (name, length) in enumerate(zip(log.episodes(), LENGTHS, strict=True)):
        rows = log.rows(name, [field])
        np.testing.assert_allclose(rows.times, np.arange(length) / RATE, atol=1e-6)
        values = rows.vectors[field]
        assert values.shape == (length, log.vectors[field].width) and values.dtype == np.float64
        np.testing.assert_allclose(values[:, :2], state(episode, length)[:, :2], atol=1e-6)
        assert rows.task in ("", f"task {episode}")


def test_pictures_are_those_of_the_rows(opened: tuple[Log, str, str]) -> None:
    log, _, camera = opened
    assert log.cameras[camera] == CameraInfo(*SIZE)
    for episode, (name, length) in enumerate(zip(log.episodes(), LENGTHS, strict=True)):
        for rows in (np.arange(length), np.array([0]), np.array([length - 1]), np.arange(1, length, 3)):
            frames = list(log.frames(name, camera, rows))
            assert len(frames) == len(rows)
            for frame, row in zip(frames, rows, strict=True):
                assert frame.dtype == np.uint8 and frame.shape == (*SIZE, 3)
                assert_shows(frame, episode, int(row))


def test_it_travels_to_other_processes(opened: tuple[Log, str, str]) -> None:
    log, field, camera = opened
    name = log.episodes()[1]
    log.rows(name, [field])
    copy = cloudpickle.loads(cloudpickle.dumps(log))
    np.testing.assert_array_equal(copy.rows(name, [field]).times, log.rows(name, [field]).times)
    assert_shows(next(iter(copy.frames(name, camera, np.array([2])))), 1, 2)


def test_what_it_suggests_and_names_exists(opened: tuple[Log, str, str]) -> None:
    from vjepa_mpc.datasets.mapping import declare

    log, field, camera = opened
    if log.suggestion:
        declare(log.vectors, log.suggestion, None, {camera: camera})
    names = log.vectors[field].names
    assert names in ((), NAMES)
    assert len(log.files()) and all(file.exists() for file in log.files())


def test_a_picture_or_vector_that_is_not_there_is_an_input_error(opened: tuple[Log, str, str]) -> None:
    log, _, _ = opened
    with pytest.raises(InputError):
        log.rows(log.episodes()[0], ["nothing/such"])


def test_droids_roles_are_found_without_the_notes(tmp_path: Path) -> None:
    log = open_log(write_droid(tmp_path / "droid", notes=False), None, LogOptions())
    assert sorted(log.cameras) == ["ext1", "ext2", "wrist"]
    assert log.vectors["robot_state/gripper_position"].width == 1
    assert log.vectors["robot_state/joint_positions"].width == 7


def test_droids_poses_in_the_frame_of_a_camera(tmp_path: Path) -> None:
    """The camera stands 1 m above the base, turned by 90 degrees about z: base x is its -y, base y its x."""
    log = open_log(write_droid(tmp_path / "droid"), None, LogOptions())
    place = "camera_frame/ext1/cartesian_position"
    assert log.vectors[place].width == 6 and "camera_frame/wrist/cartesian_position" not in log.vectors
    rows = log.rows(log.episodes()[1], [place, "robot_state/cartesian_position"])
    base, seen = rows.vectors["robot_state/cartesian_position"], rows.vectors[place]
    np.testing.assert_allclose(seen[:, :3], np.stack([base[:, 1], -base[:, 0], base[:, 2] - 1], axis=1), atol=1e-12)
    first, last = (Rotation.from_euler("xyz", value[:, 3:]) for value in (base, seen))
    turn = (Rotation.from_euler("z", np.pi / 2) * last) * first.inv()
    np.testing.assert_allclose(turn.magnitude(), 0, atol=1e-9)
    with pytest.raises(InputError, match="it lacks camera_frame/nose"):
        log.rows(log.episodes()[1], ["camera_frame/nose/cartesian_position"])


def test_droids_cameras_are_those_of_most_episodes_not_of_the_first(tmp_path: Path) -> None:
    path = write_droid(tmp_path / "droid")
    first, second, _ = sorted(path.glob("LAB/success/*/*/recordings/MP4"))
    (first / "333.mp4").unlink()
    write_video(first / "222.mp4", [picture(0, row, (48, 48)) for row in range(LENGTHS[0])])
    (second / "111.mp4").write_bytes(b"")
    log = open_log(path, None, LogOptions())
    assert log.cameras == {role: CameraInfo(*SIZE) for role in ("ext1", "ext2", "wrist")}


def test_templates_are_trusted_not_the_version(tmp_path: Path) -> None:
    path = write_lerobot_v3(tmp_path / "log", "libx264")
    info = json.loads((path / "meta/info.json").read_text())
    info["codebase_version"] = "v2.1"
    info["data_path"] = "numbers/{chunk_index}-{file_index:02d}.parquet"
    (path / "meta/info.json").write_text(json.dumps(info))
    (path / "numbers").mkdir()
    shutil.move(path / "data/chunk-000/file-000.parquet", path / "numbers/0-00.parquet")
    log = open_log(path, None, LogOptions())
    assert len(log.rows("2", ["action"]).times) == LENGTHS[2]


@pytest.mark.parametrize(
    "template", ["{chunk_index.__class__}/x", "data/{unknown}.parquet", "data/{chunk_index!r}.parquet", "{", "{0}"]
)
def test_templates_that_are_not_plain_are_refused(tmp_path: Path, template: str) -> None:
    path = write_lerobot_v3(tmp_path / "log", "libx264")
    info = json.loads((path / "meta/info.json").read_text())
    info["data_path"] = template
    (path / "meta/info.json").write_text(json.dumps(info))
    with pytest.raises(InputError, match="path template"):
        open_log(path, None, LogOptions())


def test_a_single_video_with_its_states(tmp_path: Path) -> None:
    from toy_logs import write_video_folders

    path = write_video_folders(tmp_path / "runs")
    options = LogOptions(states=path / "01/states.json")
    log = open_log(path / "01/top.mp4", None, options)
    assert list(log.cameras) == ["camera"] and len(log.rows(".", ["state"]).times) == LENGTHS[1]
    assert_shows(next(iter(log.frames(".", "camera", np.array([4])))), 1, 4)


def test_a_single_videos_fingerprint_is_of_it_and_its_states_alone(tmp_path: Path) -> None:
    from toy_logs import write_video_folders

    path = write_video_folders(tmp_path / "runs") / "01"
    log = open_log(path / "top.mp4", None, LogOptions(states=path / "states.json"))
    before = fingerprint(log, path / "top.mp4")
    (path / "holiday.mp4").write_bytes(b"x")
    assert sorted(file.name for file in log.files()) == ["states.json", "top.mp4"]
    assert fingerprint(log, path / "top.mp4") == before
    (path / "states.json").write_text("[]")
    assert fingerprint(log, path / "top.mp4") != before


def test_pictures_in_parquet_are_sized_before_reading_and_kept_apart_from_numbers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = write_lerobot_images(tmp_path / "log")
    info = json.loads((path / "meta/info.json").read_text())
    info["data_path"] = "data/chunk-000/episode_000000.parquet"  # all episodes in one group of rows
    files = sorted(path.glob("data/*/*.parquet"))
    pq.write_table(pa.concat_tables([pq.read_table(file) for file in files]), files[0])
    (path / "meta/info.json").write_text(json.dumps({**info, "data_path": info["data_path"] + "{episode_index}"}))
    for episode in range(3):
        (path / f"data/chunk-000/episode_000000.parquet{episode}").symlink_to(files[0])
    camera, reads, real = "observation.images.top", [], lerobot.read_columns
    monkeypatch.setattr(lerobot, "read_columns", lambda *given: (reads.append(given[1]), real(*given))[1])
    log = open_log(path, None, LogOptions())
    for name in log.episodes()[:1] * 3:
        log.rows(name, ["observation.state"])
        assert_shows(next(iter(log.frames(name, camera, np.array([4])))), 0, 4)
    assert len(reads) == 2  # the numbers once, the pictures once
    monkeypatch.setattr(lerobot, "_MAX_BYTES", 2000)
    log = open_log(path, None, LogOptions())
    log.rows("0", ["observation.state"])
    with pytest.raises(InputError, match="GB in the groups of rows"):
        next(iter(log.frames("0", camera, np.array([4]))))


def test_an_unknown_format_or_path_offers_the_names(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not exist"):
        open_log(tmp_path / "nothing", None, LogOptions())
    (tmp_path / "a.txt").touch()
    with pytest.raises(InputError, match="lerobot, minari, robomimic, diffusion-policy, ogbench, droid, folders"):
        open_log(tmp_path / "a.txt", None, LogOptions())
    with pytest.raises(InputError, match="did you mean 'robomimic'"):
        open_log(tmp_path / "a.txt", "robominic", LogOptions())
    with pytest.raises(InputError, match="no log format"):
        open_log(tmp_path / "a.txt", "json:JSONDecoder", LogOptions())


def test_a_dataset_of_the_real_lerobot_package() -> None:
    """`lerobot_sample/`, written by lerobot 0.4.4 with `write_lerobot_sample.py`: v3.0, AV1, two cameras."""
    from write_lerobot_sample import LENGTHS as lengths

    log = open_log(Path(__file__).parent / "lerobot_sample", None, LogOptions())
    assert log.robot == "toyarm" and log.rate_hz == 10 and not log.broken
    assert log.cameras == {
        "observation.images.top": CameraInfo(64, 96),
        "observation.images.wrist": CameraInfo(64, 64),
    }
    for episode, (name, length) in enumerate(zip(log.episodes(), lengths, strict=True)):
        rows = log.rows(name, ["observation.state", "action"])
        assert rows.task == f"task {episode % 2}"
        expected = [[0.1 * i, -0.05 * i + episode, i % 2] for i in range(length)]
        np.testing.assert_allclose(rows.vectors["observation.state"], expected, atol=1e-6)
        np.testing.assert_allclose(rows.vectors["action"], np.array(expected) + 0.01, atol=1e-6)
        for i, frame in enumerate(log.frames(name, "observation.images.top", np.arange(length))):
            assert abs(int((frame[:, :, 0] > 200).any(axis=0).argmax()) - 4 * i) <= 1
        for i, frame in enumerate(log.frames(name, "observation.images.wrist", np.arange(length))):
            colour = (10 * i + 20, 90, 40 * episode + 30)
            np.testing.assert_allclose(frame.reshape(-1, 3).mean(axis=0), colour, atol=6)


def test_words_of_lerobot_are_kept_with_the_episode(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    source = write_lerobot_v3(tmp_path / "log", "libx264")
    info = json.loads((source / "meta/info.json").read_text())
    words = {"dtype": "string", "shape": [1], "names": None}
    info["features"] |= {"language_instruction": words, "observation.note": words, "observation.gone": words}
    (source / "meta/info.json").write_text(json.dumps(info))
    file = source / "data/chunk-000/file-000.parquet"
    table = pq.read_table(file)
    said = ["reach" if row < 4 else "grasp" for row in table["frame_index"].to_pylist()]
    table = table.append_column("language_instruction", pa.array(said))
    pq.write_table(table.append_column("observation.note", pa.array([f"row {i}" for i in range(len(table))])), file)
    log = open_log(source, None, LogOptions())
    plan = prepare(ImportSettings(source, tmp_path / "a.zarr"))
    for name, length in zip(log.episodes(), LENGTHS, strict=True):
        texts = log.rows(name, ["observation.state"]).texts
        assert texts["language_instruction"] == [(0.0, "reach"), (pytest.approx(4 / RATE), "grasp")]
        assert len(texts["observation.note"]) == length
        episode = plan.converter.convert(name).episodes[0]
        assert episode.metadata["texts"]["language_instruction"][0] == [0.0, "reach"]
        json.dumps(dict(episode.metadata))


def test_a_recording_of_the_real_robomimic_package() -> None:
    """`robomimic_sample/`, written by robosuite 1.5.2 and robomimic 0.3.0 with `write_robomimic_sample.py`; without a
    rate in its settings, robosuite's own is taken."""
    import h5py

    path = Path(__file__).parent / "robomimic_sample/lift.hdf5"
    plan = prepare(ImportSettings(path, path.with_name("none.zarr")))
    assert plan.spec.robot == "Panda" and plan.spec.state_model == "pose" and not plan.survey.reasons
    assert plan.spec.control_period_s == 0.05
    assert dict(plan.spec.cameras) == {"agentview": (16, 16), "robot0_eye_in_hand": (16, 16)}
    with h5py.File(path) as file:
        for name in plan.names:
            obs, episode = file["data"][name]["obs"], plan.converter.convert(name).episodes[0]
            np.testing.assert_allclose(episode.states[:, :3], obs["robot0_eef_pos"][()], atol=1e-6)
            seen = Rotation.from_euler("xyz", episode.states[:, 3:6])
            logged = Rotation.from_quat(obs["robot0_eef_quat"])
            assert (seen * logged.inv()).magnitude().max() < 1e-5
            np.testing.assert_allclose(episode.states[:, 6], 1 - obs["robot0_gripper_qpos"][:, 0] / 0.04, atol=1e-5)
            for camera, frames in episode.images.items():
                np.testing.assert_array_equal(frames, obs[f"{camera}_image"][()])


def test_a_recording_without_pictures_says_how_to_draw_them(tmp_path: Path) -> None:
    import h5py

    with h5py.File(tmp_path / "raw.hdf5", "w") as file:  # what robosuite itself records
        file["data/demo_1/states"], file["data/demo_1/actions"] = np.zeros((5, 32)), np.zeros((5, 7))
    with pytest.raises(InputError, match=r"no pictures.*dataset_states_to_obs"):
        prepare(ImportSettings(tmp_path / "raw.hdf5", tmp_path / "a.zarr"))


def test_depth_maps_of_lerobot_are_no_cameras(tmp_path: Path) -> None:
    source = write_lerobot_v3(tmp_path / "log", "libx264")
    info = json.loads((source / "meta/info.json").read_text())
    flagged = {"dtype": "video", "shape": [64, 96, 3], "names": None, "info": {"video.is_depth_map": True}}
    single = {"dtype": "image", "shape": [1, 64, 96], "names": ["channels", "height", "width"]}
    info["features"] |= {"observation.images.depth": flagged, "observation.images.wrist_depth": single}
    (source / "meta/info.json").write_text(json.dumps(info))
    log = open_log(source, None, LogOptions())
    assert list(log.cameras) == ["observation.images.top"]
    assert len(list(log.frames("1", "observation.images.top", np.arange(2)))) == 2
