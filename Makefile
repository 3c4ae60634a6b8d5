# `make run` and `make test` are all the set-up there is: each makes .venv once, from requirements.lock.

PYTHON ?= $(firstword $(foreach v,3.11 3.12 3.13 3.14 3.15,$(shell command -v python$(v) 2>/dev/null)) python3)
VENV := .venv
BIN := $(VENV)/bin
LOCKED := $(VENV)/.locked
READY := $(VENV)/.ready
SITE := build/site
INSTALLED := $(SITE)/.ready
OLDEST := build/oldest
# What is installed goes before the working copy, in every process that is started too.
WITH_INSTALLED := PYTHONSAFEPATH=1 PYTHONPATH=$(CURDIR)/$(SITE):$(CURDIR)
# Most of a test's time is waiting: two at a time take half as long.
AT_ONCE := --numprocesses logical --maxprocesses 4 --dist worksteal
TEST_ARGS ?=
INSTALLED_TESTS := $(patsubst %,tests/live/test_%.py,bundled checked exporter gateway http logs otel own_headers pdk) \
	$(patsubst %,tests/live/test_%.py,plugins queues reload routes upstreams) tests/conformance/test_runtime.py \
	$(patsubst %,tests/sim/test_%.py,connection forwarding instrumentation plugin proxy) tests/test_installed.py

.DEFAULT_GOAL := help
.PHONY: help setup run test test-installed test-oldest soak bench check lock clean

help: ## show what can be made
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

setup: $(READY)

$(LOCKED): requirements.lock
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "kongsim needs Python 3.11 or newer, not `$(PYTHON) -V 2>&1`: install it, or name it with PYTHON=..." >&2; exit 2; }
	@echo "setting up $(VENV) with `$(PYTHON) -V` (once)" >&2
	@$(PYTHON) -m venv --clear $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements.lock
	@touch $@

# What pyproject.toml says of the program itself, such as its commands, is read when it is installed.
$(READY): $(LOCKED) pyproject.toml
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@

$(INSTALLED): $(READY) setup.py pyproject.toml $(shell find kongtrace sim -name '*.py')
	@rm -rf build
	@echo "installing into $(SITE)" >&2
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --target $(SITE) .
	@touch $@

run: $(READY) ## run the quickstart scenario
	@$(BIN)/kongsim run scenarios/quickstart.yaml

test: $(READY) ## run every test
	$(BIN)/python -m pytest $(AT_ONCE) $(TEST_ARGS)

test-installed: $(INSTALLED) ## run the gateway's tests on what is installed, compiled
	$(WITH_INSTALLED) $(BIN)/python -m pytest -o pythonpath= $(AT_ONCE) $(INSTALLED_TESTS) $(TEST_ARGS)

test-oldest: $(READY) ## run every test on the oldest dependencies that pyproject.toml allows
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	@$(BIN)/python -m venv --clear $(OLDEST)
	@$(BIN)/uv pip install --quiet --resolution lowest-direct --python $(OLDEST) -e '.[dev]'
	$(OLDEST)/bin/python -m pytest $(AT_ONCE) $(TEST_ARGS)

soak: $(READY) ## some twenty minutes of faults, hostile input and large bodies; print what each fault costs
	HYPOTHESIS_PROFILE=soak $(BIN)/python -m pytest tests/live/test_faults.py tests/live/test_http.py \
		tests/sim/test_connection.py $(TEST_ARGS)
	$(BIN)/python -m tests.fault_table

bench: $(INSTALLED) ## run the benchmarks on what is installed, compiled; ratios also go to .bench/latest.json
	$(WITH_INSTALLED) $(BIN)/python -m tests.bench

check: $(READY) ## lint and type-check
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

lock: $(READY) ## resolve the dependencies of pyproject.toml again
	$(BIN)/python -m pip install --quiet uv
	$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-header \
		--no-emit-index-url --no-annotate --extra dev pyproject.toml --output-file requirements.lock

clean: ## remove everything that can be made again
	rm -rf $(VENV) .bench runs build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
