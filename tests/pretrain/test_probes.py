"""Probes against closed forms and on features whose content is known; the command as a user meets it."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from moving_dot import episode, make_store, spec

from vjepa_mpc.core.errors import InputError
from vjepa_mpc.datasets.store import ZarrStore
from vjepa_mpc.pretrain import hindsight, probing
from vjepa_mpc.pretrain.probes import (
    Examples,
    Target,
    attentive_probe,
    linear_probe,
    ridge,
    score,
    scores,
    standardised,
)
from vjepa_mpc.pretrain.probing import NOTHING, ProbeSettings, Probing, probe_encoders
from vjepa_mpc.robots.base import StateSpec

CPU = torch.device("cpu")
SMALL = ProbeSettings(frames=150, held=40, grid=2, steps=0)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """60 episodes; of the three held out one is plain, one has factors of its look, one another look."""
    path = tmp_path_factory.mktemp("dots") / "dots.zarr"
    notes: dict[int, dict[str, Any]] = {
        39: {"appearance_seed": 7, "factors": {"light": 1.0, "colors": 0.5, "camera": 0.0}},
        59: {"appearance_seed": 8},
    }
    with ZarrStore.create(path, spec()) as writer:
        writer.extend(
            [dataclasses.replace(episode(n), metadata=notes.get(n, {"appearance_seed": None})) for n in range(60)]
        )
    return path


@pytest.mark.parametrize("shape", [(40, 6), (12, 30)], ids=["more examples", "more features"])
def test_ridge_is_its_normal_equations(shape: tuple[int, int]) -> None:
    rng = np.random.default_rng(0)
    x, y, others = rng.normal(size=shape), rng.normal(size=(shape[0], 2)), rng.normal(size=(5, shape[1]))
    centred = x - x.mean(0)
    for strength in (0.1, 10.0):
        gram = centred.T @ centred
        penalty = strength * np.trace(gram) / min(shape) * np.eye(shape[1])
        weights = np.linalg.solve(gram + penalty, centred.T @ (y - y.mean(0)))
        expected = (others - x.mean(0)) @ weights + y.mean(0)
        found = ridge(*(torch.from_numpy(part).float() for part in (x, y, others)), strength)
        np.testing.assert_allclose(found.numpy(), expected, rtol=1e-3, atol=1e-4)


def test_scores_by_hand() -> None:
    plain = Target("x", "m")
    found = score(plain, torch.tensor([[1.0], [2.0], [4.0]]), torch.tensor([1.0, 2.0, 3.0]))
    assert found.r2 == pytest.approx(1 - 1 / 2) and found.error == 0.0
    assert score(plain, torch.full((3, 1), 2.0), torch.tensor([1.0, 2.0, 3.0])).r2 == pytest.approx(0)
    assert score(plain, torch.zeros(2, 1), torch.ones(2)).r2 is None
    angle = Target("q", "rad", periodic=True)
    true = torch.tensor([3.1, -3.1, 0.0])
    read = torch.stack((torch.tensor([-3.1, 3.1, 0.2]).cos(), torch.tensor([-3.1, 3.1, 0.2]).sin()), dim=-1)
    found = score(angle, 5 * read, true)  # the length says nothing of the angle
    assert found.error == pytest.approx(2 * math.pi - 6.2, abs=1e-5)
    assert float(angle.error(read, true).min()) == pytest.approx(2 * math.pi - 6.2, abs=1e-5)
    truth = torch.stack([true.cos(), true.sin()], dim=1).numpy()
    share = ((5 * read.numpy() - truth) ** 2).sum() / ((truth - truth.mean(0)) ** 2).sum()
    assert found.r2 == pytest.approx(1 - share, rel=1e-4)


def known(count: int, seed: int) -> Examples:
    """Tokens of 4 positions: the first target lies in one of them plainly; the second is a product, which is not
    linear; the third is nowhere."""
    rng = np.random.default_rng(seed)
    hidden, tokens = rng.normal(size=(count, 3)), rng.normal(size=(count, 4, 5))
    tokens[:, 2, 1] = 3 + 2 * hidden[:, 0]
    sign = np.sign(tokens[:, 1, 0])
    values = np.stack([hidden[:, 0], sign * np.sign(tokens[:, 1, 1]), hidden[:, 2]], axis=1)
    return Examples(
        torch.from_numpy(tokens).float(), torch.from_numpy(values).float(), torch.arange(count) // 10
    )


def test_probes_read_what_is_there_and_nothing_else() -> None:
    targets = (Target("plain", "m"), Target("product", "m"), Target("absent", "m"))
    train, held = known(800, 0), known(400, 1)
    data = standardised(targets, train, held)
    groups = {"all": torch.arange(400), "few": torch.arange(50)}
    linear = linear_probe(data, train.episode, np.random.default_rng(0))
    found = scores(targets, data, linear, held, groups)
    assert found["all"]["plain"].r2 > 0.99 and abs(found["all"]["product"].r2) < 0.1
    assert abs(found["all"]["absent"].r2) < 0.1
    attentive = attentive_probe(data, (1, 1, 1), train.episode, 60, seed=0)
    found = scores(targets, data, attentive, held, groups)
    assert found["all"]["plain"].r2 > 0.8 and abs(found["all"]["absent"].r2) < 0.15
    few = score(targets[0], attentive[:50, :1] * data.std[0] + data.mean[0], held.values[:50, 0])
    assert found["few"]["plain"].r2 == pytest.approx(few.r2)
    before = torch.random.get_rng_state()
    twice = [attentive_probe(data, (1, 1, 1), train.episode, 2, seed=0) for _ in range(2)]
    assert torch.equal(*twice) and torch.equal(torch.random.get_rng_state(), before)


@pytest.fixture(scope="module")
def probed(store: Path) -> Probing:
    return probe_encoders(["pixels"], ZarrStore.open(store), SMALL, CPU)


def test_looks_targets_and_counts(probed: Probing) -> None:
    assert [(t.name, t.unit, t.periodic) for t in probed.targets] == [("x", "rad", True), ("y", "rad", False)]
    assert probed.train == 150 and 50 < probed.episodes[0] <= 57 and probed.episodes[1] == 3
    assert set(probed.looks) == {"all", "plain", "varied", "colors + light"}
    assert probed.looks["all"] == 36 and sum(probed.looks.values()) == 72
    assert list(probed.scores) == [NOTHING, "pixels"] and list(probed.scores["pixels"]) == ["linear"]
    plain = probed.scores["pixels"]["linear"]["all"]
    assert plain["y"].r2 > 0.8 and plain["y"].error < probed.scores[NOTHING]["none"]["all"]["y"].error / 2
    assert probed.scores[NOTHING]["none"]["all"]["y"].r2 <= 0  # the mean of other episodes than these


def test_the_mean_is_the_training_examples(store: Path, probed: Probing) -> None:
    opened = ZarrStore.open(store)
    states, _ = opened.states_and_actions()
    held = np.concatenate([states[12 * n : 12 * n + 12, 1] for n in (19, 39, 59)])
    training = np.concatenate([states[12 * n : 12 * n + 12, 1] for n in range(60) if n % 20 != 19])
    expected = np.median(np.abs(held - training.mean()))
    assert probed.scores[NOTHING]["none"]["all"]["y"].error == pytest.approx(expected, abs=0.05)


def test_velocities_are_read_from_clips(store: Path) -> None:
    """Targets are what the states say; a still picture tells a velocity badly, two tell it better."""
    settings = dataclasses.replace(SMALL, clip=2, frames=600)
    found = probe_encoders(["pixels"], ZarrStore.open(store), settings, CPU)
    assert [t.name for t in found.targets] == ["x", "y", "x velocity", "y velocity"]
    assert found.targets[2].unit == "rad/s" and not found.targets[2].periodic
    assert 0.2 < found.scores[NOTHING]["none"]["all"]["y velocity"].error < 1.0  # 0.1 rad in 0.1 s at most
    assert found.scores["pixels"]["linear"]["all"]["y velocity"].r2 > 0.3


def test_the_truth_of_the_world_is_read_where_it_was_recorded(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A box that the robot does not feel: here its states are a shift of the robot's, whose own are not asked twice."""
    names, low, high = ("box", "x", "turn"), (-9.0, -2.0, -math.pi), (9.0, 2.0, math.pi)
    world = StateSpec("dots", names, low, high, ("m", "rad", "rad"))
    for module in (probing, hindsight):
        monkeypatch.setattr(module, "world_of", lambda robot: world)
    kept = [
        dataclasses.replace(one, metadata={"world_states": [[float(y) + 5, float(x), 0.5] for x, y in one.states]})
        for one in (episode(n) for n in range(60))
    ]
    with ZarrStore.create(tmp_path / "box.zarr", spec()) as writer:
        writer.extend(kept)
    found = probe_encoders(["pixels"], ZarrStore.open(tmp_path / "box.zarr"), SMALL, CPU)
    assert [target.name for target in found.targets] == ["x", "y", "box"]  # the turn never changes
    rows = found.scores["pixels"]["linear"]["all"]
    assert rows["box"].r2 == pytest.approx(rows["y"].r2, abs=0.02) and rows["box"].r2 > 0.8
    without = probe_encoders(["pixels"], ZarrStore.open(store), SMALL, CPU)  # episodes that do not record it
    assert [target.name for target in without.targets] == ["x", "y"]


