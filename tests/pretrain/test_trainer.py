"""The training loop: stopped anywhere and resumed, it equals the run that never stopped."""

from __future__ import annotations

import itertools
import json
import math
import os
import signal
import subprocess
import sys
import textwrap
import time
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from moving_dot import ENCODER, PREDICTOR, make_store, training
from safetensors.torch import load_file
from torch import Tensor, nn

from vjepa_mpc.core.errors import InputError, NotFiniteError
from vjepa_mpc.pretrain.optimising import OPTIMIZERS, TrainSettings, learning_rate, make_optimisers
from vjepa_mpc.pretrain.run import pretrain_encoder, train_world_model
from vjepa_mpc.pretrain.source import Source
from vjepa_mpc.pretrain.trainer import CHECKPOINT, TIMING_STEPS, Trainer, TrainResult

CPU = torch.device("cpu")
ROOT = Path(__file__).resolve().parents[2]


class Line:
    """Fits a line to what `batch(step)` says; `spoil` may change a step's loss."""

    def __init__(self, spoil: Callable[[int, Tensor], Tensor] = lambda step, loss: loss) -> None:
        self.modules = nn.Linear(3, 1)
        with torch.no_grad():
            self.modules.weight.fill_(0.5)
            self.modules.bias.zero_()
        self.spoil, self.checked = spoil, []

    def batch(self, step: int) -> Tensor:
        return torch.randn(8, 3, generator=torch.Generator().manual_seed(step))

    def loss(self, batch: Tensor, step: int) -> tuple[Tensor, dict[str, Any]]:
        error = self.modules(batch)[:, 0] - batch.sum(-1)
        return self.spoil(step, error.square().mean()), {"error": error.detach().abs().mean()}

    def after_step(self, step: int) -> None: ...

    def check(self, figures: dict[str, float]) -> None:
        self.checked.append(figures["step"])


def run(folder: Path, settings: TrainSettings, learner: Line | None = None, **how: Any) -> tuple[Trainer, TrainResult]:
    trainer = Trainer(learner or Line(), settings, folder, CPU)
    return trainer, trainer.run(**how)


