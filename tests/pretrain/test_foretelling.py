"""Which offline figure orders the checkpoints of a run as their success does."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from moving_dot import PREDICTOR, make_store, training
from scipy import stats

from vjepa_mpc.core.errors import InputError
from vjepa_mpc.intervals import RankCorrelation, spearman, wilson_interval
from vjepa_mpc.pretrain.foretelling import FIGURES, Foretelling, Played, foretelling, read_played
from vjepa_mpc.pretrain.foretelling_page import write_page
from vjepa_mpc.pretrain.run import train_world_model
from vjepa_mpc.pretrain.run_models import models_of
from vjepa_mpc.pretrain.source import Source
from vjepa_mpc.pretrain.validation import Figures, Quartiles
from vjepa_mpc.world_model import WorldModel

STEPS = (1, 2, 3, 4, 5)


def generator() -> np.random.Generator:
    return np.random.default_rng(0)


def correlated(first: list[float], second: list[float]) -> RankCorrelation:
    found = spearman(np.array(first, float), np.array(second, float), generator())
    assert found is not None
    return found


@pytest.mark.parametrize("seed", range(6))
def test_rank_correlation_is_scipys(seed: int) -> None:
    rng = np.random.default_rng(seed)
    n = int(rng.integers(5, 15))
    first, second = rng.normal(size=n), rng.integers(0, 4, n).astype(float)  # with ties
    found = spearman(first, second, generator())
    assert found is not None and found.n == n
    assert found.rho == pytest.approx(stats.spearmanr(first, second).statistic)
    assert -1 <= found.low < found.rho < found.high <= 1


def test_its_chance_is_that_of_all_orders() -> None:
    """Four in order: 2 of 24 orders are as strong. Of five with one neighbouring pair exchanged: the two orders at rho
    1 and -1 and the four exchanges of neighbours from each of these, 10 of 120. Of many, near Student's t."""
    assert correlated([1, 2, 3, 4], [10, 20, 30, 40]).p == pytest.approx(2 / 24)
    assert correlated([1, 2, 3, 4, 5], [1, 2, 3, 5, 4]).p == pytest.approx(10 / 120)
    first = list(np.random.default_rng(1).normal(size=40))
    second = [value + noise for value, noise in zip(first, np.random.default_rng(2).normal(0, 3, 40), strict=True)]
    assert correlated(first, second).p == pytest.approx(stats.spearmanr(first, second).pvalue, abs=0.01)


def test_its_interval_is_bonett_and_wrights() -> None:
    found = correlated([1, 2, 3, 4, 5, 6, 7], [2, 1, 4, 3, 5, 7, 6])
    around, width = math.atanh(found.rho), 1.959964 * math.sqrt((1 + found.rho**2 / 2) / 4)
    assert (found.low, found.high) == pytest.approx((math.tanh(around - width), math.tanh(around + width)))
    perfect, reverse = correlated([1, 2, 3, 4, 5], [2, 3, 5, 8, 13]), correlated([1, 2, 3, 4, 5], [5, 4, 3, 2, 1])
    assert (perfect.rho, perfect.high) == (1, 1) and 0 < perfect.low < 0.9, "five points are no certainty"
    assert (reverse.rho, reverse.low, reverse.high) == pytest.approx((-1, -1, -perfect.low))


def test_its_interval_covers() -> None:
    """Of pairs drawn from a Gaussian with correlation 0.6, whose rank correlation is 6/pi asin(0.3)."""
    rng, truth, inside = np.random.default_rng(0), 6 / math.pi * math.asin(0.3), 0
    for _ in range(300):
        first, noise = rng.normal(size=(2, 15))
        found = spearman(first, 0.6 * first + 0.8 * noise, rng, draws=1)
        assert found is not None
        inside += found.low <= truth <= found.high
    assert 0.92 <= inside / 300 <= 0.99


