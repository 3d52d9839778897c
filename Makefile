# make setup | demo | test | check | bench | drill      (PYTHON=python3.12 make setup to choose the interpreter)
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
DEMO := runs/data/fashion-mnist-mini
# For `make study`: a folder with the four IDX files of Fashion-MNIST, and how many runs are trained at once.
IDX ?= /usr/share/datasets/fashion-mnist
JOBS ?= 2
# For `make bench-gpu`: options of python -m benchmarks.gpu.
BENCH_GPU ?=

# DeepSpeed compiles nothing while it is installed; it runs on the CPU without its CUDA operators.
export DS_BUILD_OPS := 0

.DEFAULT_GOAL := help
.PHONY: help setup demo study test test-gpu check bench bench-gpu drill big dev-cluster clean

help:
	@echo "make demo    set up, pack real images, train through DeepSpeed, draw accuracy against data (minutes)"
	@echo "make study   45 small runs on Fashion-MNIST: three families, five sizes, three seeds (20 to 60 CPU-minutes)"
	@echo "make test    set up, run the tests"
	@echo "make test-gpu   the tests that need a GPU; without one they are skipped, and say so"
	@echo "make check   format, lint, types, imports, dead code"
	@echo "make bench   the benchmarks, each a ratio measured in one run"
	@echo "make bench-gpu   one GPU, in eight minutes; BENCH_GPU='--only steps' and others: BENCH_GPU=--help"
	@echo "make drill   the long drills: minutes to hours"
	@echo "make big     ViT-L, ViT-H, R152x2 and R50+ViT-L of full size, a few steps each, on this machine (20 GB, an hour)"
	@echo "make dev-cluster   a real Slurm of three nodes on this machine, to try submit, status and the rest on"
	@echo "make setup   the environment in $(VENV) alone"

setup: $(INSTALLED)

$(INSTALLED): requirements.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	    echo "Python 3.11 or newer is needed, $(PYTHON) is older or missing; try PYTHON=python3.12 make setup"; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
	    echo "$(PYTHON) has no venv module; on Debian and Ubuntu: apt-get install python3-venv"; exit 1; }
	@echo "installing into $(VENV): PyTorch is some gigabytes, so this takes a few minutes the first time"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --upgrade pip
	$(BIN)/pip install --quiet -r requirements.txt
	@# That folders beside the package could shadow it, which setuptools says at length, is what --editable is for.
	PYTHONWARNINGS='ignore:Editable installation' $(BIN)/pip install --quiet --editable '.[data,dev]'
	@touch $@
	@echo "set up; next: . $(BIN)/activate, which puts vit-dist on the PATH"

demo: setup
	@rm -rf runs/demo $(DEMO)
	@echo "== pack: 10,000 images of clothes (Fashion-MNIST, MIT licence) into shuffled WebDataset tars"
	$(BIN)/vit-dist data pack configs/data/fashion-mnist-mini $(DEMO)/train --split-name train --samples-per-shard 1k
	$(BIN)/vit-dist data pack configs/data/fashion-mnist-mini $(DEMO)/val --split-name test --samples-per-shard 1k
	@echo "== train: three model families at three dataset sizes, through DeepSpeed"
	$(BIN)/vit-dist study run demo --nproc 2
	@echo "== report: read back from the TensorBoard event files alone"
	$(BIN)/vit-dist study report demo
	@echo
	@echo "logs         runs/demo/*/tb/"
	@echo "checkpoints  $$(ls -d runs/demo/vit-*/checkpoints/step-* | tail -n 1)"
	@echo "TensorBoard  $(BIN)/tensorboard --logdir runs/demo"

study: setup
	@ls $(IDX)/train-images-idx3-ubyte* >/dev/null 2>&1 || { \
	    echo "$(IDX) has no Fashion-MNIST: apt-get install dataset-fashion-mnist, or make study IDX=DIR"; exit 1; }
	$(BIN)/vit-dist data pack $(IDX) runs/data/fashion-mnist/train --split-name train
	$(BIN)/vit-dist data pack $(IDX) runs/data/fashion-mnist/val --split-name test
	$(BIN)/vit-dist study run fashion-mnist --jobs $(JOBS)
	$(BIN)/vit-dist study report fashion-mnist

# Two at a time: most wait for processes of theirs. Those of Slurm have a cluster for each of the two, which they share,
# whose clock the others would slow; those of a file stay together, since networks have addresses of their own. To find
# them nothing else is imported.
test: setup
	$(BIN)/python -m pytest -m "not drill and not big and not slurm and not gpu" -n 2 --dist worksteal
	$(BIN)/python -m pytest -m "slurm and not drill" -n 2 --dist loadfile $$(grep -rl --include='test_*.py' mark.slurm tests)

# Without a GPU they are skipped, and say so.
test-gpu: setup
	$(BIN)/python -m pytest tests/gpu -m gpu

check: setup
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/vulture

bench: setup
	@for script in $$(grep -l __main__ benchmarks/*.py); do \
	    echo "== $$script"; $(BIN)/python -m benchmarks.$$(basename $$script .py) || exit 1; done

bench-gpu: setup
	$(BIN)/python -m benchmarks.gpu $(BENCH_GPU)

drill: setup
	$(BIN)/python -m pytest -m drill --timeout 7200 -s

big: setup
	@rm -f runs/drills/big.md
	$(BIN)/python -m pytest -m big -s
	@cat runs/drills/big.md

dev-cluster: setup
	@$(BIN)/python slurm/dev-cluster/dev_cluster.py up --nodes 3
	@echo
	@echo "next:  . $(BIN)/activate; eval \"\$$($(BIN)/python slurm/dev-cluster/dev_cluster.py env)\""
	@echo "       vit-dist submit demo --cluster dev --nodes 2      (make demo packs its images)"
	@echo "       vit-dist status --watch"
	@echo "       $(BIN)/python slurm/dev-cluster/dev_cluster.py kill n2      a node dies; revive n2 brings it back"
	@echo "end:   $(BIN)/python slurm/dev-cluster/dev_cluster.py down"

clean:
	rm -rf .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis build *.egg-info
