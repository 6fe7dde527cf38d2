PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
COMPILED := $(VENV)/.compiled
TOOLS := $(VENV)/.tools

.PHONY: run test lint annotate clean

# The server on 127.0.0.1:22133, its data in ./data.
run: $(COMPILED)
	$(BIN)/darner --data data

test: $(COMPILED) $(TOOLS)
	$(BIN)/python -m pytest

lint: $(COMPILED) $(TOOLS)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/mypy --strict bench
	$(BIN)/lint-imports

# Which lines of the compiled part call into Python: darner/_proto.html.
annotate: $(TOOLS)
	$(BIN)/cython --annotate -3 darner/_proto.pyx

clean:
	rm -rf $(VENV) build *.egg-info darner/*.so darner/_proto.c darner/_proto.html

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip

$(COMPILED): $(BIN)/python pyproject.toml setup.py darner/_proto.pyx
	$(BIN)/python -m pip install --quiet --editable .
	touch $@

# pylibmc has no wheels for every machine, and building it wants libmemcached's headers: its tests are
# skipped where it is missing. `darner[bench]` adds to the darner that is installed already what bench/ needs.
$(TOOLS): $(COMPILED) pyproject.toml
	$(BIN)/python -m pip install --quiet --group dev --group clients 'darner[bench]'
	$(BIN)/python -m pip install --quiet pylibmc || echo "pylibmc is not to be had: its tests will be skipped"
	touch $@