def test_contact_is_read_where_it_was_recorded(tmp_path: Path) -> None:
    """Here the dot touches something on the right half. Contact has no velocity, and is not asked for where an episode
    does not have it."""
    kept = [
        dataclasses.replace(one, metadata={"contacts": [bool(x > 0) for x, _ in one.states]})
        for one in (episode(n) for n in range(60))
    ]
    with ZarrStore.create(tmp_path / "touch.zarr", spec()) as writer:
        writer.extend(kept)
    settings = dataclasses.replace(SMALL, clip=2, steps=0)
    found = probe_encoders(["pixels"], ZarrStore.open(tmp_path / "touch.zarr"), settings, CPU)
    assert [target.name for target in found.targets] == ["x", "y", "x velocity", "y velocity", "contact"]
    read, mean = found.scores["pixels"]["linear"]["all"]["contact"], found.scores[NOTHING]["none"]["all"]["contact"]
    assert read.r2 > 0.5 > 0.1 > mean.r2
    with ZarrStore.create(tmp_path / "some.zarr", spec()) as writer:
        writer.extend([*kept[:59], episode(59)])
    some = probe_encoders(["pixels"], ZarrStore.open(tmp_path / "some.zarr"), settings, CPU)
    assert "contact" not in [target.name for target in some.targets]


