"""What is measured of an encoder in training, against loops and known spectra; and how a collapse ends a run."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from moving_dot import ENCODER, make_store, training

from vjepa_mpc.pretrain import health as module
from vjepa_mpc.pretrain.health import CollapseError, check_health, effective_rank, health
from vjepa_mpc.pretrain.health_figure import HEALTH, save_health
from vjepa_mpc.pretrain.run import pretrain_encoder
from vjepa_mpc.pretrain.source import Source

CPU = torch.device("cpu")


def test_the_effective_rank_is_the_exponential_of_the_spectrums_entropy() -> None:
    rng = np.random.default_rng(0)
    left, right = np.linalg.qr(rng.normal(size=(40, 5)))[0], np.linalg.qr(rng.normal(size=(5, 5)))[0]
    for values in ([1, 1, 1, 1, 1], [1, 0, 0, 0, 0], [3, 3, 0, 0, 0], [5, 2, 1, 0.5, 0.1]):
        shares = np.array(values) / np.sum(values)
        entropy = -sum(share * math.log(share) for share in shares if share)
        for matrix in (left @ np.diag(values) @ right, right.T @ np.diag(values) @ left.T):
            assert effective_rank(torch.from_numpy(matrix)) == pytest.approx(math.exp(entropy), rel=1e-4)
    assert effective_rank(torch.eye(7)) == pytest.approx(7)
    assert effective_rank(torch.ones(9, 3)) == pytest.approx(1)
    assert effective_rank(torch.zeros(9, 3)) == 0.0


def test_the_figures_against_loops() -> None:
    rng = np.random.default_rng(1)
    features = rng.normal(size=(6, 4, 3)) * np.array([0.1, 1.0, 2.0, 0.5])[None, :, None] + rng.normal(size=(4, 3))
    found = {name: figure() for name, figure in health(lambda: torch.from_numpy(features)).items()}
    by_position = [np.mean([features[:, p, c].std(ddof=1) for c in range(3)]) for p in range(4)]
    assert found["spread"] == pytest.approx(np.mean(by_position), rel=1e-5)
    assert found["spread_least"] == pytest.approx(by_position[0], rel=1e-5)
    assert found["spread_most"] == pytest.approx(by_position[2], rel=1e-5)
    places = [features[b, :, c].std() for b in range(6) for c in range(3)]
    assert found["places"] == pytest.approx(np.mean(places), rel=1e-5)
    content = np.stack([features[b, p] - features[:, p].mean(axis=0) for b in range(6) for p in range(4)])
    shares = np.linalg.svd(content, compute_uv=False)
    shares = shares / shares.sum()
    assert found["rank"] == pytest.approx(math.exp(-(shares * np.log(shares)).sum()), rel=1e-4)


def test_position_alone_is_no_content() -> None:
    code = torch.randn(1, 16, 8, generator=torch.Generator().manual_seed(0)).expand(5, -1, -1)
    found = {name: figure() for name, figure in health(lambda: code).items()}
    assert found["spread"] == found["rank"] == 0.0 and found["places"] > 0.5


def test_features_are_computed_once_and_only_when_a_figure_is_asked_for() -> None:
    asked = []
    figures = health(lambda: asked.append(1) or torch.randn(3, 2, 4))
    assert not asked
    for figure in figures.values():
        figure()
    assert len(asked) == 1


def test_a_collapse_onto_a_line_is_one_too() -> None:
    check_health({"step": 100.0, "spread": 0.5, "rank": 1.6}, "do so")
    with pytest.raises(CollapseError, match=r"at step 120: .* one direction only, .* 1\.20 \(below 1\.5\); do so\.$"):
        check_health({"step": 120.0, "spread": 0.5, "rank": 1.2}, "do so")


def test_a_collapse_ends_the_run_with_a_sentence_and_a_picture(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "FIRST_CHECK", 3)
    monkeypatch.setattr(module, "COLLAPSED_SPREAD", 10.0)
    store = make_store(tmp_path / "dots.zarr")
    with pytest.raises(CollapseError) as stopped:
        pretrain_encoder(Source(store), tmp_path / "run", ENCODER, training(9), CPU)
    picture = tmp_path / "run" / HEALTH
    assert str(stopped.value).endswith(f"raise --sigreg or lower --lr (its curves: {picture}).")
    assert "\n" not in str(stopped.value) and picture.read_bytes().startswith(b"\x89PNG")
    rows = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [0, 1, 2, 3] and not (tmp_path / "run" / "encoder").exists()
    assert {"spread", "spread_least", "spread_most", "places", "rank", "sigreg", "grad_norm"} < set(rows[-1])


def test_a_run_without_a_row_has_no_picture(tmp_path: Path) -> None:
    (tmp_path / "log.jsonl").touch()
    assert not save_health(tmp_path / "log.jsonl", tmp_path / HEALTH)
    assert not (tmp_path / HEALTH).exists()
