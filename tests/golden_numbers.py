"""Where the reference's numbers lie, how the predictors behind them were built, and a small one of other sizes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from vjepa_mpc.predictor import PredictorConfig

GOLDEN = Path(__file__).parent / "golden"
BUILT = {
    "ac_tiny": {"grid": (4, 4), "heads": 4, "use_extrinsics": False},
    "ac_tiny_extrinsics": {"grid": (4, 4), "heads": 4, "use_extrinsics": True},
    "ac_wide": {"grid": (4, 6), "train_grid": (4, 4), "heads": 3, "use_extrinsics": False},
}
SMALL = PredictorConfig(
    grid_height=2,
    grid_width=3,
    latent_dim=10,
    width=24,
    depth=2,
    heads=2,
    max_frames=7,
    action_dim=3,
    state_dim=4,
)
FAMILY = {
    "tokens": SMALL,
    "adaptive_norm": replace(SMALL, conditioning="adaptive_norm"),
    "interleaved": replace(SMALL, rotary="interleaved"),
    "adaptive_extrinsics": replace(SMALL, conditioning="adaptive_norm", use_extrinsics=True, residual=True),
}
"""Small predictors of every kind that there is."""
