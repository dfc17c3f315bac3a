"""The energy landscape: what the planner's cost says of a slice of action space.

After V-JEPA 2-AC (Assran et al. 2025, arXiv 2506.09985, section on the energy landscape): the cost over
two Cartesian actions, with the rest kept, shows whether the world model points to the goal and how
smoothly. A flat or jagged landscape explains a failing planner better than any loss curve.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from vjepa_mpc.core.errors import InputError, NotFiniteError
from vjepa_mpc.core.files import atomic_path
from vjepa_mpc.planners.base import Bounds, CostFunction

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from vjepa_mpc.world_model import WorldModelConfig


@dataclass(frozen=True)
class EnergyLandscape:
    """The cost over one, two or three actions.

    `values`: for each axis the action's values, ascending, in its unit, bounds included. `energy`: the
    cost at them, [points], [points, points] or [points, points, points] with the first axis first; `+inf` =
    rejected. `chosen`: the plan's own values on the axes, and `chosen_energy` its cost under the same
    replacement; or None for nothing to be marked, and `mark` says what the marked action is. `hold` says that one
    action was repeated over all steps, otherwise only step `step` was replaced. `broken`: whether each
    point breaks a constraint, and `broken_by` which ones any point breaks; None without constraints. Beyond a limit
    a model is asked for what it has never seen, and what it says there means little.
    """

    values: tuple[Float[np.ndarray, " points"], ...]
    energy: Float[np.ndarray, "*grid"]
    chosen: tuple[float, ...] | None
    chosen_energy: float
    names: tuple[str, ...]
    units: tuple[str, ...]
    step: int
    hold: bool
    mark: str = "chosen action"
    broken: Bool[np.ndarray, "*grid"] | None = None
    broken_by: tuple[str, ...] = ()

    def face(self) -> EnergyLandscape:
        """What can be drawn: of three axes the first two, with the lowest energy over the third."""
        if self.energy.ndim < 3:
            return self
        allowed, lowest = self.allowed().min(axis=2), self.energy.min(axis=2)
        return replace(
            self, values=self.values[:2], energy=np.where(np.isfinite(allowed), allowed, lowest),
            names=self.names[:2], units=self.units[:2], chosen=None if self.chosen is None else self.chosen[:2],
            broken=None if self.broken is None else np.asarray(self.broken.all(axis=2)),
        )  # fmt: skip

    def allowed(self) -> Float[np.ndarray, "*grid"]:
        """The energy, `+inf` where a constraint is broken."""
        return self.energy if self.broken is None else np.where(self.broken, np.inf, self.energy)

    def lowest(self) -> tuple[float, ...] | None:
        """Where on the grid the energy is lowest among what breaks no constraint; None when there is no such action."""
        allowed = self.allowed()
        if not np.isfinite(allowed).any():
            return None
        index = np.unravel_index(np.argmin(allowed), allowed.shape)
        return tuple(float(values[i]) for values, i in zip(self.values, index, strict=True))


def energy_slice(
    cost_fn: CostFunction,
    plan_actions: Float[Tensor, "h a"],
    bounds: Bounds,
    *,
    axes: Sequence[int] | None = None,
    step: int = 0,
    points: int = 21,
    hold: bool = False,
    problem: int = 0,
    names: Sequence[str] | None = None,
    units: Sequence[str] | None = None,
) -> EnergyLandscape:
    """Evaluate the cost over a slice of action space through a plan.

    Actions `axes` (default: the first two, or the only one) of step `step` run over their bounds, `points`
    values each; all else stays as in the plan. With `hold` the action of `step`, so changed, is repeated
    over the whole horizon: more telling for small steps, whose single effect hardly shows. `names` and
    `units` are those of all `a` actions (a robot's spec has them). Uses points^axes + 1 evaluations, in one
    call under `no_grad`.

    Raises `InputError` for axes that do not exist or are fixed by the bounds, `NotFiniteError` on NaN.
    """
    horizon, size = plan_actions.shape
    axes = tuple(axes) if axes is not None else tuple(range(min(2, size)))
    _check(axes, step, points, horizon, bounds, size)
    grid = [torch.linspace(float(bounds.low[axis]), float(bounds.high[axis]), points) for axis in axes]
    chosen = plan_actions[step, list(axes)]
    mesh = torch.stack(torch.meshgrid(*grid, indexing="ij"), dim=-1).reshape(-1, len(axes)).to(plan_actions)
    tried = torch.cat([mesh, chosen[None]])  # the plan itself comes last, measured by the same rule
    candidates = plan_actions.detach().expand(len(tried), horizon, size).clone()
    if hold:
        candidates[:] = candidates[:, step : step + 1].clone()
        candidates[:, :, list(axes)] = tried[:, None]
    else:
        candidates[:, step, list(axes)] = tried
    with torch.no_grad():
        problems = torch.tensor([problem], device=plan_actions.device)
        evaluation = cost_fn(candidates[None], problems)
    cost = evaluation.cost[0].double().cpu()
    broken = (evaluation.violation[0, :-1] > 0).cpu()
    if bool(torch.isnan(cost).any()):
        raise NotFiniteError("The cost of some actions of the energy landscape is NaN.", (candidates, cost))
    return EnergyLandscape(
        values=tuple(values.double().numpy() for values in grid),
        energy=cost[:-1].reshape([points] * len(axes)).numpy(),
        chosen=tuple(chosen.tolist()),
        chosen_energy=float(cost[-1]),
        names=tuple(names[axis] if names is not None else f"action {axis}" for axis in axes),
        units=tuple(units[axis] if units is not None else "" for axis in axes),
        step=step,
        hold=hold,
        broken=broken.any(dim=-1).reshape([points] * len(axes)).numpy() if evaluation.names else None,
        broken_by=tuple(name for name, some in zip(evaluation.names, broken.any(dim=0), strict=True) if some),
    )


def step_units(config: WorldModelConfig, steps: int | None = None) -> tuple[str, ...]:
    """The units of an action that may be the sum of several control steps' displacements: of so many `steps` (None: as
    many as a model step spans)."""
    count = config.stride if steps is None else steps
    over = f" in {count} control steps" if count > 1 else ""
    return tuple(unit + over for unit in config.robot.action_units)


def _check(axes: tuple[int, ...], step: int, points: int, horizon: int, bounds: Bounds, size: int) -> None:
    if not 1 <= len(axes) <= 3 or len(set(axes)) != len(axes) or not all(0 <= axis < size for axis in axes):
        raise InputError(
            f"An energy slice needs one to three different actions of 0 to {size - 1}, got {list(axes)}."
        )
    fixed = [axis for axis in axes if float(bounds.low[axis]) == float(bounds.high[axis])]
    if fixed:
        raise InputError(
            f"Action {fixed[0]} is fixed by its bounds; choose another axis for the energy slice."
        )
    if not 0 <= step < horizon:
        raise InputError(f"Step {step} is not in a plan of {horizon} steps; choose 0 to {horizon - 1}.")
    if points < 2:
        raise InputError(f"An energy slice needs at least 2 points an axis, got {points}.")


def plot_energy(landscape: EnergyLandscape, path: Path | str) -> None:
    """Draw a landscape as PNG: the marked action a star, the lowest of the grid a dot, rejected ones grey, those that
    break a constraint hatched and left out of the scale of colours. Of three axes the first two are drawn, with the
    lowest energy over the third.

    Raises `InputError` when `path` cannot be written; what was there is then kept.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 4.8), layout="constrained")
    FigureCanvasAgg(figure)  # not pyplot: no global state, and no display is ever looked for
    draw_energy(figure, figure.add_subplot(), landscape)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", dpi=120)


