"""The world model: a frozen encoder, a latent space and an action-conditioned predictor, as one folder.

A saved folder holds `config.json`, `model.safetensors` and a model card: everything that planning needs to
be the same elsewhere. What does not fit the robot at hand is refused with both values in the message.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from vjepa_mpc.actor import Actor, ActorConfig, Mixture
from vjepa_mpc.core.errors import InputError, unknown_name
from vjepa_mpc.core.files import atomic_folder, read_json, write_json, write_text
from vjepa_mpc.core.settings import from_plain, to_plain
from vjepa_mpc.critic import Critic, CriticConfig
from vjepa_mpc.encoder import FrameEncoder, frame_encoder, tensors_hash, weights_hash
from vjepa_mpc.familiarity import Familiarity, Likeness
from vjepa_mpc.goal_network import GoalNetworkConfig
from vjepa_mpc.images import ImagePreparation
from vjepa_mpc.latents import LatentConfig, LatentSpace
from vjepa_mpc.object_actor import ObjectActor, make_actor
from vjepa_mpc.planners.base import Bounds
from vjepa_mpc.predictor import ActionConditionedPredictor, PredictorConfig
from vjepa_mpc.robots.base import RobotSpec
from vjepa_mpc.rollout import Context, Rollout, rollout
from vjepa_mpc.states import StateSpace, state_space

FORMAT_VERSION = 1
WEIGHTS = "model.safetensors"
ENCODER = "encoder."
STATISTICS = ("latent_space.", "familiarity.mean", "familiarity.scale")


@dataclass(frozen=True)
class Calibration:
    """What "near" means in this model's latent space, measured on held-out episodes at training time.

    `reached_cost`: a view whose latent distance to the goal is below it counts as there. `goal_score`: the
    score (`Likeness`) below which 99 % of held-out frames lie; None: not measured. `contrast`: the least that
    99.9 % of them have. `grain`: the most that 99.9 % of them have; None: not measured.
    """

    reached_cost: float
    goal_score: float | None
    state_radius: float
    contrast: float = 0.0
    grain: float | None = None

    def __post_init__(self) -> None:
        for field_ in fields(self):
            value = getattr(self, field_.name)
            if value is not None and not math.isfinite(value):
                raise InputError(f"A calibration's {field_.name} must be a finite number, not {value}.")


@dataclass(frozen=True)
class SearchDefaults:
    """How this model was searched when it was tuned (on a `dev` manifest): what commands take for CEM where nothing
    else is said; None: what they take for any model. `horizon`: model steps ahead; `running`: weight of imagined
    frames before the last one; `nearest`: share of the one nearest to the goal; `critic`: cost of each control step
    that the critic foresees; `leg_steps`: control steps that a planned model step may take, of the stride's;
    `remember`: weight of the short-term memory; `propose`: plans of the actor among the first candidates;
    `actor_steps`: control steps that the actor, by itself, does before it looks again; `actor_drawn`: by itself, it
    does what it draws of the ways it holds possible, not the likeliest; `planner`: "actor" where that by itself is what
    the model is best at, and commands shall take it where nothing is said of plans."""

    samples: int | None = None
    iterations: int | None = None
    elites: int | None = None
    horizon: int | None = None
    running: float | None = None
    nearest: float | None = None
    critic: float | None = None
    leg_steps: int | None = None
    remember: float | None = None
    propose: int | None = None
    actor_steps: int | None = None
    actor_drawn: bool | None = None
    planner: str | None = None

    def __post_init__(self) -> None:
        if self.actor_drawn not in (None, True, False):
            raise InputError(f"A model's search says whether its actor draws, true or false, not {self.actor_drawn!r}.")
        if self.planner not in (None, "actor"):
            raise InputError(f"A model may be used to its actor (planner 'actor'), not to {self.planner!r}.")
        for name in ("samples", "iterations", "elites", "horizon", "leg_steps", "actor_steps"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise InputError(f"A model's search needs {name} of 1 or more, not {value}.")
        for name in ("running", "critic", "remember"):
            value = getattr(self, name)
            if value is not None and not 0 <= value < math.inf:
                raise InputError(f"A model's search needs a {name} weight of 0 or more, not {value}.")
        if self.nearest is not None and not 0 <= self.nearest <= 1:
            raise InputError(f"A model's search needs a share of the nearest frame of 0 to 1, not {self.nearest}.")
        if self.propose is not None and self.propose < 0:
            raise InputError(f"A model's search takes 0 or more proposals of its actor, not {self.propose}.")

    def cem(self) -> dict[str, int]:
        """What it says of CEM's own settings."""
        told = {"samples": self.samples, "iterations": self.iterations, "elites": self.elites}
        return {name: value for name, value in told.items() if value is not None}