def rows(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_store(tmp_path_factory.mktemp("dots") / "dots.zarr")


def pretrain(store: Path, out: Path, settings: TrainSettings, **how: Any) -> TrainResult:
    return pretrain_encoder(Source(store), out, ENCODER, settings, CPU, **how)


def train(store: Path, out: Path, settings: TrainSettings, **how: Any) -> TrainResult:
    return train_world_model(Source(store), out, "pixels", PREDICTOR, settings, CPU, **how)


def product(out: Path) -> dict[str, Tensor]:
    found = [path for path in (out / "encoder", out / "model") if path.exists()]
    return load_file(found[0] / "model.safetensors")


def assert_equal_runs(left: Path, right: Path) -> None:
    tensors, others = product(left), product(right)
    assert set(tensors) == set(others)
    assert all(torch.equal(tensors[name], others[name]) for name in tensors)
    assert rows(left) == rows(right)
    states = [torch.load(folder / CHECKPOINT, weights_only=True) for folder in (left, right)]
    moments = [[kept for one in state["optimisers"] for kept in one["state"].values()] for state in states]
    assert len(moments[0]) == len(moments[1]) > 0
    for one, other in zip(*moments, strict=True):
        assert one.keys() == other.keys() and len(one) > 0
        assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("bf16", [False, True], ids=["fp32", "bf16"])
@pytest.mark.parametrize("kind", [pretrain, train])
def test_stopped_at_2_and_resumed_to_4_is_4_straight(
    kind: Callable[..., TrainResult], store: Path, tmp_path: Path, bf16: bool, optimizer: str
) -> None:
    settings = training(4, bf16=bf16, optimizer=optimizer)
    straight = kind(store, tmp_path / "straight", settings)
    assert straight.finished and straight.step == straight.total == 4
    stopped = kind(store, tmp_path / "resumed", settings, stop_at=2)
    assert not stopped.finished and stopped.step == 2
    assert not (tmp_path / "resumed" / "encoder").exists() and not (tmp_path / "resumed" / "model").exists()
    assert kind(store, tmp_path / "resumed", settings).finished
    assert_equal_runs(tmp_path / "straight", tmp_path / "resumed")


def test_a_finished_run_asked_for_again_only_says_so(store: Path, tmp_path: Path) -> None:
    first = train(store, tmp_path, training(2))
    before = product(tmp_path), rows(tmp_path)
    again = train(store, tmp_path, training(2))
    assert again.finished and again.step == 2 and again.seconds == pytest.approx(first.seconds, rel=1e-6)
    assert all(torch.equal(before[0][name], tensor) for name, tensor in product(tmp_path).items())
    assert rows(tmp_path) == before[1]


RUNNER = """
    import os, signal, sys
    from pathlib import Path
    sys.path.insert(0, {tests!r})
    import torch
    torch.set_num_threads(1)
    from moving_dot import ENCODER, training
    from vjepa_mpc.pretrain.run import pretrain_encoder
    from vjepa_mpc.pretrain.source import Source

    def progress(step, total, figures):
        if step == 3:
            os.kill(os.getpid(), signal.SIGKILL)

    source, out = Source(Path({store!r})), Path({out!r})
    pretrain_encoder(source, out, ENCODER, training(5), torch.device("cpu"), progress=progress)
"""


def test_killed_in_the_middle_it_goes_on_from_the_checkpoint_to_the_same_end(store: Path, tmp_path: Path) -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        pretrain(store, tmp_path / "straight", training(5))
        code = textwrap.dedent(RUNNER).format(
            tests=str(Path(__file__).parent), store=str(store), out=str(tmp_path / "killed")
        )
        script = tmp_path / "script.py"
        script.write_text(code)
        dead = subprocess.run(
            [sys.executable, str(script)], cwd=ROOT, env=_environment(), capture_output=True, timeout=120
        )
        assert dead.returncode == -signal.SIGKILL, dead.stderr.decode()
        assert torch.load(tmp_path / "killed" / CHECKPOINT, weights_only=True)["step"] == 2
        assert [row["step"] for row in rows(tmp_path / "killed")] == [0, 1, 2]  # one more than the checkpoint knows
        pretrain(store, tmp_path / "killed", training(5))
    finally:
        torch.set_num_threads(threads)
    assert_equal_runs(tmp_path / "straight", tmp_path / "killed")


def _environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


def test_killed_before_its_first_checkpoint_a_run_begins_anew_with_a_clean_log(tmp_path: Path) -> None:
    (tmp_path / "log.jsonl").write_text('{"step": 0, "loss": 9}\n{"step": 1, "lo')
    run(tmp_path, training(3))
    assert [row["step"] for row in rows(tmp_path)] == [0, 1, 2]


def test_a_log_row_cut_short_does_not_hinder_resuming(tmp_path: Path) -> None:
    run(tmp_path, training(6), stop_at=2)
    with (tmp_path / "log.jsonl").open("a") as log:
        log.write('{"step": 2, "loss": 0.3')
    run(tmp_path, training(6))
    assert [row["step"] for row in rows(tmp_path)] == list(range(6))


@pytest.mark.parametrize("kind", [pretrain, train])
def test_other_settings_are_refused_with_the_difference(
    kind: Callable[..., TrainResult], store: Path, tmp_path: Path
) -> None:
    kind(store, tmp_path, training(4), stop_at=1)
    checkpoint = (tmp_path / CHECKPOINT).read_bytes()
    with pytest.raises(InputError, match=r"training\.lr: 0\.001 there, 0\.5 asked for.*another --out"):
        kind(store, tmp_path, training(4, lr=0.5))
    with pytest.raises(InputError, match=r"data: \w+ there, \w+ asked for"):
        kind(make_store(tmp_path / "more.zarr", episodes=3), tmp_path, training(4))
    assert (tmp_path / CHECKPOINT).read_bytes() == checkpoint


def test_settings_of_a_run_that_never_began_bind_nobody(store: Path, tmp_path: Path) -> None:
    from dataclasses import replace

    with pytest.raises(InputError, match="use shorter clips"):
        pretrain_encoder(Source(store), tmp_path, replace(ENCODER, frames=50), training(1), CPU)
    assert pretrain(store, tmp_path, training(1)).finished


DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda content: b"",
    "truncated": lambda content: content[: len(content) // 2],
    "noise": lambda content: b"\x00" * len(content),
    "text": lambda content: b"hello",
}


@pytest.mark.parametrize("kind", DAMAGES)
def test_a_damaged_checkpoint_is_refused_in_a_sentence(tmp_path: Path, kind: str) -> None:
    run(tmp_path, training(4), stop_at=2)
    file = tmp_path / CHECKPOINT
    file.write_bytes(DAMAGES[kind](file.read_bytes()))
    with pytest.raises(InputError, match=r"checkpoint\.pt does not fit this run.*another --out") as caught:
        run(tmp_path, training(4))
    assert "\n" not in str(caught.value)


class _Bomb:
    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.mark,)


