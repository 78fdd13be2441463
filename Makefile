# Everything from a bare checkout: `make demo`, `make test`. Set-up happens once, in .venv.
SHELL := /bin/bash
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/ready
# Bytecode is compiled once, then every process starts in half the time.
unexport PYTHONDONTWRITEBYTECODE

# A GPU decides which torch and which faiss are installed. PIP_FIND_LINKS may offer a CPU wheel.
DEVICE := $(shell nvidia-smi -L >/dev/null 2>&1 && echo gpu || echo cpu)
WHEELS = $(if $(filter cpu,$(DEVICE)),$(PIP_FIND_LINKS))
TORCH = $(if $(WHEELS),torch==2.13.0,--torch-backend=auto torch)

# What tests compare with, without the old versions of other packages that it asks for.
ORACLES := aisfx==0.1.2 torchvggish==0.2

.PHONY: demo demo-wheel docs test test-python other-python gpu-check lint clean
demo: $(READY)
	$(BIN)/python tools/demo.py $(if $(FEATURES),features=$(FEATURES) seeds=3) $(if $(VIDEOS),videos=$(VIDEOS)) $(ARGS)

# The demo as a user of the wheel runs it: in an empty folder, with nothing of the checkout.
demo-wheel: export PYTHONPATH = $(CURDIR)/build/wheel/installed
demo-wheel: $(READY)
	rm -rf build/wheel
	$(BIN)/uv build --quiet --wheel --out-dir build/wheel
	$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --target $(PYTHONPATH) build/wheel/*.whl
	avvp=$(PYTHONPATH)/bin/avvp; folder=$$(mktemp -d); code=0; \
	(cd $$folder && $$avvp demo $(ARGS)) || code=$$?; rm -rf $$folder; exit $$code

docs: $(READY)
	$(BIN)/python docs/reference.py build/docs
	$(BIN)/zensical build --strict --config-file build/docs/mkdocs.yml
	rm -rf site && mv build/docs/site site

# Many processes of tests share the cores: threads of torch would only wait for each other.
test test-python: export OMP_NUM_THREADS = 1
test: $(READY)
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder --durations=10 $(ARGS)

# The tests that start no launcher, on another Python: make test-python PYTHON=python3.12
OTHER = .venv-$(shell $(PYTHON) -c 'import platform; print(platform.python_version())')
test-python: other-python
	$(OTHER)/bin/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder -m "not launch and not shared" $(ARGS)

other-python: $(OTHER)/ready
$(OTHER)/ready: pyproject.toml
	test -x $(OTHER)/bin/uv || { $(PYTHON) -m venv $(OTHER) && $(OTHER)/bin/python -m pip install --quiet uv; }
	UV_FIND_LINKS='$(PIP_FIND_LINKS)' $(OTHER)/bin/uv pip install --quiet --python $(OTHER)/bin/python \
	  $(TORCH) -e '.[$(DEVICE),dev]'
	touch $@

# What works on this machine's GPU, and how fast. A container may lack nvidia-smi.
gpu-check: DEVICE = gpu
gpu-check: $(READY)
	$(BIN)/python -m tools.bench.gpu_check $(ARGS)

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

$(READY): pyproject.toml
	@echo "Setting up .venv ($(DEVICE)) ..."
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet uv
	UV_FIND_LINKS='$(PIP_FIND_LINKS)' $(BIN)/uv pip install --quiet --python $(BIN)/python \
	  $(TORCH) -e '.[$(DEVICE),dev,docs]'
	$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps $(ORACLES)
	@touch $(READY)

clean:
	rm -rf .venv .venv-* build runs site