@dataclass(frozen=True)
class WorldModelConfig:
    """All of a world model but its weights. `encoder` is the Hugging Face configuration as plain values.

    One model step spans `stride` control steps: its actions are the sums of that many displacements.
    `history` frames, that far apart, are seen before the first prediction. `familiar`: directions of the subspace
    that training pictures span (`Familiarity`); 0: not known. `encoder_in`: the folder beside this one whose encoder
    this model shares, which then must have the hash `encoder_sha256` (`weights_hash`); "": it has its own.
    """

    robot: RobotSpec
    camera: str
    preparation: ImagePreparation
    encoder: dict[str, Any]
    latent: LatentConfig
    predictor: PredictorConfig
    history: int
    stride: int = 1
    calibration: Calibration | None = None
    search: SearchDefaults | None = None
    renderer: str = ""
    familiar: int = 0
    encoder_in: str = ""
    encoder_sha256: str = ""
    critic: CriticConfig | None = None
    actor: ActorConfig | None = None
    training: dict[str, Any] = field(default_factory=dict)
    format_version: int = FORMAT_VERSION

    def __post_init__(self) -> None:
        frames = self.predictor.max_frames
        if self.stride < 1:
            raise InputError(f"A model step spans at least one control step, not {self.stride} (stride).")
        if not 1 <= self.history < frames:
            raise InputError(f"A history of {self.history} frames does not fit a predictor of {frames} (max_frames).")
        if self.camera not in self.robot.cameras:
            raise unknown_name(f"camera of {self.robot.name}", self.camera, self.robot.cameras)
        seen = (self.latent.grid, self.latent.grid, self.latent.dim)
        wanted = (self.predictor.grid_height, self.predictor.grid_width, self.predictor.latent_dim)
        if seen != wanted:
            raise InputError(f"The predictor takes latents of {wanted} (height, width, channels), not {seen}.")
        for name, part in self.learned_from_logs().items():
            if (part.positions, part.latent_dim) != (self.latent.positions, self.latent.dim):
                raise InputError(f"The {name} is of other latents than the model's; train it on this model.")
        if self.critic is None and self.search and self.search.critic:
            raise InputError("This model's search asks for a critic that it has not; train one (`train-critic`).")
        search = self.search or SearchDefaults()
        if self.actor is None and (search.propose or search.actor_steps or search.actor_drawn or search.planner):
            raise InputError("This model's search asks for an actor that it has not; train one (`train-actor`).")
        ahead = self.search.horizon if self.search else None
        if ahead is not None and ahead > frames - self.history:
            raise InputError(f"A search {ahead} steps ahead is beyond the {frames - self.history} this model can see.")
        if self.encoder_in != Path(self.encoder_in).name:
            raise InputError(f"A shared encoder is in a folder beside this: give its name, not {self.encoder_in!r}.")

    def learned_from_logs(self) -> dict[str, GoalNetworkConfig]:
        """Critic and actor, those that there are."""
        found = {"critic": self.critic, "actor": self.actor}
        return {name: part for name, part in found.items() if part is not None}


