"""How `robomimic_sample/lift.hdf5` was written, by robosuite 1.5.2 and robomimic 0.3.0 in an environment of their own:

    python write_robomimic_sample.py FOLDER
    python -m robomimic.scripts.conversion.convert_robosuite --dataset FOLDER/demo.hdf5
    python -m robomimic.scripts.dataset_states_to_obs --dataset FOLDER/demo.hdf5 --output_name lift.hdf5 --n 2 \
        --done_mode 2 --camera_names agentview robot0_eye_in_hand --camera_height 16 --camera_width 16 \
        --exclude-next-obs --compress

Then the attributes `model_file` (60 kB each) were taken out.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np


def write(folder: str) -> None:
    import robosuite
    from robosuite.controllers import load_composite_controller_config
    from robosuite.scripts.collect_human_demonstrations import gather_demonstrations_as_hdf5
    from robosuite.wrappers import DataCollectionWrapper

    controller = load_composite_controller_config(controller="BASIC", robot="Panda")
    settings = {"env_name": "Lift", "robots": ["Panda"], "controller_configs": controller}
    offscreen = {"has_renderer": False, "has_offscreen_renderer": False, "use_camera_obs": False}
    world = robosuite.make(**settings, **offscreen, ignore_done=True, control_freq=20)
    raw = str(Path(folder) / "raw")
    recorder, generator = DataCollectionWrapper(world, raw), np.random.default_rng(0)
    for episode in range(4):
        recorder.reset()
        action = np.zeros(7)
        for step in range(24 + 5 * episode):
            action = 0.8 * action + 0.3 * generator.normal(size=7)
            action[6] = 1 if step % 14 > 7 else -1
            recorder.step(np.clip(action, -1, 1))
        recorder.successful = True  # or it would not be kept
    recorder.close()
    gather_demonstrations_as_hdf5(raw, folder, json.dumps(settings, default=str))


if __name__ == "__main__":
    write(sys.argv[1])
