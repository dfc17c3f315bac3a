"""Pictures without OpenGL: one ray a pixel, lit as MuJoCo's OpenGL renderer does it.

Covers what this project's worlds use: plane, capsule, sphere, box, cylinder and mesh geoms, materials,
the headlight, spot and directional lights, and 2-D textures on planes. No shadows, no skybox.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int, UInt8

from vjepa_mpc.robots.rendering import import_mujoco

_VISIBLE_GROUPS = np.array([1, 1, 1, 0, 0, 0], dtype=np.uint8)  # as in MuJoCo's default options
_UNSET_COLOR = np.array([0.5, 0.5, 0.5, 1.0], dtype=np.float32)  # a geom of this colour shows its material
_MATERIAL_DEFAULTS = (0.5, 0.5, 0.0)  # specular, shininess, emission of a geom without material


class RayDrawer:
    """Draws one `mujoco.MjModel` by `mj_multiRay` and Blinn-Phong lighting, on the CPU."""

    def __init__(self, model: Any, height: int, width: int) -> None:
        self._mujoco = import_mujoco()
        self._model = model
        y, x = np.meshgrid(
            1.0 - (2.0 * np.arange(height) + 1.0) / height,
            ((2.0 * np.arange(width) + 1.0) / width - 1.0) * width / height,
            indexing="ij",
        )
        self._screen = np.stack([x.ravel(), y.ravel()], axis=1)
        self._shape = (height, width, 3)

    def render(self, data: Any, camera: int) -> UInt8[np.ndarray, "height width 3"]:
        origin = data.cam_xpos[camera]
        right, up, backward = data.cam_xmat[camera].reshape(3, 3).T
        half = math.tan(math.radians(self._model.cam_fovy[camera]) / 2.0)
        rays = half * (self._screen[:, :1] * right + self._screen[:, 1:] * up) - backward
        rays /= np.linalg.norm(rays, axis=1, keepdims=True)
        geoms, distances, normals = self._cast(data, origin, rays)
        hit = geoms >= 0
        colors = np.zeros((rays.shape[0], 3))
        if hit.any():
            points = origin + distances[hit, None] * rays[hit]
            colors[hit] = self._shade(data, geoms[hit], points, normals[hit], -rays[hit], -backward)
        return np.rint(255.0 * colors).astype(np.uint8).reshape(self._shape)

    def upload_texture(self, texture: int) -> None:
        """Nothing to do: textures are read from the model for each picture."""

    def close(self) -> None:
        """Nothing to free."""

    def _cast(
        self, data: Any, origin: Float[np.ndarray, "3"], rays: Float[np.ndarray, "n 3"]
    ) -> tuple[Int[np.ndarray, "n"], Float[np.ndarray, "n"], Float[np.ndarray, "n 3"]]:
        """Geom index (-1: none), distance in m and surface normal where each ray first meets something."""
        count = rays.shape[0]
        geoms, distances = np.empty(count, dtype=np.int32), np.empty(count)
        normals = np.zeros(3 * count)
        self._mujoco.mj_multiRay(
            self._model, data, origin, rays.ravel(), _VISIBLE_GROUPS, True, -1, geoms, distances, normals,
            count, 1e10,
        )  # fmt: skip
        return geoms, distances, normals.reshape(-1, 3)

    def _shade(
        self,
        data: Any,
        geoms: Int[np.ndarray, "n"],
        points: Float[np.ndarray, "n 3"],
        normals: Float[np.ndarray, "n 3"],
        to_eye: Float[np.ndarray, "n 3"],
        forward: Float[np.ndarray, "3"],
    ) -> Float[np.ndarray, "n 3"]:
        base, texture = self._colors(data, geoms, points)
        specular, shininess, emission = self._materials(geoms)
        lit = emission * base
        for towards, ambient, diffuse, shine in self._lights(data, points, forward):
            facing = np.maximum((normals * towards).sum(1, keepdims=True), 0.0)
            middle = towards + to_eye
            middle /= np.maximum(np.linalg.norm(middle, axis=1, keepdims=True), 1e-12)
            gleam = np.maximum((normals * middle).sum(1, keepdims=True), 0.0) ** (128.0 * shininess)
            lit += base * (ambient + diffuse * facing) + shine * specular * gleam * (facing > 0.0)
        # OpenGL's order: the lit colour is clipped, and only then multiplied by the texture.
        return np.clip(lit, 0.0, 1.0) * texture

    def _lights(
        self, data: Any, points: Float[np.ndarray, "n 3"], forward: Float[np.ndarray, "3"]
    ) -> list[tuple[Any, Any, Any, Any]]:
        """For each light: unit direction to it, and its ambient, diffuse and specular RGB at each point."""
        model, lights = self._model, []
        head = model.vis.headlight
        if head.active:
            towards = np.broadcast_to(-forward, points.shape)
            lights.append((towards, head.ambient, head.diffuse, head.specular))
        directional = int(self._mujoco.mjtLightType.mjLIGHT_DIRECTIONAL)
        for light in range(model.nlight):
            if not model.light_active[light]:
                continue
            if int(model.light_type[light]) == directional:
                towards, gain = (
                    np.broadcast_to(-data.light_xdir[light], points.shape),
                    np.ones((len(points), 1)),
                )
            else:
                towards = data.light_xpos[light] - points
                distance = np.linalg.norm(towards, axis=1, keepdims=True)
                towards = towards / np.maximum(distance, 1e-12)
                gain = self._spot_gain(light, data.light_xdir[light], towards, distance)
            strengths = (
                gain * getattr(model, f"light_{kind}")[light] for kind in ("ambient", "diffuse", "specular")
            )
            lights.append((towards, *strengths))
        return lights

    def _spot_gain(
        self,
        light: int,
        direction: Float[np.ndarray, "3"],
        towards: Float[np.ndarray, "n 3"],
        distance: Float[np.ndarray, "n 1"],
    ) -> Float[np.ndarray, "n 1"]:
        """OpenGL's attenuation with distance, and of a spot light with the angle from its axis."""
        constant, linear, square = self._model.light_attenuation[light]
        gain = 1.0 / (constant + linear * distance + square * distance**2)
        if int(self._model.light_type[light]) != int(self._mujoco.mjtLightType.mjLIGHT_SPOT):
            return gain
        cosine = np.maximum(-(towards @ direction), 0.0)[:, None]
        inside: Bool[np.ndarray, "n 1"] = cosine >= math.cos(math.radians(self._model.light_cutoff[light]))
        return gain * inside * cosine ** self._model.light_exponent[light]

    def _materials(
        self, geoms: Int[np.ndarray, "n"]
    ) -> tuple[Float[np.ndarray, "n 1"], Float[np.ndarray, "n 1"], Float[np.ndarray, "n 1"]]:
        """Specular, shininess and emission of each hit geom."""
        model, material = self._model, self._model.geom_matid
        fields = (model.mat_specular, model.mat_shininess, model.mat_emission)
        specular, shininess, emission = (
            np.where(material < 0, default, field[material] if model.nmat else default)[geoms, None]
            for field, default in zip(fields, _MATERIAL_DEFAULTS, strict=True)
        )
        return specular, shininess, emission

    def _colors(
        self, data: Any, geoms: Int[np.ndarray, "n"], points: Float[np.ndarray, "n 3"]
    ) -> tuple[Float[np.ndarray, "n 3"], Float[np.ndarray, "n 3"]]:
        """RGB of each hit geom's material or own colour, and of its texture there (1 where it has none)."""
        model = self._model
        colors = model.geom_rgba.copy()
        shows_material = (model.geom_matid >= 0) & (colors == _UNSET_COLOR).all(1)
        colors[shows_material] = model.mat_rgba[model.geom_matid[shows_material]]
        texture = np.ones((len(geoms), 3))
        rgb = int(self._mujoco.mjtTextureRole.mjTEXROLE_RGB)
        for geom in np.unique(geoms):
            material = int(model.geom_matid[geom])
            index = int(model.mat_texid[material, rgb]) if material >= 0 else -1
            if index >= 0 and int(model.geom_type[geom]) == int(self._mujoco.mjtGeom.mjGEOM_PLANE):
                here = geoms == geom
                local = (points[here] - data.geom_xpos[geom]) @ data.geom_xmat[geom].reshape(3, 3)
                texture[here] = self._plane_texture(int(geom), material, index, local)
        return colors[geoms, :3].astype(np.float64), texture

    def _plane_texture(
        self, geom: int, material: int, index: int, local: Float[np.ndarray, "n 3"]
    ) -> Float[np.ndarray, "n 3"]:
        """Bilinear texture values on a plane; the first texel is at the corner of least x, greatest y."""
        model = self._model
        start, height, width, channels = (
            int(getattr(model, f"tex_{part}")[index]) for part in ("adr", "height", "width", "nchannel")
        )
        pixels = model.tex_data[start : start + height * width * channels].reshape(height, width, channels)
        half = model.geom_size[geom, :2]
        repeat = model.mat_texrepeat[material].astype(np.float64)
        # One repeat covers the plane, or with texuniform two metres.
        repeat = repeat / 2.0 if model.mat_texuniform[material] else repeat / (2.0 * half)
        column = (local[:, 0] + half[0]) * repeat[0] * width - 0.5
        row = (half[1] - local[:, 1]) * repeat[1] * height - 0.5
        left, top = np.floor(column).astype(int), np.floor(row).astype(int)
        x, y = (column - left)[:, None], (row - top)[:, None]

        def at(rows: Int[np.ndarray, "n"], columns: Int[np.ndarray, "n"]) -> Float[np.ndarray, "n 3"]:
            return pixels[rows % height, columns % width, :3] / 255.0

        upper = (1.0 - x) * at(top, left) + x * at(top, left + 1)
        lower = (1.0 - x) * at(top + 1, left) + x * at(top + 1, left + 1)
        return (1.0 - y) * upper + y * lower
