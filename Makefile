# make demo         the pool, live, under load       (ARGS=--once for one cycle)
# make test         lint, and every test that is deterministic: under 5 minutes
#                   (ARGS=tests/test_watch.py for a part of them, COVERAGE=yes for the lines, too)
# CI runs these, too:
# make scenarios    every trouble, live, and the share of right verdicts  (ARGS="--runs 5")
# make test-load    tests whose load has to keep its times, and measurements
# make test-bulk    tests whose load may take its time, repetitions, more random examples
# make test-stack   Prometheus: a service, Alertmanager, the dashboards in a browser; four workers
# make test-workers services of several processes, however they are started
# make test-strands Strands' own tests over our session repository
# make test-driver  PyMongo's own tests with our telemetry in every client  (ARGS=--all: all of them)
# make soak         150,000 operations behind a broken network  (ARGS="--seed 7")
# For these nobody waits:
# make test-matrix  four PyMongos on every Python here  (ARGS="--only 3.13")
# make record-scenarios  the histories on which make test checks the diagnosis  (ARGS="'slow server'")
# make stack-local  a service, Prometheus and Alertmanager on loopback, without containers
# make test-tools   what the dashboards' tests need from npm; without it they are skipped
# make dashboards   what is made in dashboards/, from its source
# make bench        what the telemetry costs
# make pictures     the README's pictures, from a run of the demo and of the stack
# Each sets itself up in .venv: Python 3.11 or newer, pip and make are all they need.

VENV := .venv
BIN := $(VENV)/bin
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11 python3.14; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
PIP_INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check

DETERMINISTIC := -m pytest -m "not bulk and not load and not stack and not workers" --numprocesses=4 --dist=worksteal

.PHONY: dashboards demo pictures stack-local test test-load test-bulk test-stack test-workers test-strands test-driver test-tools test-matrix scenarios record-scenarios soak lint bench clean

demo: $(VENV)/.demo
	@$(BIN)/pool-telemetry demo $(ARGS)

test: lint
ifdef ARGS
	$(BIN)/python -m pytest $(ARGS)
else ifdef COVERAGE
	$(BIN)/python -m coverage erase
	$(BIN)/python -m coverage run $(DETERMINISTIC)
	$(BIN)/python -m coverage combine --quiet
	$(BIN)/python -m coverage report
else
	$(BIN)/python $(DETERMINISTIC)
endif

test-load: $(VENV)/.dev
	$(BIN)/python -m pytest -m load $(ARGS)

test-bulk: $(VENV)/.dev
	$(BIN)/python -m pytest -m bulk --numprocesses=2 --dist=worksteal $(ARGS)
	$(BIN)/python -m pytest -m hypothesis --hypothesis-profile=many --numprocesses=2 \
		tests/test_findings.py tests/test_listeners.py tests/test_machine.py tests/test_routes.py \
		tests/test_secrets.py

test-stack: $(VENV)/.dev
	$(BIN)/python -m pytest -m stack --numprocesses=2 --dist=loadfile $(ARGS)

test-workers: $(VENV)/.dev
	$(BIN)/python -m pytest -m workers --numprocesses=2 --dist=worksteal $(ARGS)

test-strands: $(VENV)/.dev
	@$(BIN)/python -m tests.strands_own

test-driver: $(VENV)/.dev
	@$(BIN)/python -m tests.driver $(ARGS)

test-tools: $(VENV)/.dev
	@$(BIN)/python -m tests.tools

test-matrix: $(VENV)/.dev
	@$(BIN)/python -m tests.matrix $(ARGS)

dashboards: $(VENV)/.dev
	@$(BIN)/python -m dashboards.generate

pictures: $(VENV)/.dev
	@$(BIN)/python -m tests.pictures

lint: $(VENV)/.dev
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/codespell

soak: $(VENV)/.dev
	@$(BIN)/python -m tests.chaos $(ARGS)

scenarios: $(VENV)/.dev
	@$(BIN)/python -m tests.scenarios_live $(ARGS)

record-scenarios: $(VENV)/.dev
	@$(BIN)/python -m tests.recordings $(ARGS)

stack-local: $(VENV)/.demo
	@$(BIN)/python examples/stack/local.py

bench: $(VENV)/.dev
	@$(BIN)/python -m tests.benchmarks $(ARGS)

clean:
	rm -rf $(VENV) .driver .matrix .npm .pictures .strands dist .coverage* .mypy_cache .pytest_cache .ruff_cache .import_linter_cache

$(VENV)/.demo: pyproject.toml | $(BIN)/python
	@echo "setting up: the library and what the demo shows"
	@$(PIP_INSTALL) --editable '.[demo]'
	@touch $@

$(VENV)/.dev: pyproject.toml | $(BIN)/python
	@echo "setting up: the library and its tests"
	@$(PIP_INSTALL) --editable '.[dev]'
	@touch $@ $(VENV)/.demo

# Debian's python3 comes without ensurepip unless python3-venv is there: pip's virtualenv will do.
$(BIN)/python:
	@test -n "$(PYTHON)" || { echo "Python 3.11 or newer is needed: make PYTHON=/path/to/python3"; exit 1; }
	@$(PYTHON) -m venv $(VENV) >/dev/null 2>&1 || { rm -rf $(VENV); \
		$(PYTHON) -m pip install --quiet --disable-pip-version-check --target $(VENV)-boot virtualenv \
		&& PYTHONPATH=$(VENV)-boot $(PYTHON) -m virtualenv --quiet $(VENV); \
		status=$$?; rm -rf $(VENV)-boot; exit $$status; }
