# make demo and make test start from nothing and are safe to repeat.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
TOOLS := build/parts/tools/.installed

CODE := metroculus rest_api diproxy optscale_client tools standalone

.PHONY: help setup parts tools soak demo test test-long scale dist helm-test lint bench pictures clean

help:
	@echo "make demo    the product against three simulated clusters (DEMO_ARGS=--check compares with the truth)"
	@echo "make test    every test, on real Prometheus, etcd and ClickHouse (PYTEST_ARGS=... goes to pytest)"
	@echo "make test-long  longer outages, more kills, more generated requests, and the tests at awkward times"
	@echo "make lint    ruff, mypy --strict, import rules, bandit, semgrep, floors of versions"
	@echo "make soak    ten minutes under load with upstreams that come and go (SOAK_ARGS=--seconds=60)"
	@echo "make bench   the figures of docs/benchmarks.md into build/bench.json (BENCH_ARGS=--help)"
	@echo "make scale   what a worker costs, and 2,000 clusters on four workers of which one is killed each minute"
	@echo "make helm-test  the charts: rendered, validated, refused, and their workloads run"
	@echo "make pictures  the pictures of docs/page.md, by the tests in a real browser"
	@echo "make dist    wheels of the service and of its SDK into build/dist"
	@echo "make setup   .venv with the console scripts and all that the tests need"

setup: $(STAMP)

$(STAMP): setup.cfg pyproject.toml constraints.txt
	@echo "making $(VENV) with everything that is needed (a minute, most of it downloading) ..."
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.11 ...")'
	@$(PYTHON) -m venv $(VENV) || { echo "apt-get install python3-venv"; exit 1; }
	@$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[embedded,etcd,mongo,queue,redis,test,lint]'
	@touch $(STAMP)

parts:
	@sh tests/parts/install.sh

tools: $(TOOLS)

$(TOOLS): tests/parts/tools.txt
	@echo "making an environment for the fuzzer and the scanners (a minute) ..."
	@$(PYTHON) -m venv build/parts/tools
	@build/parts/tools/bin/pip install --quiet --disable-pip-version-check -r tests/parts/tools.txt
	@touch $(TOOLS)

demo: setup
	@$(BIN)/metroculus demo $(DEMO_ARGS)

test: setup parts tools
	@echo "testing ..."
	@$(BIN)/pytest --numprocesses=4 --dist=loadfile --no-loadscope-reorder $(PYTEST_ARGS)

test-long: setup parts tools
	@CRASH_ROUNDS=25 CRASH_DAYS=4 ALERT_FAULTS=all OUTAGE_SECONDS=30 SOAK_SECONDS=60 FUZZ_EXAMPLES=30 LEDGER_EXAMPLES=50 $(BIN)/pytest --numprocesses=2 --dist=loadfile --no-loadscope-reorder tests/faults tests/fuzz tests/contract/test_ledger_model.py
	@WORLDS=200 $(BIN)/pytest --numprocesses=2 tests/worlds
	@PUSH_KILLS=25 PUSH_DAYS=14 $(BIN)/pytest -s tests/push/test_kills.py tests/push/test_receiver.py
	@PUSH_STEP_HOURS=1 $(BIN)/pytest --numprocesses=2 tests/push/test_hours.py tests/push/test_kept_days.py -k "restatements or bill"
	@ALERT_KILLS=50 INFLUX_KILLS=20 $(BIN)/pytest -s tests/integration/test_alerts.py tests/integration/test_influx.py -k kills
	@LIVE_ACCOUNTS=200 $(BIN)/pytest -s tests/integration/test_live.py -k accounts
	@EXPORT_ROWS=1000000 $(BIN)/pytest -s tests/integration/test_exports.py -k large
	@IMAGES=all $(BIN)/pytest tests/e2e/test_images.py
	@CONTAINERS=10000 $(BIN)/pytest --numprocesses=1 tests/integration/test_large_metrics.py
	@STORE_ROWS=7200000 $(BIN)/pytest --numprocesses=1 tests/contract/test_migrations.py -k large
	@$(BIN)/python -m tests.clocks
	@$(MAKE) --no-print-directory scale

scale: setup parts
	@$(BIN)/python -m benchmarks scale
	@QUEUE_CLUSTERS=2000 QUEUE_WORKERS=4 QUEUE_KILLS=10 QUEUE_SECONDS=5400 $(BIN)/pytest tests/integration/test_queue.py -k backlog

# Wheels of the service and of its SDK, each from a copy: setuptools leaves files beside what it builds.
dist: setup
	@rm -rf build/dist build/service build/client && mkdir -p build/service build/client/optscale_client
	@cp -r setup.cfg pyproject.toml README.md $(CODE) simulator build/service/
	@cp setup.cfg build/client/service.cfg && cp optscale_client/distribution/setup.py build/client/
	@cp -r optscale_client/__init__.py optscale_client/metroculus_client build/client/optscale_client/
	@$(BIN)/pip wheel --quiet --disable-pip-version-check --no-deps --wheel-dir build/dist ./build/service ./build/client
	@ls build/dist

helm-test: setup parts tools
	@$(BIN)/pytest --numprocesses=2 tests/helm

lint: setup tools
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports
	@$(BIN)/python tests/parts/floors.py
	@build/parts/tools/bin/hadolint Dockerfile
	@build/parts/tools/bin/bandit --quiet --recursive --configfile tests/parts/bandit.yaml $(CODE)
	@build/parts/tools/bin/semgrep scan --quiet --error --strict --metrics=off --disable-version-check --config tests/parts/semgrep.yaml $(CODE)

soak: setup parts
	@$(BIN)/python -m tests.soak $(SOAK_ARGS)

pictures: setup parts
	@PICTURES=1 $(BIN)/pytest tests/browser -k "every_page or pictures"

bench: setup parts
	@$(BIN)/python -m benchmarks $(BENCH_ARGS)

clean:
	rm -rf $(VENV) .demo build *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
