"""stable-worldmodel's solvers on the very same cost function, for `vjepa-mpc bench planners --peer`: used where that
package is installed, never needed.

They are handed the cost as a world model of theirs (`get_cost`), in the units that they expect (positions in
[-1, 1]), all problems in one batch, and the same start. They know neither bounds nor constraints of a problem: their
candidates are projected into the box before they are judged, and broken constraints are priced (`Judge`).
"""

from __future__ import annotations

import contextlib
import importlib
import io
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from vjepa_mpc.core.errors import InputError, first_line
from vjepa_mpc.planner_bench import Judge
from vjepa_mpc.planner_courses import PEER, Course
from vjepa_mpc.planner_problems import Problems

PACKAGE = "stable-worldmodel"


@dataclass(frozen=True)
class Solver:
    """One of the package's solvers: its class, candidates an iteration (None: all of the budget at once), and what
    else it is told. Names without more are the package's own defaults; "small" has this table's own sizes."""

    kind: str
    samples: int | None
    options: tuple[tuple[str, Any], ...] = ()


SOLVERS: dict[str, Solver] = {
    f"{PEER}cem": Solver("CEMSolver", 300, (("topk", 30),)),
    f"{PEER}cem-small": Solver("CEMSolver", 64, (("topk", 8),)),
    f"{PEER}icem": Solver("ICEMSolver", 300, (("topk", 30),)),
    f"{PEER}icem-small": Solver("ICEMSolver", 64, (("topk", 8),)),
    f"{PEER}mppi": Solver("MPPISolver", 300, (("topk", 30),)),
    f"{PEER}mppi-small": Solver("MPPISolver", 64, (("topk", 8),)),
    f"{PEER}predictive": Solver("PredictiveSamplingSolver", None),
    f"{PEER}gradient": Solver("GradientSolver", 4),
    f"{PEER}gradient-adam": Solver("GradientSolver", 4, (("optimizer_cls", "Adam"), ("optimizer_kwargs", 0.2))),
}


class _Costed:
    """A world model of theirs that is nothing but a cost."""

    def __init__(self, judge: Judge) -> None:
        self.judge = judge

    def get_cost(self, info_dict: dict[str, Any], action_candidates: Float[Tensor, "b n h a"]) -> Float[Tensor, "b n"]:
        return self.judge(action_candidates)


def installed() -> Any:
    """The package's solvers; `InputError` with the way to have them where they cannot be imported."""
    try:
        return importlib.import_module("stable_worldmodel.solver")
    except Exception as error:  # whatever a package's own imports come to
        raise InputError(
            f"The peer {PACKAGE} cannot be used ({type(error).__name__}: {first_line(error)}); install it, here or in "
            "an environment of its own beside this package, or leave --peer out."
        ) from error


def measure_peer(name: str, problems: Problems, budget: int, seed: int = 0) -> Course:
    """Solve all problems with the solver of `SOLVERS`; no more than `budget` evaluations each. The best of all that it
    judged counts, its answer (judged in the end at no charge) among it."""
    spaces: Any = importlib.import_module("gymnasium.spaces")
    config: Any = importlib.import_module("stable_worldmodel.policy").PlanConfig
    solver, judge = SOLVERS[name], Judge(problems)
    count, horizon, size = problems.init.shape
    samples = budget if solver.samples is None else solver.samples
    given = {key: _option(value) for key, value in solver.options}
    if solver.samples is not None:
        given["n_steps"] = max(1, budget // samples)
    made = getattr(installed(), solver.kind)(
        _Costed(judge), batch_size=count, num_samples=min(samples, budget), seed=seed, **given
    )
    space = spaces.Box(-1.0, 1.0, (count, size))
    made.configure(action_space=space, n_envs=count, config=config(horizon=horizon, receding_horizon=horizon))
    with contextlib.redirect_stdout(io.StringIO()):
        answer = made.solve({"problem": torch.arange(count)}, judge.start.clone())["actions"]
    with torch.no_grad():
        spent = judge.spent
        judge(answer.detach().clone().to(problems.init)[:, None])
        _, best, wall = judge.points.pop()
        judge.points.append((spent, best, wall))
    return judge.course(name)


def _option(value: Any) -> Any:
    """Optimisers by their name in torch, and their learning rate."""
    if value == "Adam":
        return torch.optim.Adam
    return {"lr": value} if isinstance(value, float) else value