class WorldModel(nn.Module):
    """Encodes pictures and imagines futures. `encoder` stays frozen; the predictor is what training changes."""

    def __init__(self, config: WorldModelConfig, encoder: FrameEncoder) -> None:
        super().__init__()
        self.config = config
        self.encoder = encoder
        self.latent_space = LatentSpace(config.latent)
        self.states = state_space(config.robot, config.stride)
        self.predictor = ActionConditionedPredictor(config.predictor)
        _check_learned(config, self.states)
        self.critic = Critic(config.critic) if config.critic else None
        self.actor = make_actor(config.actor) if config.actor else None
        self.familiarity: Familiarity | None = None
        if config.familiar:
            self.familiarity = Familiarity(config.latent.grid, config.latent.channels, config.familiar)
        self.eval()

    def for_planning(self, *, bf16: bool = True) -> WorldModel:
        """This model with its predictor's weights in bfloat16 (2 to 3 times faster on CPUs with AMX), and laid out for
        the CPU's matrix units."""
        if bf16:
            self.predictor.to(torch.bfloat16)
        if self.device.type == "cpu":
            self.predictor.prepare()
        return self

    def draft(self, blocks: int) -> WorldModel:
        """This model with the first `blocks` blocks of its predictor alone: the same weights, not a copy of them."""
        rough = self._with(self.predictor.first_blocks(blocks))
        rough.config = replace(self.config, predictor=rough.predictor.config)
        return rough

    def in_single_precision(self) -> WorldModel:
        """This model predicting in float32, with weights of the values that they have now; the rest is the same, not a
        copy of it."""
        return self._with(copy.deepcopy(self.predictor).float())

    def _with(self, predictor: ActionConditionedPredictor) -> WorldModel:
        other = copy.copy(self)
        other._modules = {**self._modules, "predictor": predictor}
        return other

    @property
    def longest_horizon(self) -> int:
        """Model steps that can be planned ahead: the frames it was trained on less its history."""
        return self.config.predictor.max_frames - self.config.history

    @property
    def default_horizon(self) -> int:
        """Model steps that are planned ahead where nothing else is said."""
        search = self.config.search
        return self.longest_horizon if search is None or search.horizon is None else search.horizon

    @property
    def action_bounds(self) -> Bounds:
        """The box of one model step's action: the robot's limits times the stride, in its units."""
        robot, stride = self.config.robot, self.config.stride
        low, high = torch.tensor(robot.action_low), torch.tensor(robot.action_high)
        return Bounds((stride * low).to(self.device), (stride * high).to(self.device))

    @property
    def step_limits(self) -> Float[Tensor, "a"]:
        """The largest displacement of one control step, by action, in its units."""
        robot = self.config.robot
        low, high = torch.tensor(robot.action_low), torch.tensor(robot.action_high)
        return torch.maximum(low.abs(), high.abs()).to(self.device)

    @property
    def device(self) -> torch.device:
        return self.latent_space.mean.device

    def pooled(self, images: UInt8[np.ndarray | Tensor, "n height width 3"]) -> Float[Tensor, "n p d"]:
        """Encoder tokens of pictures, layer-normed and pooled, before standardising (what caches hold)."""
        if isinstance(images, Tensor):
            images = images.to(self.device)
        pixels = self.config.preparation.prepare(images).to(self.device)
        return self.latent_space.pool(self.encoder(pixels))

    @torch.no_grad()
    def encode(self, images: UInt8[np.ndarray | Tensor, "n height width 3"]) -> Float[Tensor, "n p d"]:
        """Latents of pictures, each on its own, in float32."""
        return self.standardise(self.pooled(images))

    def standardise(self, pooled: Float[Tensor, "n p d"]) -> Float[Tensor, "n p d"]:
        """Pooled latents onto the space that predictor and cost use."""
        return self.latent_space.standardise(pooled)

    def rollout(
        self, context: Context, actions: Float[Tensor, "b n h a"], *, chunk: int = 256
    ) -> Rollout:
        """The futures of `actions` (physical units), each from its problem's context."""
        return rollout(
            self.predictor,
            context,
            actions,
            integrate=self.states.integrate,
            state_features=self.states.state_features,
            action_features=self.states.action_features,
            renormalise=self.latent_space.renormalise,
            chunk=chunk,
            unit=self.step_limits if self.config.predictor.displacements else None,
        )

    def get_critic(self, critic: Critic) -> None:
        """Take a critic that was trained on this model's latents."""
        config = replace(self.config, critic=critic.config)
        _check_learned(config, self.states)
        self.critic, self.config = critic.to(self.device).eval().requires_grad_(False), config

    def drop_critic(self) -> None:
        """Forget the critic, and that plans asked it."""
        search = self.config.search
        self.critic = None
        self.config = replace(self.config, critic=None, search=search and replace(search, critic=None))

    def steps_to(
        self, latents: Float[Tensor, "*n p d"], states: Float[Tensor, "*n s"], goal: Float[Tensor, "*#n p d"]
    ) -> Float[Tensor, "*n"]:
        """Control steps that the critic foresees from frames, with states in physical units, to a goal's latents.
        `InputError` for a model without a critic."""
        if self.critic is None:
            raise InputError("This model has no critic; `vjepa-mpc train-critic` trains one on its logs.")
        return self.critic(latents, self.states.state_features(states), goal)

    def get_actor(self, actor: Actor | ObjectActor) -> None:
        """Take an actor that was trained on this model's latents."""
        config = replace(self.config, actor=actor.config)
        _check_learned(config, self.states)
        self.actor, self.config = actor.to(self.device).eval().requires_grad_(False), config

    def drop_actor(self) -> None:
        """Forget the actor, that it proposed plans, and how it played."""
        search = self.config.search
        self.actor = None
        plain = search and replace(search, propose=None, actor_steps=None, actor_drawn=None, planner=None)
        self.config = replace(self.config, actor=None, search=plain)

    @torch.no_grad()
    def propose(
        self,
        latents: Float[Tensor, "b p d"],
        states: Float[Tensor, "b s"],
        goal: Float[Tensor, "#b p d"],
        count: int,
        generators: Sequence[torch.Generator] = (),
    ) -> Float[Tensor, "b m t a"]:
        """`count` proposals of the actor for the next t control steps from each of b frames, with states in physical
        units, to a goal's latents: in physical units, inside the robot's limits, and in the order of
        `Mixture.proposals`. As many as it has components are its own; for more there is one generator a frame.
        `InputError` for a model without an actor, or without those generators."""
        if count < 1:
            raise InputError(f"An actor makes 1 proposal or more, not {count}.")
        if self.actor is not None and count > self.actor.config.components and len(generators) != len(latents):
            raise InputError(
                f"{count} proposals are drawn with one generator for each of {len(latents)} frames, got "
                f"{len(generators)}."
            )
        return self._physical(self._asked(latents, states, goal).proposals(count, generators))

    @torch.no_grad()
    def act(
        self,
        latents: Float[Tensor, "b p d"],
        states: Float[Tensor, "b s"],
        goal: Float[Tensor, "#b p d"],
        generators: Sequence[torch.Generator],
        drawn: bool | None = None,
    ) -> Float[Tensor, "b t a"]:
        """What the actor does by itself in the next t control steps, in physical units, inside the robot's limits: the
        likeliest component's mean, or that of one that is `drawn` as likely as it is, with one generator a frame (None:
        as the model's search says). `InputError` for a model without an actor."""
        said = self._asked(latents, states, goal)
        if drawn is None:
            drawn = bool(self.config.search and self.config.search.actor_drawn)
        return self._physical(said.drawn_means(generators) if drawn else said.in_order()[:, 0])

    @torch.no_grad()
    def near(self, latent: Float[Tensor, "1 p d"], goal: Float[Tensor, "1 p d"], cost: float) -> bool:
        """Whether a view, at the latent distance `cost` from the goal, counts as there: nearer than what `calibration`
        says; or, of a model whose actor reads where an object lies, as far as can be read lying there."""
        if cost <= (self.config.calibration.reached_cost if self.config.calibration else 0.0):
            return True
        return isinstance(self.actor, ObjectActor) and bool(self.actor.shows_the_same(latent, goal))

    def _asked(
        self, latents: Float[Tensor, "b p d"], states: Float[Tensor, "b s"], goal: Float[Tensor, "#b p d"]
    ) -> Mixture:
        if self.actor is None:
            raise InputError("This model has no actor; `vjepa-mpc train-actor` trains one on its logs.")
        said: Mixture = self.actor(latents, self.states.state_features(states), goal, states)
        return said

    def _physical(self, actions: Float[Tensor, "*b t a"]) -> Float[Tensor, "*b t a"]:
        """From units of the step limits to physical ones, inside the robot's limits."""
        robot = self.config.robot
        low, high = torch.tensor(robot.action_low).to(actions), torch.tensor(robot.action_high).to(actions)
        return (actions * self.step_limits).clamp(low, high)

    def get_familiar(self, pooled: Float[Tensor, "n p d"]) -> None:
        """Take pooled latents of training frames for what pictures are like."""
        self.familiarity = Familiarity.fitted(self.latent_space.averaged(pooled)).to(self.device)
        self.config = replace(self.config, familiar=self.familiarity.directions)

    def scores(self, pooled: Float[Tensor, "n p d"]) -> Float[Tensor, "n"]:
        """How far pictures are from those of training (`Familiarity`), by their pooled latents."""
        assert self.familiarity is not None, "get_familiar comes first"
        scores: Tensor = self.familiarity(self.latent_space.averaged(pooled))
        return scores

    @torch.no_grad()
    def likeness(
        self, image: UInt8[np.ndarray, "height width 3"], pooled: Float[Tensor, "1 p d"] | None = None
    ) -> Likeness:
        """How like those of training one picture is; `pooled`: its latents, where they are at hand."""
        score = None
        if self.familiarity is not None:
            score = float(self.scores(self.pooled(image[None]) if pooled is None else pooled))
        preparation = self.config.preparation
        return Likeness(score, float(preparation.deviation(image[None])), float(preparation.grain(image[None])))

    def check_fits(self, spec: RobotSpec) -> None:
        """Refuse a robot that this model was not trained for; the message holds both values."""
        own = self.config.robot
        for name in (
            "name", "action_names", "action_units", "action_low", "action_high",
            "state_names", "state_units", "state_low", "state_high", "state_periodic",
            "control_period_s", "state_model",
        ):  # fmt: skip
            mine, theirs = getattr(own, name), getattr(spec, name)
            if not _equal(mine, theirs):
                raise InputError(
                    f"This model was trained for {own.name} with {name} = {mine}, but the robot has {theirs}; "
                    "use the robot it was trained for, or train a model for this one."
                )
        if self.config.camera not in spec.cameras:
            raise InputError(
                f"This model looks through camera {self.config.camera!r}; {spec.name} has {', '.join(spec.cameras)}."
            )

    def save_pretrained(
        self, folder: Path | str, *, card: str = "", half: bool = True, encoder_in: str = ""
    ) -> None:
        """Write the folder, atomically. `half`: weights as float16 (statistics stay float32).

        `encoder_in`: leave the encoder to a model in a folder of that name beside this one; `InputError` unless that
        has the very same, as it is stored.
        """
        from safetensors.torch import save_file

        tensors, config = {}, replace(self.config, encoder_in="", encoder_sha256="")
        if encoder_in:
            theirs = _encoder_beside(Path(folder), encoder_in)
            mine = {name: tensor for name, tensor in self.state_dict().items() if name.startswith(ENCODER)}
            if theirs.keys() != mine.keys() or not all(
                torch.equal(theirs[name], mine[name].cpu().to(theirs[name].dtype)) for name in mine
            ):
                raise InputError(f"The encoder in {Path(folder).parent / encoder_in} is another than this model's.")
            shared = {name.removeprefix(ENCODER): tensor.float() for name, tensor in theirs.items()}
            config = replace(config, encoder_in=encoder_in, encoder_sha256=tensors_hash(shared))
        for name, tensor in self.state_dict().items():
            if encoder_in and name.startswith(ENCODER):
                continue
            kept = tensor.detach().cpu().contiguous()
            tensors[name] = kept.half() if half and not name.startswith(STATISTICS) else kept
        with atomic_folder(folder) as temporary:
            save_file(tensors, temporary / WEIGHTS)
            write_json(temporary / "config.json", to_plain(config))
            write_text(temporary / "README.md", card or default_card(config))

    @classmethod
    def from_pretrained(cls, folder: Path | str, device: torch.device | str = "cpu") -> WorldModel:
        """Load a folder in float32. Every tensor must be there and fit; weights are never made up.

        Raises `InputError` for a missing, truncated or foreign file, or another format version.
        """
        folder = Path(folder)
        config = read_config(folder)
        with torch.device("meta"):  # the file's tensors become the weights: none are drawn, and none held twice
            model = WorldModel(config, frame_encoder(config.encoder))
        model.states = state_space(config.robot, config.stride)  # its limits are in no file
        tensors = read_weights(folder / WEIGHTS)
        if config.encoder_in:
            tensors |= _encoder_beside(folder, config.encoder_in)
        expected = model.state_dict()
        for name, tensor in expected.items():
            if name not in tensors:
                raise InputError(f"{folder / WEIGHTS} lacks {name}; restore the file or train again.")
            if tensors[name].shape != tensor.shape:
                raise InputError(
                    f"{folder / WEIGHTS}: {name} has shape {list(tensors[name].shape)}, config.json "
                    f"needs {list(tensor.shape)}; they are not of one model."
                )
            if not bool(torch.isfinite(tensors[name]).all()):
                raise InputError(f"{folder / WEIGHTS}: {name} holds NaN or infinity; restore the file.")
        left_over = sorted(set(tensors) - set(expected))
        if left_over:
            raise InputError(f"{folder / WEIGHTS} holds {left_over[0]}, which config.json knows nothing of.")
        model.load_state_dict({name: tensor.float() for name, tensor in tensors.items()}, assign=True)
        if config.encoder_in and weights_hash(model.encoder) != config.encoder_sha256:
            raise InputError(
                f"The encoder in {folder.resolve().parent / config.encoder_in} is another than the one that {folder} "
                "was trained on; keep folders together that belong together."
            )
        for parameter in model.parameters():
            parameter.requires_grad_(False)
        return model.to(device).eval()

    def calibrated(self, calibration: Calibration) -> WorldModel:
        """This model with `calibration` in its configuration (the same object)."""
        self.config = replace(self.config, calibration=calibration)
        return self

    def searched(self, search: SearchDefaults) -> WorldModel:
        """This model with `search` in its configuration (the same object)."""
        self.config = replace(self.config, search=search)
        return self