def draw_energy(figure: Figure, axes: Axes, landscape: EnergyLandscape) -> None:
    """Draw a landscape into `axes` of a figure, as `plot_energy` tells."""
    third = f", lowest over {landscape.names[2]}" if landscape.energy.ndim == 3 else ""
    landscape = landscape.face()
    if landscape.energy.ndim == 2:
        _draw_surface(figure, axes, landscape)
    else:
        _draw_curve(axes, landscape)
    which = (
        "one action held over the plan"
        if landscape.hold
        else f"action of step {landscape.step}, the rest kept"
    )
    axes.set_title(f"Energy landscape: {which}{third}", fontsize=10)
    axes.set_xlabel(_label(landscape, 0))
    lowest = landscape.lowest()
    if lowest is None:
        words = "every action is rejected" if landscape.broken is None else "every action is rejected or breaks a limit"
        axes.text(0.5, 0.5, words, transform=axes.transAxes, ha="center")
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.14), ncols=2, frameon=False)


def _label(landscape: EnergyLandscape, axis: int) -> str:
    unit = landscape.units[axis]
    return f"{landscape.names[axis]} [{unit}]" if unit else landscape.names[axis]


def _draw_surface(figure: Figure, axes: Axes, landscape: EnergyLandscape) -> None:
    first, second = landscape.values
    energy = np.ma.masked_invalid(landscape.energy.T)  # rows of a drawing are its vertical axis
    axes.set_facecolor("lightgrey")
    axes.set_ylabel(_label(landscape, 1))
    lowest = landscape.lowest()
    if np.isfinite(landscape.energy).any():
        allowed = landscape.allowed()
        seen = allowed[np.isfinite(allowed)]
        low, high = (float(seen.min()), float(seen.max())) if seen.size else (None, None)
        surface = axes.pcolormesh(first, second, energy, shading="nearest", cmap="viridis", vmin=low, vmax=high)
        figure.colorbar(surface, ax=axes, label="latent cost")
        if energy.max() > energy.min():
            axes.contour(first, second, energy, levels=8, colors="white", linewidths=0.5, alpha=0.6)
    if landscape.broken is not None and landscape.broken.any():
        _hatch(axes, landscape)
    if lowest is not None:
        axes.plot(
            *lowest, "o", color="white", markeredgecolor="black", markersize=7, label="lowest of the grid"
        )
    star: dict[str, Any] = {"color": "red", "markeredgecolor": "white", "markersize": 15, "clip_on": False}
    if landscape.chosen is not None:
        axes.plot(*landscape.chosen, "*", label=landscape.mark, **star)
    if landscape.units[0] == landscape.units[1]:
        axes.set_aspect("equal")


