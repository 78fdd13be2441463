# Everything from a bare checkout: `make demo`, `make test`. Set-up happens once, in .venv.
SHELL := /bin/bash
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/ready
# Bytecode is compiled once, then every process starts in half the time.
unexport PYTHONDONTWRITEBYTECODE

# A GPU decides which torch and which faiss are installed. PIP_FIND_LINKS may offer a CPU wheel.
DEVICE := $(shell nvidia-smi -L >/dev/null 2>&1 && echo gpu || echo cpu)
UV := $(shell command -v uv 2>/dev/null)
WHEELS := $(if $(filter cpu,$(DEVICE)),$(PIP_FIND_LINKS))
ifneq ($(UV),)
  INSTALL := UV_FIND_LINKS='$(PIP_FIND_LINKS)' $(UV) pip install --quiet --python $(BIN)/python
  TORCH := $(if $(WHEELS),torch==2.13.0,--torch-backend=auto torch)
else
  INSTALL := $(BIN)/python -m pip install --quiet
  TORCH := $(if $(WHEELS),torch==2.13.0,torch \
    $(if $(filter cpu,$(DEVICE)),--extra-index-url https://download.pytorch.org/whl/cpu))
endif

.PHONY: demo test lint clean
demo: $(READY)
	$(BIN)/python tools/demo.py $(if $(FEATURES),features=$(FEATURES) seeds=3) $(ARGS)

test: $(READY)
	$(BIN)/python -m pytest -n 2 --dist loadfile $(ARGS)

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

$(READY): pyproject.toml
	@echo "Setting up .venv ($(DEVICE)) ..."
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(INSTALL) $(TORCH) -e '.[$(DEVICE),dev]'
	@touch $(READY)

clean:
	rm -rf .venv runs