def _check_learned(config: WorldModelConfig, states: StateSpace) -> None:
    for name, part in config.learned_from_logs().items():
        if part.state_dim != states.state_dim:
            raise InputError(
                f"The {name} reads {part.state_dim} features of a state, and this robot's has {states.state_dim}; "
                "train it on this model."
            )
    if config.actor is not None and config.actor.actions != len(config.robot.action_names):
        raise InputError(
            f"The actor says {config.actor.actions} values of an action, and this robot's has "
            f"{len(config.robot.action_names)}; train it on this model."
        )
    if config.actor is not None and config.actor.object is not None:
        read, own = len(config.actor.object.middle) - 2, len(config.robot.state_names)
        if read != own:
            raise InputError(
                f"The actor reads {read} values of the robot's state from a picture, and this robot's has {own}; train "
                "it on this model."
            )


def _encoder_beside(folder: Path, name: str) -> dict[str, Tensor]:
    """The encoder's tensors of the model in the folder `name` beside this one, as they are stored."""
    beside = folder.resolve().parent / name
    if not (beside / WEIGHTS).is_file():
        raise InputError(
            f"{folder} has its encoder in {beside}, which is not there; keep both folders side by side, "
            "or save it whole (a model for Hugging Face has to be)."
        )
    found = {name: tensor for name, tensor in read_weights(beside / WEIGHTS).items() if name.startswith(ENCODER)}
    if not found:
        raise InputError(f"{beside / WEIGHTS} has no encoder of its own that {folder} could share.")
    return found


