"""What a task looks like, and what a step of it costs: the job of `vjepa-mpc tasks show` and `tasks cost`."""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from vjepa_mpc.core.files import atomic_path
from vjepa_mpc.recorders import write_video
from vjepa_mpc.robots.base import Robot, SimulatedRobot
from vjepa_mpc.robots.dynamics import LOOKS
from vjepa_mpc.robots.task import Task, led_script
from vjepa_mpc.robots.world import MujocoWorld, vary_world

COLUMNS = 6
_GAP, _CAPTION = 4, 14
_INK, _PAPER = (20, 20, 20), (255, 255, 255)

Picture = UInt8[np.ndarray, "height width 3"]


@dataclass(frozen=True)
class Demonstration:
    """One scripted episode: pictures from the start on (one more than distances, in m), and the goal's."""

    pictures: tuple[Picture, ...]
    distances: tuple[float, ...]
    goal: Picture
    held: bool


def demonstrate(robot: SimulatedRobot, task: Task, seed: int) -> Demonstration:
    """Play the task's script on a pair drawn from `seed`, for the whole step budget."""
    start, goal = task.sample_pair(np.random.default_rng(seed))
    camera = next(iter(robot.spec.cameras))
    target = robot.place(goal).images[camera]
    pictures, distances = [robot.place(start).images[camera]], []
    script = led_script(task, start, goal)
    for _ in range(task.step_budget):
        robot.apply(script(robot.true_state()))
        pictures.append(robot.observe().images[camera])
        distances.append(task.distance(robot.true_state(), goal))
    return Demonstration(tuple(pictures), tuple(distances), target, task.held(distances))


def write_pair(
    robot: SimulatedRobot, task: Task, folder: Path, seed: int
) -> tuple[str, dict[Path, list[float]]]:
    """Write start.png and goal.png of a pair drawn from `seed`, and goal-1.png and so on of what the task shows before
    its goal. The start's state as `plan --start` takes it, and each goal picture's state [w], in order."""
    from PIL import Image

    start, goal = task.sample_pair(np.random.default_rng(seed))
    camera = next(iter(robot.spec.cameras))
    *before, last = task.sub_goals(start, goal)
    names = [*(f"goal-{number}.png" for number in range(1, 1 + len(before))), "goal.png"]
    states = {folder / name: one.state for name, one in zip(names, [*before, last], strict=True)}
    folder.mkdir(parents=True, exist_ok=True)
    for path, state in {folder / "start.png": start, **states}.items():
        with atomic_path(path) as temporary:
            Image.fromarray(robot.place(state).images[camera]).save(temporary, format="png")
    said = ",".join(f"{value:.6g}" for value in start)
    return said, {path: [round(float(value), 6) for value in state] for path, state in states.items()}


def show(
    robot: SimulatedRobot, task: Task, folder: Path, seed: int = 0, levels: Mapping[str, float] | None = None
) -> tuple[Path, Path, Demonstration]:
    """Write `<robot>.png`, a contact sheet, and `<robot>.mp4`, the script's episode beside its goal, to `folder`.

    The sheet's first row is the episode, its last picture the goal; the second shows random states in looks of
    other seeds. `levels` are factors of variation for the episode and the looks (by default the episode is plain
    and the looks vary in full); they need a `MujocoWorld`.
    """
    varied = isinstance(robot, MujocoWorld)
    if levels:
        vary_world(robot, seed, levels)
    episode = demonstrate(robot, task, seed)
    count = len(episode.distances)
    steps = [round(count * index / (COLUMNS - 2)) for index in range(COLUMNS - 1)]
    cells = [(f"step {step}", episode.pictures[step]) for step in steps] + [("goal", episode.goal)]
    camera, generator = next(iter(robot.spec.cameras)), np.random.default_rng(seed)
    for look in range(COLUMNS if varied else 0):
        vary_world(robot, look, levels or dict.fromkeys(LOOKS, 1.0))
        cells.append((f"look {look}", robot.place(robot.sample_state(generator)).images[camera]))
    name = task.robot.replace(":", "-").replace(".", "-")
    sheet, video = folder / f"{name}.png", folder / f"{name}.mp4"
    _save_sheet(cells, sheet)
    frames = [_enlarged(np.concatenate([episode.goal, picture], axis=1)) for picture in episode.pictures]
    write_video(video, frames, 1.0 / robot.spec.control_period_s)
    return sheet, video, episode


def show_wandering(robot: Robot, name: str, folder: Path, seed: int = 0, steps: int = 50) -> tuple[Path, Path]:
    """The same two files for a robot without a task, such as a Gymnasium environment: random actions from its reset."""
    generator, camera = np.random.default_rng(seed), next(iter(robot.spec.cameras))
    pictures = [robot.reset(seed).images[camera]]
    for _ in range(steps):
        robot.apply(generator.uniform(robot.spec.action_low, robot.spec.action_high))
        pictures.append(robot.observe().images[camera])
    chosen = [round(steps * index / (COLUMNS - 1)) for index in range(COLUMNS)]
    sheet, video = folder / f"{name}.png", folder / f"{name}.mp4"
    _save_sheet([(f"step {step}", pictures[step]) for step in chosen], sheet)
    write_video(video, [_enlarged(picture) for picture in pictures], 1.0 / robot.spec.control_period_s)
    return sheet, video


def _save_sheet(cells: list[tuple[str, Picture]], path: Path) -> None:
    from PIL import Image, ImageDraw, ImageFont

    height, width = cells[0][1].shape[:2]
    rows = -(-len(cells) // COLUMNS)
    step_x, step_y = width + _GAP, height + _GAP + _CAPTION
    sheet = Image.new("RGB", (COLUMNS * step_x + _GAP, rows * step_y + _GAP), _PAPER)
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(10)
    for index, (caption, picture) in enumerate(cells):
        x, y = _GAP + (index % COLUMNS) * step_x, _GAP + (index // COLUMNS) * step_y
        pen.text((x, y), caption, fill=_INK, font=font)
        sheet.paste(Image.fromarray(picture), (x, y + _CAPTION))
    with atomic_path(path) as temporary:
        sheet.save(temporary, format="png")


def _enlarged(picture: Picture) -> UInt8[np.ndarray, "tall wide 3"]:
    """At least 192 pixels high, in hard pixels."""
    factor = max(1, -(-192 // picture.shape[0]))
    return picture.repeat(factor, axis=0).repeat(factor, axis=1)


@dataclass(frozen=True)
class StepCost:
    """Medians in ms of this process's CPU time (all its threads): one control step, one picture, one script step."""

    physics: float
    picture: float
    script: float

    @property
    def step(self) -> float:
        """Physics and picture."""
        return self.physics + self.picture


def step_cost(robot: SimulatedRobot, task: Task, steps: int = 100, seed: int = 0) -> StepCost:
    """Measure one control step under random actions, one observation and one step of the script."""
    generator = np.random.default_rng(seed)
    robot.place(robot.sample_state(generator))
    script = task.script(task.sample_pair(generator)[1])
    physics, pictures, scripts = [], [], []
    for _ in range(steps):
        state = robot.true_state()
        begun = time.process_time()
        script(state)
        scripted = time.process_time()
        robot.apply(generator.uniform(robot.spec.action_low, robot.spec.action_high))
        moved = time.process_time()
        robot.observe()
        seen = time.process_time()
        scripts.append(scripted - begun)
        physics.append(moved - scripted)
        pictures.append(seen - moved)
    return StepCost(*(1e3 * statistics.median(times) for times in (physics, pictures, scripts)))
