"""From names and options to objects: the one place that knows every concrete class."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from difflib import get_close_matches
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_type_hints

from vjepa_mpc.core.errors import InputError, first_line, unknown_name

if TYPE_CHECKING:
    import torch

    from vjepa_mpc.planners.base import Bounds, Planner
    from vjepa_mpc.planners.knots import Curve
    from vjepa_mpc.planners.limits import StepLimits
    from vjepa_mpc.world_model import WorldModel

SHIPPED_MODELS = Path(__file__).resolve().parents[1] / "models"
SHIPPED_MODEL = SHIPPED_MODELS / "reacher"
MODEL_HELP = "World model: a folder, a run of train, a Hugging Face id, or a shipped one's name (default: reacher)."

_CONFIGS = ("config.json", "model/config.json")
_STARTS = {"samples": "starts", "iterations": "steps"}
PLANNERS: dict[str, tuple[str, str, str, dict[str, str]]] = {
    # name: module, planner, settings, and what they call --samples, --iterations and --elites where not so
    "cem": ("cem", "CEM", "CEMSettings", {}),
    "icem": ("icem", "ICEM", "ICEMSettings", {}),
    "mppi": ("mppi", "MPPI", "MPPISettings", {}),
    "cma": ("cma_es", "CMAES", "CMASettings", {}),
    "shooting": ("shooting", "RandomShooting", "ShootingSettings", {}),
    "predictive": ("shooting", "PredictiveSampling", "PredictiveSettings", {}),
    "discrete": ("discrete", "DiscreteCEM", "DiscreteSettings", {}),
    "published": ("published", "PublishedCEM", "PublishedSettings", {}),
    "gradient": ("gradient", "GradientPlanner", "GradientSettings", _STARTS),
    "lbfgs": ("lbfgs", "LBFGS", "LBFGSSettings", _STARTS),
    "lagrangian": ("lagrangian", "LagrangianLBFGS", "LagrangianLBFGSSettings", _STARTS),
}
ACTOR = "actor"
PLANNER_HELP = f"{', '.join(PLANNERS)}; or two of them, sample-then-refine: cem+lbfgs."
ACTOR_HELP = f"{ACTOR}: the model's actor by itself, without a search."
OWN_HELP = "Default: what the model is best at, cem as a rule."
DRAFT_HELP = "Sift candidates by the first so many blocks of the predictor: quicker and rougher (docs/performance.md)."
KNOTS_HELP = "Decide by knots: blocks:3 (held over 3 planned steps), lines:4 or splines:4 (4 over the horizon)."
VARY_HELP = "A factor of variation and its level, 0 to 1, as light=0.5, or a level of all; may be given several times."
PROPOSE_HELP = "Plans of the model's actor among the first candidates (default: the model's, or 0)."
SET_HELP = "A setting of the planner, NAME=VALUE (see docs/planners.md); may be repeated."


FEW_NUMBERS = 8
CEM_DEFAULTS: dict[str, Any] = {
    "samples": 192,
    "elites": 8,
    "iterations": 4,
    "noise_exponent": 2.0,
}
"""For plans of up to `FEW_NUMBERS` numbers, as docs/experiments.md says under "Planner and cost"."""
CEM_DEFAULTS_MANY: dict[str, Any] = {
    "samples": 24,
    "elites": 6,
    "iterations": 32,
    "momentum_std": 0.85,
    "std_fraction": 0.5,
    "path_share": 0.1,
}
"""For plans of more numbers, at as many evaluations, as docs/planners.md says under "Measured"."""


def cem_defaults(numbers: int) -> dict[str, Any]:
    """What the command line's CEM is told of itself for plans of so many numbers."""
    return dict(CEM_DEFAULTS if numbers <= FEW_NUMBERS else CEM_DEFAULTS_MANY)


def plan_steps(model: WorldModel, horizon: int | None, legs: int = 1) -> int:
    """How many steps are planned of `model`, by default as far ahead as it is used to."""
    return (model.default_horizon if horizon is None else horizon) * legs


def plan_numbers(model: WorldModel, horizon: int | None, legs: int = 1, knots: str | None = None) -> int:
    """How many numbers a plan of `model` is decided by."""
    steps = plan_steps(model, horizon, legs)
    decisions = steps if knots is None else curve_named(knots)(steps).shape[1]
    return decisions * len(model.config.robot.action_names)