def _equal(a: object, b: object) -> bool:
    if isinstance(a, tuple) and isinstance(b, tuple) and a and isinstance(a[0], float):
        return len(a) == len(b) and bool(np.allclose(a, b, atol=1e-6))
    return a == b


def read_config(folder: Path) -> WorldModelConfig:
    """The configuration of a world model's folder; `InputError` for any other folder, or format version."""
    values = read_json(folder / "config.json")
    if not isinstance(values, dict) or values.get("format_version") != FORMAT_VERSION:
        raise InputError(
            f"{folder} is not a world model of format {FORMAT_VERSION}; give a folder that `vjepa-mpc train` wrote."
        )
    return from_plain(WorldModelConfig, values, folder / "config.json")


def read_weights(path: Path) -> dict[str, Tensor]:
    """Read a safetensors file; nothing else is opened (a pickle could run code)."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if not path.is_file():
        raise InputError(f"There are no weights at {path}; restore the file or train again.")
    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        raise InputError(f"{path} is not a whole safetensors file ({error}); restore it or train again.") from error


def build_world_model(config: WorldModelConfig) -> WorldModel:
    """The modules of `config` with fresh weights, which must be loaded or trained before planning."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return WorldModel(config, frame_encoder(config.encoder))


_LEARNED_ROWS = {
    "critic": "- critic: control steps to a goal picture, beside the latent distance in plans (docs/critic.md)",
    "actor": "- actor: what to do to come to a goal picture, by itself or as a beginning for plans (docs/actor.md)",
}


