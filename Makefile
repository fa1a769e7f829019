# `make help` lists the targets. PYTHON picks the interpreter (3.11 or newer); TORCH_INDEX picks another source for
# torch, e.g. a CPU build: make repro TORCH_INDEX=https://download.pytorch.org/whl/cpu
PYTHON ?= python3
TORCH_INDEX ?=

export PATH := $(CURDIR)/.venv/bin:$(PATH)
export HF_HUB_DISABLE_TELEMETRY := 1
export DO_NOT_TRACK := 1

.PHONY: help repro test lab
.DEFAULT_GOAL := help

help:  ## this list
	@sed -n 's/^\([a-z]*\):.*## /  make \1|/p' Makefile | column -t -s '|'

repro: .venv/ready  ## run the whole loop; what is up to date is skipped. Then open reports/index.html
	python -m cream.parameters
	dvc repro

test: .venv/ready  ## run all tests, the pipeline on a tiny model among them
	python -m pytest

lab: .venv/ready  ## open the notebooks in JupyterLab
	jupyter lab notebooks

.venv/ready: requirements.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: set PYTHON=...")'
	$(PYTHON) -m venv .venv
	$(if $(TORCH_INDEX),PIP_EXTRA_INDEX_URL=$(TORCH_INDEX)) python -m pip install --disable-pip-version-check --quiet --progress-bar off -r requirements.txt
	python -m pip install --disable-pip-version-check --quiet --no-deps --no-build-isolation -e .
	@touch $@
