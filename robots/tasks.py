"""The frozen lists of start/goal pairs of tasks, and the proof that their goals can be reached.

A manifest is a JSON file whose hash is checked on loading, so that a number printed for it always belongs
to the same pairs. Appearance seeds of manifests start at `MANIFEST_SEEDS`; data collection uses seeds
below it, so that no evaluated look was ever trained on.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from vjepa_mpc.core.errors import InputError, unknown_name
from vjepa_mpc.core.files import read_json
from vjepa_mpc.robots.base import SimulatedRobot
from vjepa_mpc.robots.factory import find_task, task_names
from vjepa_mpc.robots.reacher import ReachTask
from vjepa_mpc.robots.task import Task, intrusion, led_script

MANIFEST_SEEDS = 1_000_000
_MANIFEST_SCHEMA = "vjepa-mpc-manifest-1"


@dataclass(frozen=True)
class Pair:
    """One episode: two states of the world, and the seed of the look (None: plain) of start and goal."""

    start: tuple[float, ...]
    goal: tuple[float, ...]
    appearance: int | None = None


@dataclass(frozen=True)
class Manifest:
    """Frozen start/goal pairs of one task and split."""

    task: str
    task_version: int
    robot: str
    split: str
    seed: int
    pairs: tuple[Pair, ...]

    @property
    def sha256(self) -> str:
        """Hash of the content in canonical JSON (sorted keys, no spaces)."""
        return hashlib.sha256(_canonical(asdict(self)).encode()).hexdigest()

    def to_json(self) -> dict[str, Any]:
        return {"schema": _MANIFEST_SCHEMA, "sha256": self.sha256, **asdict(self)}


def _canonical(content: object) -> str:
    return json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False)


Accept = Callable[[np.ndarray, np.ndarray], bool]


def make_manifest(
    split: str,
    n: int,
    seed: int,
    *,
    varied: bool = False,
    task: Task | None = None,
    accept: Accept | None = None,
) -> Manifest:
    """Draw `n` pairs of `task` (default: the reacher's) from `seed`; numbers are rounded to 1e-6.

    Pairs that `accept(start, goal)` refuses are redrawn, see `proof`. With `varied`, pair i gets appearance
    seed MANIFEST_SEEDS + 1000 * seed + i, otherwise the plain look.
    """
    if not 1 <= n <= 1000:
        raise InputError(f"A manifest has 1 to 1000 pairs, not {n}.")
    if seed < 0:
        raise InputError(f"A manifest's seed cannot be negative, got {seed}; it numbers appearances.")
    task = task or ReachTask()
    generator = np.random.default_rng([MANIFEST_SEEDS, seed])  # a stream that no robot's reset(seed) shares
    pairs: list[Pair] = []
    refused = 0
    while len(pairs) < n:
        start, goal = (_rounded(state) for state in draw_pair(task, generator))
        if accept is not None and not accept(np.array(start), np.array(goal)):
            refused += 1
            if refused > 10 * n:
                raise InputError(
                    f"{refused} of {refused + len(pairs)} drawn pairs of {task.name} were refused; make its goals "
                    "easier, or its script better."
                )
            continue
        pairs.append(Pair(start, goal, MANIFEST_SEEDS + 1000 * seed + len(pairs) if varied else None))
    return Manifest(task.name, task.version, task.robot, split, seed, tuple(pairs))


def draw_pair(task: Task, generator: np.random.Generator) -> tuple[Float[np.ndarray, "w"], Float[np.ndarray, "w"]]:
    """Start and goal as the task draws them; `InputError` for a start inside the success region, of which a manifest
    could not be loaded."""
    start, goal = task.sample_pair(generator)
    if task.distance(start, goal) <= task.success_radius_m:
        raise InputError(f"{task.name} draws starts inside the success region; mend its sample_pair.")
    return start, goal


def _rounded(state: Float[np.ndarray, "w"]) -> tuple[float, ...]:
    return tuple(round(float(value), 6) for value in state)


def play_script(
    robot: SimulatedRobot, task: Task, start: Float[np.ndarray, "w"], goal: Float[np.ndarray, "w"]
) -> list[float]:
    """Distances [m] after each step of the task's budget under its own script. `InputError` when it enters a region
    that the task forbids."""
    robot.place(start)
    script, distances = led_script(task, start, goal), []
    for _ in range(task.step_budget):
        robot.apply(script(robot.true_state()))
        if intrusion(robot, task) > 0:
            raise InputError(f"The script of {task.name} enters a region that the task forbids; mend the script.")
        distances.append(task.distance(robot.true_state(), goal))
    return distances


def proof(robot: SimulatedRobot, task: Task) -> Accept:
    """For `make_manifest`: accepts the pairs whose goal the task's script reaches and holds in `robot`."""
    return lambda start, goal: task.held(play_script(robot, task, start, goal))


def manifest_names() -> tuple[str, ...]:
    """The manifests shipped with the package, e.g. "reacher-dev"."""
    return tuple(sorted(entry.name[: -len(".json")] for entry in _shipped() if entry.name.endswith(".json")))


def _shipped() -> Iterable[Any]:
    return resources.files("vjepa_mpc").joinpath("manifests").iterdir()


def load_manifest(path_or_name: str | Path, task: Task | None = None) -> Manifest:
    """A shipped manifest by name ("reacher-dev"; "dev" means that) or a JSON file by path, its hash verified.

    Raises `InputError` when it is missing, altered, of another schema, or its pairs do not fit the task (by
    default the one it was made for): outside the world's bounds, or a start inside the success region.
    """
    name = str(path_or_name)
    shipped = manifest_names()
    robot = "reacher" if task is None else task.robot
    full = name if name in shipped or name.startswith(f"{robot}-") else f"{robot}-{name}"
    if full in shipped:  # first, for a folder called "test" lies about in many places
        content = json.loads(resources.files("vjepa_mpc").joinpath("manifests", f"{full}.json").read_text())
    elif name.endswith(".json") or Path(name).is_file():
        content = read_json(name)
    elif any(entry.startswith(f"{robot}-") for entry in shipped):
        raise unknown_name("manifest", full, shipped)
    else:
        raise InputError(
            f"{robot} has no shipped manifests, and {name} is no file: freeze pairs of its task with `vjepa-mpc tasks "
            f"freeze TASK --split {name} --seed 1 --out {name}.json`, and name that file."
        )
    manifest = _parse(name, content)
    if task is None:
        task = find_task(manifest.robot) if manifest.robot in task_names() else ReachTask()
    _check_fit(name, manifest, task)
    return manifest


def _parse(name: str, content: Any) -> Manifest:
    if not isinstance(content, dict) or content.get("schema") != _MANIFEST_SCHEMA:
        raise InputError(f"{name} is not a {_MANIFEST_SCHEMA} file; make one with `make_manifest`.")
    body = {key: value for key, value in content.items() if key not in ("schema", "sha256")}
    try:
        digest = hashlib.sha256(_canonical(body).encode()).hexdigest()
    except ValueError as error:
        raise InputError(f"{name} holds a number that is not finite; restore the committed file.") from error
    if digest != content.get("sha256"):
        raise InputError(f"{name} was altered (its sha256 does not match); restore the committed file.")
    try:
        pairs = tuple(
            Pair(_numbers(pair["start"]), _numbers(pair["goal"]), _look(pair["appearance"]))
            for pair in body.pop("pairs")
        )
        return Manifest(pairs=pairs, **body)
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"{name} is not a whole manifest ({error}); restore the committed file.") from error


