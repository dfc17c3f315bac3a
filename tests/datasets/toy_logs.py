"""Small logs of every format, written per the published layouts, and what each of their episodes holds.

All show one toy arm: row i of episode e has the state (0.1 i + e, -0.05 i, i % 2), and pictures whose brightness
tells episode and row.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

LENGTHS = (9, 6, 12)
RATE = 10
SIZE = (64, 96)  # libsvtav1 wants at least 64 pixels
NAMES = ("a", "b", "grip")


def state(episode: int, length: int) -> np.ndarray:
    rows = np.arange(length)
    return np.stack([0.1 * rows + episode, -0.05 * rows, rows % 2], axis=1).astype(np.float32)


def picture(episode: int, row: int, size: tuple[int, int] = SIZE) -> np.ndarray:
    """Even brightness: red tells the row, green the episode."""
    frame = np.empty((*size, 3), np.uint8)
    frame[...] = (40 + 12 * row, 60 + 50 * episode, 128)
    return frame


def assert_shows(frame: np.ndarray, episode: int, row: int, tolerance: int = 5) -> None:
    """The picture is that of this episode and row: neighbours differ by 12."""
    mean = frame.reshape(-1, 3).astype(float).mean(axis=0)
    np.testing.assert_allclose(mean, picture(episode, row)[0, 0], atol=tolerance)


def write_video(path: Path, frames: Sequence[np.ndarray], codec: str = "libx264", rate: int = RATE) -> None:
    import av

    from vjepa_mpc.core.scheduling import same_scheduling

    path.parent.mkdir(parents=True, exist_ok=True)
    settings = {"crf": "12", "g": "2"}
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=rate, options=settings)
        stream.height, stream.width, stream.pix_fmt = *frames[0].shape[:2], "yuv420p"
        stream.time_base = Fraction(1, rate)
        with same_scheduling():
            stream.codec_context.open()
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode(None))


def _info(version: str, templates: Mapping[str, str], cameras: Sequence[str], kind: str = "video") -> dict[str, Any]:
    shape = {"shape": [*SIZE, 3], "names": ["height", "width", "channels"]}
    vector = {"dtype": "float32", "shape": [3], "names": {"motors": list(NAMES)}}
    return {
        "codebase_version": version,
        "robot_type": "toyarm",
        "total_episodes": len(LENGTHS),
        "total_frames": sum(LENGTHS),
        "chunks_size": 2,
        "fps": RATE,
        **templates,
        "features": {
            **{camera: {"dtype": kind, **shape} for camera in cameras},
            "observation.state": vector,
            "action": vector,
            "task": {"dtype": "string", "shape": [1], "names": None},
            **{name: {"dtype": "int64", "shape": [1], "names": None} for name in ("frame_index", "episode_index")},
            "timestamp": {"dtype": "float32", "shape": [1], "names": None},
        },
    }


def _columns(episode: int, length: int, extra: Mapping[str, Any] | None = None) -> Any:
    import pyarrow as pa

    states = state(episode, length)
    vectors = pa.list_(pa.float32(), 3)
    return pa.table(
        {
            "observation.state": pa.array(list(states), vectors),
            "action": pa.array(list(states + 0.01), pa.list_(pa.float32())),
            "timestamp": pa.array(np.arange(length, dtype=np.float32) / np.float32(RATE)),
            "frame_index": pa.array(np.arange(length)),
            "episode_index": pa.array(np.full(length, episode)),
            **(extra or {}),
        }
    )


def write_lerobot_v2(path: Path, codec: str = "libx264") -> Path:
    """v2.1: one parquet file and one video an episode, two episodes a chunk."""
    import pyarrow.parquet as pq

    templates = {
        "data_path": "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet",
        "video_path": "videos/chunk-{episode_chunk:03d}/{video_key}/episode_{episode_index:06d}.mp4",
    }
    (path / "meta").mkdir(parents=True)
    (path / "meta/info.json").write_text(json.dumps(_info("v2.1", templates, ["observation.images.top"])))
    lines = []
    for episode, length in enumerate(LENGTHS):
        chunk = f"chunk-{episode // 2:03d}"
        (path / "data" / chunk).mkdir(parents=True, exist_ok=True)
        pq.write_table(_columns(episode, length), path / "data" / chunk / f"episode_{episode:06d}.parquet")
        video = path / "videos" / chunk / "observation.images.top" / f"episode_{episode:06d}.mp4"
        write_video(video, [picture(episode, row) for row in range(length)], codec)
        lines.append(json.dumps({"episode_index": episode, "tasks": [f"task {episode}"], "length": length}))
    (path / "meta/episodes.jsonl").write_text("\n".join(lines) + "\n")
    return path


def write_lerobot_v3(path: Path, codec: str = "libsvtav1") -> Path:
    """v3.0: all episodes in one parquet file and one video."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    camera = "observation.images.top"
    templates = {
        "data_path": "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet",
        "video_path": "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4",
    }
    for folder in ("meta/episodes/chunk-000", "data/chunk-000"):
        (path / folder).mkdir(parents=True)
    (path / "meta/info.json").write_text(json.dumps(_info("v3.0", templates, [camera])))
    frames = [picture(episode, row) for episode, length in enumerate(LENGTHS) for row in range(length)]
    write_video(path / "videos" / camera / "chunk-000/file-000.mp4", frames, codec)
    tables = [_columns(episode, length) for episode, length in enumerate(LENGTHS)]
    with pq.ParquetWriter(path / "data/chunk-000/file-000.parquet", tables[0].schema) as writer:
        writer.write_table(tables[0])
        writer.write_table(pa.concat_tables(tables[1:]))  # two episodes in one group of rows
    starts = np.cumsum([0, *LENGTHS])[:-1]
    rows = {
        "episode_index": list(range(len(LENGTHS))),
        "tasks": [[f"task {episode}"] for episode in range(len(LENGTHS))],
        "length": list(LENGTHS),
        "data/chunk_index": [0] * len(LENGTHS),
        "data/file_index": [0] * len(LENGTHS),
        f"videos/{camera}/chunk_index": [0] * len(LENGTHS),
        f"videos/{camera}/file_index": [0] * len(LENGTHS),
        f"videos/{camera}/from_timestamp": (starts / RATE).tolist(),
        f"videos/{camera}/to_timestamp": ((starts + LENGTHS) / RATE).tolist(),
    }
    pq.write_table(pa.table(rows), path / "meta/episodes/chunk-000/file-000.parquet")
    return path


