"""The energy slice evaluates exactly the plans it says; its picture is whole and marks the right places."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_world import save_tiny_model
from torch import Tensor

from vjepa_mpc.core.errors import InputError, NotFiniteError
from vjepa_mpc.energy import EnergyLandscape, energy_slice, plot_energy, step_units
from vjepa_mpc.planners.base import Bounds, Evaluation
from vjepa_mpc.world_model import read_config

HORIZON, SIZE = 4, 3
BOUNDS = Bounds(torch.tensor([-1.0, -2.0, -3.0]), torch.tensor([1.0, 2.0, 3.0]))
WEIGHTS = torch.tensor([1.0, 10.0, 100.0, 1000.0])
TARGET = torch.tensor([0.5, -1.0, 2.0])
PLAN = torch.arange(HORIZON * SIZE).reshape(HORIZON, SIZE) / 12.0


class Bowl:
    """Weighted squared distance of every step's action from TARGET; remembers what it was asked."""

    def __init__(self) -> None:
        self.calls: list[tuple[Tensor, Tensor]] = []

    def __call__(self, actions: Tensor, problems: Tensor) -> Evaluation:
        self.calls.append((actions, problems))
        assert not torch.is_grad_enabled()
        cost = ((actions - TARGET) ** 2).sum(-1) @ WEIGHTS
        return Evaluation(cost, torch.zeros(*cost.shape, 0))


def by_hand(plan: Tensor) -> float:
    return float(((plan - TARGET) ** 2).sum(-1) @ WEIGHTS)


def test_one_step_replaced_the_rest_kept() -> None:
    cost = Bowl()
    found = energy_slice(
        cost, PLAN, BOUNDS, axes=(2, 0), step=1, points=5, names=("x", "y", "z"), units=("m", "m", "rad")
    )
    assert found.energy.shape == (5, 5) and found.names == ("z", "x") and found.units == ("rad", "m")
    np.testing.assert_allclose(found.values[0], [-3, -1.5, 0, 1.5, 3])
    np.testing.assert_allclose(found.values[1], [-1, -0.5, 0, 0.5, 1])
    for i, z in enumerate(found.values[0]):
        for j, x in enumerate(found.values[1]):
            plan = PLAN.clone()
            plan[1, 2], plan[1, 0] = float(z), float(x)
            assert found.energy[i, j] == pytest.approx(by_hand(plan), rel=1e-5)
    assert found.chosen == pytest.approx((float(PLAN[1, 2]), float(PLAN[1, 0])))
    assert found.chosen_energy == pytest.approx(by_hand(PLAN), rel=1e-6)
    ((actions, problems),) = cost.calls
    assert actions.shape == (1, 26, HORIZON, SIZE) and problems.tolist() == [0]
    assert bool((actions >= BOUNDS.low).all() and (actions <= BOUNDS.high).all())


def test_hold_repeats_one_action() -> None:
    cost = Bowl()
    found = energy_slice(cost, PLAN, BOUNDS, points=9, step=2, hold=True, problem=7)
    ((actions, problems),) = cost.calls
    assert problems.tolist() == [7]
    assert torch.equal(actions, actions[:, :, :1].expand_as(actions))
    assert torch.equal(actions[0, :, 0, 2], PLAN[2, 2].expand(82))
    assert found.chosen_energy == pytest.approx(by_hand(PLAN[2].expand(HORIZON, SIZE)), rel=1e-6)
    assert found.lowest() == pytest.approx((0.5, -1.0))


def test_the_plan_is_not_touched_and_gradients_do_not_matter() -> None:
    plan = PLAN.clone().requires_grad_()
    energy_slice(Bowl(), plan, BOUNDS, points=3)
    assert torch.equal(plan.detach(), PLAN) and plan.grad is None


def test_one_action_gives_a_curve() -> None:
    def cost_fn(actions: Tensor, problems: Tensor) -> Evaluation:
        cost = (actions[..., 0, 0] - 0.25).abs()
        return Evaluation(cost, torch.zeros(*cost.shape, 0))

    bounds = Bounds(torch.tensor([-1.0]), torch.tensor([1.0]))
    found = energy_slice(cost_fn, torch.zeros(2, 1), bounds, points=9)
    np.testing.assert_allclose(found.energy, np.abs(np.linspace(-1, 1, 9) - 0.25), atol=1e-6)
    assert found.lowest() == (0.25,) and found.chosen_energy == 0.25


