# Everything sets itself up: Python 3.11 or newer is all that must be there.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
INSTALL = $(BIN)/python -m pip install --quiet --disable-pip-version-check

.PHONY: demo test test-slow test-image test-oldest lint format bench clean

demo: $(VENV)/installed
	$(BIN)/yoloyard demo demo
	$(BIN)/yoloyard train --model yolo11n --data demo/data.yaml --imgsz 320 --epochs 12 --batch 8 --name demo --exist-ok
	$(BIN)/yoloyard predict --weights runs/demo/weights/best.safetensors demo/images/val/000?.jpg --name demo-pictures

test: $(VENV)/installed-dev lint
	$(BIN)/python -m pytest -m "not slow and not gpu and not image"

test-slow: $(VENV)/installed-dev
	$(BIN)/python -m pytest -m "slow and not gpu"

# Builds the cpu image and uses it; installs buildah and podman where it may, says SKIP and why where not.
test-image: $(VENV)/installed-dev
	tests/image/run.sh $(BIN)/python

# The oldest torch that is promised, in an environment of its own.
test-oldest:
	$(MAKE) VENV=.venv-oldest OLDEST=1 .venv-oldest/installed-dev
	.venv-oldest/bin/python -m pytest -m "not slow and not gpu and not image"

lint: $(VENV)/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/installed-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# On real pictures, beside ultralytics: needs its environment, see benchmarks/README.md.
bench: $(VENV)/installed
	$(BIN)/python benchmarks/trees.py --data trees/data.yaml --reference-python $(REFERENCE_PYTHON)

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
	rm -rf .venv .venv-oldest demo runs build src/*.egg-info
