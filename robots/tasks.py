"""What a robot is asked to do, how success is judged, and the frozen lists of start/goal pairs.

A manifest is a JSON file whose hash is checked on loading, so that a number printed for it always belongs
to the same pairs. Appearance seeds of manifests start at `MANIFEST_SEEDS`; data collection uses seeds
below it, so that no evaluated look was ever trained on.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from importlib import resources
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from jaxtyping import Float

from vjepa_mpc.core.errors import InputError, unknown_name
from vjepa_mpc.core.files import read_json
from vjepa_mpc.robots.base import RobotSpec
from vjepa_mpc.robots.reacher import reacher_spec

MANIFEST_SEEDS = 1_000_000
_MANIFEST_SCHEMA = "vjepa-mpc-manifest-1"


@dataclass(frozen=True)
class ReachTask:
    """Bring the reacher's fingertip to where it is in the goal picture.

    Success is judged on the fingertip's distance to the goal's fingertip, in m: `hit` when it was within
    `success_radius_m` after any step, `held` when it was so after each of the last `held_steps` of
    `step_budget` steps. Either elbow will do.
    """

    name: ClassVar[str] = "reach"
    version: ClassVar[int] = 1
    robot: ClassVar[str] = "reacher"
    success_radius_m: float = 0.03
    min_start_distance_m: float = 0.05
    step_budget: int = 25
    held_steps: int = 3

    @property
    def spec(self) -> RobotSpec:
        return reacher_spec()

    def sample_pair(
        self, generator: np.random.Generator
    ) -> tuple[Float[np.ndarray, "2"], Float[np.ndarray, "2"]]:
        """Start and goal joint angles [rad], uniform; pairs under `min_start_distance_m` are redrawn."""
        spec = self.spec
        while True:
            start, goal = generator.uniform(spec.state_low, spec.state_high, (2, 2))
            if self.distance(start, goal) >= self.min_start_distance_m:
                return start, goal

    def fingertip(self, state: Float[np.ndarray, "2"]) -> Float[np.ndarray, "3"]:
        """Where the fingertip is at joint angles `state` [rad]: world frame, m (two links of 0.12 m)."""
        shoulder, both = float(state[0]), float(state[0] + state[1])
        return np.array(
            [0.12 * (math.cos(shoulder) + math.cos(both)), 0.12 * (math.sin(shoulder) + math.sin(both)), 0.01]
        )

    def distance(self, state: Float[np.ndarray, "2"], goal: Float[np.ndarray, "2"]) -> float:
        """Distance between the fingertips at two joint states, m."""
        return float(np.linalg.norm(self.fingertip(state) - self.fingertip(goal)))

    def hit(self, distances: Sequence[float]) -> bool:
        """Whether any of the distances [m] after each step lies within the success radius."""
        return any(distance <= self.success_radius_m for distance in distances)

    def held(self, distances: Sequence[float]) -> bool:
        """Whether the budget was used and its last `held_steps` distances [m] lie within the radius."""
        last = distances[self.step_budget - self.held_steps : self.step_budget]
        return len(last) == self.held_steps and all(distance <= self.success_radius_m for distance in last)

    def scripted_action(
        self, state: Float[np.ndarray, "2"], goal: Float[np.ndarray, "2"]
    ) -> Float[np.ndarray, "2"]:
        """The privileged ceiling: straight to the goal's joint angles, the shoulder the shorter way round."""
        spec = self.spec
        delta = np.asarray(goal, dtype=np.float64) - state
        delta[0] = (delta[0] + math.pi) % (2.0 * math.pi) - math.pi
        return np.clip(delta, spec.action_low, spec.action_high)


@dataclass(frozen=True)
class Pair:
    """One episode: joint angles in rad, and the seed of the look (None: plain) of start and goal."""

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


def make_manifest(
    split: str, n: int, seed: int, *, varied: bool = False, task: ReachTask | None = None
) -> Manifest:
    """Draw `n` pairs from `seed`; angles are rounded to 1e-6 rad.

    With `varied`, pair i gets appearance seed MANIFEST_SEEDS + 1000 * seed + i, otherwise the plain look.
    """
    if not 1 <= n <= 1000:
        raise InputError(f"A manifest has 1 to 1000 pairs, not {n}.")
    if seed < 0:
        raise InputError(f"A manifest's seed cannot be negative, got {seed}; it numbers appearances.")
    task = task or ReachTask()
    generator = np.random.default_rng([MANIFEST_SEEDS, seed])  # a stream that no robot's reset(seed) shares
    pairs = []
    for index in range(n):
        start, goal = (_rounded(state) for state in task.sample_pair(generator))
        pairs.append(Pair(start, goal, MANIFEST_SEEDS + 1000 * seed + index if varied else None))
    return Manifest(task.name, task.version, task.robot, split, seed, tuple(pairs))


def _rounded(state: Float[np.ndarray, "2"]) -> tuple[float, ...]:
    return tuple(round(float(angle), 6) for angle in state)


def manifest_names() -> tuple[str, ...]:
    """The manifests shipped with the package, e.g. "reacher-dev"."""
    return tuple(sorted(entry.name[: -len(".json")] for entry in _shipped() if entry.name.endswith(".json")))


def _shipped() -> Iterable[Any]:
    return resources.files("vjepa_mpc").joinpath("manifests").iterdir()


def load_manifest(path_or_name: str | Path, task: ReachTask | None = None) -> Manifest:
    """A shipped manifest by name ("reacher-dev"; "dev" means that) or a JSON file by path, its hash verified.

    Raises `InputError` when it is missing, altered, of another schema, or its pairs do not fit the task
    (`task` defaults to `ReachTask()`): outside the joint range, or a start already inside the success region.
    """
    task = task or ReachTask()
    name = str(path_or_name)
    if name.endswith(".json") or Path(name).exists():
        content = read_json(name)
    else:
        full = name if name.startswith(f"{task.robot}-") else f"{task.robot}-{name}"
        if full not in manifest_names():
            raise unknown_name("manifest", full, manifest_names())
        content = json.loads(resources.files("vjepa_mpc").joinpath("manifests", f"{full}.json").read_text())
    manifest = _parse(name, content)
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
            Pair(tuple(pair["start"]), tuple(pair["goal"]), pair["appearance"]) for pair in body.pop("pairs")
        )
        return Manifest(pairs=pairs, **body)
    except (KeyError, TypeError) as error:
        raise InputError(f"{name} is not a whole manifest ({error}); restore the committed file.") from error


def _check_fit(name: str, manifest: Manifest, task: ReachTask) -> None:
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
            start, goal = task.spec.check_state(pair.start), task.spec.check_state(pair.goal)
        except InputError as error:
            raise InputError(f"Pair {index} of {name} cannot be used: {error}") from error
        if task.distance(start, goal) <= task.success_radius_m:
            raise InputError(f"Pair {index} of {name} starts inside the success region; remove it.")