def write_lerobot_images(path: Path) -> Path:
    """v2.1 with the pictures as PNG in the parquet files."""
    import pyarrow as pa
    import pyarrow.parquet as pq
    from PIL import Image

    write = {"data_path": "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet"}
    (path / "meta").mkdir(parents=True)
    (path / "meta/info.json").write_text(json.dumps(_info("v2.1", write, ["observation.images.top"], "image")))
    lines = []
    for episode, length in enumerate(LENGTHS):
        cells = []
        for row in range(length):
            stream = io.BytesIO()
            Image.fromarray(picture(episode, row)).save(stream, "PNG")
            cells.append({"bytes": stream.getvalue(), "path": f"frame-{row:06d}.png"})
        pictures = {"observation.images.top": pa.array(cells, pa.struct({"bytes": pa.binary(), "path": pa.string()}))}
        file = path / f"data/chunk-{episode // 2:03d}/episode_{episode:06d}.parquet"
        file.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(_columns(episode, length, pictures), file)
        lines.append(json.dumps({"episode_index": episode, "tasks": [f"task {episode}"], "length": length}))
    (path / "meta/episodes.jsonl").write_text("\n".join(lines))
    return path


def write_robomimic(path: Path) -> Path:
    """robomimic's HDF5; demonstrations are numbered, and 10 comes after 2."""
    import h5py

    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        data = file.create_group("data")
        data.attrs["total"] = sum(LENGTHS)
        settings = {"env_name": "Lift", "env_kwargs": {"control_freq": RATE, "robots": ["toyarm"]}}
        data.attrs["env_args"] = json.dumps(settings)
        for episode, (name, length) in enumerate(zip(("demo_1", "demo_2", "demo_10"), LENGTHS, strict=True)):
            demo = data.create_group(name)
            demo.attrs["num_samples"] = length
            demo.attrs["task"] = f"task {episode}"
            demo["obs/state"] = state(episode, length).astype(np.float64)
            demo["next_obs/state"] = state(episode, length)
            demo["actions"] = state(episode, length) + 0.01
            demo["rewards"] = np.zeros(length)
            frames = np.stack([picture(episode, row) for row in range(length)])
            demo.create_dataset("obs/top_image", data=frames, chunks=(1, *SIZE, 3), compression="gzip")
    return path


