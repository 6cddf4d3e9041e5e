# Every target does its own set-up; nothing but Python 3.10-3.13 and make is needed.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
FAST := tests/schedule tests/plugins tests/house tests/report tests/pair tests/exactness/test_oracles.py tests/matrix/test_planning.py
INSTALLED := $(VENV)/.installed
CHECKPOINTS := compat_matrix/flowblend_research/checkpoints/reference-ltx

.PHONY: help install demo test test-all test-fast test-install check house bench bench-frontier matrix paper-table train-reference train-reference-ltx train-reference-distilled behaviour-card full-size clean

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /\1\t/' | expand -t 18

$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable ".[test,dev]"
	@touch $@

install: $(INSTALLED)  ## create .venv with the tested versions

demo: $(INSTALLED)  ## FlowBlending on the embedded pair: videos and a report in out/demo
	$(BIN)/flowblend matrix run --pair reference --out out/demo

test: $(INSTALLED)  ## all tests but the slowest (tests/slow.txt), in two processes
	$(BIN)/python -m pytest -n 2 --dist loadfile -m "not slow"

test-all: $(INSTALLED)  ## all tests, in two processes
	$(BIN)/python -m pytest -n 2 --dist loadfile

test-fast: $(INSTALLED)  ## tests for the inner loop: one of each kind, in less than a minute
	$(BIN)/python -m pytest -n 2 --dist loadfile -m "not slow" $(FAST)

test-install: $(INSTALLED)  ## the wheel without extras, in a new environment of its own (downloads packages)
	FLOWBLEND_TEST_INSTALL=1 $(BIN)/python -m pytest tests/install

check: $(INSTALLED)  ## ruff, pyright, import contracts
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright
	$(BIN)/lint-imports

house:  ## what the house rules count: lines, Any, long files and functions, docstrings; -v in tests/house/counts.py lists places
	$(PYTHON) tests/house/counts.py

bench: $(INSTALLED)  ## the router's overhead, side by side with a plain call and a diffusers hook
	$(BIN)/python -m pytest tests/benchmarks --benchmark-only

matrix: $(INSTALLED)  ## every adapter and pair of adapters on every schedule, both embedded pairs: out/matrix; resumes
	$(BIN)/flowblend matrix run --pair reference --pair reference-unet --all-adapters --depth 2 --workers 2 --cell-timeout 120 --resume --out out/matrix

bench-frontier: $(INSTALLED)  ## computed stacks against every single technique at equal fidelity: out/frontier (20 minutes)
	OMP_NUM_THREADS=1 $(BIN)/python -m flowblend_research.frontier --out out/frontier

paper-table: $(INSTALLED)  ## a table like the paper's on the embedded pair: docs/paper_table.md (some minutes)
	$(BIN)/python -m flowblend_research.paper_table

train-reference: $(INSTALLED)  ## train the embedded pair from nothing (hours on a CPU); resumes
	$(BIN)/python -m flowblend_research.training.wan.train --out out/train-reference

train-reference-ltx: $(INSTALLED)  ## train the LTX pair (a day on two cores; first read its trial log, docs/reference_trials.md); goes on from the committed checkpoints, or from nothing with CHECKPOINTS=
	@mkdir -p out && { [ -e out/train-reference-ltx ] || [ -z "$(CHECKPOINTS)" ] || cp -r $(CHECKPOINTS) out/train-reference-ltx; }
	$(BIN)/python -m flowblend_research.training.ltx.train --out out/train-reference-ltx

train-reference-distilled: $(INSTALLED)  ## distil the embedded pair to 8 and 4 steps (an hour on a CPU); resumes
	$(BIN)/python -m flowblend_research.training.distillation.train --out out/train-reference-distilled
	$(BIN)/python -m flowblend_research.training.distillation.behaviour

behaviour-card: $(INSTALLED)  ## measure the embedded pair and write its behaviour card
	$(BIN)/python -m flowblend_research.training.wan.behaviour

full-size: $(INSTALLED)  ## times and memory at the published sizes, random weights, one large CUDA GPU: docs/full_size_measured.md (12 minutes; ARGS="--only wan")
	$(BIN)/python -m flowblend_research.full_size $(ARGS)

clean:  ## remove what the other targets made, but no weights and no checkpoints
	rm -rf $(VENV) out/demo .pytest_cache .ruff_cache .hypothesis .benchmarks dist
