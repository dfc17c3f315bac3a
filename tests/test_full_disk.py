"""Writes that the system cuts short, through the libraries that weights are written with."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = """
import resource, signal, sys
from pathlib import Path
import safetensors.torch, torch
from vjepa_mpc.core.errors import InputError
from vjepa_mpc.core.files import atomic_folder, atomic_path

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # then a write beyond the limit fails, as on a full disk
target, kind = Path(sys.argv[1]), sys.argv[2]
values = {"weights": torch.zeros(500_000)}
resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, resource.RLIM_INFINITY))
try:
    if kind == "checkpoint":
        with atomic_path(target) as temporary:
            torch.save(values, temporary)
    else:
        with atomic_folder(target) as temporary:
            safetensors.torch.save_file(values, temporary / "model.safetensors")
except InputError as error:
    print(error)
"""


@pytest.mark.parametrize("kind", ["checkpoint", "model"])
def test_weights_that_do_not_fit_are_refused_in_a_sentence_and_the_old_ones_kept(tmp_path: Path, kind: str) -> None:
    target = tmp_path / kind
    if kind == "checkpoint":
        target.write_bytes(b"old")
    else:
        target.mkdir()
        (target / "old").write_bytes(b"old")
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(target), kind], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.stdout.startswith(f"Cannot write {target}: ") and "what was there is kept" in done.stdout, done.stderr
    assert [path.name for path in tmp_path.iterdir()] == [kind]
    assert (target if kind == "checkpoint" else target / "old").read_bytes() == b"old"
