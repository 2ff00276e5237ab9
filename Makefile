# Redline's commands. `make quickstart` trains and measures a model; `make test` checks everything.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
CONFIG ?= minigpt_quickstart
# Container images often set this, and then every rank compiles every module it imports at every start: a third of the
# speed. pip compiles nothing here (a minute for files of which a third is ever imported): the first import does.
export PYTHONDONTWRITEBYTECODE :=
# Two gloo ranks on a CPU; all GPUs where there are some.
GPUS   := $(shell nvidia-smi --list-gpus 2>/dev/null | grep -c '^GPU')
RANKS  ?= $(if $(filter-out 0,$(GPUS)),$(GPUS),2)

.PHONY: help install quickstart test test-faults test-peers check format schema bench-data bench-gpu clean

help:
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

$(VENV)/.python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "error: $(PYTHON) is $$($(PYTHON) -V); Redline needs Python 3.11 or newer (make PYTHON=python3.12 ...)"; exit 2; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info >= (3, 15))' || \
	  echo "warning: $$($(PYTHON) -V) is newer than what Redline was tested with (3.11 to 3.14)"
	$(PYTHON) -m venv $(VENV)
	@touch $@

$(VENV)/.requirements: $(VENV)/.python requirements.txt
	$(BIN)/pip install --quiet --no-compile --disable-pip-version-check -r requirements.txt
	@touch $@

$(VENV)/.requirements-dev: $(VENV)/.requirements requirements-dev.txt
	$(BIN)/pip install --quiet --no-compile --disable-pip-version-check -r requirements-dev.txt
	@touch $@

$(VENV)/.requirements-ray: $(VENV)/.requirements-dev requirements-ray.txt
	$(BIN)/pip install --quiet --no-compile --disable-pip-version-check -r requirements-ray.txt
	@touch $@

install: $(VENV)/.requirements  ## the environment in .venv; then: source .venv/bin/activate

quickstart: $(VENV)/.requirements  ## raw text -> tokenizer -> store -> trained, measured MiniGPT
	@PATH="$(CURDIR)/$(BIN):$$PATH" $(if $(filter-out 0,$(GPUS)),,DS_ACCELERATOR=cpu) $(BIN)/deepspeed --num_gpus $(RANKS) training/train.py \
	  --config $(CONFIG) --deepspeed ds_configs/zero2_bf16.json

check: $(VENV)/.requirements-dev  ## lint, types, layers, file sizes: a minute
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/basedpyright
	$(BIN)/lint-imports
	$(BIN)/codespell
	$(BIN)/python -m pytest -q tests/test_class_names.py tests/test_file_sizes.py tests/test_words.py

test: check  ## lint, types, layers, and the whole test suite
	$(BIN)/python -m pytest -n 2 --dist loadfile

test-faults: $(VENV)/.requirements-ray  ## killed workers of a Ray cluster, saves that crash, are killed, find the disk full: 20 minutes
	$(BIN)/python -m pytest tests/faults

test-peers: $(VENV)/.requirements-dev  ## TRL_DIR=CHECKOUT: TRL's own SFT tests on our trainer (15 minutes)
	$(BIN)/python -m pytest tests/peers -s

format: $(VENV)/.requirements-dev  ## ruff's formatter and fixes
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench-data: $(VENV)/.requirements-dev  ## INPUT=text.jsonl: the data benchmark to docs/results/data.md (40 minutes)
	$(BIN)/python -m training.benchmark data $(if $(INPUT),--input $(INPUT),--quick --output runs/bench-data/data.md)

bench-gpu: $(VENV)/.requirements-dev  ## on NVIDIA GPUs: their tests, memory, profiling overhead, speed against peers
	@test "$(GPUS)" != 0 || { echo "error: nvidia-smi lists no GPU here"; exit 2; }
	$(BIN)/python -m pytest tests/gpu
	$(BIN)/python -m training.benchmark memory --output docs/results/memory_gpu.md
	$(BIN)/python -m training.benchmark overhead --steps 2000 --output docs/results/overhead_gpu.md
	for size in 0.5b 1.5b; do $(BIN)/python -m training.benchmark peers --model $$size --situations pretrain \
	  --sides redline stock_bf16 trl --seq_len 4096 --batch 2 --rounds 3 --steps 20 --work_dir runs/peers-$$size \
	  --out docs/results/speed_gpu_$$size.md || exit; done
	$(BIN)/python -m training.benchmark advise --config qwen2.5_0.5b_pretrain --levers attention,loss-kernel,fused-layers

schema: $(VENV)/.requirements-dev  ## regenerate what is generated and checked in
	$(BIN)/python -m training.config.schema
	$(BIN)/python -m training.config.deepspeed_keys

clean:  ## remove the virtual environment, caches and token stores; runs/ is yours and stays
	rm -rf $(VENV) stores .ruff_cache .pytest_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