def _numbers(state: Any) -> tuple[float, ...]:
    if not isinstance(state, list) or any(isinstance(one, bool) or not isinstance(one, (int, float)) for one in state):
        raise ValueError(f"a state is a list of numbers, not {state!r}")
    return tuple(state)


def _look(seed: Any) -> int | None:
    if seed is not None and (isinstance(seed, bool) or not isinstance(seed, int) or seed < 0):
        raise ValueError(f"an appearance is null or a seed of at least 0, not {seed!r}")
    return None if seed is None else int(seed)


def _check_fit(name: str, manifest: Manifest, task: Task) -> None:
    wanted = (task.name, task.version, task.robot)
    given = (manifest.task, manifest.task_version, manifest.robot)
    if wanted != given:
        raise InputError(
            f"{name} is for task, version, robot {given}, not {wanted}; choose another manifest."
        )
    if not manifest.pairs:
        raise InputError(f"{name} has no start/goal pairs; make one with `make_manifest`.")
    for index, pair in enumerate(manifest.pairs):
        try:
            start, goal = task.world.check(pair.start), task.world.check(pair.goal)
        except InputError as error:
            raise InputError(f"Pair {index} of {name} cannot be used: {error}") from error
        if task.distance(start, goal) <= task.success_radius_m:
            raise InputError(f"Pair {index} of {name} starts inside the success region; remove it.")
