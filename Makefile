# Everything is made and kept in this checkout; the environment is .venv/ and nothing outside is touched.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
PIP_INSTALL := $(BIN)/python -m pip install --disable-pip-version-check --constraint constraints.txt

# The plain wheels of torch for Linux carry gigabytes of GPU libraries that offbeat does not use.
TORCH := $(shell grep '^torch==' constraints.txt)
TORCH_CPU_INDEX := https://download.pytorch.org/whl/cpu
ifeq ($(shell uname -s),Linux)
INSTALL_TORCH = $(PIP_INSTALL) --quiet --quiet '$(TORCH)+cpu' 2>/dev/null \
	|| $(PIP_INSTALL) --timeout 10 --retries 0 --extra-index-url $(TORCH_CPU_INDEX) '$(TORCH)+cpu' 2>/dev/null \
	|| $(PIP_INSTALL) '$(TORCH)'
else
INSTALL_TORCH = $(PIP_INSTALL) '$(TORCH)'
endif

# Coverage cannot see into compiled kernels, so the tests of the pure core run once more uncompiled.
CORE_TESTS = $(wildcard tests/pipeline/test_*.py)

SECONDS ?= 300

.PHONY: help setup demo test faults fuzz lint bench false-alarms quality stacks three-days
.DEFAULT_GOAL := help

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' Makefile

setup: $(READY) ## make .venv/ with the locked dependencies; the other targets do it by themselves
	@echo "$(VENV)/ is ready"

demo: $(READY) ## watch this machine's metrics, cause a burst of load, see the alert (2 minutes)
	@$(BIN)/offbeat demo

test: $(READY) ## run all tests; those that need Kafka say how to give it
	NUMBA_DISABLE_JIT=1 $(BIN)/pytest --quiet --cov --cov-report= $(CORE_TESTS)
	$(BIN)/pytest --cov --cov-append --cov-report=term --cov-fail-under=95

faults: $(READY) ## kill, stop, restart and cut off workers and servers, and write build/faults.json
	@PYTHONPATH=tests $(BIN)/python -m faults

fuzz: $(READY) ## damage batches of Kafka in ever new ways for 300 s (SECONDS=600: longer)
	@$(PIP_INSTALL) --quiet --quiet --group fuzz
	@mkdir -p build/fuzz/found
	NUMBA_DISABLE_JIT=1 PYTHONPATH=tests/pipeline/bus $(BIN)/python -m fuzz_columnar build/fuzz/corpus \
		-max_total_time=$(SECONDS) -max_len=300 -print_final_stats=1 -artifact_prefix=build/fuzz/found/

lint: $(READY) ## check style, format, types and the order of the floors
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: $(READY) ## measure, write build/bench.json and docs/performance.md (25 minutes, needs a Kafka)
	$(BIN)/python benchmarks/bench.py --page docs/performance.md

false-alarms: $(READY) ## what each alert rule is worth, on real series at OFFBEAT_DATA (1 minute); writes docs/false-alarms.md
	$(BIN)/python benchmarks/false_alarms.py --page docs/false-alarms.md

three-days: $(READY) ## three simulated days of a stream that trains itself, three times (7 minutes, needs a Kafka); writes docs/three-days.md
	$(BIN)/python benchmarks/three_days.py --page docs/three-days.md

quality: $(READY) ## how well detectors detect, on real series at OFFBEAT_DATA (15 minutes)
	$(BIN)/python benchmarks/quality.py --page docs/quality.md

stacks: $(READY) ## what it is worth to train and score many models in one stack (5 minutes); writes docs/performance.md
	$(BIN)/python benchmarks/stacks.py --page docs/performance.md

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
		echo "offbeat needs Python 3.11 or newer; '$(PYTHON)' is $$($(PYTHON) --version 2>&1 | tail -n 1)."; \
		echo "Install one and name it: make setup PYTHON=python3.12"; exit 1; } >&2
	@$(PYTHON) -m venv $(VENV) || { \
		echo "'$(PYTHON) -m venv' failed; on Debian and Ubuntu: apt-get install python3-venv"; exit 1; } >&2
	@echo "Setting up $(VENV)/, once: torch (about 200 MB) ..."
	@$(PIP_INSTALL) --quiet --quiet pip setuptools
	@$(INSTALL_TORCH)
	@echo "... and the other dependencies (about 200 MB) ..."
	@$(PIP_INSTALL) --quiet --quiet --no-build-isolation --editable '.[embedded,fast-produce,parquet,s3]' --group dev
	@touch $@
