"""`--workers N --ray` of the two trainings: the workers of `workers.py`, started and placed by Ray Train.

Each runs the same command line, in a process that Ray Train has made one of a group (its variables are torchrun's), so
that the folders named there have to be where every worker finds them.
"""

from __future__ import annotations

import io
import os
from collections.abc import Sequence
from contextlib import redirect_stdout
from typing import Any

import typer

from vjepa_mpc.core.errors import InputError, WorkerDiedError, first_line

PLACED = "VJEPA_MPC_PLACED"
"""Set in a worker that Ray Train started."""


def train_in_ray(workers: int, arguments: Sequence[str], address: str | None, device: str) -> None:
    """Run the command line `arguments` of vjepa-mpc in `workers` processes of Ray, started here without an `address`.

    Raises `InputError` where Ray Train is not installed, Ray does not answer or is too small, or a worker refused what
    it was told; `WorkerDiedError` when one failed or was lost.
    """
    try:
        from ray.train import RunConfig, ScalingConfig
        from ray.train.torch import TorchConfig, TorchTrainer
    except ImportError as error:
        raise InputError(
            "Ray Train is not installed: pip install 'vjepa-mpc[ray-train]', or leave --ray out to train here."
        ) from error
    import tempfile

    import ray

    from vjepa_mpc import ray_workers
    from vjepa_mpc.cli.building import usable_cores

    cores = max(1, usable_cores() // workers) if address is None else 1
    with (
        ray_workers.session(workers, address, cores, 0, show=True),
        tempfile.TemporaryDirectory() as notes,
    ):
        gpus = ray.cluster_resources().get("GPU", 0) >= workers and device != "cpu"
        trainer = TorchTrainer(
            run_worker,
            train_loop_config={"arguments": list(arguments), "folder": os.getcwd()},
            torch_config=TorchConfig(backend="cpu:gloo,cuda:nccl" if gpus else "gloo"),
            scaling_config=ScalingConfig(num_workers=workers, use_gpu=gpus, resources_per_worker={"CPU": cores}),
            run_config=RunConfig(name="vjepa-mpc", storage_path=notes),  # checkpoints are ours, in --out
        )
        try:
            result = trainer.fit()
        except Exception as error:
            raise _described(error) from error
    typer.echo((result.metrics or {}).get("said", ""), nl=False)


def run_worker(told: dict[str, Any]) -> None:
    """What each worker does, in a process of Ray Train's; the first one's words go back as its report."""
    import torch
    from ray import train

    from vjepa_mpc.cli.main import build_app

    os.environ[PLACED] = "1"
    if torch.cuda.device_count() == 1:
        os.environ["LOCAL_RANK"] = "0"  # Ray shows each worker its own GPU alone
    os.chdir(told["folder"])
    said = io.StringIO()
    with redirect_stdout(said):
        code = typer.main.get_command(build_app())(
            args=told["arguments"], prog_name="vjepa-mpc", standalone_mode=False, obj=told["arguments"]
        )
    if code:
        raise RuntimeError(f"a worker left with exit code {code}")
    train.report({"said": said.getvalue()})


def _described(error: BaseException) -> Exception:
    """What a worker refused, as it said it; otherwise that a worker failed, and how."""
    seen: list[BaseException] = [error]
    for one in seen:
        if isinstance(one, InputError):
            return InputError(str(one))
        inner = [one.__cause__, getattr(one, "cause", None), *getattr(one, "worker_failures", {}).values()]
        seen += [other for other in inner if isinstance(other, BaseException) and other not in seen]
    return WorkerDiedError(
        f"A worker on Ray failed ({first_line(seen[-1])}), and the others stopped; run the same command again to go on "
        "from the last checkpoint."
    )
