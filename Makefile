# Everything runs inside .venv, which the targets build for themselves.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: help quickstart test chaos gpu-check tables lint lock advisories clean

help:
	@echo "make quickstart  audit the small model that ships with the package; the result is in runs/quickstart"
	@echo "make test        the test suite, without the slow and the GPU tests"
	@echo "make chaos       tests that kill processes and start clusters; minutes"
	@echo "make gpu-check   tests that need a CUDA device"
	@echo "make tables      the tables of the docs anew, two to three hours; make tables ONLY='cascade decisions' makes these"
	@echo "make lint        ruff and mypy"
	@echo "make lock        write infra/requirements.lock anew, with the versions that .venv holds"
	@echo "make advisories  ask the advisory databases about what is locked; needs the internet"
	@echo "make clean       remove .venv, caches and build leftovers; runs/ stays"

# Three stamps, so that an interrupted step is done again: the environment, the product, the developer's tools.
$(VENV)/.created:
	@command -v $(PYTHON) >/dev/null || { echo "$(PYTHON) was not found: sharpaudit needs Python 3.11 or newer, try: make PYTHON=/path/to/python3.11" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "$(PYTHON) is $$($(PYTHON) --version 2>&1): sharpaudit needs Python 3.11 or newer, try: make PYTHON=python3.11" >&2; exit 1; }
	@$(PYTHON) -m venv --clear $(VENV)
	@touch $@

$(VENV)/.installed: pyproject.toml $(VENV)/.created
	@echo "Installing sharpaudit and what it needs into $(VENV): some minutes and up to 7 GB, once"
	@$(BIN)/python -m pip install --quiet --editable ".[cpu]"
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	@$(BIN)/python -m pip install --quiet --editable ".[cpu,dev]"
	@touch $@

quickstart: $(VENV)/.installed
	$(BIN)/sharpaudit run configs/audits/quickstart.toml --out runs/quickstart

test: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -m "not chaos and not gpu" --numprocesses 2 --dist loadfile --no-loadscope-reorder

# In the order of their names: files of one long test would else come last, on one core.
chaos: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -m chaos --numprocesses 2 --dist loadfile --no-loadscope-reorder --timeout 1500 --durations 15

gpu-check: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -m gpu --timeout 600

tables: $(VENV)/.installed-dev
	$(BIN)/sharpaudit bench tables --into docs $(ONLY:%=--only %)

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# The versions of .venv, with which the tests passed. Which of them are needed depends on the platform and the Python.
lock: $(VENV)/.installed-dev
	$(BIN)/python -m pip install --quiet "pip-tools>=7.4"
	$(BIN)/python -m pip freeze --exclude-editable > $(VENV)/versions.txt
	CUSTOM_COMPILE_COMMAND="make lock" $(BIN)/python -m piptools compile --quiet --rebuild --generate-hashes --strip-extras \
	  --allow-unsafe --no-emit-index-url --no-emit-find-links --no-annotate --constraint $(VENV)/versions.txt \
	  --extra cpu --output-file infra/requirements.lock pyproject.toml

advisories: $(VENV)/.installed-dev
	$(BIN)/python -m pip install --quiet "pip-audit>=2.7"
	$(BIN)/python -m pip_audit --disable-pip --require-hashes --requirement infra/requirements.lock

clean:
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .coverage