def default_card(config: WorldModelConfig, command: str = "train") -> str:
    """A model card: what the model is, for which robot, from which data; `command` of vjepa-mpc wrote it."""
    robot, latent, predictor = config.robot, config.latent, config.predictor
    rows = [
        f"# World model for {robot.name}",
        "",
        f"A frozen V-JEPA encoder and an action-conditioned predictor, written by `vjepa-mpc {command}`.",
        "",
        f"- robot: {robot.name}; actions {', '.join(robot.action_names)} in {', '.join(robot.action_units)}; "
        f"control period {robot.control_period_s} s",
        f"- camera: {config.camera}, {config.preparation.size} x {config.preparation.size} pixels; "
        f"rendered by {config.renderer or 'unknown'}",
        f"- latents: {latent.grid} x {latent.grid} x {latent.dim}, predictor {predictor.depth} layers x "
        f"{predictor.width}, history {config.history}, at most {predictor.max_frames} frames "
        f"of {config.stride} control steps",
        *(_LEARNED_ROWS[name] for name in config.learned_from_logs()),
        f"- training: {config.training}",
    ]
    return "\n".join(rows) + "\n"


def describe(config: WorldModelConfig) -> dict[str, Any]:
    """The configuration without the encoder's long form, for records."""
    return {key: value for key, value in asdict(config).items() if key != "encoder"}
