# Each target runs the setup that it needs, and only once.
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready

.PHONY: demo test test-slow check docs format clean

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; assert sys.version_info >= (3, 11), "everest needs Python 3.11 or newer; set PYTHON="'
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $(READY)

demo: $(READY)
	$(BIN)/everest demo --output runs/demo --overwrite

test: $(READY)
	$(BIN)/pytest -n auto --dist worksteal -m 'not gpu and not slow'

test-slow: $(READY)
	$(BIN)/pytest -n auto -m 'not gpu'

check: $(READY)
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/pyright
	$(BIN)/pytest -q tests/test_sizes.py

docs: $(READY)
	$(BIN)/python docs/sphinx/page_parts.py
	$(BIN)/python -m sphinx -E -c docs/sphinx -W --keep-going --quiet docs build/docs

format: $(READY)
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

clean:
	rm -rf .venv build *.egg-info .pytest_cache .ruff_cache
