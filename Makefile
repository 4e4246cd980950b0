# make demo   environment, then the main job on the bundled model
# make test   environment, then the tests
# make long   environment, then those that take a minute or more for one thing
# make pictures   environment, then every picture in the repository that shows the bundled model
# make pack   the archive for the Comfy Registry, checked; fails while pyproject.toml names no publisher
# make soak   environment, then hours: the long tests, hostile files through every way in, properties with TIMES as
#             many examples, ROUNDS kills, PROMPTS in a row, fuzzing for MINUTES
# make supply   vulnerabilities, licences and bill of materials of what is installed, in supply_out/
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin

MINUTES ?= 30
TIMES ?= 50
ROUNDS ?= 50
PROMPTS ?= 200
DATA ?=

.PHONY: demo test long pictures pack soak supply lint browser peers clean

demo: $(VENV)/ready
	$(BIN)/pbe demo --out demo_out

# Threads that wait leave the cores to the other processes.
test: $(VENV)/ready
	OMP_WAIT_POLICY=passive $(BIN)/python -m pytest --numprocesses auto --maxprocesses 8 --dist loadfile --no-loadscope-reorder

long: $(VENV)/ready
	OMP_WAIT_POLICY=passive $(BIN)/python -m pytest -m long

# With a ComfyUI and a browser as the tests have them; with DATA=FOLDER, a set that `pbe-train prepare demo` has made,
# the table of figures as well (ten minutes).
pictures: $(VENV)/ready
	OMP_WAIT_POLICY=passive $(BIN)/python -m docs.pictures $(if $(DATA),--data '$(DATA)')

# The registry's own tool, in an environment of its own: it shares no dependency with the pack.
pack: $(VENV)/ready
	test -x $(VENV)/registry/bin/comfy || ( $(PYTHON) -m venv $(VENV)/registry && \
		$(VENV)/registry/bin/python -m pip install --quiet comfy-cli )
	$(VENV)/registry/bin/comfy --skip-prompt --no-enable-telemetry node pack
	$(BIN)/python .github/registry.py pack node.zip
	$(BIN)/python .github/registry.py metadata

# What fails is left in soak_out/: examples, which are tried first the next time, and the fuzzer's files. One after
# another whatever fails, and the exit code tells of all.
soak: export OMP_WAIT_POLICY := passive
soak: $(VENV)/ready
	$(BIN)/python -m pip install --quiet atheris
	mkdir -p soak_out/corpus
	failed=0; \
	$(MAKE) long || failed=1; \
	TIMES=$(TIMES) $(BIN)/python -m pytest --hypothesis-show-statistics tests/property \
		tests/nodes/test_prompts_in_comfyui.py || failed=1; \
	ROUNDS=$(ROUNDS) PROMPTS=$(PROMPTS) $(BIN)/python -m pytest -s tests/soak/kills.py tests/soak/faults_of_runs.py \
		tests/soak/faults_in_comfyui.py || failed=1; \
	EVERY_ENTRY=1 EVERY_PAIR=1 $(BIN)/python -m pytest -q tests/pbe_model/test_hostile.py \
		tests/nodes/test_native.py::test_samplers_and_schedulers || failed=1; \
	$(BIN)/python -m tests.soak.fuzz_torch_file -max_total_time=$$(($(MINUTES) * 60)) -timeout=5 \
		-rss_limit_mb=2048 -max_len=8192 -artifact_prefix=soak_out/ soak_out/corpus tests/soak/corpus || failed=1; \
	exit $$failed

# In an environment of its own. --strict: a package that could not be looked up is a failure, not a line.
supply: $(VENV)/ready
	test -x $(VENV)/supply/bin/pip-audit || ( $(PYTHON) -m venv $(VENV)/supply && \
		$(VENV)/supply/bin/python -m pip install --quiet pip-audit pip-licenses cyclonedx-bom )
	mkdir -p supply_out
	$(VENV)/supply/bin/pip-licenses --python=$(BIN)/python --with-urls --order=license --format=markdown \
		--output-file=supply_out/licences.md
	$(VENV)/supply/bin/cyclonedx-py environment --pyproject pyproject.toml --output-file supply_out/sbom.cdx.json \
		$(BIN)/python
	$(VENV)/supply/bin/pip-audit --strict --path $(wildcard $(VENV)/lib/python3*/site-packages)

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
	rm -rf $(VENV) demo_out soak_out supply_out
