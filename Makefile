# `make demo` and `make test` on a bare machine: Python 3.11 or 3.12 with venv, gcc, g++; all else goes into .venv.
SHELL := bash
.SHELLFLAGS := -eu -o pipefail -c
.DELETE_ON_ERROR:
.PHONY: demo test long lint setup

PYTHON ?= python3
ACCELERATOR := $(shell nvidia-smi --list-gpus >/dev/null 2>&1 && echo gpu || echo cpu)
BIN := .venv/bin
INSTALLED := .venv/installed-$(ACCELERATOR)
COMPILED := .venv/deepspeed-op

# DeepSpeed loads its compiled op only from this folder and with this ninja; another one compiles it anew each time.
export PATH := $(CURDIR)/$(BIN):$(PATH)
export TORCH_EXTENSIONS_DIR ?= $(CURDIR)/.venv/torch_extensions
export DEEPSPEED_OP := from deepspeed.comm.torch import build_shm_op; build_shm_op()

demo: setup  ## run every job on the embedded sample; ends with the path of the report
	$(BIN)/whyrank demo

test: lint  ## every check and every test but those of `make long`
	$(BIN)/pytest -m "not slow and not bench" --cov --cov-fail-under=95

long: setup  ## the tests that take minutes, and the benchmarks
	$(BIN)/pytest -m "slow or bench" --timeout=3600
	WHYRANK_FUZZ_CASES=10000 $(BIN)/pytest tests/unit/serve/test_any_request.py

lint: setup  ## format, lint, types, import contracts
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

setup: $(INSTALLED) $(if $(filter cpu,$(ACCELERATOR)),$(COMPILED))  ## .venv with everything; seconds when it is there

$(BIN)/pip:
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 13))' || { \
	  echo "Whyrank needs Python 3.11 or 3.12, but $(PYTHON) is $$($(PYTHON) --version 2>&1 || true);" \
	       "name another: make PYTHON=python3.11 $(MAKECMDGOALS)" >&2; exit 1; }
	$(PYTHON) -m venv .venv

# pip cannot override what a package asks for, so uv installs. It reads no pip settings: a folder of local wheels, from
# which a CPU torch may come, is handed over to it.
$(INSTALLED): $(BIN)/pip pyproject.toml constraints.txt
	@echo "Installing Whyrank for $(ACCELERATOR) into .venv (about 5 minutes and 5 GB the first time)"
	@$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt uv
	@links=$${PIP_FIND_LINKS:-$$($(BIN)/pip config get global.find-links 2>/dev/null || true)}; \
	if [ "$(ACCELERATOR)" = cpu ] && [ -n "$$links" ]; then \
	  export UV_FIND_LINKS=$${UV_FIND_LINKS:-$$(echo $$links | tr ' ' ,)}; \
	fi; \
	$(BIN)/uv pip install --python $(BIN)/python --compile-bytecode --constraint constraints.txt \
	  --editable '.[train,batch,serve,$(ACCELERATOR),dev]'
	@touch $@

$(COMPILED): constraints.txt | $(INSTALLED)
	@echo "Compiling DeepSpeed's shared-memory op for the CPU, once: about 2 minutes"
	@# An interrupted compilation leaves its lock behind, and the next one would wait for it for ever.
	@rm -f $(TORCH_EXTENSIONS_DIR)/deepspeed_shm_comm/lock
	@DS_ACCELERATOR=cpu $(BIN)/python -c "$$DEEPSPEED_OP" >.venv/deepspeed-op.log 2>&1 \
	  || { cat .venv/deepspeed-op.log >&2; exit 1; }
	@touch $@
