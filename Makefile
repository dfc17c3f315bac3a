# What a laptop and CI both run: `make check`, `make test`. PYTHON names the environment's interpreter.
PYTHON ?= $(if $(wildcard .venv/bin/python),.venv/bin/python,python3)
# Two busy processes on few cores stall each other's threads.
export OMP_NUM_THREADS ?= 1

.PHONY: check test format

check:
	$(PYTHON) -m ruff check .
	$(PYTHON) -m mypy

test:
	$(PYTHON) -m pytest

format:
	$(PYTHON) -m ruff check --fix .
