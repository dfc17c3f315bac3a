"""Pictures of a MuJoCo model: fast headless OpenGL where there is one, ray casting where there is none.

Which OpenGL back end works is found out at run time, once a process, by building a context in a child
process (a broken driver kills the child, not the caller). `MUJOCO_GL`, when set, is obeyed.
"""

from __future__ import annotations

import atexit
import functools
import importlib
import importlib.util
import os
import subprocess
import sys
import weakref
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import UInt8

from vjepa_mpc.core.errors import InputError, unknown_name

BACKENDS = ("auto", "egl", "osmesa", "glfw", "rays")
_HEADLESS_GL = ("egl", "osmesa")
_OFF = ("disable", "disabled", "off", "false", "0")
_REMEDY = "`apt-get install libegl1 libgl1` (or `libosmesa6`) installs one, backend='rays' does without"
_PROBE = """
import sys, mujoco
from mujoco.{name} import GLContext
context = GLContext(16, 16)
context.make_current()
mujoco.MjrContext(mujoco.MjModel.from_xml_string("<mujoco/>"), 100).free()
print("works", flush=True)
import os; os._exit(0)
"""


@functools.cache
def _probe(name: str) -> str | None:
    """None when OpenGL back end `name` draws on this machine, else the reason it does not."""
    settings = {key: value for key, value in os.environ.items() if key != "PYOPENGL_PLATFORM"}
    settings["MUJOCO_GL"] = name
    try:
        child = subprocess.run(
            [sys.executable, "-c", _PROBE.format(name=name)],
            env=settings, capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"the trial could not be run: {error}"
    if "works" in child.stdout:
        return None
    lines = [line for line in child.stderr.strip().splitlines() if line.strip()]
    return lines[-1].strip() if lines else f"the trial ended with exit status {child.returncode}"


def gl_backends() -> dict[str, str | None]:
    """Each back end by name: None when it works here, else why not (for `doctor`). Tries each once."""
    return {name: _probe(name) for name in _HEADLESS_GL} | {"rays": None}


def choose_backend(backend: str = "auto") -> str:
    """The back end to draw with: "egl", "osmesa", "glfw" or "rays".

    "auto" obeys the environment variable MUJOCO_GL when it names one, and otherwise takes the first that
    works of EGL, OSMesa and ray casting. A back end asked for by name that does not work raises
    `InputError` with the command that mends it.
    """
    if backend not in BACKENDS:
        raise unknown_name("rendering back end", backend, BACKENDS)
    if backend != "auto":
        return _checked(backend, "")
    wanted = os.environ.get("MUJOCO_GL", "").strip().lower()
    if wanted in _OFF or wanted == "rays":
        return "rays"
    if wanted in (*_HEADLESS_GL, "glfw"):
        return _checked(wanted, " (MUJOCO_GL asks for it)")
    if _probe("egl") is None:
        return "egl"
    # Only now, as every trial costs half a second.
    return "osmesa" if _probe("osmesa") is None else "rays"


def _checked(name: str, why: str) -> str:
    reason = None if name == "rays" else _probe(name)
    if reason is not None:
        raise InputError(f"OpenGL back end {name!r}{why} does not work here ({reason}): {_REMEDY}.")
    return name


def import_mujoco() -> Any:
    """The mujoco module; `InputError` with the way out when it cannot be imported."""
    try:
        return importlib.import_module("mujoco")
    except ModuleNotFoundError as error:
        raise InputError(f"mujoco cannot be imported ({error}): pip install 'mujoco>=3.17,<4'.") from error
    except Exception as error:  # a bad MUJOCO_GL makes the import itself raise, with any type
        asked = os.environ.get("MUJOCO_GL")
        blame = (
            f" with MUJOCO_GL={asked}: unset it; {_REMEDY}" if asked else ": pip install 'mujoco>=3.17,<4'"
        )
        raise InputError(f"mujoco cannot be imported ({error}){blame}.") from error


def dm_control_folder() -> Path:
    """dm_control's folder, for its MJCF files, found without importing dm_control (which takes seconds)."""
    found = importlib.util.find_spec("dm_control")
    if found is None or not found.submodule_search_locations:
        raise InputError(
            "This robot's description comes with dm_control: pip install 'dm_control>=1.0.50', with Python 3.11 "
            "or 3.12 (what it needs has no wheel for later ones)."
        )
    return Path(next(iter(found.submodule_search_locations)))


@runtime_checkable
class Drawer(Protocol):
    """What turns a model's state into a picture; `MujocoRenderer` is the one users build."""

    def render(self, data: Any, camera: int) -> UInt8[np.ndarray, "height width 3"]: ...

    def upload_texture(self, texture: int) -> None: ...

    def close(self) -> None: ...


SUPERSAMPLE = 2


class MujocoRenderer:
    """Draws one model at one size, without shadows or reflections: under 2 ms at 64 px.

    Each pixel is the mean of `SUPERSAMPLE` x `SUPERSAMPLE` drawn ones, as a camera's pixel sums the light of an area:
    drawn one by one, pixels at an edge jump as the arm moves, and a larger picture of the same pose, reduced, shows
    another edge than the small one. OpenGL's multi-sampling does half of that for more time.

    `model` is an `mujoco.MjModel`; its `vis.quality` and off-screen size are set here, and every light's
    shadow goes with them. Several renderers may live in a process: each call makes its own OpenGL context
    current. All calls must come from the thread that built it, and nothing else in that thread may draw
    between (dm_control's `physics.render` would return the other's picture, without an error).
    """

    def __init__(self, model: Any, height: int, width: int, backend: str = "auto") -> None:
        if height < 1 or width < 1:
            raise InputError(f"A picture of {height} x {width} pixels cannot be drawn; give at least 1 x 1.")
        self.backend = choose_backend(backend)
        self.height, self.width = height, width
        self._model = model
        model.vis.quality.shadowsize = 0  # before the context is built, which allocates by them
        model.vis.quality.offsamples = 0
        drawn = SUPERSAMPLE * height, SUPERSAMPLE * width
        model.vis.global_.offheight = max(drawn[0], model.vis.global_.offheight)
        model.vis.global_.offwidth = max(drawn[1], model.vis.global_.offwidth)
        self._drawer: Drawer | None
        if self.backend == "rays":
            from vjepa_mpc.robots.rays import RayDrawer

            self._drawer = RayDrawer(model, *drawn)
        else:
            self._drawer = _OpenGLDrawer(model, *drawn, self.backend)

    @property
    def identity(self) -> str:
        """Name kept with every model trained on these pictures, e.g. "mujoco-egl-2x" or "mujoco-rays-2x"."""
        return f"mujoco-{self.backend}-{SUPERSAMPLE}x"

    def render(self, data: Any, camera: str | int) -> UInt8[np.ndarray, "height width 3"]:
        """The view of `camera` (name or index) of an `mujoco.MjData` whose kinematics are current."""
        return _mean_of_squares(self._open_drawer().render(data, self._model.camera(camera).id), SUPERSAMPLE)

    def upload_textures(self, textures: Iterable[int]) -> None:
        """Use the present `model.tex_data` of these texture indices from the next picture on."""
        for texture in textures:
            self._open_drawer().upload_texture(texture)

    def _open_drawer(self) -> Drawer:
        if self._drawer is None:
            raise InputError("This renderer was closed; build a new one.")
        return self._drawer

    def close(self) -> None:
        """Free the OpenGL context. Safe to call again."""
        if self._drawer is not None:
            self._drawer.close()
            self._drawer = None

    def __enter__(self) -> MujocoRenderer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _mean_of_squares(
    drawn: UInt8[np.ndarray, "drawn_height drawn_width 3"], side: int
) -> UInt8[np.ndarray, "height width 3"]:
    """Each pixel the mean of `side` x `side` drawn ones, rounded; slices add faster than a reshaped mean."""
    total = np.zeros((drawn.shape[0] // side, drawn.shape[1] // side, 3), np.uint16)
    for i in range(side):
        for j in range(side):
            total += drawn[i::side, j::side]
    return ((total + side * side // 2) // (side * side)).astype(np.uint8)


_open: weakref.WeakSet[_OpenGLDrawer] = weakref.WeakSet()


def _close_all() -> None:
    for drawer in list(_open):
        drawer.close()


class _OpenGLDrawer:
    """MuJoCo's own renderer on a context of a back end chosen now, not when mujoco was imported.

    `mujoco.Renderer` is not used because it fixes the back end at import, and frees its textures into
    whichever context is current, which corrupts the pictures of other renderers (mujoco 3.17).
    """

    def __init__(self, model: Any, height: int, width: int, backend: str) -> None:
        self._mujoco = mujoco = import_mujoco()
        try:
            self._gl = importlib.import_module(f"mujoco.{backend}").GLContext(width, height)
            self._gl.make_current()
        except (ImportError, RuntimeError, AttributeError) as error:
            raise InputError(
                f"OpenGL back end {backend!r} failed in this process ({error}): {_REMEDY}."
            ) from error
        if not _open:
            # After mujoco's own exit handler, so that ours runs before it ends the display.
            atexit.unregister(_close_all)
            atexit.register(_close_all)
        self._context = mujoco.MjrContext(model, mujoco.mjtFontScale.mjFONTSCALE_100.value)
        mujoco.mjr_setBuffer(mujoco.mjtFramebuffer.mjFB_OFFSCREEN.value, self._context)
        self._model = model
        self._option, self._perturb = mujoco.MjvOption(), mujoco.MjvPerturb()
        self._camera = mujoco.MjvCamera()
        self._camera.type = mujoco.mjtCamera.mjCAMERA_FIXED
        self._scene = mujoco.MjvScene(model, maxgeom=2 * model.ngeom + 100)
        for flag in (mujoco.mjtRndFlag.mjRND_SHADOW, mujoco.mjtRndFlag.mjRND_REFLECTION):
            self._scene.flags[flag] = False
        self._rect = mujoco.MjrRect(0, 0, width, height)
        self._shape = (height, width, 3)
        self._closed = False
        _open.add(self)

    def render(self, data: Any, camera: int) -> UInt8[np.ndarray, "height width 3"]:
        mujoco = self._mujoco
        self._camera.fixedcamid = camera
        everything = mujoco.mjtCatBit.mjCAT_ALL.value
        mujoco.mjv_updateScene(
            self._model, data, self._option, self._perturb, self._camera, everything, self._scene
        )
        self._gl.make_current()
        mujoco.mjr_render(self._rect, self._scene, self._context)
        # A new buffer each time: a read that fails, which OpenGL does silently, must not show an old picture.
        pixels = np.zeros(self._shape, dtype=np.uint8)
        mujoco.mjr_readPixels(pixels, None, self._rect, self._context)
        return pixels[::-1].copy()  # OpenGL's first row is the lowest

    def upload_texture(self, texture: int) -> None:
        self._gl.make_current()
        self._mujoco.mjr_uploadTexture(self._model, self._context, texture)

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        self._gl.make_current()  # freeing into another renderer's context corrupts its pictures
        self._context.free()
        self._gl.free()

    def __del__(self) -> None:
        if not getattr(self, "_closed", True):
            self.close()