def _hatch(axes: Axes, landscape: EnergyLandscape) -> None:
    """Grey over the cells, or the stretches of a curve, of what breaks a constraint, and its names in the legend."""
    from matplotlib.patches import Rectangle

    assert landscape.broken is not None
    style: dict[str, Any] = {"facecolor": (0.85, 0.85, 0.85, 0.6), "edgecolor": (0.3, 0.3, 0.3, 0.6), "linewidth": 0.0}
    style |= {"hatch": "///", "label": f"breaks {', '.join(landscape.broken_by)}"}
    edges = [_edges(values) for values in landscape.values]
    for index in zip(*np.nonzero(landscape.broken), strict=True):
        left, width = edges[0][index[0]], np.diff(edges[0])[index[0]]
        if len(index) == 1:
            axes.axvspan(left, left + width, **style)
        else:
            low, height = edges[1][index[1]], np.diff(edges[1])[index[1]]
            axes.add_patch(Rectangle((left, low), width, height, **style))
        style.pop("label", None)  # once in the legend


def _edges(values: Float[np.ndarray, " points"]) -> Float[np.ndarray, " edges"]:
    """The borders of cells around ascending values."""
    between = (values[1:] + values[:-1]) / 2
    return np.concatenate([[2 * values[0] - between[0]], between, [2 * values[-1] - between[-1]]])


def _draw_curve(axes: Axes, landscape: EnergyLandscape) -> None:
    values, energy = landscape.values[0], np.ma.masked_invalid(landscape.energy)
    axes.set_ylabel("latent cost")
    axes.plot(values, energy, color="tab:blue")
    lowest = landscape.lowest()
    if landscape.broken is not None and landscape.broken.any():
        _hatch(axes, landscape)
    if lowest is not None:
        axes.plot(
            *lowest,
            float(landscape.allowed().min()),
            "o",
            color="white",
            markeredgecolor="black",
            label="lowest of the grid",
        )
    if landscape.chosen is not None and np.isfinite(landscape.chosen_energy):
        star: dict[str, Any] = {"color": "red", "markeredgecolor": "white", "markersize": 15}
        axes.plot(*landscape.chosen, landscape.chosen_energy, "*", label=landscape.mark, **star)