def write_droid(path: Path, notes: bool = True) -> Path:
    """DROID's raw folders: an end-effector pose, two outside cameras and a wrist camera."""
    import h5py

    serials = {"ext1": "222", "ext2": "333", "wrist": "111"}
    for episode, length in enumerate(LENGTHS):
        folder = path / f"LAB/success/2023-01-0{episode + 1}/Mon_Jan__{episode}"
        folder.mkdir(parents=True)
        rows = state(episode, length).astype(np.float64)
        with h5py.File(folder / "trajectory.h5", "w") as file:
            robot = file.create_group("observation/robot_state")
            robot["cartesian_position"] = np.concatenate([rows[:, :2], 0 * rows[:, :1] + 0.3, rows * 0.1], axis=1)
            robot["gripper_position"] = rows[:, 2]
            robot["joint_positions"] = np.zeros((length, 7))
            file["action/cartesian_velocity"] = np.zeros((length, 6))
            milliseconds = 1_690_000_000_000 + np.arange(length) * 1000 // RATE
            file["observation/timestamp/robot_state/read_start"] = milliseconds
            for role, serial in serials.items():
                file[f"observation/camera_type/{serial}"] = np.full(length, 0 if role == "wrist" else 1)
            # A camera 1 m above the base, looking along its x axis turned by 90 degrees.
            file["observation/camera_extrinsics/222_left"] = np.tile([0, 0, 1, 0, 0, np.pi / 2], (length, 1))
        for serial in serials.values():
            frames = [picture(episode, row) for row in range(length)]
            write_video(folder / "recordings/MP4" / f"{serial}.mp4", frames)
        if notes:
            value = {"current_task": f"task {episode}", **{f"{r}_cam_serial": s for r, s in serials.items()}}
            (folder / "metadata_x.json").write_text(json.dumps(value))
    return path


def write_pictures(path: Path) -> Path:
    """Folders of pictures with a CSV each; picture 10 comes after picture 9."""
    from PIL import Image

    for episode, length in enumerate(LENGTHS):
        folder = path / f"run{episode + 8}"
        (folder / "top").mkdir(parents=True)
        for row in range(length):
            Image.fromarray(picture(episode, row)).save(folder / "top" / f"{row}.png")
        with (folder / "states.csv").open("w", newline="") as stream:
            writer = csv.writer(stream)
            writer.writerow(["time", *NAMES, "note", "action_a"])
            writer.writerows(
                [row / RATE, *values, "word", 0.5] for row, values in enumerate(state(episode, length).tolist())
            )
    return path


def write_video_folders(path: Path) -> Path:
    """Folders with a video and a JSON object of arrays."""
    for episode, length in enumerate(LENGTHS):
        folder = path / f"{episode:02d}"
        write_video(folder / "top.mp4", [picture(episode, row) for row in range(length)])
        value = {
            "states": state(episode, length).tolist(),
            "state_names": list(NAMES),
            "times": (np.arange(length) / RATE).tolist(),
            "task": f"task {episode}",
        }
        (folder / "states.json").write_text(json.dumps(value))
    return path


def _replay_buffer(frames: np.dtype[Any] | type = np.uint8) -> dict[str, np.ndarray]:
    """All episodes one after the other."""
    states = np.concatenate([state(episode, length) for episode, length in enumerate(LENGTHS)])
    pictures = np.concatenate(
        [np.stack([picture(e, row) for row in range(length)]) for e, length in enumerate(LENGTHS)]
    ).astype(frames)
    return {"data/img": pictures, "data/state": states, "data/action": states + np.float32(0.01)}