class Fenced(Bowl):
    """`Bowl` whose first action must stay below `limit` at every step, and a rule that nothing breaks."""

    def __init__(self, limit: float) -> None:
        super().__init__()
        self.limit = limit

    def __call__(self, actions: Tensor, problems: Tensor) -> Evaluation:
        beyond = (actions[..., 0] - self.limit).clamp(min=0).sum(-1)
        violation = torch.stack([beyond, torch.zeros_like(beyond)], dim=-1)
        return Evaluation(super().__call__(actions, problems).cost, violation, ("fence", "kept"))


def test_what_breaks_a_constraint_is_known_and_is_not_the_lowest() -> None:
    found = energy_slice(Fenced(0.1), PLAN, BOUNDS, points=9, hold=True)
    assert found.broken is not None and found.broken_by == ("fence",)
    np.testing.assert_array_equal(found.broken, np.broadcast_to((found.values[0] > 0.1)[:, None], (9, 9)))
    np.testing.assert_allclose(found.energy, energy_slice(Bowl(), PLAN, BOUNDS, points=9, hold=True).energy)
    assert found.lowest() == pytest.approx((0.0, -1.0)), "the best beyond the fence, 0.5, is no answer"
    assert energy_slice(Bowl(), PLAN, BOUNDS, points=3).broken is None
    everywhere = energy_slice(Fenced(-9.0), PLAN, BOUNDS, points=3)
    assert everywhere.broken is not None and everywhere.broken.all() and everywhere.lowest() is None
    deep = energy_slice(Fenced(0.1), PLAN, BOUNDS, axes=(2, 1, 0), points=5, hold=True)
    face = deep.face()
    assert face.broken is not None and not face.broken.any(), "over the third action something is allowed everywhere"
    np.testing.assert_array_equal(face.energy, deep.energy[:, :, deep.values[2] <= 0.1].min(axis=2))


@pytest.mark.parametrize("axes", [(0,), (0, 1)])
def test_what_breaks_a_constraint_is_hatched(tmp_path: Path, axes: tuple[int, ...]) -> None:
    def grey(limit: float) -> tuple[int, int]:
        """Grey pixels of the left and right half of the plot."""
        plot_energy(energy_slice(Fenced(limit), PLAN, BOUNDS, axes=axes, points=9, hold=True), tmp_path / "e.png")
        with Image.open(tmp_path / "e.png") as image:
            pixels = np.asarray(image.convert("RGB")).astype(int)[60:420]
        near = (np.ptp(pixels, axis=-1) < 60) & (pixels.max(-1) < 225) & (pixels.max(-1) > 90)
        middle = int(0.46 * pixels.shape[1])
        return int(near[:, 120:middle].sum()), int(near[:, middle : int(0.78 * pixels.shape[1])].sum())

    free, fenced = grey(9.0), grey(0.05)
    assert fenced[1] > free[1] + 5000 and abs(fenced[0] - free[0]) < 2500


def test_three_axes_are_drawn_as_the_lowest_over_the_third(tmp_path: Path) -> None:
    found = energy_slice(Bowl(), PLAN, BOUNDS, axes=(0, 1, 2), step=1, points=4)
    assert found.energy.shape == (4, 4, 4) and found.chosen is not None and len(found.chosen) == 3
    face = found.face()
    np.testing.assert_array_equal(face.energy, found.energy.min(axis=2))
    assert face.names == found.names[:2] and face.chosen == found.chosen[:2] and face.face() is face
    plot_energy(found, tmp_path / "energy.png")
    assert Image.open(tmp_path / "energy.png").format == "PNG"


def test_units_say_what_a_model_step_spans(tmp_path: Path) -> None:
    config = read_config(save_tiny_model(tmp_path))
    assert step_units(replace(config, stride=1)) == config.robot.action_units == ("rad", "rad")
    assert step_units(replace(config, stride=15)) == ("rad in 15 control steps",) * 2


def test_refusals() -> None:
    for wrong in [
        {"axes": (0, 3)},
        {"axes": (1, 1)},
        {"axes": ()},
        {"axes": (0, 1, 2, 0)},
        {"step": 4},
        {"points": 1},
    ]:
        with pytest.raises(InputError):
            energy_slice(Bowl(), PLAN, BOUNDS, **wrong)
    fixed = Bounds(torch.tensor([-1.0, 0.0, 0.0]), torch.tensor([1.0, 0.0, 1.0]))
    with pytest.raises(InputError, match="fixed"):
        energy_slice(Bowl(), PLAN, fixed)
    assert energy_slice(Bowl(), PLAN, fixed, axes=(0, 2), points=3).energy.shape == (3, 3)


