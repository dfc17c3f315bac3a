"""Workers of a training are started, watched and stopped together; what the user hears is who failed, and why."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
import typer

from vjepa_mpc.cli import workers
from vjepa_mpc.cli.workers import launches, run_workers
from vjepa_mpc.core.errors import InputError, WorkerDiedError

ROOT = Path(__file__).resolve().parents[1]
PREAMBLE = """
    import os, signal, sys, time
    rank = int(os.environ["RANK"])
    def lost():  # what a rank does when another is gone
        time.sleep(0.3)
        print("Error: Another worker of this training stopped.", file=sys.stderr)
        sys.exit(4)
"""


def command(code: str) -> list[str]:
    return [sys.executable, "-c", textwrap.dedent(PREAMBLE) + textwrap.dedent(code)]


def left_with(code: str, workers: int = 2) -> int:
    with pytest.raises(typer.Exit) as left:
        run_workers(workers, command(code))
    return int(left.value.exit_code)


def test_workers_are_told_what_torchrun_would_tell_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    run_workers(3, command(f"""
        names = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "OMP_NUM_THREADS")
        open({str(tmp_path)!r} + "/" + str(rank), "w").write(" ".join(os.environ[name] for name in names))
        print("from", rank); print("err", rank, file=sys.stderr)
    """))  # fmt: skip
    told = [(tmp_path / str(rank)).read_text().split() for rank in range(3)]
    assert [line[:5] for line in told] == [[str(rank), str(rank), "3", "3", "127.0.0.1"] for rank in range(3)]
    assert len({line[5] for line in told}) == 1 and int(told[0][5]) >= 1
    assert capfd.readouterr() == ("from 0\n", "err 0\n")  # the first one speaks for all


def test_another_workers_mistake_is_shown_with_its_code(capfd: pytest.CaptureFixture[str]) -> None:
    code = left_with("""
        if rank == 0: lost()
        print("Error: the disk is full; free some space.", file=sys.stderr)
        sys.exit(2)
    """)
    said = capfd.readouterr().err
    assert code == 2 and "Worker 1 of 2:\nError: the disk is full; free some space." in said


def test_what_all_of_them_say_is_said_once(capfd: pytest.CaptureFixture[str]) -> None:
    assert left_with('print("Error: no such store.", file=sys.stderr); sys.exit(2)') == 2
    assert capfd.readouterr().err == "Error: no such store.\n"


@pytest.mark.parametrize("victim", [0, 1])
def test_a_killed_worker_is_named(victim: int) -> None:
    with pytest.raises(WorkerDiedError, match=f"Worker {victim} of 2 was ended by SIGKILL.*run the same command again"):
        run_workers(2, command(f"os.kill(os.getpid(), signal.SIGKILL) if rank == {victim} else lost()"))


def test_one_that_does_not_notice_is_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "GRACE_S", 0.3)
    started = time.monotonic()
    code = left_with("""
        if rank == 1: sys.exit(2)
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        time.sleep(60)
    """)
    assert code == 2 and time.monotonic() - started < 30


def test_ctrl_c_goes_to_the_workers_and_all_may_finish(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(textwrap.dedent(f"""
        import sys
        from vjepa_mpc.cli.workers import run_workers
        code = '''
        import os, signal, sys, time
        def save(*_):
            open({str(tmp_path)!r} + "/saved" + os.environ["RANK"], "w"); sys.exit(130)
        signal.signal(signal.SIGINT, save)
        open({str(tmp_path)!r} + "/ready" + os.environ["RANK"], "w")
        time.sleep(60)
        '''
        import textwrap, typer
        try:
            run_workers(2, [sys.executable, "-c", textwrap.dedent(code)])
        except typer.Exit as left:
            sys.exit(left.exit_code)
    """))  # fmt: skip
    process = subprocess.Popen([sys.executable, str(script)], cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)})
    wait_for(tmp_path / "ready0", tmp_path / "ready1")
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 130
    assert (tmp_path / "saved0").exists() and (tmp_path / "saved1").exists()


def test_no_worker_outlives_its_launcher(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(textwrap.dedent(f"""
        import sys
        from vjepa_mpc.cli.workers import run_workers
        code = '''
        import os, threading, time
        from vjepa_mpc.cli.workers import _leave_with_launcher
        threading.Thread(target=_leave_with_launcher, daemon=True).start()
        open({str(tmp_path)!r} + "/ready" + os.environ["RANK"], "w").write(str(os.getpid()))
        time.sleep(120)
        '''
        import textwrap
        run_workers(2, [sys.executable, "-c", textwrap.dedent(code)])
    """))  # fmt: skip
    process = subprocess.Popen([sys.executable, str(script)], cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)})
    wait_for(tmp_path / "ready0", tmp_path / "ready1")
    time.sleep(0.2)
    pids = [int((tmp_path / f"ready{rank}").read_text()) for rank in range(2)]
    process.kill()
    process.wait()
    deadline = time.monotonic() + 60
    while any(Path(f"/proc/{pid}").exists() and alive(pid) for pid in pids) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(alive(pid) for pid in pids)


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def wait_for(*paths: Path) -> None:
    deadline = time.monotonic() + 60
    while not all(path.exists() for path in paths):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_who_launches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RANK", raising=False)
    assert launches(2) and not launches(1) and not launches(None)
    with pytest.raises(InputError, match="at least one worker"):
        launches(0)
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert not launches(2) and not launches(None)
    with pytest.raises(InputError, match="leave --workers out"):
        launches(3)


@pytest.mark.slow
def test_a_worker_killed_and_ctrl_c_from_the_command_line(tmp_path: Path) -> None:
    """Stopped by a killed worker and by Ctrl-C, two workers end where an undisturbed run ends, to the bit."""
    sys.path.insert(0, str(ROOT / "tests" / "pretrain"))
    from moving_dot import make_store

    store = make_store(tmp_path / "dots.zarr")
    tiny = "--width 24 --depth 1 --heads 1 --fp32 --batch 4 --patch 4 --device cpu --checkpoint-every 10 --steps 300"

    def start(out: str) -> subprocess.Popen[str]:
        line = [sys.executable, "-m", "vjepa_mpc", "pretrain", str(store), "--out", str(tmp_path / out), "--workers"]
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        return subprocess.Popen(
            [*line, "2", *tiny.split()], env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )

    straight = start("straight")
    assert straight.communicate(timeout=300)[0].count("done after 300 steps") == 1
    checkpoint = tmp_path / "broken" / "checkpoint.pt"
    broken = start("broken")
    wait_for(checkpoint)
    children = subprocess.run(["pgrep", "-P", str(broken.pid)], capture_output=True, text=True, check=True).stdout
    os.kill(int(children.split()[1]), signal.SIGKILL)
    assert "Worker 1 of 2 was ended by SIGKILL" in broken.communicate(timeout=120)[1] and broken.returncode == 1
    before = checkpoint.read_bytes()
    interrupted = start("broken")
    deadline = time.monotonic() + 120
    while checkpoint.read_bytes() == before:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    interrupted.send_signal(signal.SIGINT)
    assert "saved; run the same command" in interrupted.communicate(timeout=120)[1] and interrupted.returncode == 130
    last = start("broken")
    assert last.communicate(timeout=300)[0].count("done after 300 steps") == 1
    encoders = [tmp_path / run / "encoder" / "model.safetensors" for run in ("straight", "broken")]
    assert encoders[0].read_bytes() == encoders[1].read_bytes()
