# `make quickstart` and `make test` do everything on a machine with Python 3.11 and make.
PYTHON ?= $(firstword $(shell command -v python3.11 python3.12 python3 2>/dev/null))
BIN := .venv/bin
# Compiles for TPUs without one, for tests. Apart from all else, since JAX looks for a TPU at every start where it finds it.
LIBTPU := libtpu==0.0.42.1
# A colon in a path or a read-only checkout is the user's to mend; a missing interpreter is said in words.
CHECK_PYTHON = $(if $(PYTHON),,$(error worldloom needs Python 3.11 or 3.12 and found no python3 on PATH: install it, or call 'make PYTHON=/path/to/python3.11 …'))

.PHONY: env quickstart test lint types engines bench clean
.DEFAULT_GOAL := help

help:
	@echo 'make quickstart   environment, then corpus, build, pack, inspect and train, in minutes and offline'
	@echo 'make test         environment, then lint, types and tests'
	@echo 'make engines      environment, then what can be had of Prism, Flink and the like, and the tests that take them'
	@echo 'make bench        environment, then every benchmark against its floor'
	@echo 'make env          the environment alone (.venv)'

env: .venv/.ready

.venv/.ready: setup.cfg pyproject.toml constraints.txt
	$(CHECK_PYTHON)
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 12))' || \
	  { echo "worldloom needs Python 3.11 or 3.12; $(PYTHON) is $$($(PYTHON) -V 2>&1). Call 'make PYTHON=/path/to/python3.11 …'."; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv || \
	  { echo "Python's venv module is missing: install it (Debian: python3-venv) and call make again."; exit 1; }
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check uv || \
	  { echo "pip could not install uv: is the package index reachable from here?"; exit 1; }
	$(BIN)/uv pip install --quiet --python $(BIN)/python -c constraints.txt -e '.[all,dev,bench]'
	@test "$$(uname -sm)" != 'Linux x86_64' || $(BIN)/uv pip install --quiet --python $(BIN)/python --target .venv/tpu $(LIBTPU) || \
	  echo "libtpu could not be installed: the tests that compile for TPUs will be skipped"
	@mkdir -p .types && ln -sfn .. .types/worldloom
	@touch $@

quickstart: env
	$(BIN)/worldloom quickstart quickstart-out

lint: env
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: env
	MYPYPATH=.types $(BIN)/mypy -p worldloom

test: env lint types
	$(BIN)/python -m pytest -q -rs -n 2 --dist worksteal -m 'not engines'

engines: env
	tests/engines/run.sh

bench: env
	$(BIN)/python -m benchmarks

clean:
	rm -rf .venv .types .engines quickstart-out build dist *.egg-info
