# Everything from a bare checkout: `make demo`, `make test`. Set-up happens once, in .venv.
SHELL := /bin/bash
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/ready
# Bytecode is compiled once, then every process starts in half the time.
unexport PYTHONDONTWRITEBYTECODE

# A GPU decides which torch and which faiss are installed.
DEVICE := $(shell nvidia-smi -L >/dev/null 2>&1 && echo gpu || echo cpu)
EXTRAS := $(DEVICE),dev
ifeq ($(DEVICE),gpu)
  TORCH := torch
else ifneq ($(PIP_FIND_LINKS),)
  TORCH := torch==2.13.0
else
  TORCH := torch --extra-index-url https://download.pytorch.org/whl/cpu
endif
INSTALL := $(shell command -v uv >/dev/null 2>&1 \
  && echo 'UV_FIND_LINKS=$(PIP_FIND_LINKS) uv pip install --quiet --python $(BIN)/python' \
  || echo '$(BIN)/python -m pip install --quiet')

.PHONY: demo test lint clean
demo: $(READY)
	$(BIN)/python tools/demo.py $(if $(FEATURES),features=$(FEATURES) seeds=3) $(ARGS)

test: $(READY)
	$(BIN)/python -m pytest $(ARGS)

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

$(READY): pyproject.toml
	@echo "Setting up .venv ($(DEVICE)) ..."
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(INSTALL) $(TORCH) -e '.[$(EXTRAS)]'
	@touch $(READY)

clean:
	rm -rf .venv runs
