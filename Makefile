# make demo: from nothing to a finished study; make test: the tests; make test-all: these and the slow ones;
# make faults: the whole fault suite;
# make check: what must be green before a commit; make bench, make bench-gpu: the benchmarks (docs/benchmarks.md).
PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin
PIP := $(BIN)/pip install --progress-bar off -q -c constraints.txt

.PHONY: demo test test-all faults check reference bench bench-gpu clean

demo: .venv/installed
	$(BIN)/limbeck run quickstart

test: .venv/dev
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

test-all: .venv/dev
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder -m "slow or not slow"

faults: .venv/dev
	$(BIN)/python -m pytest -n 2 --dist worksteal -m "slow or not slow" tests/faults

check: .venv/dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

reference: .venv/dev
	$(BIN)/python docs/make_reference.py
	$(BIN)/python docs/make_map.py

bench: .venv/bench
	$(BIN)/python -m benchmarks

bench-gpu: .venv/bench
	$(BIN)/python -m benchmarks --device cuda

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(PIP) torch
	$(PIP) -e .
	touch $@

.venv/dev: .venv/installed
	$(PIP) -e '.[dev]'
	touch $@

.venv/bench: .venv/installed
	$(PIP) -e '.[bench]'
	touch $@

clean:
	rm -rf .venv build *.egg-info runs .pytest_cache .ruff_cache