def curve_named(text: str) -> Curve:
    """Knots by name and number, as `blocks:3`."""
    from vjepa_mpc.planners.knots import Blocks, Lines, Splines

    kinds: dict[str, Callable[[int], Curve]] = {"blocks": Blocks, "lines": Lines, "splines": Splines}
    kind, _, number = text.partition(":")
    if kind not in kinds:
        raise unknown_name("kind of knots", kind, kinds)
    if not number.isdecimal():
        raise InputError(f"--knots {text} is no kind and number; write it as {kind}:3.")
    return kinds[kind](int(number))


def by_knots(planner: Planner, knots: str | None, steps: int) -> Planner:
    """`planner` deciding by `knots` over so many steps; `InputError` where they are no fewer decisions."""
    from vjepa_mpc.planners.knots import ByKnots

    if knots is None:
        return planner
    curve = curve_named(knots)
    if curve(steps).shape[1] >= steps:
        raise InputError(
            f"--knots {knots} leaves as many decisions as there are steps to plan, {steps}; give fewer knots or longer "
            "blocks, plan more steps (--horizon, as far as the model sees, or --legs), or leave --knots out."
        )
    return ByKnots(planner, curve)


def choose_device(name: str) -> torch.device:
    """"auto" (a GPU when there is one), "cpu", "cuda" or "cuda:1"; `InputError` when it is not there."""
    import torch

    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise unknown_name("device", name, ("auto", "cpu", "cuda")) from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise InputError("There is no usable CUDA GPU here; leave --device out, or use --device cpu.")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise InputError(f"There is no {name} here, but {torch.cuda.device_count()} CUDA GPU(s), numbered from 0.")
    if device.type not in ("cpu", "cuda"):
        raise unknown_name("device", name, ("auto", "cpu", "cuda"))
    return device


def limit_threads(threads: int | None) -> int:
    """Set torch's threads, by default to the cores this process may use, and return how many there are now.

    Torch counts the machine's cores; in a container that is given few of many its threads would mostly wait
    for each other. OMP_NUM_THREADS, when lower, holds.
    """
    import torch

    torch.set_num_threads(threads or max(1, min(torch.get_num_threads(), usable_cores())))
    return torch.get_num_threads()


def crowded(threads: int) -> str | None:
    """A note when several threads will have to share busy cores, else None. The default stays what it is: results
    depend on the number of threads in the last bit, and should not depend on what else runs."""
    try:
        load = os.getloadavg()[0]
    except OSError:
        return None
    cores = os.cpu_count() or 1
    if threads == 1 or load < cores:
        return None
    return f"this machine is busy (load {load:.1f} on {cores} cores): --threads 1 may be faster than {threads} threads."


def usable_cores() -> int:
    """Cores that this process may use: the machine's, its affinity mask and its control group's quota."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    version_2, version_1 = Path("/sys/fs/cgroup/cpu.max"), Path("/sys/fs/cgroup/cpu")
    try:
        if version_2.is_file():
            quota, period = version_2.read_text().split()
        else:
            quota = (version_1 / "cpu.cfs_quota_us").read_text()
            period = (version_1 / "cpu.cfs_period_us").read_text()
        share = int(quota) / int(period)  # "max" or -1: no quota
    except (OSError, ValueError, ZeroDivisionError):
        return cores
    return min(cores, max(1, round(share))) if share > 0 else cores


def model_folder(source: str | None) -> Path:
    """Where the world model `source` lies: a folder (a run folder of `train` will do), the name of a shipped model,
    a Hugging Face id, or None for the shipped one. A folder that is there goes before a name.

    `InputError` for what does not exist, with the nearest names that do.
    """
    if source is None:
        if not (SHIPPED_MODEL / "config.json").is_file():
            raise InputError("This installation lacks the shipped world model; install it again, or give --model.")
        return SHIPPED_MODEL
    folder = Path(source)
    if (folder / "model" / "config.json").is_file():
        return folder / "model"
    if folder.is_dir() and not (folder / "config.json").is_file():
        raise InputError(_no_model(folder))
    if folder.exists():
        return folder
    return SHIPPED_MODELS / source if source in shipped_models() else _from_hub(source)


def _no_model(folder: Path) -> str:
    """What a folder without a world model's configuration is, and the way to a model."""
    if (folder / "zarr.json").is_file():
        return f"{folder} is a trajectory store; train a model on it with `vjepa-mpc pretrain` and `vjepa-mpc train`."
    if (folder / "encoder").is_dir():
        return f"{folder} holds an encoder; train a model on it with `vjepa-mpc train LOGS --encoder {folder}`."
    if (folder / "settings.json").is_file():
        return f"{folder} holds a run that made no model, or not yet; let the command that began it go on to its end."
    return f"{folder} holds no world model (no config.json in it); give a folder that `vjepa-mpc train` wrote."


