"""`pretrain`, `train` and `evaluate` as a user meets them: bad input is one sentence and exit code 2."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import typer

sys.path.insert(0, str(Path(__file__).parent / "pretrain"))
from moving_dot import make_store

from vjepa_mpc.cli import main as cli
from vjepa_mpc.cli.pretrain import _settings
from vjepa_mpc.cli.starting_points import PRESETS
from vjepa_mpc.cli.training import training_progress
from vjepa_mpc.core.errors import InputError
from vjepa_mpc.pretrain.optimising import TrainSettings
from vjepa_mpc.pretrain.predictor import PredictorSettings
from vjepa_mpc.pretrain.trainer import Trainer
from vjepa_mpc.world_model import WorldModel

ROOT = Path(__file__).resolve().parents[1]
TINY = ["--width", "24", "--depth", "1", "--heads", "1", "--fp32", "--warmup", "1", "--batch", "4", "--device", "cpu"]
ENCODER = [*TINY, *["--patch", "4", "--frames", "4"]]
PREDICTOR = [*TINY, *["--grid", "2", "--stride", "2", "--frames", "3", "--rollout", "2"]]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_store(tmp_path_factory.mktemp("dots") / "dots.zarr")


@pytest.fixture
def leave(capfd: pytest.CaptureFixture[str], tmp_path: Path) -> Callable[..., tuple[Any, str, str]]:
    """Run a command line; returns exit code, stdout, stderr."""

    def run(*arguments: object) -> tuple[Any, str, str]:
        with pytest.raises(SystemExit) as left:
            cli.main([str(argument) for argument in arguments])
        return left.value.code, *capfd.readouterr()

    return run


Leave = Callable[..., tuple[Any, str, str]]


def refused(answer: tuple[Any, str, str], words: str) -> None:
    code, out, err = answer
    assert code == 2, err
    assert out == "" and "Traceback" not in err
    assert err.splitlines()[-1].startswith("Error: ") and words in err.splitlines()[-1]


def test_from_a_store_to_a_model_and_again(store: Path, tmp_path: Path, leave: Leave) -> None:
    encoder, model = tmp_path / "encoder", tmp_path / "model"
    code, out, err = leave("pretrain", store, "--out", encoder, "--steps", 2, *ENCODER)
    assert code == 0 and "pretraining: 2/2" in err
    assert out.startswith(f"{encoder / 'encoder'}: done after 2 steps (") and out.count("\n") == 1
    assert out.endswith(f" minutes); next: `vjepa-mpc train {store} --encoder {encoder}`.\n")
    line = ("train", store, "--encoder", encoder, "--out", model, "--steps", 2, "--json", *PREDICTOR)
    code, out, err = leave(*line)
    assert code == 0
    result = json.loads(out)
    assert result["finished"] and result["step"] == 2 and Path(result["result"], "config.json").is_file()
    code, out, err = leave(*line)
    assert code == 0 and json.loads(out)["step"] == 2
    code, out, err = leave(*(word for word in line if word != "--json"))
    assert code == 0 and out.endswith(f"plan with `vjepa-mpc plan --model {model} --goal PICTURE`.\n"), err
    refused(leave(*line, "--lr", 0.5), "training.lr: 0.003 there, 0.5 asked for")
    refused(leave(*line, "--encoder", "pixels"), "encoder: ")


BAD: dict[str, tuple[list[object], str]] = {
    "no store": (["pretrain", "nowhere.zarr"], "nowhere.zarr"),
    "no store to train on": (["train", "nowhere.zarr", "--encoder", "pixels"], "nowhere.zarr"),
    "steps and minutes": (["pretrain", "STORE", "--steps", 3, "--minutes", 1], "either --steps or --minutes"),
    "train steps and minutes": (
        ["train", "STORE", "--encoder", "pixels", "--steps", 3, "--minutes", 1],
        "either --steps or --minutes",
    ),
    "no objective": (["pretrain", "STORE", "--objective", "lejpa"], "did you mean 'lejepa'"),
    "an option of another objective": (
        ["pretrain", "STORE", "--objective", "lejepa", "--ema", 0.9], "--ema is no part of lejepa",
    ),
    "no setting": (["pretrain", "STORE", "--set", "emma=0.9"], "did you mean 'ema'"),
    "no value": (["pretrain", "STORE", "--set", "ema"], "lacks a value"),
    "no number": (["pretrain", "STORE", "--set", "ema=much"], "--set ema=much does not fit"),
    "a setting twice": (["pretrain", "STORE", "--set", "ema=0.9", "--ema", 0.9], "give one of them"),
    "no steps": (["pretrain", "STORE", "--steps", 0], "at least one step"),
    "no minutes": (["pretrain", "STORE", "--minutes", 0], "more than 0 minutes"),
    "no batch": (["pretrain", "STORE", "--batch", 0], "at least one clip"),
    "a batch of one": (["pretrain", "STORE", "--steps", 1, "--batch", 1, "--patch", 4], "at least 2 clips"),
    "no learning rate": (["pretrain", "STORE", "--lr", 0], "learning rate must be positive"),
    "a patch that does not fit": (["pretrain", "STORE", "--patch", 5], "must be a multiple of the patch"),
    "no patch": (["pretrain", "STORE", "--patch", 0], "must be at least 1"),
    "no heads": (["pretrain", "STORE", "--heads", 0], "must be at least 1"),
    "no checkpoints": (["pretrain", "STORE", "--checkpoint-every", 0], "at least 1"),
    "a negative seed": (["pretrain", "STORE", "--seed", -1], "--seed"),
    "too long clips": (["pretrain", "STORE", "--frames", 50, "--steps", 1], "use shorter clips"),
    "another camera": (["pretrain", "STORE", "--camera", "wrist"], "has cameras top"),
    "another device": (["pretrain", "STORE", "--device", "gpu", "--steps", 1], "no device named 'gpu'"),
    "no encoder named": (["train", "STORE"], "Give either --encoder"),
    "an unknown encoder": (["train", "STORE", "--encoder", "pixles"], "pixles does not exist"),
    "a folder that is no encoder": (["train", "STORE", "--encoder", "STORE"], "has no config.json"),
    "a grid that does not divide": (["train", "STORE", "--encoder", "pixels", "--grid", 3], "choose a divisor of 4"),
    "heads that do not divide": (
        ["train", "STORE", "--encoder", "pixels", "--width", 24, "--heads", 5], "does not divide into 5 heads",
    ),
    "an unknown conditioning": (
        ["train", "STORE", "--encoder", "pixels", "--conditioning", "adaptive"], "did you mean 'adaptive_norm'",
    ),
    "an unknown proprioception": (
        ["train", "STORE", "--encoder", "pixels", "--proprioception", "predict"], "did you mean 'predicted'",
    ),
    "no history": (["train", "STORE", "--encoder", "pixels", "--history", 0], "must be at least 1"),
    "a long rollout": (["train", "STORE", "--encoder", "pixels", "--rollout", 9], "needs clips of 10 frames"),
    "no stride": (["train", "STORE", "--encoder", "pixels", "--stride", 0], "at least 1"),
    "an unknown manifest": (["evaluate", "--manifest", "dve", "--model", "MODEL"], "did you mean 'reacher-dev'"),
    "no manifest file": (["evaluate", "--manifest", "mine.json", "--model", "MODEL"], "mine.json does not exist"),
    "no horizon": (["evaluate", "--horizon", 0, "--model", "MODEL"], "horizon must be at least 1"),
    "no model": (["evaluate", "--model", "./nowhere"], "nowhere does not exist"),
    "an unknown planner": (["evaluate", "--planner", "cemm", "--model", "MODEL"], "did you mean 'cem'"),
    "no samples": (["evaluate", "--samples", 0, "--model", "MODEL"], "samples"),
    "no pairs": (["evaluate", "--pairs", 0, "--model", "MODEL"], "--pairs"),
    "negative pairs": (["evaluate", "--pairs", -1, "--model", "MODEL"], "--pairs"),
    "no workers": (["evaluate", "--workers", 0, "--model", "MODEL"], "at least 1"),
    "a horizon beyond the model": (
        ["evaluate", "--horizon", 50, "--pairs", 1, "--backend", "rays", "--model", "MODEL"], "plan at most 6 ahead",
    ),
    "an unknown back end": (["evaluate", "--pairs", 1, "--backend", "opengl", "--model", "MODEL"], "opengl"),
}  # fmt: skip


@pytest.mark.parametrize("kind", BAD)
def test_bad_input_is_one_sentence(
    kind: str, store: Path, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, leave: Leave
) -> None:
    monkeypatch.chdir(tmp_path)
    arguments, words = BAD[kind]
    places = {"STORE": store, "MODEL": tiny_model}
    refused(leave(*(places.get(argument, argument) for argument in arguments)), words)  # type: ignore[call-overload]


def test_a_model_whose_training_never_ended_is_not_evaluated(tmp_path: Path, leave: Leave) -> None:
    from tiny_world import save_tiny_model

    model = save_tiny_model(tmp_path / "model", calibration=None)
    refused(leave("evaluate", "--model", model, "--pairs", 1, "--backend", "rays"), "no calibration")


@pytest.mark.parametrize(("trained_on", "told"), [("mujoco-egl", True), ("", False)])
def test_evaluating_on_another_renderers_pictures_is_told(
    tmp_path: Path, leave: Leave, trained_on: str, told: bool
) -> None:
    from tiny_world import save_tiny_model

    model = save_tiny_model(tmp_path / "model", renderer=trained_on)
    short = ("--pairs", 1, "--samples", 4, "--elites", 2, "--iterations", 1, "--no-floors", "--json")
    code, out, err = leave("evaluate", "--model", model, "--backend", "rays", *short)
    assert code == 0 and ("trained on mujoco-egl: it may plan worse" in err) == told
    assert json.loads(out)["results"][str(model)]["renderer"] == "mujoco-rays-2x"


def test_a_truncated_store_is_refused(tmp_path: Path, leave: Leave) -> None:
    broken = make_store(tmp_path / "broken.zarr")
    (broken / "zarr.json").write_bytes((broken / "zarr.json").read_bytes()[:40])
    refused(leave("pretrain", broken, "--steps", 1), "broken.zarr")
    torn = make_store(tmp_path / "torn.zarr")
    chunk = max((path for path in torn.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)
    chunk.write_bytes(chunk.read_bytes()[:-20])
    refused(leave("pretrain", torn, "--steps", 1, "--out", tmp_path / "a", *ENCODER), "torn.zarr")


def test_an_output_that_cannot_be_written_is_refused(store: Path, tmp_path: Path, leave: Leave) -> None:
    (tmp_path / "file").touch()
    refused(leave("pretrain", store, "--out", tmp_path / "file" / "run", "--steps", 1, *ENCODER), "file")


def test_a_number_that_is_none_is_a_sentence_too(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, leave: Leave
) -> None:
    code, out, err = leave("pretrain", store, "--out", tmp_path, "--steps", 40, "--lr", 1e30, *ENCODER)
    assert code == 1 and out == "" and "Traceback" not in err
    assert "Error: The loss or its gradient became" in err and "lower --lr" in err


def test_evaluation_resumes_and_tells_models_apart(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, leave: Leave
) -> None:
    from tiny_world import save_tiny_model

    from vjepa_mpc.cli.building import CEM_DEFAULTS_MANY

    line = (
        "evaluate", "--model", tiny_model, "--pairs", 1, "--samples", 4, "--elites", 2, "--iterations", 1,
        "--backend", "rays", "--out", tmp_path / "out", "--json",
    )  # fmt: skip
    code, out, _err = leave(*line)
    assert code == 0
    first = json.loads(out)
    assert set(first["results"]) == {str(tiny_model), "random", "no-op", "scripted (ceiling)"}
    assert first["results"]["scripted (ceiling)"]["held"]["rate"] == 1.0
    assert first["results"]["no-op"]["held"]["rate"] == 0.0
    logs = {path.name: path.read_bytes() for path in (tmp_path / "out").glob("*.jsonl")}
    assert len(logs) == 4
    code, out, _err = leave(*line)
    assert code == 0 and json.loads(out)["results"] == first["results"]  # read, not played: to the millisecond
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").glob("*.jsonl")} == logs
    refused(leave(*line, "--seed", 1), "seed: 0 there, 1 asked for")
    # The same folder, trained again, is another model: what was played with the old one must not count for it.
    model = save_tiny_model(tmp_path / "m" / "model")
    again = [*line[:2], tmp_path / "m", *line[3:], "--no-floors"]
    assert leave(*again)[0] == 0
    save_tiny_model(model, stride=2)
    _perturb(model / "model.safetensors")
    assert leave(*again)[0] == 0
    assert len(list((tmp_path / "out").glob("*.jsonl"))) == 6
    monkeypatch.setitem(CEM_DEFAULTS_MANY, "momentum_std", 0.5)  # a later version may have other defaults
    assert leave(*again)[0] == 0
    assert len(list((tmp_path / "out").glob("*.jsonl"))) == 7


def _perturb(weights: Path) -> None:
    from safetensors.torch import load_file, save_file

    tensors = load_file(weights)
    tensors["predictor.predictor_proj.bias"] += 0.5
    save_file(tensors, weights)


def test_ctrl_c_saves_leaves_with_130_and_the_same_command_goes_on(store: Path, tmp_path: Path) -> None:
    line = [sys.executable, "-m", "vjepa_mpc.cli.main", "pretrain", str(store), "--out", str(tmp_path), *ENCODER]
    line += ["--minutes", "5"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        line, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    log = tmp_path / "log.jsonl"
    deadline = time.monotonic() + 60
    while not (log.is_file() and log.stat().st_size) and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert out == "" and "Traceback" not in err
    assert "saved; run the same command to go on." in err.splitlines()[-1]
    assert (tmp_path / "checkpoint.pt").is_file() and not (tmp_path / "encoder").exists()


def test_evaluation_fixes_the_chunk_once_and_a_resumed_run_keeps_it(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, leave: Leave
) -> None:
    """Measured where the command runs and shared by its workers; what is free later is not asked."""
    from vjepa_mpc import controller

    def free(candidates: float) -> None:
        frames = world.config.history - 1 + horizon
        each = controller.candidate_bytes(world.config.predictor, frames, horizon, torch.bfloat16)
        monkeypatch.setattr(controller, "free_bytes", lambda device: int(2 * each * candidates) + 4)

    def chunk(text: str) -> int:
        return int(json.loads(text)["results"][str(tiny_model)]["control"]["chunk"])

    world, horizon = WorldModel.from_pretrained(tiny_model).for_planning(), 2
    line = (
        "evaluate", "--model", tiny_model, "--pairs", 1, "--samples", 9, "--elites", 2, "--iterations", 1, "--horizon",
        horizon, "--backend", "rays", "--no-floors", "--json", "--out",
    )  # fmt: skip
    free(6)
    code, out, _err = leave(*line, tmp_path / "out")
    assert code == 0 and chunk(out) == 6
    settings = json.loads((tmp_path / "out" / "settings.json").read_text())["settings"]
    assert settings["chunk"] == 6, "the chunk is not recorded"
    free(2)
    code, out, _err = leave(*line, tmp_path / "out")
    assert code == 0 and chunk(out) == 6 and len(list((tmp_path / "out").glob("*.jsonl"))) == 1
    refused(leave(*line, tmp_path / "out", "--chunk", 3), "chunk: 6 there, 3 asked for")
    free(2)
    code, out, _err = leave(*line, tmp_path / "other", "--chunk", 5)
    assert code == 0 and chunk(out) == 5
    free(40)
    assert [controller.fitting_chunk(world, horizon, None, sharers=many) for many in (1, 2)] == [40, 20]


def test_progress_without_a_terminal_says_a_line_a_tenth_and_when_it_was_silent(
    capsys: pytest.CaptureFixture[str],
) -> None:
    now = 0.0
    with training_progress("training", clock=lambda: now) as (on_step, _):
        for step in range(1, 101):
            now += 1.0 if step < 50 else 31.0  # slow from the 50th on: each step is worth a line
            on_step(step, 100, {"loss": 0.5})
    lines = capsys.readouterr().err.splitlines()
    said = [int(line.split("/")[0].rpartition(" ")[2]) for line in lines]
    assert said == [1, 10, 20, 30, 40, *range(50, 101)] and lines[0] == "training: 1/100 loss 0.500"


def test_progress_is_said_while_the_number_of_steps_is_not_known(capsys: pytest.CaptureFixture[str]) -> None:
    with training_progress("training") as (on_step, _):
        on_step(1, None, {})
        on_step(2, None, {})
    assert capsys.readouterr().err.splitlines() == ["training: 1/? "]


def test_settings_are_told_with_the_first_progress_and_where_a_run_goes_on(capsys: pytest.CaptureFixture[str]) -> None:
    with training_progress("training", [TrainSettings(steps=9)]) as (on_step, caching):
        assert capsys.readouterr().err == "", "what is refused before this is one sentence alone"
        caching("frames", 1, 2)
        for step in range(6, 10):
            on_step(step, 9, {})
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith("TrainSettings: steps 9, ") and lines[1] == "caching frames: 1/2 "
    assert lines[2] == "training: going on after step 5" and sum("going on" in line for line in lines) == 1
    assert sum("TrainSettings" in line for line in lines) == 1


def test_the_bar_on_a_terminal_does_not_stand_still(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "200")
    with training_progress("training") as (on_step, _):
        time.sleep(1.3)
        before = capsys.readouterr().err
        on_step(1, 3, {"loss": 0.5})
        time.sleep(1.3)
        on_step(3, 3, {"loss": 0.25})
        during = capsys.readouterr().err
        time.sleep(0.3)
        after = capsys.readouterr().err
    assert "training: preparing" in before and "0:00:01" in before
    assert "1/3" in during and "0:00:01" in during and "training: preparing" not in during.rpartition("3/3")[2]
    assert "training: finishing" in after


def test_resume_needs_the_folder_alone(
    store: Path, tmp_path: Path, leave: Leave, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, began = Trainer.run, tmp_path / "began"
    line = ["pretrain", str(store), "--steps", "3", *ENCODER, "--out=began"]
    monkeypatch.setattr(sys, "argv", ["vjepa-mpc", *line])
    monkeypatch.chdir(tmp_path)
    with monkeypatch.context() as cut:
        cut.setattr(Trainer, "run", lambda self, progress=None, **how: whole(self, progress, stop_at=1))
        assert leave(*line)[0] == 130
    moved = tmp_path / "elsewhere"
    moved.mkdir()
    began.rename(moved / "run")
    monkeypatch.chdir(moved)
    code, out, err = leave("pretrain", "--resume", "run")
    assert code == 0 and "done after 3 steps" in out and "TrainSettings: steps 3, minutes None, batch 4" in err
    assert (moved / "run" / "encoder" / "config.json").is_file()
    refused(leave("pretrain", "--resume", "run", "--steps", 9), "leave all other options out")
    refused(leave("train", "--resume", moved / "run"), "it is one of `pretrain`")
    refused(leave("train", "--resume", tmp_path), "holds no run of `train`")


def parsed(*arguments: str) -> dict[str, Any]:
    root: Any = typer.main.get_command(cli.build_app())
    command = root.get_command(root.make_context("vjepa-mpc", [arguments[0]]), arguments[0])
    answer: dict[str, Any] = command.make_context(arguments[0], list(arguments[1:])).params
    return answer


def test_presets_are_defaults_by_a_name() -> None:
    for command, named in PRESETS.items():
        plain = parsed(command, "s.zarr")
        for name, values in named.items():
            given = parsed(command, "s.zarr", "--preset", name)
            changed = {key for key in plain if given[key] != plain[key]} - {"preset_name"}
            assert changed <= values.keys() and {key: given[key] for key in values} == values
    mine = parsed("pretrain", "s.zarr", "--batch", "8", "--preset", "vjepa2-vitl")
    assert mine["batch"] == 8 and mine["width"] == 1024
    with pytest.raises(InputError, match="did you mean 'vjepa2-vitl'"):
        parsed("pretrain", "s.zarr", "--preset", "vjepa2-vit")


def test_the_published_presets_make_settings() -> None:
    values = dict(PRESETS["pretrain"]["vjepa2-vitl"])
    options = {"still": 0.0, "ema": values["ema"], "sigreg_weight": 0.0}
    settings: Any = _settings("vjepa", {"frames": values["frames"]}, options, values["other"])
    assert (settings.predictor_width, settings.predictor_depth, settings.predictor_heads) == (384, 12, 12)
    predictor = PRESETS["train"]["vjepa2-ac"]
    names = ("grid", "width", "depth", "heads", "stride", "frames", "residual", "centre", "l2")
    PredictorSettings(**{name: predictor[name] for name in names}, rollout_steps=predictor["rollout"])
