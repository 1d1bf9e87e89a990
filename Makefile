# labd's make targets. `make demo` and `make test` do all the set-up that they need.
SHELL := /bin/sh
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

# What nothing here imports, a third of it all: packages' own tests, and Ray's libraries.
NOT_COMPILED := /tests?/|/ray/(data|llm|rllib|serve|train|tune)/

.PHONY: help setup system-packages browser install uninstall demo test torture bench check format clean
.DEFAULT_GOAL := help

help: ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  make %-16s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: system-packages $(STAMP) ## make .venv and install everything, the system's packages too

$(STAMP): pyproject.toml config/constraints.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(0 if v >= (3, 11) else "labd needs Python 3.11 or newer, and this is %d.%d: make PYTHON=python3.12 …" % v[:2])'
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || sh config/system-packages.sh python3-venv
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "labd: installing Python packages into $(VENV) (a few minutes, the first time only) …"
	@$(BIN)/python -m pip install --quiet --no-compile --disable-pip-version-check -c config/constraints.txt -e '.[dev]'
	@$(BIN)/python -m compileall -q -j 0 -x '$(NOT_COMPILED)' $(VENV)/lib >/dev/null 2>&1 || true
	@touch $@

system-packages:
	@command -v bwrap >/dev/null || sh config/system-packages.sh bubblewrap

browser: ## install Debian's Chromium, in which the page is tested; without it those tests are skipped
	@command -v chromium >/dev/null || sh config/system-packages.sh chromium

install: ## as root: install labd as a service, or upgrade it in place (docs/install.md)
	@PYTHON="$(if $(filter command line environment,$(origin PYTHON)),$(PYTHON))" sh systemd/install.sh install

uninstall: ## as root: take the service away; settings, tasks and results stay
	@sh systemd/install.sh uninstall

demo: setup ## run one small research task from a YAML file to a paper, with live progress
	@$(BIN)/labd --home . run config/examples/first-paper.yaml

# They start hundreds of processes, which need not compile labd anew each, whatever the environment says.
test: setup ## run the tests
	@PYTHONDONTWRITEBYTECODE= $(BIN)/python -m pytest -q -n 2

torture: setup ## kill everything, everywhere: each crash point, 20,000 random moves, forty kills of the demo (hours)
	@LABD_TORTURE=1 $(BIN)/python -m pytest -q -n 0 -rP tests/test_crash_archive.py tests/test_crash_worker.py \
	  tests/test_crash_daemon.py tests/test_spool_machine.py tests/test_shipping.py tests/test_hostile.py tests/test_studies.py tests/test_researcher.py tests/test_page_browser.py tests/test_engine.py tests/test_kill.py tests/test_reporting.py tests/system

bench: setup ## measure, and print tables
	@$(BIN)/python -m tests.bench.sandbox
	@$(BIN)/python -m tests.bench.limits
	@$(BIN)/python -m tests.bench.scheduler
	@$(BIN)/python -m tests.bench

check: $(STAMP) ## lint, types, format
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/mypy

format: $(STAMP) ## put the code into its format
	@$(BIN)/ruff format .
	@$(BIN)/ruff check --fix .

clean: ## remove what set-up made; spool and results stay
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache *.egg-info build dist