def test_a_checkpoint_runs_no_code(tmp_path: Path) -> None:
    torch.save({"step": 1, "total": 4, "modules": _Bomb(tmp_path / "ran")}, tmp_path / CHECKPOINT)
    with pytest.raises(InputError, match="does not fit"):
        run(tmp_path, training(4))
    assert not (tmp_path / "ran").exists()


def test_a_checkpoint_of_another_shape_is_refused(tmp_path: Path) -> None:
    run(tmp_path, training(4), stop_at=2)
    wider = Line()
    wider.modules = nn.Linear(3, 2)
    with pytest.raises(InputError, match="does not fit"):
        run(tmp_path, training(4), wider)


def nan_from(first: int) -> Callable[[int, Tensor], Tensor]:
    return lambda step, loss: loss * torch.nan if step >= first else loss


@pytest.mark.parametrize("log_every", [1, 7, 100])
def test_nan_stops_the_run_and_leaves_the_last_good_checkpoint(tmp_path: Path, log_every: int) -> None:
    """Also when the next checkpoint is due before the next logged row."""
    settings = training(40, checkpoint_every=3, log_every=log_every)
    with pytest.raises(NotFiniteError, match="lower --lr"):
        run(tmp_path, settings, Line(nan_from(5)))
    saved = torch.load(tmp_path / CHECKPOINT, weights_only=True)
    assert saved["step"] == 3
    assert all(bool(torch.isfinite(tensor).all()) for tensor in saved["modules"].values())
    assert all(math.isfinite(value) for row in rows(tmp_path) for value in row.values())
    run(tmp_path / "straight", settings)
    run(tmp_path, settings)  # the fault mended: from the good checkpoint to the same end
    assert rows(tmp_path) == rows(tmp_path / "straight")


def test_nan_is_not_saved_when_interrupted_either(tmp_path: Path) -> None:
    settings = training(40, checkpoint_every=2, log_every=100)
    with pytest.raises(NotFiniteError):
        run(tmp_path, settings, Line(nan_from(2)), stop_at=3)
    assert torch.load(tmp_path / CHECKPOINT, weights_only=True)["step"] == 2


def test_a_learner_that_gives_up_leaves_the_last_checkpoint(tmp_path: Path) -> None:
    class GivesUp(Line):
        def check(self, figures: dict[str, float]) -> None:
            if figures["step"] == 5:
                raise InputError("collapsed; do something else.")

    with pytest.raises(InputError, match="collapsed"):
        run(tmp_path, training(9, checkpoint_every=4), GivesUp())
    assert torch.load(tmp_path / CHECKPOINT, weights_only=True)["step"] == 4


def test_the_learning_rate_rises_stays_and_falls() -> None:
    settings = TrainSettings(steps=100, lr=2.0, warmup=10, cooldown=0.2)
    rates = [learning_rate(step, 100, settings) for step in range(100)]
    assert rates[0] == pytest.approx(0.2) and rates[4] == pytest.approx(1.0)
    assert all(rate == 2.0 for rate in rates[9:81])
    assert rates[90] == pytest.approx(1.0) and rates[99] == pytest.approx(0.1)
    assert all(earlier > later > 0 for earlier, later in itertools.pairwise(rates[80:]))
    assert learning_rate(50, None, settings) == 2.0 and learning_rate(0, None, settings) == pytest.approx(0.2)
    assert learning_rate(0, 1, TrainSettings(steps=1, warmup=0)) == pytest.approx(1e-3)


def test_only_matrices_are_decayed() -> None:
    (adamw,) = make_optimisers(Line().modules, training(1, weight_decay=0.3))
    groups = adamw.param_groups
    assert [(len(group["params"]), group["weight_decay"]) for group in groups] == [(1, 0.3), (1, 0.0)]
    assert groups[0]["params"][0].ndim == 2


def test_muon_steps_the_matrices_of_repeated_blocks_and_nothing_else() -> None:
    """Its step turns a gradient into one whose singular values are near one, scaled to AdamW's size."""
    network = nn.ModuleDict({"read": nn.Linear(4, 6), "blocks": nn.ModuleList([nn.Linear(6, 6)])})
    settings = training(1, optimizer="muon", lr=0.1, weight_decay=0.0)
    adamw, muon = make_optimisers(network, settings)
    (matrix,) = (p for group in muon.param_groups for p in group["params"])
    assert matrix is network["blocks"][0].weight
    others = {id(p) for group in adamw.param_groups for p in group["params"]}
    assert others == {id(p) for p in network.parameters()} - {id(matrix)}
    before = matrix.detach().clone()
    matrix.grad = torch.randn(6, 6, generator=torch.Generator().manual_seed(0))
    muon.step()
    values = torch.linalg.svdvals(before - matrix.detach()) / (0.1 * 0.2 * 6**0.5)
    assert float(values.min()) > 0.5 and float(values.max()) < 1.4


