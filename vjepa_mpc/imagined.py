"""What a plan is expected to look like: imagined latents shown by the likest of pictures that were really taken.

No decoder is trained: each imagined frame is shown as the nearest, in latent space, of many places of the task's world.
What no picture resembles is told by how far the likest one is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from vjepa_mpc.controller import Controller, ControllerState, Decision
from vjepa_mpc.core.files import atomic_path
from vjepa_mpc.costs import latent_distance
from vjepa_mpc.energy import draw_energy
from vjepa_mpc.episodes import Begun, Diary, Picture, Scene
from vjepa_mpc.plan_files import plan_energy
from vjepa_mpc.policies import PlannedPolicy
from vjepa_mpc.robots.base import SimulatedRobot
from vjepa_mpc.robots.task import Task
from vjepa_mpc.robots.tasks import Pair
from vjepa_mpc.world_model import WorldModel

PLACES = 256
"""Places a gallery shows, by default."""
_BATCH = 64  # pictures encoded at a time
_SEED = 20_261_123  # of the places: the same for every plan, so that figures differ by their plans alone


@dataclass(frozen=True)
class Gallery:
    """Pictures of a world, and their latents."""

    pictures: UInt8[np.ndarray, "n height width 3"]
    latents: Float[Tensor, "n p d"]

    def likest(self, latents: Float[Tensor, "k p d"]) -> list[tuple[int, float]]:
        """For each of the latents the nearest picture's number, and how far it is (mean absolute difference)."""
        found = []
        for one in latents:
            distances = latent_distance(self.latents, one[None])
            number = int(distances.argmin())
            found.append((number, float(distances[number])))
        return found


def gallery(model: WorldModel, robot: SimulatedRobot, task: Task, seen: Sequence[Picture], places: int) -> Gallery:
    """`places` states that the task itself draws, as they look in the robot's present look, and pictures `seen`.

    Moves the robot; to be called after what the episode needs has been looked at.
    """
    generator, pictures = np.random.default_rng(_SEED), list(seen)
    while len(pictures) < places + len(seen):
        for state in task.sample_pair(generator):
            pictures.append(robot.place(np.asarray(state)).images[model.config.camera])
    stacked = np.stack(pictures[: places + len(seen)])
    with torch.no_grad():
        latents = torch.cat([model.encode(stacked[at : at + _BATCH]) for at in range(0, len(stacked), _BATCH)])
    return Gallery(stacked, latents.float())


@dataclass(frozen=True)
class FirstPlan:
    """An episode's first decision, the pictures it began with, and its imagined frames by the likest pictures:
    `shown` [h] of them, `away` their latent distances from what was imagined, `costs` those of what was imagined from
    the goal."""

    controller: Controller
    decision: Decision
    start: Picture
    goal: Picture
    shown: UInt8[np.ndarray, "h height width 3"]
    away: tuple[float, ...]
    costs: tuple[float, ...]


def first_plan(
    policy: PlannedPolicy, robot: SimulatedRobot, task: Task, item: tuple[int, Pair], seed: int, places: int = PLACES
) -> FirstPlan:
    """The first plan of an episode: of pair `item`, with the evaluation's `seed`, as `run_pair` plays it. Where a task
    has sub-goals it leads to the first of them."""
    index, pair = item
    begun: Begun = Scene(robot, task).begin(index, pair)
    made: list[Controller] = []
    diary = Diary(index, task, seed, begun)
    diary.turn(lambda picture, _, own_seed: made.append(policy.controller(picture, own_seed)))
    (controller,) = made
    decision, _ = controller.step(begun.observation, ControllerState())
    start, goal = begun.observation.images[controller.model.config.camera], begun.stages[0].picture
    with torch.no_grad():
        own = torch.zeros(1, dtype=torch.long, device=controller.model.device)
        imagined = decision.cost.imagine(decision.plan.actions[:, None], own).latents[0, 0].float()
        costs = latent_distance(imagined, controller.goal.float())
        around = gallery(controller.model, robot, task, [start, goal], places)
        likest = around.likest(imagined)
    numbers, away = zip(*likest, strict=True)
    shown = around.pictures[list(numbers)]
    return FirstPlan(controller, decision, start, goal, shown, away, tuple(costs.tolist()))


def draw(plan: FirstPlan, path: Path) -> None:
    """Start, imagined frames, goal, and below them the energy of one action held over the plan, as PNG."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    config = plan.controller.model.config
    now = float(plan.decision.latent_cost)
    panels: list[tuple[Any, str]] = [(plan.start, f"start\n{now:.2f} from the goal")]
    for number, (picture, cost, away) in enumerate(zip(plan.shown, plan.costs, plan.away, strict=True), 1):
        panels.append((picture, f"imagined, step {number * config.stride}\n{cost:.2f}; likest is {away:.2f} off"))
    panels.append((plan.goal, "goal"))
    columns = max(len(panels), 3)
    figure = Figure(figsize=(1.75 * columns, 6.2), layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.add_gridspec(2, columns, height_ratios=(1.0, 2.2))
    for column, (picture, words) in enumerate(panels):
        axes = figure.add_subplot(grid[0, column])
        axes.imshow(picture, interpolation="nearest")
        axes.set_title(words, fontsize=8)
        axes.set_axis_off()
    draw_energy(figure, figure.add_subplot(grid[1, :]), plan_energy(plan.controller, plan.decision))
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", dpi=80)
