# Everything sets itself up: Python 3.11 or newer is all that must be there.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
# Most of what is installed is never imported: Python compiles what is, and pip needn't compile the rest.
PIP_INSTALL = python -m pip install --quiet --disable-pip-version-check --no-compile
INSTALL = $(BIN)/$(PIP_INSTALL)

.PHONY: demo test tests test-slow test-image test-cloud test-changed test-oldest test-fake-cuda lint format docs bench clean

demo: $(VENV)/installed
	$(BIN)/yoloyard demo demo
	$(BIN)/yoloyard train --model yolo11n --data demo/data.yaml --imgsz 320 --epochs 12 --batch 8 --name demo --exist-ok
	$(BIN)/yoloyard predict --weights runs/demo/weights/best.safetensors demo/images/val/000?.jpg --name demo-images

# SkyPilot is installed while lint runs: each of the two has a core.
test: $(VENV)/installed-dev
	$(MAKE) --jobs 2 lint .venv-cloud/installed
	$(MAKE) tests

# Two tests at a time, each with one thread: on two cores half the time of one after the other with both.
tests: $(VENV)/installed-dev .venv-cloud/installed
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses 2 --dist worksteal \
		-m "not slow and not gpu and not image and not fake_cuda"

test-slow: $(VENV)/installed-dev .venv-cloud/installed .venv-clients/installed
	$(BIN)/python tests/passed.py networks runs exports plans jobs hosts rehearsal downloads

# Builds the cpu image and uses it; installs buildah and podman where it may, says SKIP and why where not.
test-image: $(VENV)/installed-dev
	$(BIN)/python tests/passed.py image

# A fake cloud behind SkyPilot: at most 10 minutes; says SKIP and why where there can be none.
test-cloud: $(VENV)/installed-dev .venv-cloud/installed
	$(BIN)/python tests/passed.py cloud

# Those of test-slow, test-image and test-cloud that depend on a file which has changed since they passed; tests/passed notes it.
test-changed: $(VENV)/installed-dev .venv-cloud/installed .venv-clients/installed
	$(BIN)/python tests/passed.py

# SkyPilot, what its hosts need (Ray), and a fake AWS. The rest comes from $(VENV), whose packages it sees after its own.
# Where it can't be installed, the tests that need it are skipped.
.venv-cloud/installed: | $(VENV)/installed-dev
	$(PYTHON) -m venv .venv-cloud
	.venv-cloud/bin/$(PIP_INSTALL) "skypilot[aws,kubernetes,lambda,runpod]==0.14.1" \
		"moto[server]>=5.1" uv "setuptools<70" "click<8.3" "ray[default]==2.9.3; python_version < '3.12'" && \
	$(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"), "$(CURDIR)/src", sep="\n")' \
		> "$$(.venv-cloud/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/of-yoloyard.pth" && \
	touch $@ || echo "SKIP: SkyPilot can't be installed; the tests that need it are skipped"

# The client of Triton's makers, to which the server must look like one of theirs. Where it can't be installed, its test
# is skipped.
.venv-clients/installed:
	$(PYTHON) -m venv .venv-clients
	.venv-clients/bin/$(PIP_INSTALL) "tritonclient[http]>=2.50" && touch $@ || \
	echo "SKIP: tritonclient can't be installed; the test that needs it is skipped"

# What a training asks of a CUDA device, traced without one by a CUDA build of torch, in an environment of its own.
test-fake-cuda: .venv-fake-cuda/installed
	.venv-fake-cuda/bin/python -m pytest -m fake_cuda tests/fake_cuda

.venv-fake-cuda/installed: pyproject.toml
	$(PYTHON) -m venv .venv-fake-cuda
	.venv-fake-cuda/bin/python -m pip install --quiet --disable-pip-version-check torch==2.14.1 pytest --editable .
	touch $@

# The oldest torch that is promised, in an environment of its own.
test-oldest:
	$(MAKE) VENV=.venv-oldest OLDEST=1 tests

lint: $(VENV)/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/installed-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# All pages of docs/ as a site, in site/; fails on a link that leads nowhere.
docs: .venv-docs/installed
	NO_MKDOCS_2_WARNING=1 .venv-docs/bin/mkdocs build --strict

.venv-docs/installed: docs/requirements.txt
	$(PYTHON) -m venv .venv-docs
	.venv-docs/bin/python -m pip install --quiet --disable-pip-version-check --requirement docs/requirements.txt
	touch $@

# Beside ultralytics, in an environment that holds both; writes benchmarks/RESULTS.md. Two hours and more on an idle machine.
bench: .venv-bench/installed trees/data.yaml demo/data.yaml
	.venv-bench/bin/python benchmarks/run_all.py

.venv-bench/installed: pyproject.toml
	$(PYTHON) -m venv .venv-bench
	.venv-bench/bin/python -m pip install --quiet ultralytics-opencv-headless==8.4.190 fastapi --editable ".[tensorboard,serve,openvino]"
	touch $@

demo/data.yaml: .venv-bench/installed
	.venv-bench/bin/yoloyard demo demo

trees/data.yaml: .venv-bench/installed
	.venv-bench/bin/python -m pip download --quiet --no-deps deepforest==2.1.0
	.venv-bench/bin/python examples/trees/prepare.py deepforest-2.1.0-py3-none-any.whl --out trees

$(VENV)/bin/python:
	$(PYTHON) -c 'import sys; sys.exit("yoloyard needs Python 3.11 or newer, this is " + sys.version if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv $(VENV)

CONSTRAINTS = $(if $(OLDEST),constraints-oldest.txt,constraints.txt)

$(VENV)/installed: $(VENV)/bin/python pyproject.toml $(CONSTRAINTS)
	$(INSTALL) --constraint $(CONSTRAINTS) --editable ".[tensorboard]"
	touch $@

$(VENV)/installed-dev: $(VENV)/bin/python pyproject.toml $(CONSTRAINTS)
	$(INSTALL) --constraint $(CONSTRAINTS) --editable ".[dev]"
	touch $@ $(VENV)/installed

clean:
	rm -rf .venv .venv-oldest .venv-bench .venv-fake-cuda .venv-cloud .venv-clients .venv-docs site demo trees runs build src/*.egg-info
