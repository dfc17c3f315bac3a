"""`python -m vjepa_mpc`: the command line, also for `torchrun -m vjepa_mpc`."""

from __future__ import annotations

from vjepa_mpc.cli.main import main

if __name__ == "__main__":
    main()
