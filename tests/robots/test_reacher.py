"""The reacher: units, settling, limits, state and picture of one instant, determinism, appearance."""

from __future__ import annotations

import math
import subprocess
import sys
import time
from collections.abc import Iterator

import numpy as np
import pytest

from vjepa_mpc.core.errors import InputError
from vjepa_mpc.robots.appearance import Factors, contrast, sample_appearance
from vjepa_mpc.robots.base import SimulatedRobot
from vjepa_mpc.robots.reacher import CAMERA, WRIST_LIMIT_RAD, Reacher, ReachTask, reacher_spec


@pytest.fixture(scope="module")
def shared() -> Iterator[Reacher]:
    with Reacher(camera_size=64) as robot:
        yield robot


@pytest.fixture
def robot(shared: Reacher) -> Reacher:
    shared.set_appearance(None)
    shared.reset(seed=0)
    return shared


def test_its_numbers_are_dm_control_s() -> None:
    """Motion and pictures, plain and painted, are to the bit those of dm_control's file with our servos and camera."""
    pytest.importorskip("dm_control")
    from vjepa_mpc.robots import reacher
    from vjepa_mpc.robots.appearance import Painter, add_distractors
    from vjepa_mpc.robots.rendering import MujocoRenderer, dm_control_folder, import_mujoco

    mujoco = import_mujoco()
    spec = mujoco.MjSpec.from_file(str(dm_control_folder() / "suite" / "reacher.xml"))
    spec.option.timestep, spec.option.integrator = 0.01, mujoco.mjtIntegrator.mjINT_IMPLICITFAST
    for actuator, stiffness, damping in zip(spec.actuators, (6.0, 2.5), (0.2, 0.05), strict=True):
        actuator.set_to_position(kp=stiffness, kv=damping)
        actuator.gear, actuator.ctrllimited = [1.0, 0, 0, 0, 0, 0], mujoco.mjtLimited.mjLIMITED_FALSE
    spec.delete(spec.geom("target"))
    spec.delete(spec.texture("skybox"))
    spec.worldbody.add_camera(name=CAMERA, pos=[0, 0, 0.75], fovy=2 * math.degrees(math.atan(0.27 / 0.75)))
    add_distractors(mujoco, spec)
    models = [reacher.build_model(), spec.compile()]
    worlds = [mujoco.MjData(model) for model in models]
    renderers = [MujocoRenderer(model, 48, 48) for model in models]
    painters = [Painter(model, CAMERA) for model in models]
    draw = np.random.default_rng(0)
    for look in (None, 3, 4):
        for painter, renderer in zip(painters, renderers, strict=True):
            renderer.upload_textures(painter.paint_seed(look))
        for _ in range(5):
            wanted = draw.uniform(-2.5, 2.5, 2)  # also beyond the wrist's limit
            for model, data in zip(models, worlds, strict=True):
                data.ctrl[:] = wanted
                mujoco.mj_step(model, data, nstep=20)
            ours, theirs = (one.render(data, CAMERA) for one, data in zip(renderers, worlds, strict=True))
            assert worlds[0].qpos.tolist() == worlds[1].qpos.tolist()
            assert (ours == theirs).all() and ours.std() > 5


def wrapped(angle: np.ndarray) -> np.ndarray:
    return (angle + math.pi) % (2.0 * math.pi) - math.pi


def test_follows_the_contract(robot: Reacher) -> None:
    assert isinstance(robot, SimulatedRobot)
    assert robot.spec == reacher_spec(64)
    assert robot.renderer_identity == f"mujoco-{robot.settings()['backend']}-2x"
    with Reacher(**robot.settings()) as again:
        assert again.settings() == robot.settings()
    observation = robot.observe()
    assert observation.images[CAMERA].shape == (64, 64, 3)
    assert observation.proprioception.dtype == np.float32
    assert observation.time_s == 0.0
    robot.apply(np.zeros(2))
    assert robot.observe().time_s == pytest.approx(robot.spec.control_period_s)


def test_integrated_deltas_match_measured_motion(robot: Reacher) -> None:
    """+0.25 rad three times is +0.75 rad measured, and the fingertip goes where geometry says."""
    robot.place(np.array([0.0, 0.5]))
    for _ in range(3):
        assert robot.apply(np.array([0.25, -0.1])) == pytest.approx([0.25, -0.1])
    assert robot.observe().proprioception == pytest.approx([0.75, 0.2], abs=0.002)
    x, y = (0.12 * (turn(0.75) + turn(0.95)) for turn in (math.cos, math.sin))
    assert robot.end_effector() == pytest.approx([x, y, 0.01], abs=5e-4)


