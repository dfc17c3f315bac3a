"""Small episodes that can be regenerated from their seed, and a store description for them."""

from __future__ import annotations

import numpy as np

from vjepa_mpc.datasets.episode import Episode, StoreSpec

CAMERAS = {"top": (6, 5), "wrist": (4, 4)}


def toy_spec(chunk_frames: int = 4, state_model: str = "joints") -> StoreSpec:
    return StoreSpec(
        robot="toy",
        cameras=CAMERAS,
        state_names=("q1", "q2"),
        state_units=("rad", "rad"),
        state_low=(-3.0, -2.0),
        state_high=(3.0, 2.0),
        state_periodic=(True, False),
        action_names=("d1", "d2"),
        action_units=("rad", "rad"),
        action_low=(-0.5, -0.5),
        action_high=(0.5, 0.5),
        control_period_s=0.1,
        state_model=state_model,
        renderer="none",
        provenance={"version": "0", "recipe": {"seed": 1}},
        chunk_frames=chunk_frames,
    )


def toy_episode(seed: int, length: int | None = None) -> Episode:
    """States are the running sum of the actions. No frame, state or time is zero."""
    generator = np.random.default_rng(seed)
    length = int(generator.integers(1, 12)) if length is None else length
    actions = generator.uniform(-0.5, 0.5, size=(length - 1, 2)).astype(np.float32)
    start = generator.uniform(1.0, 2.0, size=2)
    states = (start + np.concatenate([np.zeros((1, 2)), np.cumsum(actions, axis=0)])).astype(np.float32)
    return Episode(
        images={
            name: generator.integers(1, 256, size=(length, *size, 3), dtype=np.uint8) for name, size in CAMERAS.items()
        },
        states=states,
        actions=actions,
        times=0.1 * (1.0 + np.arange(length)),
        metadata={"seed": seed},
    )


def assert_same(left: Episode, right: Episode) -> None:
    assert set(left.images) == set(right.images)
    for name in left.images:
        np.testing.assert_array_equal(left.images[name], right.images[name])
    np.testing.assert_array_equal(left.states, right.states)
    np.testing.assert_array_equal(left.actions, right.actions)
    np.testing.assert_array_equal(left.times, right.times)
    assert dict(left.metadata) == dict(right.metadata)
