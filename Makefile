# Two commands on a fresh machine: `make panorama` draws a picture, `make test` runs the tests.
# Both first make .venv (requirements/install.py), which does nothing when it is up to date.
#
#   DEVICE=cpu|cuda     which vLLM to install; found out by nvidia-smi when not given
#   TORCH_INDEX=URL     a package index with torch's CPU wheel, where pip does not find one by itself
#   PYTHON=python3.12   the Python to make .venv with; 3.11 and 3.12 work

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
export PYTHONSAFEPATH := 1

DEVICE ?= auto
TORCH_INDEX ?=
PYTHON ?= $(shell for p in python3.11 python3.12 python3; do \
    if "$$p" -c 'import sys; sys.exit(sys.version_info[:2] not in ((3, 11), (3, 12)))' 2>/dev/null; then echo "$$p"; break; fi; done)
BIN := .venv/bin
PROMPT := a red sunset over the sea
SEED := 5

.PHONY: help setup panorama test check doctor docs page clean

help:  ## this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup:  ## make .venv, or bring it up to date
	@if [ -z "$(PYTHON)" ]; then echo "error: no Python 3.11 or 3.12 found; install one, or name it: make PYTHON=/path/to/python3.11" >&2; exit 2; fi
	@$(PYTHON) requirements/install.py --device $(DEVICE) $(if $(TORCH_INDEX),--torch-index "$(TORCH_INDEX)")

panorama: setup  ## draw out/panorama.png with the model in assets/
	@$(BIN)/python -m panoserve.cli generate "$(PROMPT)" --stride 8 --seed $(SEED) -o out/panorama.png

test: setup  ## run all tests
	@$(BIN)/python -m pytest

check: setup  ## lint and type-check
	@$(BIN)/python -m ruff check .
	@$(BIN)/python -m ruff format --check .
	@rm -rf build/typecheck build/typecheck-tmp && mkdir -p build  # mypy cannot see an editable install: give it a copy
	@$(BIN)/python -W ignore setup.py --quiet build --build-base build/typecheck-tmp --build-lib build/typecheck
	@MYPYPATH=build/typecheck $(BIN)/python -m mypy -p panoserve \
	    | sed -e 's#^build/typecheck/panoserve/\([a-z_]*\.py\)#panoserve/\1#' -e 's#^build/typecheck/panoserve/##'
	@MYPYPATH=build/typecheck $(BIN)/python -m mypy requirements/install.py requirements/page.py docs/generate.py

doctor: setup  ## say what is installed and what is wrong
	@$(BIN)/python -m panoserve.cli doctor

docs: setup  ## write the parts of docs/ that repeat what the code says
	@$(BIN)/python docs/generate.py

page:  ## copy the page's library from npm into the package, after a change of requirements/page
	@$(PYTHON) requirements/page.py

clean:  ## remove .venv and everything built
	rm -rf .venv build out .mypy_cache .ruff_cache .pytest_cache .hypothesis panoserve.egg-info