def test_settles_within_a_control_period_for_any_action(robot: Reacher) -> None:
    generator = np.random.default_rng(0)
    corners = 0.3 * np.array([[-1, -1], [-1, 1], [1, -1], [1, 1], [1, 0], [0, 1], [0, 0]])
    for episode in range(20):
        robot.reset(seed=episode)
        for _ in range(25):
            random = generator.random() < 0.5
            action = generator.uniform(-0.3, 0.3, 2) if random else corners[generator.integers(len(corners))]
            before = robot.observe().proprioception
            applied = robot.apply(action)
            moved = wrapped(robot.observe().proprioception - before - applied)
            assert np.abs(moved).max() < 0.01
            assert np.abs(robot._data.qvel).max() < 0.05  # rad/s


def test_shoulder_is_periodic_and_wrist_ends_at_its_limit(robot: Reacher) -> None:
    robot.place(np.array([3.0, 2.6]))
    applied = robot.apply(np.array([0.3, 0.3]))
    assert applied == pytest.approx([0.3, WRIST_LIMIT_RAD - 2.6], abs=1e-6)
    for _ in range(5):
        robot.apply(np.array([0.3, 0.3]))
    state = robot.observe().proprioception
    robot.spec.check_state(state)
    assert -math.pi <= state[0] < math.pi
    assert state == pytest.approx([3.0 + 6 * 0.3 - 2 * math.pi, WRIST_LIMIT_RAD], abs=0.005)


def test_what_it_says_it_is_in_can_be_placed_at_the_wrist_s_limit(robot: Reacher) -> None:
    robot.place(np.array([0.4, WRIST_LIMIT_RAD - 0.1]))
    beyond = 0.0
    for action in np.random.default_rng(2).uniform([-0.3, 0.1], [0.3, 0.3], (12, 2)):
        robot.apply(action)
        state = robot.true_state()
        beyond = max(beyond, state[1] - WRIST_LIMIT_RAD)
        robot.place(state)
        assert robot.true_state() == pytest.approx(state, abs=1e-5)
    assert beyond > 1e-6  # more than rounding, so that this was a trial
    with pytest.raises(InputError, match="wrist"):
        robot.place(np.array([0.0, WRIST_LIMIT_RAD + 1e-4]))


def test_limits_are_enforced_and_reported(robot: Reacher) -> None:
    robot.place(np.zeros(2))
    assert robot.apply(np.array([5.0, -5.0])) == pytest.approx([0.3, -0.3])
    assert robot.observe().proprioception == pytest.approx([0.3, -0.3], abs=0.005)


@pytest.mark.parametrize("bad", [[0.1], [0.1, 0.1, 0.1], [math.nan, 0.0], [0.0, math.inf]])
def test_bad_actions_are_refused_and_stop_the_arm(robot: Reacher, bad: list[float]) -> None:
    robot.apply(np.array([0.3, 0.3]))
    before = robot.observe().proprioception
    with pytest.raises(InputError, match="reacher"):
        robot.apply(np.array(bad))
    robot.apply(np.zeros(2))
    assert robot.observe().proprioception == pytest.approx(before, abs=1e-4)


def test_stop_holds_the_pose(robot: Reacher) -> None:
    robot.apply(np.array([0.3, 0.3]))
    robot._data.qvel[:] = 3.0  # as if interrupted in full motion
    before = robot.observe().proprioception
    robot.stop()
    for _ in range(5):
        robot._mujoco.mj_step(robot._model, robot._data, 20)
    assert robot.observe().proprioception == pytest.approx(before, abs=1e-4)


@pytest.mark.parametrize("bad", [[0.0], [math.nan, 0.0], [0.0, 3.0], [90.0, 0.0]])
def test_bad_states_are_refused(robot: Reacher, bad: list[float]) -> None:
    with pytest.raises(InputError):
        robot.place(np.array(bad))


def test_delta_limit_is_checked() -> None:
    with pytest.raises(InputError, match=r"outside \(0, 0.3\]"):
        Reacher(delta_limit=1.0)


def test_picture_and_state_are_of_the_same_instant(robot: Reacher) -> None:
    robot.place(np.array([0.4, -1.0]))
    robot.apply(np.array([0.3, 0.3]))
    moved = robot.observe()
    # A pose one physics substep old would be off by about 1e-5 m.
    assert robot.end_effector() == pytest.approx(ReachTask().fingertip(robot._angles()), abs=1e-9)
    again = robot.place(moved.proprioception.astype(np.float64))
    difference = np.abs(moved.images[CAMERA].astype(int) - again.images[CAMERA])
    assert (difference > 8).mean() < 0.002  # a pixel on an edge may flip by the rounding to float32
    at_start = robot.place(np.array([0.4, -1.0])).images[CAMERA]
    assert (np.abs(at_start.astype(int) - moved.images[CAMERA]) > 8).mean() > 0.01


def test_fingertip_formula_is_the_simulators(robot: Reacher) -> None:
    task = ReachTask()
    for seed in range(20):
        state = robot.reset(seed=seed).proprioception.astype(np.float64)
        assert task.fingertip(state) == pytest.approx(robot.end_effector(), abs=1e-6)


