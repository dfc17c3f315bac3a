"""The renderer: speed, colours, several renderers at once, back ends, ray casting against OpenGL."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import time

import numpy as np
import pytest

from vjepa_mpc.core.errors import InputError
from vjepa_mpc.robots import rendering
from vjepa_mpc.robots.reacher import Reacher
from vjepa_mpc.robots.rendering import MujocoRenderer, choose_backend, gl_backends, import_mujoco

RED_SCENE = """
<mujoco>
  <visual><headlight ambient="1 1 1" diffuse="0 0 0" specular="0 0 0"/></visual>
  <worldbody>
    <camera name="top" pos="0 0 1"/>
    <geom type="plane" size="5 5 1" rgba="1 0.392 0.392 1"/>
  </worldbody>
</mujoco>
"""
RED = (255, 100, 100)

HAS_GL = any(gl_backends()[name] is None for name in ("egl", "osmesa"))
needs_gl = pytest.mark.skipif(not HAS_GL, reason="no OpenGL back end on this machine")


def red_scene(backend: str = "auto", size: int = 32) -> tuple[MujocoRenderer, object]:
    mujoco = import_mujoco()
    model = mujoco.MjModel.from_xml_string(RED_SCENE)
    data = mujoco.MjData(model)
    mujoco.mj_forward(model, data)
    return MujocoRenderer(model, size, size, backend), data


def run_python(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    settings = {k: v for k, v in os.environ.items() if k not in ("MUJOCO_GL", "PYOPENGL_PLATFORM")}
    command, settings = [sys.executable, "-c", code], {**settings, **environment}
    return subprocess.run(command, env=settings, capture_output=True, text=True, timeout=120)


@pytest.mark.parametrize("backend", [pytest.param("auto", marks=needs_gl), "rays"])
def test_a_red_pixel_stays_red(backend: str) -> None:
    renderer, data = red_scene(backend)
    with renderer:
        picture = renderer.render(data, "top")
    assert picture.shape == (32, 32, 3) and picture.dtype == np.uint8
    assert (picture == RED).all()


@needs_gl
@pytest.mark.parametrize("collected", [False, True])
def test_closing_one_renderer_leaves_the_others_pictures_alone(collected: bool) -> None:
    kept, data = red_scene()
    other, other_data = red_scene(size=48)
    other.render(other_data, "top")
    kept.render(data, "top")  # now `kept` is current, and `other` is closed under it
    if not collected:
        other.close()
    del other
    gc.collect()
    assert (kept.render(data, "top") == RED).all()
    third, third_data = red_scene(size=16)
    assert (third.render(third_data, "top") == RED).all()
    assert (kept.render(data, "top") == RED).all()
    third.close()
    kept.close()
    kept.close()
    with pytest.raises(InputError, match="closed"):
        kept.render(data, "top")


@needs_gl
def test_pictures_are_the_right_way_up_in_both_renderers() -> None:
    mujoco = import_mujoco()
    model = mujoco.MjModel.from_xml_string(
        """<mujoco><worldbody><camera name="top" pos="0 0 1"/>
        <geom type="box" size=".1 .1 .01" pos=".2 .2 0" rgba="0 1 0 1"/></worldbody></mujoco>"""
    )
    data = mujoco.MjData(model)
    mujoco.mj_forward(model, data)
    for backend in ("auto", "rays"):
        with MujocoRenderer(model, 40, 60, backend) as renderer:
            rows, columns = np.nonzero(renderer.render(data, "top")[..., 1] > 60)
        assert rows.max() < 20 and columns.min() > 30, backend  # +x is right, +y is up


def test_a_pixel_is_the_mean_of_what_is_drawn() -> None:
    drawn = np.zeros((4, 6, 3), np.uint8)
    drawn[:2, :2] = [[[255] * 3, [0] * 3], [[255] * 3, [0] * 3]]
    drawn[2:, 4:, 1] = [[3, 0], [0, 0]]  # 0.75: rounded, not cut
    small = rendering._mean_of_squares(drawn, 2)
    assert small.dtype == np.uint8 and small.shape == (2, 3, 3)
    assert small[0, 0].tolist() == [128] * 3 and small[1, 2].tolist() == [0, 1, 0] and small.sum() == 385


@needs_gl
def test_a_larger_picture_reduced_is_the_smaller_one() -> None:
    with Reacher(camera_size=64) as small, Reacher(camera_size=256) as large:
        state = np.array([0.4, 1.1])
        seen = small.place(state).images["top"].astype(float)
        wide = large.place(state).images["top"].astype(float)
    reduced = wide.reshape(64, 4, 64, 4, 3).mean(axis=(1, 3))
    one_sample = wide[2::4, 2::4]  # a pixel drawn once, as without the mean
    assert np.abs(seen - reduced).mean() < 0.5 * np.abs(one_sample - reduced).mean()


@needs_gl
def test_ten_times_faster_than_dm_control() -> None:
    """Median time of one 64 x 64 picture against `physics.render`, each in a process of its own."""
    theirs = """
