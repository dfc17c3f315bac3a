"""Seeded changes of how a MuJoCo world looks: colours, textures, light, camera pose, shapes on the floor.

Dynamics are never touched: only fields that the renderer reads are written, and every change starts from
the plain values, so that appearances do not add up.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8

from vjepa_mpc.core.errors import InputError

DISTRACTOR_MAX_M = 0.04
DISTRACTORS = tuple(f"distractor_{index}" for index in range(6))
_TEXELS_PER_METRE = 150  # dm_control lays its floor texture over 2 m, of which a floor shows the first texels only
_MIN_CONTRAST = 0.35  # distance of arm and floor colours as seen, in RGB space, whose diagonal is 1.73
_EXPOSURE = 1.9  # dm_control's lights add up to this; the picture clips at 1, and a texture is lit after that
_PLAIN_FLOOR = ((0.1, 0.2, 0.3), (0.2, 0.3, 0.4))
_PLAIN_ARM, _PLAIN_FINGER, _PLAIN_DECORATION = (0.7, 0.5, 0.3), (0.7, 0.4, 0.2), (0.3, 0.5, 0.7)

Color = tuple[float, float, float]


@dataclass(frozen=True)
class Factors:
    """How much of each kind of change an appearance may have, each in [0, 1]; `level` scales them all."""

    colors: float = 1.0
    texture: float = 1.0
    light: float = 1.0
    camera: float = 1.0
    distractors: float = 1.0


@dataclass(frozen=True)
class Shape:
    """A flat coloured disc or box on the floor: centre and half size in m, turn about the vertical in rad."""

    center: tuple[float, float]
    half_size: tuple[float, float]
    turn: float
    color: Color


@dataclass(frozen=True)
class Appearance:
    """One look of the world. Colours are RGB in [0, 1]; the defaults are dm_control's plain look.

    `pattern` is "plain" (dm_control's grid), "flat", "checker" or "gradient", drawn in the floor's two
    colours with `pattern_scale` cells a metre turned by `pattern_turn` rad.
    """

    floor: tuple[Color, Color] = _PLAIN_FLOOR
    arm: Color = _PLAIN_ARM
    finger: Color = _PLAIN_FINGER
    decoration: Color = _PLAIN_DECORATION
    pattern: str = "plain"
    pattern_scale: float = 8.0
    pattern_turn: float = 0.0
    light_shift_m: tuple[float, float] = (0.0, 0.0)
    light_gain: float = 1.0
    ambient_gain: float = 1.0
    camera_shift_m: tuple[float, float, float] = (0.0, 0.0, 0.0)
    camera_tilt_rad: tuple[float, float, float] = (0.0, 0.0, 0.0)
    shapes: tuple[Shape, ...] = ()


def sample_appearance(
    generator: np.random.Generator, level: float = 1.0, factors: Factors | None = None
) -> Appearance:
    """Draw a look; `level` in [0, 1] blends from the plain one (0) to the full range (1).

    The arm and the fingertip keep a colour distance of at least 0.35 from both floor colours. Each factor
    has its own random stream, so that turning one off leaves the others as they were.
    """
    if not 0.0 <= level <= 1.0:
        raise InputError(
            f"Appearance level {level} is outside [0, 1]; 0 is the plain look, 1 the full range."
        )
    factors = factors or Factors()
    colors, texture, light, camera, shapes = generator.spawn(5)
    look = _with_colors(colors, level * factors.colors)
    look = _with_pattern(texture, look, level * factors.texture)
    look = _with_light(light, look, level * factors.light)
    look = _with_camera(camera, look, level * factors.camera)
    return _with_shapes(shapes, look, level * factors.distractors)


def _blend(plain: Color, other: Float[np.ndarray, "3"], amount: float) -> Color:
    red, green, blue = (1.0 - amount) * np.asarray(plain) + amount * other
    return (float(red), float(green), float(blue))


def contrast(color: Color, floor: tuple[Color, Color]) -> float:
    """Least RGB distance between an untextured part of `color`, fully lit, and the floor's two colours."""
    seen = np.minimum(_EXPOSURE * np.asarray(color), 1.0)
    return min(math.dist(seen, other) for other in floor)


def _with_colors(generator: np.random.Generator, amount: float) -> Appearance:
    base = generator.uniform(0.0, 1.0, 3)
    # The second floor colour stays near the first: two strong colours would leave none for the arm.
    second = np.clip(base + generator.uniform(-0.3, 0.3, 3), 0.0, 1.0)
    floor = (_blend(_PLAIN_FLOOR[0], base, amount), _blend(_PLAIN_FLOOR[1], second, amount))
    arm = _contrasting(generator, _PLAIN_ARM, floor, amount)
    finger = _contrasting(generator, _PLAIN_FINGER, floor, amount)
    decoration = _blend(_PLAIN_DECORATION, generator.uniform(0.0, 1.0, 3), amount)
    return Appearance(floor=floor, arm=arm, finger=finger, decoration=decoration)


def _contrasting(
    generator: np.random.Generator, plain: Color, floor: tuple[Color, Color], amount: float
) -> Color:
    """The first draw that stands out from the floor, or the best of 60."""
    best = plain
    for _ in range(60):
        color = _blend(plain, generator.uniform(0.0, 0.8, 3), amount)
        if contrast(color, floor) > contrast(best, floor) or best is plain:
            best = color
        if contrast(color, floor) >= _MIN_CONTRAST:
            return color
    return best


def _with_pattern(generator: np.random.Generator, look: Appearance, amount: float) -> Appearance:
    pattern = str(generator.choice(("flat", "checker", "gradient")))
    scale, turn = float(generator.uniform(4.0, 20.0)), float(generator.uniform(0.0, math.pi))
    chosen = generator.uniform() < amount
    return replace(look, pattern=pattern if chosen else "plain", pattern_scale=scale, pattern_turn=turn)


def _with_light(generator: np.random.Generator, look: Appearance, amount: float) -> Appearance:
    x, y = amount * generator.uniform(-0.6, 0.6, 2)
    gain, ambient = 1.0 + amount * generator.uniform(-0.4, 0.3, 2)
    return replace(
        look, light_shift_m=(float(x), float(y)), light_gain=float(gain), ambient_gain=float(ambient)
    )


def _with_camera(generator: np.random.Generator, look: Appearance, amount: float) -> Appearance:
    x, y, z = amount * generator.uniform(-0.015, 0.015, 3)
    roll, pitch, yaw = amount * np.radians(generator.uniform((-1.0, -1.0, -2.0), (1.0, 1.0, 2.0)))
    return replace(
        look,
        camera_shift_m=(float(x), float(y), float(z)),
        camera_tilt_rad=(float(roll), float(pitch), float(yaw)),
    )


def _with_shapes(generator: np.random.Generator, look: Appearance, amount: float) -> Appearance:
    count = int(generator.integers(0, round(amount * len(DISTRACTORS)) + 1))
    shapes = []
    for child in generator.spawn(count):
        x, y = child.uniform(-0.25, 0.25, 2)
        half = child.uniform(0.012, DISTRACTOR_MAX_M, 2)
        turn = float(child.uniform(0.0, math.pi))
        red, green, blue = child.uniform(0.0, 1.0, 3)
        color = (float(red), float(green), float(blue))
        shapes.append(Shape((float(x), float(y)), (float(half[0]), float(half[1])), turn, color))
    return replace(look, shapes=tuple(shapes))


def add_distractors(mujoco: Any, spec: Any) -> None:
    """Add to a `mujoco.MjSpec` discs and boxes, invisible and without contact until an appearance shows them.

    A body each: MuJoCo fixes at compilation what it needs to move a body's only geom, but not the world's.
    They are compiled at their greatest size, as ray casting keeps the compiled bounding box.
    """
    shapes = (mujoco.mjtGeom.mjGEOM_CYLINDER, mujoco.mjtGeom.mjGEOM_BOX)
    for index, name in enumerate(DISTRACTORS):
        spec.worldbody.add_body(name=name).add_geom(
            name=name, type=shapes[index % 2], size=[DISTRACTOR_MAX_M] * 3, rgba=[0.0, 0.0, 0.0, 0.0],
            contype=0, conaffinity=0, mass=0.0,
        )  # fmt: skip


def _check_parts(model: Any) -> None:
    """`InputError` where a compiled `mujoco.MjModel` lacks what appearances are painted on."""
    wanted = {"material": ("self", "effector", "decoration"), "geom": ("ground", *DISTRACTORS), "texture": ("grid",)}
    for kind, names in wanted.items():
        for name in names:
            try:
                getattr(model, kind)(name)
            except KeyError as error:
                raise InputError(
                    f"The model has no {kind} {name!r}, which looks are painted on: call "
                    "vjepa_mpc.robots.stage.dress on its MjSpec, which adds all of them."
                ) from error
    if not model.nlight:
        raise InputError("The model has no light, whose place and strength looks change; give it one.")


class Painter:
    """Writes appearances into one compiled `mujoco.MjModel`, from its values at construction.

    The model has materials `self`, `effector` and `decoration`, the distractors of `add_distractors`, a light, and a
    plane `ground` with dm_control's texture `grid`, all of which `stage.dress` adds; `InputError` where one is missing.
    With `obstacles` the decoration stands out from the floor as the arm does: black or white where its own colour
    would not.
    """

    _FIELDS = (
        "geom_rgba", "geom_size", "body_pos", "body_quat", "mat_rgba", "light_pos", "light_diffuse",
        "cam_pos", "cam_quat", "tex_data",
    )  # fmt: skip

    def __init__(self, model: Any, camera: str, obstacles: bool = False) -> None:
        _check_parts(model)
        self._model, self._camera, self._obstacles = model, camera, obstacles
        self._plain = {name: getattr(model, name).copy() for name in self._FIELDS}
        light = model.vis.headlight
        self._ambient, self._diffuse = light.ambient.copy(), light.diffuse.copy()
        self._painted_floor = False
        self._seen = 2 + round(2.0 * _TEXELS_PER_METRE * float(model.geom("ground").size[0]))

    def paint_seed(self, seed: int | None, level: float = 1.0, factors: Factors | None = None) -> list[int]:
        """Paint the look of `seed` at `level` (None: the plain one); returns changed textures' indices."""
        look = None if seed is None else sample_appearance(np.random.default_rng(seed), level, factors)
        return self.paint(look)

    def paint(self, look: Appearance | None) -> list[int]:
        """Write `look` (None: the plain one) and return the indices of textures to upload again."""
        for name, value in self._plain.items():
            if name != "tex_data" or self._painted_floor:
                getattr(self._model, name)[:] = value
        headlight = self._model.vis.headlight
        headlight.ambient[:], headlight.diffuse[:] = self._ambient, self._diffuse
        changed = self._painted_floor
        self._painted_floor = False
        if look is not None:
            self._paint_colors(look)
            self._paint_light_and_camera(look)
            self._paint_shapes(look)
            self._painted_floor = self._paint_floor(look)
        return [self._model.texture("grid").id] if changed or self._painted_floor else []

    def _paint_colors(self, look: Appearance) -> None:
        colors = {"self": look.arm, "effector": look.finger, "decoration": look.decoration}
        if self._obstacles and look != Appearance() and contrast(look.decoration, look.floor) < _MIN_CONTRAST:
            colors["decoration"] = max(((0.0,) * 3, (1.0,) * 3), key=lambda color: contrast(color, look.floor))
        for material, color in colors.items():
            self._model.mat_rgba[self._model.material(material).id, :3] = color

    def _paint_light_and_camera(self, look: Appearance) -> None:
        self._model.light_pos[0, :2] += look.light_shift_m
        self._model.light_diffuse[0] *= look.light_gain
        self._model.vis.headlight.ambient[:] = self._ambient * look.ambient_gain
        self._model.vis.headlight.diffuse[:] = self._diffuse * look.light_gain
        camera = self._model.camera(self._camera).id
        self._model.cam_pos[camera] += look.camera_shift_m
        self._model.cam_quat[camera] = _product(self._plain["cam_quat"][camera], _quaternion(look.camera_tilt_rad))

    def _paint_shapes(self, look: Appearance) -> None:
        for index, shape in enumerate(look.shapes):
            geom = self._model.geom(DISTRACTORS[index]).id
            self._model.geom_rgba[geom] = (*shape.color, 1.0)
            # Each a little higher than the last (0.2 mm), so that overlapping ones do not flicker.
            body = self._model.geom_bodyid[geom]
            self._model.body_pos[body] = (*shape.center, 0.0002 * (index + 1))
            self._model.body_quat[body] = _quaternion((0.0, 0.0, shape.turn))
            thickness = 0.0005
            is_disc = index % 2 == 0
            size = (shape.half_size[0], thickness, 0.0) if is_disc else (*shape.half_size, thickness)
            self._model.geom_size[geom] = size

    def _paint_floor(self, look: Appearance) -> bool:
        """Draw the pattern into the floor's texture; True when it differs from the plain one."""
        if look.pattern == "plain" and look.floor == _PLAIN_FLOOR:
            return False
        texture = self._model.texture("grid").id
        start, height, width = (
            int(getattr(self._model, f"tex_{name}")[texture]) for name in ("adr", "height", "width")
        )
        span = slice(start, start + 3 * height * width)
        seen = np.s_[: self._seen, : self._seen]
        plain = self._plain["tex_data"][span].reshape(height, width, 3)[seen]
        share = _plain_share(plain) if look.pattern == "plain" else _pattern_share(look, self._seen)
        self._model.tex_data[span].reshape(height, width, 3)[seen] = _mix(share, look)
        return True


def _plain_share(plain: UInt8[np.ndarray, "height width 3"]) -> Float[np.ndarray, "height width"]:
    """How much of the second floor colour dm_control's grid has at each texel."""
    low, high = _PLAIN_FLOOR[0][0], _PLAIN_FLOOR[1][0]
    return np.clip((plain[..., 0] / 255.0 - low) / (high - low), 0.0, 1.0)


def _pattern_share(look: Appearance, texels: int) -> Float[np.ndarray, "height width"]:
    """How much of the second floor colour a flat, chequered or graded floor has at each texel, in [0, 1]."""
    position = np.arange(texels) / _TEXELS_PER_METRE
    cosine, sine = math.cos(look.pattern_turn), math.sin(look.pattern_turn)
    along = position[:, None] * sine + position * cosine
    if look.pattern == "flat":
        return np.zeros_like(along)
    if look.pattern == "gradient":  # a smooth wave, eight times slower than the squares
        return 0.5 - 0.5 * np.cos(math.pi / 4.0 * look.pattern_scale * along)
    across = position[:, None] * cosine - position * sine
    squares = np.floor(along * look.pattern_scale) + np.floor(across * look.pattern_scale)
    return squares % 2.0


def _mix(share: Float[np.ndarray, "height width"], look: Appearance) -> UInt8[np.ndarray, "height width 3"]:
    mixed = (1.0 - share[..., None]) * look.floor[0] + share[..., None] * look.floor[1]
    return np.rint(255.0 * mixed).astype(np.uint8)


def _quaternion(angles: tuple[float, float, float]) -> Float[np.ndarray, "4"]:
    """w, x, y, z of the rotation by extrinsic xyz Euler `angles` in rad."""
    (cx, cy, cz), (sx, sy, sz) = np.cos(np.divide(angles, 2.0)), np.sin(np.divide(angles, 2.0))
    return np.array(
        [
            cx * cy * cz + sx * sy * sz,
            sx * cy * cz - cx * sy * sz,
            cx * sy * cz + sx * cy * sz,
            cx * cy * sz - sx * sy * cz,
        ]
    )


def _product(first: Float[np.ndarray, "4"], second: Float[np.ndarray, "4"]) -> Float[np.ndarray, "4"]:
    """The quaternion (w, x, y, z) of turning by `second` in the frame that `first` turned to."""
    w, v, u, t = first[0], first[1:], second[0], second[1:]
    return np.concatenate([[w * u - v @ t], w * t + u * v + np.cross(v, t)])