def test_nan_raises_with_what_led_there() -> None:
    def cost_fn(actions: Tensor, problems: Tensor) -> Evaluation:
        cost = actions[..., 0, 0].log()
        return Evaluation(cost, torch.zeros(*cost.shape, 0))

    with pytest.raises(NotFiniteError) as error:
        energy_slice(cost_fn, PLAN, BOUNDS, points=3)
    assert error.value.evidence is not None


def landscape(energy: np.ndarray, units: tuple[str, str] = ("rad", "rad")) -> EnergyLandscape:
    values = tuple(np.linspace(-0.2, 0.2, size) for size in energy.shape)
    names = ("shoulder", "wrist")[: energy.ndim]
    chosen = (0.1, -0.05)[: energy.ndim]
    return EnergyLandscape(values, energy, chosen, 0.4, names, units[: energy.ndim], 0, True)


def bowl(points: int = 21) -> np.ndarray:
    x, y = np.meshgrid(np.linspace(-0.2, 0.2, points), np.linspace(-0.2, 0.2, points), indexing="ij")
    return 0.4 + 5 * (x - 0.1) ** 2 + 12 * (y + 0.05) ** 2 + 8 * x * y


@pytest.mark.parametrize("case", ["bowl", "part", "flat", "none", "curve", "units"])
def test_plots_of_every_kind(tmp_path: Path, case: str) -> None:
    part = bowl()
    part[:6] = np.inf
    drawn = {
        "bowl": landscape(bowl()),
        "part": landscape(part),
        "flat": landscape(np.ones((5, 5))),
        "none": landscape(np.full((5, 5), np.inf)),
        "curve": landscape(bowl()[:, 3]),
        "units": landscape(bowl(), ("m", "rad")),
    }[case]
    plot_energy(drawn, tmp_path / "energy.png")
    with Image.open(tmp_path / "energy.png") as image:
        pixels = np.asarray(image.convert("RGB")).astype(int)
    assert pixels.shape[0] > 300 and pixels.std() > 5
    red = (pixels[..., 0] > 240) & (pixels[..., 1:].max(-1) < 20)
    assert red.sum() > 30, "the chosen action is not marked"
    assert os.listdir(tmp_path) == ["energy.png"]


def test_the_star_is_where_the_chosen_action_is(tmp_path: Path) -> None:
    """First axis to the right, second up: so a chosen action moves in the picture."""

    def star(chosen: tuple[float, float]) -> np.ndarray:
        energy = landscape(bowl())
        plot_energy(
            EnergyLandscape(energy.values, energy.energy, chosen, 0.4, energy.names, energy.units, 0, False),
            tmp_path / "e.png",
        )
        with Image.open(tmp_path / "e.png") as image:
            pixels = np.asarray(image.convert("RGB")).astype(int)[:470]  # without the legend's own star
        return np.argwhere((pixels[..., 0] > 240) & (pixels[..., 1:].max(-1) < 20)).mean(0)

    right, upper, origin = star((0.15, -0.15)), star((-0.15, 0.15)), star((-0.15, -0.15))
    assert right[1] > origin[1] + 100 and abs(right[0] - origin[0]) < 2
    assert upper[0] < origin[0] - 100 and abs(upper[1] - origin[1]) < 2


def test_the_surface_lies_as_its_axes_say(tmp_path: Path) -> None:
    """Low values of the first axis rejected: the left of the picture is grey, from bottom to top."""
    energy = bowl()
    energy[:6] = np.inf
    plot_energy(landscape(energy), tmp_path / "e.png")
    with Image.open(tmp_path / "e.png") as image:
        grey = (np.asarray(image.convert("RGB")) == 211).all(-1)
    columns = np.flatnonzero(grey.sum(0) > 300)  # single pixels of this grey are in the letters, too
    assert len(columns) > 80 and columns.max() < 350
    assert (grey.sum(1) > 300).sum() == 0


def test_a_failed_plot_keeps_the_old_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from matplotlib.figure import Figure

    (tmp_path / "energy.png").write_bytes(b"old")

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Figure, "savefig", full)
    with pytest.raises(InputError, match="No space left"):
        plot_energy(landscape(bowl()), tmp_path / "energy.png")
    assert (tmp_path / "energy.png").read_bytes() == b"old" and os.listdir(tmp_path) == ["energy.png"]
