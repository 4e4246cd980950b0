# make demo   environment, then the main job on the bundled model
# make test   environment, then every test
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo test lint browser peers clean

demo: $(VENV)/ready
	$(BIN)/pbe demo --out demo_out

# Threads that wait leave the cores to the other processes.
test: $(VENV)/ready
	OMP_WAIT_POLICY=passive $(BIN)/python -m pytest --numprocesses auto --maxprocesses 8 --dist loadfile --no-loadscope-reorder

lint: $(VENV)/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

# For the tests that open ComfyUI's page; chromium and npm come from the system.
browser: $(VENV)/ready
	npm install --silent --no-fund --no-audit --prefix $(VENV)/browser playwright-core

# For the tests and the benchmark that compare training data with the paper's: its own libraries, without what
# they would drag in (imgaug fails with numpy 2). albumentations 0.4.3 needs a setuptools of its time to build.
peers: $(VENV)/ready
	$(BIN)/python -m pip install --quiet --upgrade --target $(VENV)/peers 'setuptools<81' wheel
	PYTHONPATH=$(CURDIR)/$(VENV)/peers $(BIN)/python -m pip install --quiet --no-deps --no-build-isolation \
		albumentations==0.4.3 bezier==2024.6.20

# torch first: later packages then find it there and fetch no other build.
$(VENV)/ready: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch torchvision
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

clean:
	rm -rf $(VENV) demo_out
