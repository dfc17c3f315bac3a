"""What every test runs under: shapes and types of public signatures are checked on each call."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import settings
from jaxtyping import install_import_hook

# Before anything of ours is imported, and for the whole session: jaxtyping reads the annotations,
# beartype checks them.
install_import_hook("vjepa_mpc", "typechecker.check")

# Examples are drawn alike in every run, and a busy machine is no failure.
settings.register_profile("vjepa_mpc", deadline=None, derandomize=True)
settings.load_profile("vjepa_mpc")


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a complete, tiny, untrained world model of the reacher (see `tiny_world`): do not change it."""
    from tiny_world import save_tiny_model

    return save_tiny_model(tmp_path_factory.mktemp("tiny") / "model")
