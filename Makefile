# make demo: from nothing to a finished study; make test: the tests; make check: what must be green before a commit.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin
PIP := $(BIN)/pip install --progress-bar off -q -c constraints.txt

.PHONY: demo test check reference clean

demo: .venv/installed
	$(BIN)/limbeck run quickstart

test: .venv/dev
	$(BIN)/python -m pytest -n 2

check: .venv/dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

reference: .venv/dev
	$(BIN)/python docs/make_reference.py

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(PIP) torch
	$(PIP) -e .
	touch $@

.venv/dev: .venv/installed
	$(PIP) -e '.[dev]'
	touch $@

clean:
	rm -rf .venv build *.egg-info runs .pytest_cache .ruff_cache