def shipped_models() -> list[str]:
    """The names of the world models that come with the package."""
    return sorted(config.parent.name for config in SHIPPED_MODELS.glob("*/config.json"))


def encoder_source(name: str) -> str:
    """What `--encoder` names, the folder of a shipped model for its name; a folder that is there goes before a name."""
    return str(SHIPPED_MODELS / name) if name in shipped_models() and not Path(name).exists() else name


def is_shipped(folder: Path) -> bool:
    """Whether a model's folder is part of the installed package, where nothing should be written."""
    return folder.resolve().parent == SHIPPED_MODELS


def load_model(source: str | None, device: torch.device) -> WorldModel:
    """The world model `source`, named as `model_folder` takes it."""
    from vjepa_mpc.world_model import WorldModel

    return WorldModel.from_pretrained(model_folder(source), device).for_planning(bf16=device.type == "cpu")


def _from_hub(source: str) -> Path:
    """Fetch the two files of a world model from the Hugging Face hub, or find them in its cache."""
    if source.count("/") != 1 or source.startswith((".", "/", "~")):
        raise InputError(
            f"{source} does not exist{_near(source)}; give a model folder, a Hugging Face id (owner/name) or the name "
            f"of a shipped model: {', '.join(shipped_models())}."
        )
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(source, allow_patterns=["config.json", "model.safetensors", "README.md"]))
    except Exception as error:  # the hub client raises many kinds: offline, missing, private
        raise InputError(
            f"{source} is no folder here{_near(source)}, and could not be had from Hugging Face ({first_line(error)})."
        ) from error


def _near(source: str) -> str:
    """" (did you mean 'runs/model'?)" of a misspelt name: among shipped models and the folders that lie beside it."""
    parent, models = Path(source).expanduser().parent, []
    with suppress(OSError):  # no such folder, or not ours to look into
        models = [str(entry) for entry in parent.iterdir() if any((entry / place).is_file() for place in _CONFIGS)]
    found = get_close_matches(source, [*shipped_models(), *models], n=1, cutoff=0.5)
    return f" (did you mean {found[0]!r}?)" if found else ""


def check_planner(name: str) -> None:
    """Refuse an unknown planner, cheaply: nothing is imported."""
    if name == ACTOR:
        raise InputError(
            f"The actor by itself is played by `plan` and `evaluate --planner {ACTOR}`; name a planner here: its "
            "proposals may be among that one's first candidates."
        )
    for part in name.split("+"):
        if part not in PLANNERS:
            raise unknown_name("planner", part, [*PLANNERS, *([ACTOR] if "+" not in name else [])])
    if name.count("+") > 1:
        raise InputError(f"{name} are more than two planners; refine with one: cem+lbfgs.")


def make_planner(
    name: str,
    bounds: Bounds,
    *,
    samples: int | None = None,
    iterations: int | None = None,
    elites: int | None = None,
    settings: Sequence[str] = (),
    numbers: int = FEW_NUMBERS,
    own: Mapping[str, Any] | None = None,
) -> Planner:
    """The planner called `name` within action bounds; None leaves a setting at its default, which CEM's is by how many
    `numbers` the plans have, and by what a model says of its `own`.

    `settings` are "name=value"; of two planners ("cem+lbfgs") the first takes the numbers and each the settings
    it knows. `InputError` for names that do not exist (with the nearest) and values that do not fit.
    """
    from vjepa_mpc.core.settings import split_settings

    check_planner(name)
    given: dict[str, Any] = {"samples": samples, "iterations": iterations, "elites": elites}
    given = {key: value for key, value in given.items() if value is not None}
    wanted = split_settings(settings)
    parts = name.split("+")
    known = {key for part in parts for key in _setting_types(part)}
    for key in wanted:
        if key not in known:
            raise unknown_name(f"setting of {name}", key, known)
    made = [
        _one_planner(part, bounds, {} if i else given, wanted, cem_defaults(numbers) | dict(own or {}))
        for i, part in enumerate(parts)
    ]
    if len(made) == 1:
        return made[0]
    from vjepa_mpc.planners.wrappers import Refined

    return Refined(made[0], made[1])


