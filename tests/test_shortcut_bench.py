"""`bench shortcuts`: shortened models are what they are said to be, and what they lose is counted right."""

from __future__ import annotations

import dataclasses
import json
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_world import save_tiny_model

from vjepa_mpc.cli.bench_shortcuts import way_of
from vjepa_mpc.core.errors import InputError
from vjepa_mpc.latents import LatentConfig
from vjepa_mpc.predictor import PredictorConfig
from vjepa_mpc.robots.factory import find_task, make_robot
from vjepa_mpc.robots.tasks import load_manifest
from vjepa_mpc.rollout import Context
from vjepa_mpc.rotary import rotary_tables
from vjepa_mpc.shortcut_bench import FirstPlan, Shortcut, averaged, first_plans, plan_figures, usual_shortcuts
from vjepa_mpc.world_model import WorldModel

WIDTH, DEPTH, GRID = 48, 3, 4


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny world model of three blocks on 4 x 4 positions that answers actions visibly."""
    shape = PredictorConfig(
        grid_height=GRID, grid_width=GRID, latent_dim=WIDTH, width=WIDTH, depth=DEPTH, heads=3, max_frames=2,
        action_dim=27, state_dim=25,
    )  # fmt: skip
    latent = LatentConfig(encoder_grid=4, grid=GRID, dim=WIDTH)
    path = save_tiny_model(tmp_path_factory.mktemp("tiny") / "model", predictor=shape, latent=latent, history=1)
    model, draw = WorldModel.from_pretrained(path), torch.Generator().manual_seed(3)
    for parameter in model.predictor.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.2, generator=draw)
    model.latent_space.mean.normal_(generator=draw)
    model.latent_space.std.uniform_(0.5, 2.0, generator=draw)
    model.save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def model(folder: Path) -> WorldModel:
    return WorldModel.from_pretrained(folder)


def imagined(model: WorldModel) -> torch.Tensor:
    positions = model.latent_space.mean.shape[0]
    latents = torch.randn(1, 1, positions, WIDTH, generator=torch.Generator().manual_seed(4))
    context = Context(latents, torch.zeros(1, 1, 2), torch.zeros(1, 0, 2))
    with torch.no_grad():
        return model.rollout(context, torch.linspace(-0.3, 0.3, 12).reshape(1, 6, 1, 2)).latents


def test_an_averaged_grid_is_the_mean_of_latents_and_statistics_on_the_same_weights(model: WorldModel) -> None:
    before = imagined(model)
    rough = averaged(model, 2)
    pooled = torch.randn(5, GRID * GRID, WIDTH, generator=torch.Generator().manual_seed(5))

    def mean(part: torch.Tensor) -> torch.Tensor:
        cells = part.reshape(-1, GRID, GRID, WIDTH)
        four = [cells[:, 2 * y : 2 * y + 2, 2 * x : 2 * x + 2].mean((1, 2)) for y in (0, 1) for x in (0, 1)]
        return torch.stack(four, dim=1)

    wanted = (mean(pooled) - mean(model.latent_space.mean)) / mean(model.latent_space.std)
    torch.testing.assert_close(rough.standardise(mean(pooled)), wanted)
    tokens = torch.randn(5, 16, WIDTH, generator=torch.Generator().manual_seed(6))
    torch.testing.assert_close(rough.latent_space.pool(tokens), mean(model.latent_space.pool(tokens)))
    weights = model.predictor.state_dict()
    assert all(torch.equal(part, weights[name]) for name, part in rough.predictor.state_dict().items())
    cos, _ = rotary_tables(frames=2, grid=(2, 2), train_grid=(GRID, GRID), conditions=2, head_dim=WIDTH // 3)
    torch.testing.assert_close(rough.predictor._cos, cos.float())
    assert imagined(rough).shape == (1, 6, 1, 4, WIDTH)
    assert torch.equal(imagined(model), before) and model.config.latent.grid == GRID


def test_grids_that_do_not_divide_and_names_of_no_way_are_refused(model: WorldModel) -> None:
    for side in (3, 4, 8):
        with pytest.raises(InputError, match=f"4 x 4 cannot be averaged to {side} x {side}"):
            averaged(model, side)
    for name in ("draft", "draft-0", "rest-2", "draft-two"):
        with pytest.raises(InputError, match="as draft-2"):
            Shortcut.named(name)
    assert Shortcut.named("blocks-2") == Shortcut("blocks", 2) and Shortcut("blocks", 2).name == "blocks-2"


def test_what_is_measured_by_default(model: WorldModel) -> None:
    names = [one.name for one in usual_shortcuts(model, 192, 32)]
    assert names == ["draft-1", "blocks-2", "blocks-1", "grid-2", "samples-128", "samples-96", "samples-64"]
    assert not any(name.startswith("draft") for name in (one.name for one in usual_shortcuts(model, 24, 32)))


def test_figures_are_shares_of_the_whole_gain_and_ratios_within_a_problem() -> None:
    whole = [FirstPlan(1.0, 3.0, 2.0, None, None), FirstPlan(2.0, 4.0, 1.0, None, None)]
    still = FirstPlan(1.0, 1.0, 1.0, None, None)  # nothing was to be gained
    rough = [FirstPlan(2.0, 3.0, 1.0, 0.5, 0.2), FirstPlan(4.0, 4.0, 0.25, 0.9, 0.4)]
    plans = [{"whole": a, "rough": b} for a, b in zip([*whole, still], [*rough, still], strict=True)]
    found = plan_figures("rough", plans)
    assert found["gained"] == found["gained_mean"] == 0.25 and found["gained_least"] == 0.0
    assert found["times_quicker"] == 2.0 and found["times_quicker_least"] == 1.0
    assert found["rank_first"] == pytest.approx(0.7) and found["rank_last_least"] == 0.2
    itself = plan_figures("whole", plans)
    assert itself["gained"] == itself["gained_least"] == itself["times_quicker"] == 1.0 and itself["rank_first"] is None


def test_every_way_is_judged_by_the_whole_model(model: WorldModel) -> None:
    task = find_task("reacher")
    chosen = [Shortcut(), *(Shortcut.named(name) for name in ("draft-1", "blocks-1", "grid-2", "samples-40"))]
    ways = {one.name: way_of(model, one) for one in chosen}
    assert ways["draft-1"].control.draft == 1 and ways["blocks-1"].model.predictor.config.depth == 1
    assert getattr(ways["samples-40"].planner, "settings").samples == 40  # noqa: B009
    pair = load_manifest("dev", task).pairs[0]
    with closing(make_robot(task.robot, backend="rays", camera_size=64)) as robot:
        found = first_plans(ways, robot, pair, 0)
        again = first_plans({name: ways[name] for name in ("whole", "blocks-1")}, robot, pair, 0)
    assert len({plan.start for plan in found.values()}) == 1
    whole = found["whole"]
    assert whole.cost < whole.start and whole.rank_first is None and found["samples-40"].rank_first is None
    for name in ("draft-1", "blocks-1", "grid-2"):
        first, last = found[name].rank_first, found[name].rank_last
        assert first is not None and last is not None and min(first, last) >= -1 and max(first, last) < 1
    assert found["draft-1"].rank_first == found["blocks-1"].rank_first  # the same blocks, on the same candidates
    for name in again:  # a way's plan is its own, whoever else plans
        assert dataclasses.replace(again[name], seconds=0.0) == dataclasses.replace(found[name], seconds=0.0)


def test_the_command_goes_on_where_it_was(tmp_path: Path, folder: Path, leave: Any) -> None:
    line = ["bench", "shortcuts", "--model", folder, "--backend", "rays", "--out", tmp_path, "--threads", 1, "--json"]
    threads = torch.get_num_threads()
    rows = ["--row", "draft-1", "--row", "samples-40"]
    code, said, error = leave(*line, *rows, "--problems", 1)
    assert code == 0, error
    told = json.loads(said)
    assert [row["way"] for row in told["rows"]] == ["whole", "draft-1", "samples-40"]
    assert [row["episodes"] for row in told["rows"]] == [None] * 3
    first = (tmp_path / "plans.jsonl").read_text()
    code, said, _ = leave(*line, *rows, "--problems", 2)
    second = (tmp_path / "plans.jsonl").read_text()
    assert code == 0 and second.startswith(first) and len(second.splitlines()) == 2
    assert json.loads(said)["rows"][0]["problems"] == 2
    code, said, _ = leave(*line, "--row", "blocks-1", "--problems", 1)  # not measured yet: the problem is planned anew
    assert code == 0 and [row["way"] for row in json.loads(said)["rows"]] == ["whole", "blocks-1"]
    code, _, error = leave(*line, *rows, "--seed", 1)
    assert code == 2 and "other settings" in error
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "search": {"samples": 48}}))  # the same weights
    code, _, error = leave(*line, *rows)
    (folder / "config.json").write_text(json.dumps(config))
    assert code == 2 and "search" in error
    code, _, error = leave(*line, "--row", "grid-3")
    assert code == 2 and "cannot be averaged" in error
    torch.set_num_threads(threads)


@pytest.mark.slow
def test_episodes_are_played_in_turn(tmp_path: Path, folder: Path, leave: Any) -> None:
    threads = torch.get_num_threads()
    line = ["bench", "shortcuts", "--model", folder, "--backend", "rays", "--out", tmp_path, "--row", "samples-40"]
    code, said, error = leave(*line, "--problems", 1, "--pairs", 2, "--json")
    assert code == 0, error
    whole, fewer = (row["episodes"] for row in json.loads(said)["rows"])
    assert whole["episodes"] == fewer["episodes"] == 2 and whole["times_quicker"] == 1.0 < fewer["times_quicker"]
    played = [json.loads(row)["index"] for row in (tmp_path / "episodes-whole.jsonl").read_text().splitlines()]
    assert played == [0, 1]
    code, said, _ = leave(*line, "--problems", 1, "--pairs", 1)
    assert code == 0 and "held" in said
    torch.set_num_threads(threads)
