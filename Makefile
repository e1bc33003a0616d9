# `make run` and `make test` set everything up first; see README.md for the same with plain pip.
PYTHON ?= python3
BIN ?= .venv/bin
OUTPUTS ?= outputs
PORT ?= 5000

.PHONY: run ui test test-fast coverage check setup

run: setup
	$(BIN)/python -m sweep.run optimizer=adam

ui:  # one worker and no job runner are enough for one person
	@test -f $(OUTPUTS)/mlflow.db || { echo "error: there is no $(OUTPUTS)/mlflow.db yet; make run" >&2; exit 2; }
	MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false $(BIN)/mlflow ui --backend-store-uri sqlite:///$(OUTPUTS)/mlflow.db \
		--host 127.0.0.1 --port $(PORT) --workers 1

test: setup check
	$(BIN)/python -m pytest -n auto

test-fast: setup  # without the tests that start processes
	$(BIN)/python -m pytest -n auto -m "not process and not slow"

coverage: setup  # of all tests, their processes included; twice as slow
	$(BIN)/python -m coverage erase
	$(BIN)/python -m coverage run -m pytest -n auto
	$(BIN)/python -m coverage combine --quiet
	$(BIN)/python -m coverage report

check: setup
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/lint-imports
	$(BIN)/basedpyright

setup: .venv/ready

.venv/ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt hatchling editables
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --no-build-isolation --editable '.[test]'
	touch $@
