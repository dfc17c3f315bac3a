"""How `lerobot_sample/` was written, by the real lerobot 0.4.4 in an environment of its own:

python write_lerobot_sample.py FOLDER
"""

from __future__ import annotations

import sys

import numpy as np

LENGTHS = (12, 7, 15)


def write(folder: str) -> None:
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    def video(*shape: int) -> dict[str, object]:
        return {"dtype": "video", "shape": shape, "names": ["height", "width", "channels"]}

    vector = {"dtype": "float32", "shape": (3,), "names": ["a", "b", "grip"]}
    features = {
        "observation.images.top": video(64, 96, 3),
        "observation.images.wrist": video(64, 64, 3),
        "observation.state": vector,
        "action": vector,
    }
    dataset = LeRobotDataset.create("me/sample", 10, features, folder, "toyarm", True, vcodec="libsvtav1")
    for episode, length in enumerate(LENGTHS):
        for i in range(length):
            top, wrist = np.zeros((64, 96, 3), np.uint8), np.zeros((64, 64, 3), np.uint8)
            top[...] = (40 * episode + 30, 10 * i + 20, 60)
            top[:, 4 * i : 4 * i + 8] = 255  # a white bar that moves to the right
            wrist[...] = (10 * i + 20, 90, 40 * episode + 30)
            state = np.array([0.1 * i, -0.05 * i + episode, i % 2], np.float32)
            frame = {"observation.images.top": top, "observation.images.wrist": wrist}
            frame |= {"observation.state": state, "action": state + 0.01, "task": f"task {episode % 2}"}
            dataset.add_frame(frame)
        dataset.save_episode()
    dataset.finalize()


if __name__ == "__main__":
    write(sys.argv[1])