def test_an_unknown_optimizer_is_refused_with_the_nearest_name() -> None:
    with pytest.raises(InputError, match="muon"):
        training(1, optimizer="moun")


def test_the_settings_reach_the_optimiser(tmp_path: Path) -> None:
    """Against AdamW written out, over three steps with clipping."""
    settings = training(3, lr=0.05, warmup=2, cooldown=0.5, weight_decay=0.1, clip=0.5, betas=(0.8, 0.9))
    trainer, _ = run(tmp_path, settings)
    line = Line()
    values = {name: parameter.detach().clone() for name, parameter in line.modules.named_parameters()}
    first = {name: torch.zeros_like(value) for name, value in values.items()}
    second = {name: torch.zeros_like(value) for name, value in values.items()}
    for step, rate in enumerate((0.025, 0.05, 0.025)):
        line.modules.load_state_dict(values)
        line.modules.zero_grad()
        line.loss(line.batch(step), step)[0].backward()
        slopes = {name: parameter.grad for name, parameter in line.modules.named_parameters()}
        norm = math.sqrt(sum(float(slope.square().sum()) for slope in slopes.values() if slope is not None))
        assert norm > 0.5
        for name, slope in slopes.items():
            assert slope is not None
            slope = slope * 0.5 / (norm + 1e-6)
            first[name] = 0.8 * first[name] + 0.2 * slope
            second[name] = 0.9 * second[name] + 0.1 * slope.square()
            mean, square = first[name] / (1 - 0.8 ** (step + 1)), second[name] / (1 - 0.9 ** (step + 1))
            kept = values[name] * (1 - rate * (0.1 if name == "weight" else 0.0))
            values[name] = kept - rate * mean / (square.sqrt() + 1e-8)
    for name, parameter in trainer.learner.modules.named_parameters():
        torch.testing.assert_close(parameter.detach(), values[name], atol=1e-6, rtol=1e-5)


def test_minutes_become_steps_once_and_are_kept(tmp_path: Path) -> None:
    class Slow(Line):
        def loss(self, batch: Tensor, step: int) -> tuple[Tensor, dict[str, Any]]:
            time.sleep(0.01)
            return super().loss(batch, step)

    settings = training(None, minutes=1.0, checkpoint_every=10_000)
    totals: list[int | None] = []

    def kill(step: int, total: int | None, figures: Any) -> None:
        totals.append(total)
        if step == TIMING_STEPS + 3:
            raise RuntimeError("the power went")

    with pytest.raises(RuntimeError, match="power"):
        run(tmp_path, settings, Slow(), progress=kill)
    fixed = totals[-1]
    assert totals[: TIMING_STEPS - 1] == [None] * (TIMING_STEPS - 1)
    assert fixed is not None and 500 < fixed < 6000  # 60 s at 10 ms and more a step
    again, result = run(tmp_path, settings, stop_at=TIMING_STEPS + 5)
    assert again.total == result.total == fixed and not result.finished
    assert torch.load(tmp_path / CHECKPOINT, weights_only=True)["total"] == fixed


def test_a_few_seconds_are_kept_too(tmp_path: Path) -> None:
    started = time.perf_counter()
    _, result = run(tmp_path, training(None, minutes=1 / 60))
    assert result.finished and time.perf_counter() - started < 10


def test_seconds_add_up_over_resumed_runs(tmp_path: Path) -> None:
    _, first = run(tmp_path, training(4), stop_at=2)
    _, second = run(tmp_path, training(4))
    assert second.seconds > first.seconds > 0


@pytest.mark.parametrize(
    "wrong",
    [
        {"minutes": 1.0}, {"steps": None}, {"steps": 0}, {"steps": None, "minutes": 0.0}, {"batch": 0}, {"lr": 0.0},
        {"steps": None, "minutes": math.nan}, {"steps": None, "minutes": math.inf},
        {"lr": math.nan}, {"checkpoint_every": 0}, {"log_every": 0},
    ],
)  # fmt: skip
def test_impossible_settings_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(InputError):
        training(**{"steps": 4, **wrong})


def test_a_second_ctrl_c_interrupts_at_once(tmp_path: Path) -> None:
    def impatient(step: int, total: int | None, figures: Any) -> None:
        if step == 2:
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)

    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, training(9, checkpoint_every=1), progress=impatient)
    assert signal.getsignal(signal.SIGINT) is before


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stop_request_saves_and_ends_after_the_step(tmp_path: Path, number: signal.Signals) -> None:
    def ask(step: int, total: int | None, figures: Any) -> None:
        if step == 3:
            os.kill(os.getpid(), number)

    _, result = run(tmp_path, training(9, checkpoint_every=100), progress=ask)
    assert (result.step, result.total, result.finished) == (3, 9, False)
    assert torch.load(tmp_path / CHECKPOINT, weights_only=True)["step"] == 3


