# make install | run | test | lint | clean. ARGS are passed on: make run ARGS="--set pretrain.steps=100"
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
PIP := $(VENV)/bin/python -m pip --disable-pip-version-check install --quiet --constraint constraints.txt

.PHONY: install run test lint clean

install: $(VENV)/installed

run: install
	$(VENV)/bin/bitlm run --preset tiny $(ARGS)

# The whole suite takes two processes; for a part, a second one costs more than it saves.
test: $(VENV)/installed-test
	$(VENV)/bin/python -m pytest $(or $(ARGS),-n 2)

lint: $(VENV)/installed-dev
	$(VENV)/bin/ruff check . && $(VENV)/bin/ruff format --check .

$(VENV)/installed: pyproject.toml constraints.txt
	@echo "installing into $(VENV): about two minutes and 2.1 GB"
	$(PYTHON) -m venv $(VENV)
	$(PIP) --editable .
	touch $@

$(VENV)/installed-test: $(VENV)/installed
	$(PIP) --editable ".[test]"
	touch $@

$(VENV)/installed-dev: $(VENV)/installed
	$(PIP) --editable ".[dev]"
	touch $@

# What make, pip and the tools have left in this folder. Artifacts stay: they can be days of work.
clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .ruff_cache .hypothesis
	find bitlm tasks flows tests benchmarks -name __pycache__ -prune -exec rm -rf {} +