def test_what_has_no_order_has_no_correlation() -> None:
    assert spearman(np.ones(5), np.arange(5.0), generator()) is None
    with pytest.raises(InputError, match="at least 4"):
        spearman(np.arange(3.0), np.arange(3.0), generator())
    with pytest.raises(InputError, match="not a finite"):
        spearman(np.array([1, 2, 3, math.nan]), np.arange(4.0), generator())


def figures(error: float, rank: float, end: float) -> Figures:
    flat = Quartiles(0.5, 1.0, 2.0)
    return Figures(9, (0.1, error), (0.2, 1.0), rank, flat, Quartiles(0.0, end, 1.0), flat, flat)


def row(held: int, end: float, n: int = 20) -> dict[str, Any]:
    low, high = wilson_interval(held, n)
    rate = {"count": held, "rate": held / n, "wilson_low": low, "wilson_high": high}
    return {"episodes": n, "held": rate, "hit": rate, "final_distance_median_m": end}


def known() -> tuple[dict[int, Figures], Played]:
    """Success rises, then falls; the rank knows it, the error only falls, the chosen end has it the wrong way."""
    held = dict(zip(STEPS, (4, 9, 15, 12, 7), strict=True))
    offline = {step: figures(1 / step, 1 - count / 20, count / 10) for step, count in held.items()}
    return offline, Played("dev", "0" * 64, {step: row(count, 1 / count) for step, count in held.items()})


def found_of_known() -> Foretelling:
    return foretelling(*known(), generator())


def test_the_figure_that_orders_as_success_does_is_told() -> None:
    found = found_of_known().correlations
    assert list(found) == list(FIGURES)
    rank, error, steps, end = (found[name]["held"] for name in ("rank", "error / copying", "steps", "end chosen"))
    assert rank is not None and error is not None and steps is not None and end is not None
    assert rank.rho == 1 and end.rho == -1 and rank.p == pytest.approx(2 / 120)
    assert error.rho == steps.rho == pytest.approx(stats.spearmanr(STEPS, (4, 9, 15, 12, 7)).statistic)
    assert found["contrast"]["held"] is None  # the same for all
    assert found["rank"]["end"] == rank, "nearer is better"


def test_fewer_than_four_checkpoints_are_refused() -> None:
    offline, played = known()
    with pytest.raises(InputError, match="got 3"):
        foretelling({step: offline[step] for step in (1, 2, 3)}, played, generator())