def test_the_last_checkpoints_are_kept_and_can_be_gone_back_to(tmp_path: Path) -> None:
    settings = training(7, checkpoint_every=2, keep=2)
    run(tmp_path, settings)
    kept = {path.name: torch.load(path, weights_only=True)["step"] for path in tmp_path.glob("*.pt")}
    assert kept == {"checkpoint.pt": 7, "checkpoint-6.pt": 6, "checkpoint-7.pt": 7}
    whole = rows(tmp_path)
    (tmp_path / "checkpoint-6.pt").replace(tmp_path / CHECKPOINT)
    _, result = run(tmp_path, settings)
    assert result.finished and rows(tmp_path) == whole
    run(tmp_path / "one", training(7, checkpoint_every=2))
    assert [path.name for path in (tmp_path / "one").glob("*.pt")] == [CHECKPOINT]


def test_the_pace_is_told(tmp_path: Path) -> None:
    class Slow(Line):
        def batch(self, step: int) -> Tensor:
            time.sleep(0.02)
            return super().batch(step)

    told: list[dict[str, float]] = []
    _, result = run(tmp_path, training(6), Slow(), progress=lambda step, total, figures: told.append(dict(figures)))
    assert 0 < result.clips_a_second < training(6).batch / 0.02 and 0 < result.data_wait <= 1
    assert "data_wait" not in told[0] and told[-1]["clips_a_second"] > 0
    assert all("data_wait" not in row for row in rows(tmp_path))  # of the machine, not of the run


def test_curves_go_to_weights_and_biases_where_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """To a stand-in for it: the real one is not installed here."""
    sent: list[Any] = []

    class Run:
        def log(self, figures: dict[str, float], step: int) -> None:
            sent.append((step, figures))

        def finish(self, exit_code: int) -> None:
            sent.append(exit_code)

    def init(**how: Any) -> Run:
        sent.append(how["id"])
        assert how["project"] == "arms" and how["resume"] == "allow"
        return Run()

    monkeypatch.setitem(sys.modules, "wandb", types.SimpleNamespace(init=init))
    for stop_at in (2, None):
        Trainer(Line(), training(3), tmp_path, CPU, "arms").run(stop_at=stop_at)
    logged = rows(tmp_path)
    assert sent == [sent[0], (0, logged[0]), (1, logged[1]), 0, sent[0], (2, logged[2]), 0]
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(InputError, match="pip install wandb"):
        Trainer(Line(), training(3), tmp_path / "b", CPU, "arms").run()


def test_accumulated_batches_make_one_step_of_their_mean_gradient(tmp_path: Path) -> None:
    """Two batches of eight a step are one of sixteen, in the memory of eight; stopped and resumed too."""

    class Pairs(Line):
        def batch(self, step: int) -> Tensor:
            return torch.cat([super().batch(2 * step), super().batch(2 * step + 1)])

    two, _ = run(tmp_path / "two", training(6, accumulate=2))
    large, _ = run(tmp_path / "large", training(6), Pairs())
    torch.testing.assert_close(two.learner.modules.weight, large.learner.modules.weight, rtol=1e-5, atol=1e-6)
    for one, other in zip(rows(tmp_path / "two"), rows(tmp_path / "large"), strict=True):
        assert one == pytest.approx(other, rel=1e-4)
    run(tmp_path / "stopped", training(6, accumulate=2), stop_at=3)
    again, result = run(tmp_path / "stopped", training(6, accumulate=2))
    assert result.finished and torch.equal(again.learner.modules.weight, two.learner.modules.weight)
    with pytest.raises(InputError, match="at least one batch"):
        training(6, accumulate=0)


def test_arithmetic_is_counted_once_the_training_is_over(tmp_path: Path) -> None:
    """8 rows through 3 weights: 48 operations forwards and 48 backwards, 12 a row."""
    plain, _ = run(tmp_path / "plain", training(4, batch=8, bf16=False))
    trainer, result = run(tmp_path / "run", training(4, batch=8, bf16=False))
    assert result.flops_a_second == 0
    result = trainer.measured(result)
    assert result.flops_a_second == pytest.approx(12 * result.clips_a_second)
    assert 0 < result.utilisation < 1 and "matrices here" in result.peak
    assert torch.equal(trainer.learner.modules.weight, plain.learner.modules.weight)