def _setting_types(name: str) -> dict[str, Any]:
    module, _, settings, _ = PLANNERS[name]
    return get_type_hints(getattr(import_module(f"vjepa_mpc.planners.{module}"), settings))


def _one_planner(
    name: str, bounds: Bounds, given: dict[str, Any], wanted: dict[str, str], cem: dict[str, Any]
) -> Planner:
    from vjepa_mpc.core.settings import from_text

    module, planner, settings, aliases = PLANNERS[name]
    place, types = import_module(f"vjepa_mpc.planners.{module}"), _setting_types(name)
    values: dict[str, Any] = dict(cem) if name == "cem" else {}
    for key, value in given.items():
        own = aliases.get(key, key)
        if own not in types:
            raise InputError(f"The {name} planner has no {key}; leave --{key} out.")
        values[own] = value
    for key, text in wanted.items():
        if key in types:
            values[key] = from_text(types[key], key, text)
    made: Planner = getattr(place, planner)(bounds, getattr(place, settings)(**values))
    return made


PRESETS = ("vjepa2-ac",)


def planner_and_control(
    model: WorldModel,
    preset: str | None,
    planner: str,
    *,
    horizon: int | None,
    samples: int | None,
    iterations: int | None,
    elites: int | None,
    settings: Sequence[str],
    legs: int = 1,
    leg_steps: int | None = None,
    deadline_s: float | None = None,
    draft: int = 0,
    knots: str | None = None,
    limits: StepLimits | None = None,
    propose: int | None = None,
) -> tuple[Planner, Any]:
    """The planner and the control settings of the options, or those of a preset with what was said beside it."""
    if preset is None:
        made = make_planner(
            planner, leg_bounds(model, legs, leg_steps, limits), samples=samples, iterations=iterations, elites=elites,
            settings=settings, numbers=plan_numbers(model, horizon, legs, knots), own=own_search(model, legs),
        )  # fmt: skip
        made = by_knots(made, knots, plan_steps(model, horizon, legs))
        check_draft(draft, made)
        control = control_settings(
            model, horizon=horizon, legs=legs, leg_steps=leg_steps, deadline_s=deadline_s, draft=draft, limits=limits,
            propose=propose,
        )
        return made, control
    if preset not in PRESETS:
        raise unknown_name("preset", preset, PRESETS)
    shaped = legs != 1 or leg_steps is not None or knots or limits
    if planner != "cem" or settings or shaped or deadline_s is not None or draft or propose:
        raise InputError(
            f"--preset {preset} is a planner with its settings; leave --planner, --set, --legs, --deadline, --knots, "
            "--fix, --ball, --rate-limit, --draft and --propose out."
        )
    from vjepa_mpc.vjepa2_ac import published_control, published_planner

    own = published_planner(model, samples=samples, elites=elites, iterations=iterations)
    return own, published_control(horizon)


def own_planner(worlds: Iterable[WorldModel], asked: str | None, said: bool) -> str:
    """The planner that was `asked` for; or, where nothing was `said` that only a plan can follow, what these models are
    best at."""
    if asked is not None:
        return asked
    searches = [world.config.search for world in worlds]
    alike = bool(searches) and all(search is not None and search.planner == ACTOR for search in searches)
    return ACTOR if alike and not said else "cem"


def tell_planner(chosen: str, worlds: Iterable[WorldModel], tell: Callable[[str], None]) -> None:
    """Say so where models that are best at their actor are played by it, or are not."""
    if not any(world.config.search and world.config.search.planner == ACTOR for world in worlds):
        return
    if chosen == ACTOR:
        return tell("Played by the model's actor, without a search (--planner cem plans).")
    tell(f"Planned by {chosen}; what this model is best at is its actor by itself (--planner {ACTOR}).")


def check_draft(draft: int, planner: Planner) -> None:
    """Refuse a draft that would sift nothing, or leave fewer candidates than the planner learns from."""
    from vjepa_mpc.costs import DRAFT_KEEPS

    if not draft:
        return
    planner = getattr(planner, "planner", planner)  # of knots, or prices
    settings: Any = getattr(getattr(planner, "first", planner), "settings", None)
    samples = getattr(settings, "samples", 0)
    if samples <= DRAFT_KEEPS:
        raise InputError(
            f"A draft leaves {DRAFT_KEEPS} candidates at least, and this planner tries {samples} at a time: it would "
            "sift nothing; raise --samples, or leave --draft out."
        )
    learned = getattr(settings, "elites", 0)
    if learned > DRAFT_KEEPS:
        raise InputError(
            f"A draft may leave {DRAFT_KEEPS} candidates, fewer than the {learned} elites that this planner learns "
            "from; lower --elites (cma: --samples), or leave --draft out."
        )


