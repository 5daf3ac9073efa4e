# Everything runs in .venv, made from the locked requirements when they change.
PYTHON ?= python3.11
VENV   ?= .venv
BIN    := $(VENV)/bin

PYTEST_ARGS ?=

.PHONY: run test slow browser properties faults fuzz lint types docs bench clean

run: $(VENV)/.run
	$(BIN)/mgk run

test: $(VENV)/.dev
	$(BIN)/python -m pytest -n 2 -m "not slow" $(PYTEST_ARGS)

slow: $(VENV)/.dev
	MGK_HYPOTHESIS=thorough $(BIN)/python -m pytest -n 2 -m slow --ignore tests/browser $(PYTEST_ARGS)

# A browser for the report's tests: Debian's package, installed where this user may.
browser: $(VENV)/.dev
	command -v chromium || { [ "$$(id -u)" = 0 ] && apt-get install -y -q chromium >/dev/null; } || true
	$(BIN)/python -m pytest -q tests/browser

properties: $(VENV)/.dev
	MGK_HYPOTHESIS=thorough $(BIN)/python -m pytest -q tests/property

faults: $(VENV)/.dev
	MGK_FAULTS=all MGK_KILLS=200 $(BIN)/python -m pytest tests/faults tests/badinput -n 2 -q

fuzz: $(VENV)/.dev
	VENV=$(VENV) bash .ci/fuzz

lint: $(VENV)/.dev
	$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/lint-imports

types: $(VENV)/.dev
	$(BIN)/mypy

docs: $(VENV)/.dev
	$(BIN)/mkdocs build --strict

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.run: $(VENV)/bin/python requirements/run.txt pyproject.toml
	$(BIN)/python -m pip install -q torch==2.13.0
	$(BIN)/python -m pip install -q --no-deps --require-hashes -r requirements/run.txt
	$(BIN)/python -m pip install -q --no-deps --no-build-isolation -e .
	touch $@

$(VENV)/.dev: $(VENV)/bin/python requirements/dev.txt pyproject.toml
	$(BIN)/python -m pip install -q torch==2.13.0
	$(BIN)/python -m pip install -q --no-deps --require-hashes -r requirements/dev.txt
	$(BIN)/python -m pip install -q --no-deps --no-build-isolation -e .
	touch $(VENV)/.run $@

clean:
	rm -rf $(VENV) build dist site .mypy_cache .ruff_cache .pytest_cache .hypothesis