def test_the_page_shows_all_of_it_and_loads_nothing(tmp_path: Path) -> None:
    _, played = known()
    write_page(found_of_known(), played, {"run": "runs/<a>"}, tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text()
    assert "runs/&lt;a&gt;" in page and page.count("<svg") == len(FIGURES) and page.count("<circle") == 25
    assert "+1.00 [" in page and "-1.00 [" in page and "75 % [53, 89]" in page and "step 3: 0.25, held 75 %" in page
    assert "<script" not in page and "http://" not in page and "https://" not in page


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A store, and a run of five steps on it that kept them all."""
    folder = tmp_path_factory.mktemp("run")
    store = make_store(folder / "dots.zarr", episodes=24)
    settings = training(5, checkpoint_every=1, keep=9, batch=4)
    train_world_model(Source(store), folder / "run", "untrained", PREDICTOR, settings, torch.device("cpu"))
    return store, folder / "run"


def results(path: Path, rows: dict[Path, dict[str, Any]], **changes: Any) -> Path:
    record = {"manifest": "dev", "sha256": "f" * 64, "settings": {"seed": 0}}
    named = {str(model): row for model, row in rows.items()}
    path.write_text(json.dumps({**record, "results": {**named, "random": row(0, 1.0)}, **changes}))
    return path


def test_models_of_checkpoints_are_those_of_that_step(trained: tuple[Path, Path]) -> None:
    models = models_of(trained[1])
    assert list(models) == list(STEPS) and models[5] == trained[1] / "model"
    assert models_of(trained[1]) == models
    for step, folder in models.items():
        model = WorldModel.from_pretrained(folder)
        saved = torch.load(trained[1] / f"checkpoint-{step}.pt", weights_only=True)["modules"]
        for name, tensor in model.predictor.state_dict().items():
            assert torch.equal(tensor, saved[name].half().float() if tensor.is_floating_point() else saved[name])
        assert model.config.training["steps"] == step
    assert (models[1] / "model.safetensors").stat().st_size < (models[5] / "model.safetensors").stat().st_size / 2


def test_a_run_that_is_not_there_or_not_whole_is_refused(trained: tuple[Path, Path], tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no finished run"):
        models_of(tmp_path)
    whole = tmp_path / "run"
    shutil.copytree(trained[1] / "model", whole / "model")
    (whole / "checkpoint-best.pt").write_bytes(b"somebody's own")
    assert list(models_of(whole)) == [5]
    (whole / "checkpoint-2.pt").write_bytes(b"cut short")
    with pytest.raises(InputError, match=r"checkpoint-2\.pt does not fit"):
        models_of(whole)
    assert not (whole / "model-2").exists()


Leave = Callable[..., tuple[Any, str, str]]


def test_the_command_from_a_run_to_the_page(trained: tuple[Path, Path], tmp_path: Path, leave: Leave) -> None:
    store, run = trained
    line = ["validate-model", "--run", run, store, "--clips", 3, "--candidates", 6, "--threads", 1]
    code, out, err = leave(*line)
    assert code == 0 and "error / copying" in out
    assert f"vjepa-mpc evaluate --model {run / 'model-1'}" in err and f"--run {run} {store} --evaluation" in err
    stamps = {path: path.stat().st_mtime_ns for path in (run / "validation").iterdir()}
    assert len(stamps) == 5
    played = results(tmp_path / "results.json", {path: row(step, 1 / step) for step, path in models_of(run).items()})
    code, out, err = leave(*line, "--evaluation", played)
    assert code == 0 and "rank correlation with" in out and "+1.00 [" in out, err
    assert all(path.stat().st_mtime_ns == stamp for path, stamp in stamps.items()), "validated twice"
    record = json.loads((run / "validation" / "checkpoints.json").read_text())
    assert record["correlations"]["steps"]["held"]["rho"] == 1 and record["manifest"] == "dev"
    assert (run / "validation" / "checkpoints.html").read_text().startswith("<!doctype html>")


def test_evaluations_that_do_not_go_together_are_refused(trained: tuple[Path, Path], tmp_path: Path) -> None:
    models = models_of(trained[1])
    one = results(tmp_path / "one.json", {models[1]: row(1, 1.0), trained[1]: row(5, 0.1)})
    assert list(read_played([one], models).rows) == [1, 5], "the run's folder is its last model"
    other = results(tmp_path / "other.json", {models[2]: row(2, 1.0)}, sha256="0" * 64)
    fewer = results(tmp_path / "fewer.json", {models[2]: row(2, 1.0, n=10)})
    strange = results(tmp_path / "strange.json", {tmp_path: row(2, 1.0)})
    (tmp_path / "none.json").write_text("[]")
    for files, words in (
        ([one, other], "other manifests"), ([one, fewer], "10 to 20 pairs"), ([strange], "none of this run's models"),
        ([one, one], "step 1 is in several"), ([tmp_path / "none.json"], "is no results.json"),
    ):  # fmt: skip
        with pytest.raises(InputError, match=words):
            read_played(files, models)


def test_options_that_do_not_go_together_are_refused(trained: tuple[Path, Path], leave: Leave) -> None:
    store, run = trained
    for line, words in (
        (["validate-model", store, "--evaluation", "results.json"], "name the run with --run"),
        (["validate-model", "reacher", store, "--run", run], "leave reacher out"),
    ):
        code, out, err = leave(*line)
        assert code == 2 and out == "" and words in err.splitlines()[-1]
