# make demo and make test start from nothing and are safe to repeat.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: help setup parts demo test lint bench clean

help:
	@echo "make demo    the product against two simulated clusters (DEMO_ARGS=--check compares with the truth)"
	@echo "make test    every test, on real Prometheus, etcd and ClickHouse (PYTEST_ARGS=... goes to pytest)"
	@echo "make lint    ruff, mypy --strict, import rules"
	@echo "make bench   the figures of docs/benchmarks.md into build/bench.json"
	@echo "make setup   .venv with the console scripts and all that the tests need"

setup: $(STAMP)

$(STAMP): setup.cfg pyproject.toml
	@echo "making $(VENV) with everything that is needed (a minute, most of it downloading) ..."
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.11 ...")'
	@$(PYTHON) -m venv $(VENV) || { echo "apt-get install python3-venv"; exit 1; }
	@$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[embedded,etcd,mongo,test,lint]'
	@touch $(STAMP)

parts:
	@sh tests/parts/install.sh

demo: setup
	@$(BIN)/metroculus demo $(DEMO_ARGS)

test: setup parts
	@echo "testing ..."
	@$(BIN)/pytest $(PYTEST_ARGS)

lint: setup
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports

bench: setup
	@$(BIN)/python -m benchmarks

clean:
	rm -rf $(VENV) .demo build *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