def _zarr_v2(arrays: Mapping[str, np.ndarray], chunk: int, codecs: Sequence[Any]) -> dict[str, bytes]:
    """The files of a Zarr v2 group, by its specification; each array packed by the next codec."""
    files = {f"{place}.zgroup": b'{"zarr_format": 2}' for place in ("", "data/", "meta/")}
    for number, (name, array) in enumerate(arrays.items()):
        codec = codecs[number % len(codecs)]
        value = {
            "zarr_format": 2, "shape": array.shape, "chunks": [chunk, *array.shape[1:]], "dtype": array.dtype.str,
            "compressor": None if codec is None else codec.get_config(), "fill_value": 0, "order": "C", "filters": None,
        }  # fmt: skip
        files[f"{name}/.zarray"] = json.dumps(value).encode()
        for i in range(-(-len(array) // chunk)):
            block = np.zeros((chunk, *array.shape[1:]), array.dtype)
            part = array[i * chunk : (i + 1) * chunk]
            block[: len(part)] = part
            key = ".".join(map(str, [i, *[0] * (array.ndim - 1)]))
            files[f"{name}/{key}"] = block.tobytes() if codec is None else bytes(codec.encode(block))
    return files


def write_diffusion_policy(path: Path) -> Path:
    """A replay buffer in a folder; floats from 0 to 255 for pictures, as Push-T has them."""
    from numcodecs import Blosc, Zlib, Zstd

    arrays = {**_replay_buffer(np.float32), "meta/episode_ends": np.cumsum(LENGTHS)}
    for name, data in _zarr_v2(arrays, 7, [Blosc(), Zlib(), Zstd(), None]).items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(data)
    return path


def write_diffusion_policy_zip(path: Path) -> Path:
    """The same zipped, everything below a folder of its own, pictures as bytes."""
    import zipfile

    from numcodecs import LZ4, GZip

    path.parent.mkdir(parents=True, exist_ok=True)
    arrays = {**_replay_buffer(), "meta/episode_ends": np.cumsum(LENGTHS)}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in _zarr_v2(arrays, 5, [LZ4(), GZip()]).items():
            archive.writestr(f"replay.zarr/{name}", data)
    return path


def write_ogbench(path: Path) -> Path:
    """A visual OGBench file: pictures are the observations."""
    arrays = _replay_buffer()
    ends = np.zeros(sum(LENGTHS), np.float32)
    ends[np.cumsum(LENGTHS) - 1] = 1
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(
        path, observations=arrays["data/img"], actions=arrays["data/action"], terminals=ends, qpos=arrays["data/state"]
    )
    return path


def write_minari(path: Path) -> Path:
    """A Minari dataset: one action fewer than observations; episode 10 comes after 9."""
    import h5py

    (path / "data").mkdir(parents=True)
    with h5py.File(path / "data/main_data.hdf5", "w") as file:
        for episode, (number, length) in enumerate(zip((8, 9, 10), LENGTHS, strict=True)):
            group = file.create_group(f"episode_{number}")
            group["actions"] = state(episode, length)[:-1] + 0.01
            group["rewards"] = np.zeros(length - 1)
            group["observations/agent_pos"] = state(episode, length)
            group["observations/pixels"] = np.stack([picture(episode, row) for row in range(length)])
    return path


# A writer, and how its state and camera are named: the contract suite runs over these.
WRITERS: dict[str, tuple[Callable[[Path], Path], str, str]] = {
    "lerobot-v3": (write_lerobot_v3, "observation.state", "observation.images.top"),
    "lerobot-v2": (write_lerobot_v2, "observation.state", "observation.images.top"),
    "lerobot-images": (write_lerobot_images, "observation.state", "observation.images.top"),
    "robomimic": (lambda path: write_robomimic(path / "low.hdf5"), "obs/state", "obs/top_image"),
    "droid": (write_droid, "robot_state/cartesian_position", "ext1"),
    "pictures": (write_pictures, "state", "top"),
    "videos": (write_video_folders, "state", "top"),
    "diffusion-policy": (write_diffusion_policy, "state", "img"),
    "diffusion-policy-zip": (lambda path: write_diffusion_policy_zip(path / "a.zarr.zip"), "state", "img"),
    "ogbench": (lambda path: write_ogbench(path / "a.npz"), "qpos", "observations"),
    "minari": (write_minari, "observations/agent_pos", "observations/pixels"),
}
