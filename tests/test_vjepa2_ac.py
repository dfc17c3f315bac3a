"""V-JEPA 2-AC end to end on small weights: predictor and rollout by the description, plan, landscape, refusals."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import av
import numpy as np
import plain_predictor
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from vjepa_mpc.cli.main import main
from vjepa_mpc.conversion import ConversionSettings, convert
from vjepa_mpc.core.errors import InputError
from vjepa_mpc.core.poses import integrate_pose
from vjepa_mpc.datasets.episode import Episode, StoreSpec
from vjepa_mpc.datasets.store import ZarrStore
from vjepa_mpc.landscape import logged_moment, study
from vjepa_mpc.loop import StepRecord
from vjepa_mpc.predictor import ActionConditionedPredictor, PredictorConfig
from vjepa_mpc.rollout import Context, rollout
from vjepa_mpc.vjepa2_ac import franka_spec
from vjepa_mpc.world_model import WorldModel

GOLDEN = Path(__file__).parent / "golden"
STATE = "0.4,0.1,0.3,0.1,-0.2,0.3,0.5"
# Grids, training grids, heads of 15 (odd), 13 (odd, a rest of one), 14 and 8 dimensions, horizons with history.
SIZES = [
    ((2, 3), None, 30, 2, 0, 5),
    ((3, 2), (4, 4), 26, 2, 1, 4),
    ((1, 5), (2, 2), 42, 3, 3, 2),
    ((4, 4), (4, 4), 8, 1, 0, 1),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The golden checkpoint as a world model, and its frames as pictures beside it."""
    place = tmp_path_factory.mktemp("ac")
    settings = ConversionSettings(heads=2, predictor_heads=4, size=64, crop_aspect=1.0)
    convert(GOLDEN / "ac_tiny.pt", place / "model", settings)
    for index, frame in enumerate(np.load(GOLDEN / "ac_tiny.npz")["frames"]):
        Image.fromarray(frame).save(place / f"{index}.png")
    return place


def run(*arguments: object) -> int:
    threads = torch.get_num_threads()
    with pytest.raises(SystemExit) as left:
        main(list(map(str, arguments)))
    torch.set_num_threads(threads)
    assert isinstance(left.value.code, int)
    return left.value.code


def plan(folder: Path, out: Path, *arguments: object) -> dict[str, Any]:
    code = run(
        "plan", "--model", folder / "model", "--observation", folder / "0.png", "--state", STATE, "--out", out,
        "--threads", 1, "--quiet", *arguments,
    )  # fmt: skip
    assert code == 0
    found: dict[str, Any] = json.loads((out / "plan.json").read_text())
    return found


@pytest.mark.parametrize(("grid", "train_grid", "width", "heads", "past", "horizon"), SIZES)
def test_rollout_equals_the_plain_one(
    grid: tuple[int, int], train_grid: tuple[int, int] | None, width: int, heads: int, past: int, horizon: int
) -> None:
    config = PredictorConfig(
        grid_height=grid[0], grid_width=grid[1], latent_dim=10, width=width, depth=2, heads=heads,
        max_frames=past + horizon, train_grid=train_grid,
    )  # fmt: skip
    generator = torch.Generator().manual_seed(width)
    predictor = ActionConditionedPredictor(config).double()
    for parameter in predictor.parameters():
        torch.nn.init.normal_(parameter, std=0.3, generator=generator)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    latents, states = draw(2, past + 1, config.patches, 10), 0.3 * draw(2, past + 1, 7)
    before, actions = 0.3 * draw(2, past, 7), 0.3 * draw(2, 3, horizon, 7)
    with torch.no_grad():
        predictor._cos, predictor._sin = _exact_tables(config)  # of the module they are float32
        found = rollout(
            predictor, Context(latents, states, before), actions, integrate=integrate_pose, chunk=4,
            state_features=lambda state: state, action_features=lambda action, state: action,
            renormalise=lambda x: F.layer_norm(x, x.shape[-1:]),
        )  # fmt: skip
        for n in range(3):
            wanted = plain_predictor.imagine(
                predictor.state_dict(), config, latents, states, before, actions[:, n], integrate_pose
            )
            torch.testing.assert_close(found.latents[:, n], wanted[0], rtol=0, atol=1e-8)
            torch.testing.assert_close(found.states[:, n], wanted[1], rtol=0, atol=1e-12)
    assert found.latents.var(dim=1).mean() > 1e-6, "candidates must differ for this to test anything"