def test_the_command_prints_writes_and_draws(store: Path, tmp_path: Path, leave: Any) -> None:
    line = ("probe", "pixels", store, "--frames", 60, "--held", 20, "--steps", 2, "--grid", 4, "--device", "cpu")
    code, out, err = leave(*line, "--json", "--out", tmp_path / "out")
    record = json.loads(out)
    assert code == 0 and "probing: 82/82" in err and record == json.loads((tmp_path / "out/probe.json").read_text())
    assert set(record["scores"]["pixels"]) == {"linear", "attentive"} and record["settings"]["frames"] == 60
    assert (tmp_path / "out" / "probe.png").read_bytes().startswith(b"\x89PNG")
    code, out, _ = leave(*line)
    assert code == 0 and "20 held-out examples of 3 episodes" in " ".join(out.split()) and "attentive" in out


BAD: dict[str, tuple[list[Any], str]] = {
    "no encoder": (["nowhere", "STORE"], "nowhere does not exist"),
    "no store": (["pixels", "nowhere.zarr"], "nowhere.zarr"),
    "twice": (["pixels", "pixels", "STORE"], "named twice"),
    "a grid that does not fit": (["pixels", "STORE", "--grid", 3], "choose a divisor of 4"),
    "clips that are too long": (["pixels", "STORE", "--clip", 30], "use shorter clips"),
    "another camera": (["pixels", "STORE", "--camera", "wrist"], "has cameras top"),
    "half a tubelet": (["untrained", "STORE", "--clip", 3], "do not divide into the encoder's tubelets of 2"),
}


@pytest.mark.parametrize("kind", BAD)
def test_bad_input_is_one_sentence(kind: str, store: Path, leave: Any, monkeypatch: Any, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    arguments, words = BAD[kind]
    given = [store if argument == "STORE" else argument for argument in arguments]
    code, out, err = leave("probe", *given, "--frames", 20, "--device", "cpu")
    assert code == 2 and out == "" and words in err.splitlines()[-1] and "Traceback" not in err


def test_one_episode_and_a_state_that_never_moves_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="at least 2 episodes"):
        probe_encoders(["pixels"], ZarrStore.open(make_store(tmp_path / "one.zarr", episodes=1)), SMALL, CPU)
    still = dataclasses.replace(episode(0), states=np.zeros((12, 2), np.float32))
    with ZarrStore.create(tmp_path / "still.zarr", spec()) as writer:
        writer.extend([still] * 3)
    with pytest.raises(InputError, match="nothing to read"):
        probe_encoders(["pixels"], ZarrStore.open(tmp_path / "still.zarr"), SMALL, CPU)


def test_settings_that_make_no_sense_are_refused() -> None:
    for changes in ({"frames": 0}, {"grid": 0}, {"steps": -1}, {"clip": 0}):
        with pytest.raises(InputError):
            dataclasses.replace(SMALL, **changes)
