# `make run` and `make test` set everything up first; see README.md for the same with plain pip.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: run test check setup

run: setup
	$(BIN)/python -m sweep.run optimizer=adam

test: setup check
	$(BIN)/python -m pytest -n auto

check: setup
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/basedpyright

setup: .venv/ready

.venv/ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt hatchling editables
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --no-build-isolation --editable '.[test]'
	touch $@
