# One command each. `make demo` and `make test` need Python 3.11+, make and a package index; nothing else.
#
#   make demo [MINUTES=8] [QUICK=1] [DATA=folder] [SET=full-wheels]
#   make check | format | protos | test | test-long | test-demo | simulate | down

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
MINUTES ?= 8
QUICK ?=
DATA ?=
SET ?= quick
DIR ?= demo
DEMO_FLAGS ?=
WORKERS ?= 2

.PHONY: demo down check format protos test test-long test-demo simulate clean

demo: $(VENV)/.installed
	@$(BIN)/potluck demo --dir "$(DIR)" --set $(SET) $(if $(QUICK),--quick,--minutes $(MINUTES)) $(if $(DATA),--data "$(DATA)") $(DEMO_FLAGS)

down: $(VENV)/.installed
	@$(BIN)/potluck down --home "$(DIR)/home"

check: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

format: $(VENV)/.installed-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

protos:
	bash tools/protos.sh

test: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -n $(WORKERS)

test-long: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -n $(WORKERS) -m long

test-demo: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -m demo

simulate: $(VENV)/.installed-dev
	$(BIN)/python -m tests.simulation --worlds 1000 --jobs $(WORKERS)

clean:
	rm -rf build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "potluck needs Python 3.11 or newer; name one with: make PYTHON=python3.12 $(MAKECMDGOALS)" >&2; exit 2; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: $(VENV)/bin/python pyproject.toml constraints.txt
	@echo "installing potluck and its dependencies into $(VENV) ..."
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[cluster]'
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	@echo "installing the tools for tests and checks into $(VENV) ..."
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@