def _exact_tables(config: PredictorConfig) -> tuple[torch.Tensor, torch.Tensor]:
    from vjepa_mpc.rotary import rotary_tables

    grid = (config.grid_height, config.grid_width)
    return rotary_tables(
        frames=config.max_frames, grid=grid, train_grid=config.train_grid or grid, conditions=2,
        head_dim=config.width // config.heads,
    )  # fmt: skip


def test_plan_by_the_preset(folder: Path, tmp_path: Path) -> None:
    arguments = ("--goal", folder / "2.png", "--preset", "vjepa2-ac", "--samples", 60, "--iterations", 3, "--seed", 3)
    record = plan(folder, tmp_path / "a", *arguments)
    (action,) = record["actions"]
    assert record["settings"]["planner"] == "PublishedCEM" and record["settings"]["control"]["running"] == 0.0
    assert max(map(abs, action[:3])) <= 0.075 + 1e-6 and action[3:6] == [0.0, 0.0, 0.0]
    assert action[6] == 0.0 or 0.25 <= abs(action[6]) <= 0.75
    assert record["evaluations"] == 60 * 3 + 2 and set(record["costs"]) == {"goal"}
    assert record["robot"]["state_units"] == ["m", "m", "m", "rad", "rad", "rad", "1"]
    assert plan(folder, tmp_path / "b", *arguments)["actions"] == record["actions"]
    assert not record["looks_reached"] and record["goal_warning"] is None


def test_the_card_names_the_command_that_wrote_the_model(folder: Path) -> None:
    card = (folder / "model" / "README.md").read_text()
    assert "written by `vjepa-mpc convert`" in card and "vjepa-mpc train" not in card


def test_several_goals_are_sub_goals_in_order(folder: Path, tmp_path: Path) -> None:
    """The second plan begins where the first is imagined to end, and is the one that plan makes from there."""
    small = ("--samples", 20, "--elites", 4, "--iterations", 2, "--horizon", 2)
    record = plan(folder, tmp_path / "two", "--goal", folder / "1.png", "--goal", folder / "2.png", *small)
    alone = plan(folder, tmp_path / "one", "--goal", folder / "1.png", *small)
    assert len(record["actions"]) == 4 and record["actions"][:2] == alone["actions"]
    assert [Path(goal["file"]).name for goal in record["sub_goals"]] == ["1.png"]
    assert Path(record["goal"]["file"]).name == "2.png" and record["wanted"] == alone["wanted"]
    assert record["evaluations"] == 2 * alone["evaluations"] and alone["sub_goals"] == []