def test_the_whole_reach_is_in_the_picture_and_fills_it(robot: Reacher) -> None:
    seen = []
    for shoulder in np.linspace(-math.pi, math.pi, 16):
        picture = robot.place(np.array([shoulder, 0.0])).images[CAMERA].astype(int)
        rows, columns = np.nonzero(picture[..., 0] > picture[..., 2] + 30)  # the arm is the only orange thing
        seen += [rows, columns]
    pixels = np.concatenate(seen)
    assert 0 < pixels.min() <= 5 and 58 <= pixels.max() < 63


def test_same_seed_same_run_in_another_process() -> None:
    code = """
import hashlib, numpy as np
from vjepa_mpc.robots.reacher import Reacher
with Reacher(camera_size=32, seed=3) as robot:
    robot.set_appearance(11)
    digest = hashlib.sha256(robot.reset().images["top"].tobytes())
    for action in np.random.default_rng(0).uniform(-0.3, 0.3, (10, 2)):
        robot.apply(action)
        observation = robot.observe()
        digest.update(observation.images["top"].tobytes() + observation.proprioception.tobytes())
print(digest.hexdigest())
"""
    runs = [subprocess.run([sys.executable, "-c", code], capture_output=True, text=True) for _ in range(2)]
    assert runs[0].returncode == 0, runs[0].stderr
    assert runs[0].stdout == runs[1].stdout


def test_resets_differ_unless_seeded(robot: Reacher) -> None:
    first, second = robot.reset(seed=5).proprioception, robot.reset().proprioception
    assert not np.allclose(first, second)
    assert np.array_equal(robot.reset(seed=5).proprioception, first)
    assert np.array_equal(robot.reset().proprioception, second)


def test_appearances_are_reproducible_and_differ(robot: Reacher) -> None:
    pose = np.array([0.3, -0.8])

    def picture(seed: int | None, level: float = 1.0) -> np.ndarray:
        robot.set_appearance(seed, level)
        return robot.place(pose).images[CAMERA]

    plain = picture(None)
    looks = {seed: picture(seed) for seed in range(6)}
    for seed, look in looks.items():
        assert np.array_equal(picture(seed), look)
        assert all(np.abs(look.astype(int) - other).mean() > 5 for s, other in looks.items() if s != seed)
    assert np.array_equal(picture(None), plain)
    assert np.array_equal(picture(4, level=0.0), plain)
    slight = np.abs(picture(4, level=0.3).astype(int) - plain).mean()
    assert 0 < slight < np.abs(looks[4].astype(int) - plain).mean()


def test_ray_casting_agrees_with_opengl(robot: Reacher) -> None:
    if robot.renderer_identity == "mujoco-rays-2x":
        pytest.skip("no OpenGL back end on this machine")
    with Reacher(camera_size=64, backend="rays") as rays:
        for seed in (None, *range(20, 28)):
            pictures = []
            for one in (robot, rays):
                one.set_appearance(seed)
                pictures.append(one.place(np.array([0.3, -0.8])).images[CAMERA].astype(int))
            difference = np.abs(pictures[0] - pictures[1])
            assert difference.mean() < 1.0, seed  # of 255
            assert (difference.max(axis=2) > 20).mean() < 0.02, seed  # edges only


def test_appearance_leaves_dynamics_alone(robot: Reacher) -> None:
    actions = np.random.default_rng(0).uniform(-0.3, 0.3, (20, 2))
    runs = []
    for seed in (None, 7):
        robot.set_appearance(seed)
        robot.place(np.array([1.0, 0.5]))
        states = []
        for action in actions:
            robot.apply(action)
            states.append((robot._data.qpos.copy(), robot._data.qvel.copy()))
        runs.append(np.array(states))
    assert np.array_equal(runs[0], runs[1])


def test_arm_stands_out_from_the_floor() -> None:
    looks = [sample_appearance(np.random.default_rng(seed)) for seed in range(300)]
    assert min(contrast(color, look.floor) for look in looks for color in (look.arm, look.finger)) >= 0.35


def test_each_factor_can_be_turned_off_without_changing_the_others() -> None:
    whole = sample_appearance(np.random.default_rng(1))
    steady = sample_appearance(np.random.default_rng(1), factors=Factors(camera=0.0))
    assert steady.camera_shift_m == (0.0, 0.0, 0.0) != whole.camera_shift_m
    assert (steady.floor, steady.arm, steady.pattern, steady.shapes) == (
        whole.floor, whole.arm, whole.pattern, whole.shapes,
    )  # fmt: skip
    with pytest.raises(InputError, match="outside"):
        sample_appearance(np.random.default_rng(1), level=1.5)


def test_steps_and_looks_are_cheap(robot: Reacher) -> None:
    """CPU time of this thread, so that other work on the machine does not count."""

    def median_ms(call: object, arguments: list[object]) -> float:
        times = []
        for argument in arguments:
            start = time.thread_time()
            call(argument)  # type: ignore[operator]
            times.append(time.thread_time() - start)
        return 1e3 * float(np.median(times))

    assert median_ms(robot.apply, [np.array([0.1, -0.1])] * 100) < 1.0
    assert median_ms(robot.set_appearance, list(range(30))) < 15.0