import statistics, time
from dm_control import suite
physics = suite.load("reacher", "easy").physics
def once():
    start = time.perf_counter()
    physics.render(64, 64, camera_id=0)
    return time.perf_counter() - start
once()
print(statistics.median(once() for _ in range(25)))
"""
    ours = """
import statistics, time
import numpy as np
from vjepa_mpc.robots.reacher import Reacher
robot = Reacher(camera_size=64)
def once():
    start = time.perf_counter()
    robot.observe()
    return time.perf_counter() - start
once()
print(statistics.median(once() for _ in range(200)))
"""
    backend = "egl" if gl_backends()["egl"] is None else "osmesa"
    ratios = []
    for _ in range(3):  # a busy machine may slow one of the two: the best of three pairs counts
        seconds = [float(run_python(code, MUJOCO_GL=backend).stdout) for code in (theirs, ours)]
        ratios.append(seconds[0] / seconds[1])
        if ratios[-1] >= 10.0:
            break
    print(f"physics.render / Reacher.observe: {ratios}")
    assert max(ratios) >= 10.0, ratios


def test_back_ends_are_named_with_reasons() -> None:
    found = gl_backends()
    assert set(found) == {"egl", "osmesa", "rays"}
    assert found["rays"] is None
    assert all(reason is None or reason for reason in found.values())


def test_choice_obeys_mujoco_gl_then_takes_what_works(monkeypatch: pytest.MonkeyPatch) -> None:
    broken: dict[str, str | None] = {"egl": "no libEGL", "osmesa": "no libOSMesa"}
    monkeypatch.setattr(rendering, "_probe", lambda name: broken.get(name))
    monkeypatch.delenv("MUJOCO_GL", raising=False)
    assert choose_backend() == "rays"
    monkeypatch.setenv("MUJOCO_GL", "egl")
    with pytest.raises(InputError, match="apt-get install libegl1 libgl1"):
        choose_backend()
    monkeypatch.setenv("MUJOCO_GL", "disable")
    assert choose_backend() == "rays"
    monkeypatch.delenv("MUJOCO_GL")
    with pytest.raises(InputError, match="no libOSMesa"):
        choose_backend("osmesa")
    broken["osmesa"] = None
    assert choose_backend() == "osmesa"
    broken["egl"] = None
    assert choose_backend() == "egl"
    with pytest.raises(InputError, match="did you mean 'rays'"):
        choose_backend("ray")


def test_a_crashing_driver_is_a_reason_and_not_a_crash(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rendering, "_PROBE", "import os; os.abort()  # {name}")
    rendering._probe.cache_clear()
    try:
        reason = gl_backends()["egl"]
        assert reason is not None and "-6" in reason
    finally:
        rendering._probe.cache_clear()


@needs_gl
def test_the_back_end_is_chosen_although_mujoco_was_imported_first() -> None:
    code = """
import mujoco
from vjepa_mpc.robots.reacher import Reacher
with Reacher(camera_size=16) as robot:
    print(robot.renderer_identity, robot.observe().images["top"].max() > 0)
import os
assert "MUJOCO_GL" not in os.environ
"""
    done = run_python(code)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split()[0] in ("mujoco-egl-2x", "mujoco-osmesa-2x") and done.stdout.split()[1] == "True"


def test_without_any_gl_the_reacher_is_drawn_by_rays() -> None:
    code = """
import sys
class NoGL:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("OpenGL", "glfw") or name in ("mujoco.egl", "mujoco.osmesa", "mujoco.glfw"):
            raise ImportError(name)
sys.meta_path.insert(0, NoGL())
from vjepa_mpc.robots.reacher import Reacher
robot = Reacher(camera_size=16)
print(robot.renderer_identity, robot.observe().images["top"].mean() > 0)
"""
    done = run_python(code, MUJOCO_GL="disable")
    assert done.stdout.split() == ["mujoco-rays-2x", "True"], done.stderr


@needs_gl
def test_an_unclosed_renderer_does_not_disturb_the_end_of_the_process() -> None:
    code = "from vjepa_mpc.robots.reacher import Reacher; a, b = Reacher(), Reacher(); a.observe()"
    done = run_python(code)
    assert done.returncode == 0 and done.stderr == ""


def test_sizes_below_one_pixel_are_refused() -> None:
    with pytest.raises(InputError, match="at least 1 x 1"):
        red_scene(size=0)


def test_importing_the_robots_imports_neither_mujoco_nor_dm_control() -> None:
    code = """
import sys, vjepa_mpc.robots.reacher, vjepa_mpc.robots.tasks, vjepa_mpc.robots.factory
print([name for name in ("mujoco", "dm_control", "OpenGL", "gymnasium", "torch") if name in sys.modules])
"""
    assert run_python(code).stdout.strip() == "[]"


def test_rays_draw_in_reasonable_time() -> None:
    renderer, data = red_scene("rays", size=64)
    renderer.render(data, "top")
    start = time.thread_time()
    renderer.render(data, "top")
    assert time.thread_time() - start < 0.5