def test_closed_loop_over_sub_goals(
    tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Every view is recorded once, beside the goal of its turn; plan.json says how each turn ended."""
    from vjepa_mpc.robots.reacher import Reacher

    views = {}
    with Reacher(64, backend="rays") as robot:
        for name, state in (("a", (0.6, -1.1)), ("b", (0.2, 0.4))):
            views[name] = robot.place(np.array(state)).images["top"]
            Image.fromarray(views[name]).save(tmp_path / f"{name}.png")
    monkeypatch.setattr("vjepa_mpc.planning.doubt", lambda what, *_: "It is odd." if "a.png" in what else None)
    code = run(
        "plan", "--goal", tmp_path / "a.png", "--goal", tmp_path / "b.png", "--model", tiny_model, "--start", "-1,1.5",
        "--out", tmp_path / "out", "--samples", 6, "--elites", 2, "--iterations", 2, "--horizon", 2, "--backend",
        "rays", "--threads", 1,
    )  # fmt: skip
    record = json.loads((tmp_path / "out" / "plan.json").read_text())
    assert code == 0 and record["reached"] and record["actions"] == 4, "to this model every view is at the goal"
    assert [step["step"] for step in record["steps"]] == [0, 1, 2, 3, 4]
    assert [step["applied"] is None for step in record["steps"]] == [False] * 4 + [True]
    (sub_goal,) = record["sub_goals"]
    assert (sub_goal["exit_reason"], sub_goal["actions"]) == ("reached", 2)
    assert sub_goal["goal_warning"] == "It is odd." and record["goal_warning"] is None
    said = [line.split()[1] for line in capsys.readouterr().err.splitlines() if line.startswith("step ")]
    assert said == ["0", "1", "2", "3", "4"]
    with av.open(str(tmp_path / "out" / "episode.mp4")) as film:
        panels = [frame.to_ndarray(format="rgb24")[40:296:4, :256:4].astype(float) for frame in film.decode(video=0)]
    nearest = [min(views, key=lambda name: float(np.abs(panel - views[name]).mean())) for panel in panels]
    assert nearest == ["a", "a", "b", "b", "b"]


def test_a_view_held_back_is_shown_when_nothing_follows() -> None:
    from types import SimpleNamespace

    from vjepa_mpc.planning import _Renumbered

    nothing = np.zeros(2)
    view = StepRecord(
        step=0, image=np.zeros((8, 8, 3), np.uint8), proprioception=nothing, latent_cost=0.0, planned_cost=0.0,
        terms={}, wanted=nothing, action=nothing, milliseconds=1.0, evaluations=1,
    )  # fmt: skip
    seen: list[int] = []
    watcher = SimpleNamespace(step=lambda record: seen.append(record.step))
    for last, wanted in ((False, [7, 8]), (True, [7, 8, 9])):
        seen.clear()
        numbered = _Renumbered([watcher], 7, 2, last=last)
        for step in range(3):
            numbered.step(replace(view, step=step))
        assert seen == wanted
        numbered.release()
        assert seen == [7, 8, 9]


def test_landscape_has_the_references_numbers(folder: Path, tmp_path: Path) -> None:
    z = np.load(GOLDEN / "ac_tiny.npz")
    state = ",".join(str(value) for value in z["states"][0, 0].tolist())
    robot_high = franka_spec().state_high
    assert all(abs(value) <= high for value, high in zip(z["states"][0, 0], robot_high, strict=True))
    code = run(
        "landscape", "--model", folder / "model", "--observation", folder / "0.png", f"--state={state}", "--goal",
        folder / "2.png", "--action=0.05,-0.02,0,0,0,0,0.5", "--axes", "x_delta,y_delta,z_delta", "--points", 5,
        "--threads", 1, "--out", tmp_path,
    )  # fmt: skip
    assert code == 0
    record = json.loads((tmp_path / "landscape.json").read_text())
    energy, wanted = np.array(record["energy"]), z["landscape_energy"]
    index = [
        tuple(int(np.abs(np.array(record["values"][axis]) - row[0, axis]).argmin()) for axis in range(3))
        for row in z["landscape_actions"]
    ]
    np.testing.assert_allclose([energy[i] for i in index], wanted, atol=1e-4)
    lowest = z["landscape_actions"][wanted.argmin(), 0, :3]
    np.testing.assert_allclose(record["lowest"]["action"], lowest, atol=1e-6)
    np.testing.assert_allclose(record["logged"]["action"], [0.05, -0.02, 0.0])
    assert Image.open(tmp_path / "landscape.png").format == "PNG"
    source = record["source"]
    assert set(source) == {"model", "observation", "goal", "state", "action"}
    for name, picture in (("observation", "0.png"), ("goal", "2.png")):
        digest = hashlib.sha256((folder / picture).read_bytes()).hexdigest()
        assert source[name] == {"file": str(folder / picture), "sha256": digest}
    assert source["action"] == [0.05, -0.02, 0, 0, 0, 0, 0.5] and ",".join(map(str, source["state"])) == state


def pose_store(path: Path, frames: int = 4, **changes: Any) -> ZarrStore:
    """One episode of the golden robot: poses that follow their actions."""
    robot = franka_spec()
    spec = StoreSpec(
        robot=robot.name, cameras={"exterior": (64, 64)}, state_names=robot.state_names, state_units=robot.state_units,
        state_low=robot.state_low, state_high=robot.state_high, state_periodic=robot.state_periodic,
        action_names=robot.action_names, action_units=robot.action_units, action_low=robot.action_low,
        action_high=robot.action_high, control_period_s=0.25, state_model="pose", renderer="none", provenance={},
        chunk_frames=4,
    )  # fmt: skip
    spec = replace(spec, **changes)
    generator = np.random.default_rng(0)
    actions = generator.uniform(-0.05, 0.05, size=(frames - 1, 7)).astype(np.float32) * [1, 1, 1, 0, 0, 0, 1]
    states = np.concatenate([[[0.4, 0.1, 0.3, 0.1, -0.2, 0.3, 0.5]], actions]).cumsum(axis=0)
    episode = Episode(
        images={"exterior": generator.integers(0, 256, size=(frames, 64, 64, 3), dtype=np.uint8)},
        states=states.astype(np.float32), actions=actions.astype(np.float32), times=0.25 * np.arange(frames),
        metadata={},
    )  # fmt: skip
    with ZarrStore.create(path, spec) as writer:
        writer.append(episode)
    return ZarrStore.open(path)


def test_landscape_of_a_log_marks_the_logged_action(folder: Path, tmp_path: Path) -> None:
    store = pose_store(tmp_path / "logs.zarr")
    model = WorldModel.from_pretrained(folder / "model")
    moment = logged_moment(model, store, 0, 1)
    episode = store.read(0)
    np.testing.assert_array_equal(moment.goal, episode.images["exterior"][2])
    found = study(model, moment, ["z_delta", "gripper_delta"], points=3)
    assert found.mark == "logged action" and found.chosen is not None
    np.testing.assert_allclose(found.chosen, episode.actions[1][[2, 6]], atol=1e-6)
    with torch.no_grad():
        now, goal = model.encode(moment.image[None]), model.encode(moment.goal[None])
        state = torch.from_numpy(episode.states[1])[None, None]
        action = torch.from_numpy(episode.actions[1])[None, None, None]
        future = model.rollout(Context(now[None], state, action[:, 0, :0]), action)
        wanted = float((future.latents[0, 0, 0] - goal[0]).abs().mean())
    assert found.chosen_energy == pytest.approx(wanted, abs=1e-5)
    assert found.names == ("z_delta", "gripper_delta")
    with pytest.raises(InputError, match="frame from 0 to 2"):
        logged_moment(model, store, 0, 3)
    with pytest.raises(InputError, match="no episode 1"):
        logged_moment(model, store, 1, 0)
    with pytest.raises(InputError, match="did you mean 'z_delta'"):
        study(model, moment, ["z_dela"])
    with pytest.raises(InputError, match="fixed by its bounds"):
        study(model, moment, ["roll_delta"])


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("state_model", "recorded"), ("control_period_s", 1 / 15), ("action_units", ("cm",) * 7),
        ("state_names", ("y", "x", "z", "roll", "pitch", "yaw", "gripper")),
        ("action_names", ("y_delta", "x_delta", *franka_spec().action_names[2:])),
    ],
)  # fmt: skip
def test_landscape_refuses_a_log_of_other_numbers(folder: Path, tmp_path: Path, name: str, value: Any) -> None:
    store = pose_store(tmp_path / "logs.zarr", **{name: value})
    with pytest.raises(InputError, match=f"The model has {name} = .*, and the store .*import the logs"):
        logged_moment(WorldModel.from_pretrained(folder / "model"), store, 0, 1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"--state": "0.4,0.1,0.3,90,-0.2,0.3,0.5"}, "if 90 was meant in degrees, give 1.571"),
        ({"--state": "0.4,0.1,0.3"}, "has 7 values"),
        ({"--preset": "vjepa3"}, "no preset named 'vjepa3'"),
        ({"--preset": "vjepa2-ac", "--planner": "icem"}, "leave --planner, --set"),
        ({"--preset": "vjepa2-ac", "--elites": 1}, "2 to 800 elites"),
        ({"--horizon": 9}, "plan at most 7 ahead"),
    ],
)
def test_bad_input_of_plan_is_one_sentence(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], change: dict[str, object], message: str
) -> None:
    given = {"--state": STATE, "--observation": folder / "0.png", "--goal": folder / "1.png", **change}
    words = [word for name, value in given.items() for word in (name, value)]
    assert run("plan", "--model", folder / "model", "--out", tmp_path, "--threads", 1, *words) == 2
    assert message in capsys.readouterr().err


def test_the_preset_is_for_poses(tmp_path: Path, tiny_model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    picture = tmp_path / "goal.png"
    Image.new("RGB", (64, 64)).save(picture)
    arguments = ("--model", tiny_model, "--goal", picture, "--observation", picture, "--state", "0,0")
    assert run("plan", *arguments, "--preset", "vjepa2-ac", "--out", tmp_path / "out") == 2
    assert "which reacher has none of" in capsys.readouterr().err


def test_actions_outside_the_limits_are_refused(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ("--observation", folder / "0.png", "--state", STATE, "--goal", folder / "1.png", "--out", tmp_path)
    for option in ("--episode", "--frame"):
        assert run("landscape", "--model", folder / "model", *given, option, 0) == 2
        assert f"{option} is of a log; give that with --logs" in capsys.readouterr().err
    assert run("landscape", "--model", folder / "model", *given, "--action", "0.2,0,0,0,0,0,0") == 2
    assert "x_delta = 0.2 m is outside droid-franka's limits [-0.075, 0.075] m" in capsys.readouterr().err
    assert run("landscape", "--model", folder / "model", "--observation", folder / "0.png", "--out", tmp_path) == 2
    assert "needs --observation, --state and --goal, or --logs" in capsys.readouterr().err
