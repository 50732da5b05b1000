# Every target sets up what it needs by itself; `make help` lists them.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.NOTPARALLEL:
.DEFAULT_GOAL := help
unexport PYTHONPATH PYTHONHOME

VENV ?= .venv
PY := $(VENV)/bin/python
SIMULATOR ?= tau
OUTPUT ?= demo/$(SIMULATOR)
ARGS ?=
WORKERS ?= 2
export PYTHON TORCH_BUILD

# One stamp per extra: set up again only when the requirements change.
installed = $(VENV)/.installed-$(1)
$(VENV)/.installed-%: pyproject.toml constraints.txt scripts/setup.sh
	@scripts/setup.sh $(VENV) $*
	@touch $@

demo_extras := report $(if $(filter pythia%,$(SIMULATOR)),pythia)
# One thread per worker: the workers fill the cores.
pytest := OMP_NUM_THREADS=1 $(PY) -m pytest -n $(WORKERS) --dist worksteal

.PHONY: help demo test test-slow lint format constraints clean

help: ## this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "make %-12s %s\n", $$1, $$2}'
	@echo
	@echo "Variables: SIMULATOR=tau|pythia_tau, OUTPUT=folder, ARGS='more arguments' (demo, test, test-slow);"
	@echo "           PYTHON=interpreter, VENV=folder, TORCH_BUILD=cpu|cu128|... (first run), WORKERS=2 (tests)"

demo: $(foreach extra,$(demo_extras),$(call installed,$(extra))) ## simulate, train, infer one event, draw the figure (SIMULATOR=pythia_tau: real Pythia)
	$(PY) -m etalumis.cli demo simulator=$(SIMULATOR) output=$(OUTPUT) $(ARGS)

test: lint pythia system ## lint, types and the fast tests
	$(pytest) -m "not slow" $(ARGS)

test-slow: $(call installed,dev) pythia system ## the long statistical and end-to-end tests
	$(pytest) -m slow --timeout 900 $(ARGS)

lint: $(call installed,dev) ## ruff (lint and format) and mypy
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy

format: $(call installed,dev) ## let ruff rewrite the sources
	$(PY) -m ruff check --fix .
	$(PY) -m ruff format .

constraints: $(foreach extra,dev pythia mpi report,$(call installed,$(extra))) ## write constraints.txt from what is installed
	$(PY) scripts/pin.py > constraints.txt.new && mv constraints.txt.new constraints.txt

clean: ## remove the environment, caches and build folders (keeps data/ and demo/)
	rm -rf $(VENV) build dist src/*.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis

# Pythia 8 has no wheel for some platforms: there its tests are skipped, but never in continuous integration.
.PHONY: pythia
pythia: $(call installed,dev)
	@$(MAKE) -s $(call installed,pythia) || { \
	    echo "[setup] Pythia 8 cannot be installed here: its tests will be skipped"; test -z "$${CI:-}"; }

# Compilers and ZeroMQ headers for the tests of the front ends.
.PHONY: system
system:
	@scripts/system.sh
