"""What every test runs under: shapes and types of public signatures are checked on each call."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings
from jaxtyping import install_import_hook

# Before anything of ours is imported, and for the whole session: jaxtyping reads the annotations,
# beartype checks them.
install_import_hook("vjepa_mpc", "typechecker.check")

# Examples are drawn alike in every run, and a busy machine is no failure.
settings.register_profile("vjepa_mpc", deadline=None, derandomize=True)
settings.load_profile("vjepa_mpc")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call() -> Generator[None, None, None]:
    """Where dm_control cannot be had (Python 3.13), tests of the arm that comes with it are skipped."""
    try:
        yield
    except Exception as error:
        if "comes with dm_control" in str(error) and importlib.util.find_spec("dm_control") is None:
            pytest.skip("dm_control is not installed")
        raise


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a complete, tiny, untrained world model of the reacher (see `tiny_world`): do not change it."""
    from tiny_world import save_tiny_model

    return save_tiny_model(tmp_path_factory.mktemp("tiny") / "model")


@pytest.fixture(scope="session")
def goal(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A picture of the reacher at `plan_command.GOAL_STATE`, as `tiny_model` is made for: do not change it."""
    import numpy as np
    from PIL import Image
    from plan_command import GOAL_STATE

    from vjepa_mpc.robots.reacher import Reacher

    path = tmp_path_factory.mktemp("goal") / "goal.png"
    with Reacher(64, backend="rays") as robot:
        Image.fromarray(robot.place(np.array(GOAL_STATE)).images["top"]).save(path)
    return path


@pytest.fixture
def leave(capfd: pytest.CaptureFixture[str]) -> Callable[..., tuple[Any, str, str]]:
    """Run a command line in this process; returns exit code, stdout, stderr."""
    from vjepa_mpc.cli import main as cli

    def run(*arguments: object) -> tuple[Any, str, str]:
        with pytest.raises(SystemExit) as left:
            cli.main([str(argument) for argument in arguments])
        return left.value.code, *capfd.readouterr()

    return run