def control_settings(
    model: WorldModel,
    *,
    horizon: int | None,
    running: float | None = None,
    nearest: float | None = None,
    critic: float | None = None,
    remember: float | None = None,
    propose: int | None = None,
    legs: int = 1,
    leg_steps: int | None = None,
    deadline_s: float | None = None,
    draft: int = 0,
    limits: StepLimits | None = None,
) -> Any:
    """The controller's settings from the command line's options; by default what `model` is used to: as far ahead as it
    can see, and the sum over imagined frames, unless it says otherwise."""
    from vjepa_mpc.controller import ControlSettings
    from vjepa_mpc.planners.base import Budget
    from vjepa_mpc.planners.limits import StepLimits
    from vjepa_mpc.world_model import SearchDefaults

    if deadline_s is not None and not 0 < deadline_s < float("inf"):
        raise InputError(f"A deadline of {deadline_s} s is no time to plan in; give seconds above 0.")
    ahead = model.default_horizon if horizon is None else horizon
    search = model.config.search or SearchDefaults()
    running = (1.0 if search.running is None else search.running) if running is None else running
    nearest = (search.nearest or 0.0) if nearest is None else nearest
    critic = (search.critic or 0.0) if critic is None else critic
    remember = (search.remember or 0.0) if remember is None else remember
    propose = (search.propose or 0) if propose is None else propose
    if propose and model.actor is None:
        raise InputError("This model has no actor to ask; `vjepa-mpc train-actor MODEL LOGS` trains one.")
    if critic and model.critic is None:
        raise InputError("This model has no critic to ask; `vjepa-mpc train-critic MODEL LOGS` trains one.")
    budget = Budget(deadline_s=deadline_s)
    return ControlSettings(
        horizon=ahead, running=running, nearest=nearest, critic=critic, remember=remember, propose=propose, legs=legs,
        leg_steps=own_leg_steps(model, legs, leg_steps), draft=draft, budget=budget,
        limits=limits or StepLimits(),
    )  # fmt: skip


def own_leg_steps(model: WorldModel, legs: int, leg_steps: int | None) -> int | None:
    """How many control steps a planned model step may take: as said, or, of straight ones, what `model` is used to."""
    if leg_steps is not None or legs > 1 or model.config.search is None:
        return leg_steps
    return model.config.search.leg_steps


def own_search(model: WorldModel, legs: int = 1) -> dict[str, Any]:
    """CEM's settings that `model` was tuned with: for straight model steps, not for ways of several `legs`."""
    search = model.config.search
    return {} if search is None or legs > 1 else search.cem()


def leg_bounds(
    model: WorldModel, legs: int, leg_steps: int | None = None, limits: StepLimits | None = None
) -> Bounds:
    """The bounds of one leg of a model step that is planned as `legs` of them, of `leg_steps` control steps each, where
    every control step keeps `limits`."""
    from vjepa_mpc.planners.base import Bounds

    bounds, leg_steps = model.action_bounds, own_leg_steps(model, legs, leg_steps)
    stride = model.config.stride
    if leg_steps is not None:
        bounds = Bounds(bounds.low * leg_steps / stride, bounds.high * leg_steps / stride)
    elif legs > 1:
        bounds = Bounds(bounds.low / legs, bounds.high / legs)
    return limits.within(bounds, stride / legs if leg_steps is None else leg_steps) if limits else bounds


def parse_levels(texts: Sequence[str]) -> dict[str, float]:
    """`light=0.5`, `mass` (in full) or `0.5` (all factors): each named factor's level. `InputError` otherwise."""
    from vjepa_mpc.robots.dynamics import FACTORS, check_factors

    levels: dict[str, float] = {}
    for text in texts:
        name, equals, level = text.partition("=")
        alone = not level and name.strip().replace(".", "", 1).isdigit()
        try:
            value = float(name if alone else level if equals else "1")
        except ValueError as error:
            raise InputError(f"--vary {text} is not a factor and a level; write it as light=0.5.") from error
        levels |= dict.fromkeys(FACTORS, value) if alone else {name.strip(): value}
    check_factors(levels)
    return levels
