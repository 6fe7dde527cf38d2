PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
COMPILED := $(VENV)/.compiled
TOOLS := $(VENV)/.tools
# What Cython reads: with a .pxd beside it, a .py is compiled too.
TYPES := $(shell find darner -name '*.pxd')
TRANSLATED := $(wildcard darner/*.pyx $(TYPES:.pxd=.py))

# Thousands of servers are started by the tests: to compile their modules anew each time is a fifth of a start.
export PYTHONDONTWRITEBYTECODE :=

.PHONY: run cluster test test-long test-all lint docs wheel wheels deb annotate fuzz clean

# The server on 127.0.0.1:22133, its data in ./data.
run: $(COMPILED)
	$(BIN)/darner --data data

# Three nats-servers and two darners with their queues in them; the ports are printed. Its data in ./data/cluster.
cluster: $(COMPILED) $(TOOLS)
	$(BIN)/python examples/cluster/local.py

# Suites that hold before a cluster, too, but for what is marked `leveldb` in them.
IN_CLUSTER = $(addprefix tests/wire/test_,wire.py wire_any.py wire_dedup.py wire_defer.py wire_fetch.py wire_queues.py \
	wire_store.py wire_tokens.py wire_configure.py wire_configured.py statistics.py)
# Those that take minutes there, and find more of the wire than of the cluster.
LONG_IN_CLUSTER = $(addprefix tests/wire/test_wire_,framing.py hostile.py manage.py settings.py turns.py) \
	tests/clients/test_clients.py

# Tests mostly wait, so each core has two; what measures time has the machine to itself.
WORKERS = $(shell echo $$((2 * $$(nproc))))
test: $(COMPILED) $(TOOLS)
	$(BIN)/python -m pytest --numprocesses $(WORKERS) --dist worksteal -m "not long and not alone"
	$(BIN)/python -m pytest -m "alone and not long"
	$(BIN)/python -m pytest --store cluster --numprocesses $(WORKERS) -m "not long and not alone" $(IN_CLUSTER)

# What takes minutes or hours: in CI it is left out. 20,000 examples of the queue model, 50 power cuts on each file
# system, 200 kills, and what else is marked so.
test-long: $(COMPILED) $(TOOLS)
	$(BIN)/python -m pytest -m long
	$(BIN)/python -m pytest --store cluster --numprocesses $(WORKERS) -m "not long and not alone" $(LONG_IN_CLUSTER)
	$(BIN)/python -m pytest --store cluster --numprocesses $(WORKERS) -m long $(IN_CLUSTER)
	DARNER_KILLS=200 $(BIN)/python -m pytest --timeout 1800 tests/crash/test_ledger.py tests/crash/test_client_ledger.py
	DARNER_EXAMPLES=2000 $(BIN)/python -m pytest --timeout 3600 tests/model/test_command_model.py

# The suite under every CPython from 3.11 on that this machine has.
test-all:
	set -e; pythons=$$(wheels/pythons); for python in $$pythons; do \
	    $(MAKE) PYTHON=$$python VENV=.venv-$$(basename $$python) test; \
	done

lint: $(COMPILED) $(TOOLS)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/mypy --strict bench
	$(BIN)/lint-imports

# The docs site, in build/docs.
docs: $(COMPILED) $(TOOLS)
	$(BIN)/python -m pip install --quiet --group docs
	$(BIN)/sphinx-build --quiet --fail-on-warning --fresh-env docs build/docs

# A wheel for PYTHON, built and proved; and one for every CPython from 3.11 on that this machine has.
wheel:
	wheels/build $(PYTHON)

wheels:
	wheels/build

# A package for this Debian, in deb/dist, of the wheel for its python3.
deb:
	wheels/build /usr/bin/python3
	deb/build

# Which lines of what is compiled call into Python: the .html beside each.
annotate: $(TOOLS)
	$(BIN)/cython --annotate -3 $(TRANSLATED)

# The compiled parser and the readers of records under libFuzzer and AddressSanitizer, each for so long.
FUZZ_SECONDS ?= 60
fuzz: $(TOOLS)
	$(BIN)/python -m pip install --quiet --group fuzz
	fuzz/run parser $(FUZZ_SECONDS)
	fuzz/run records $(FUZZ_SECONDS)

clean:
	rm -rf .fuzz .venv* build deb/dist wheels/dist *.egg-info
	find darner -name templates -prune -o \( -name '*.so' -o -name '*.c' -o -name '*.html' \) -print | xargs rm -f

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip

$(COMPILED): $(BIN)/python pyproject.toml setup.py $(TRANSLATED) $(TYPES)
	$(BIN)/python -m pip install --quiet --editable .
	touch $@

# pylibmc has no wheels for every machine, and building it wants libmemcached's headers: its tests are
# skipped where it is missing, and so are those of Node's memcached. The extras add to the darner that is
# installed already what bench/, metrics and the page need.
$(TOOLS): $(COMPILED) pyproject.toml
	$(BIN)/python -m pip install --quiet --group dev --group clients --group examples --group celery-suite \
	    'darner[bench,celery,dramatiq,metrics,nats,taskiq,web]'
	$(BIN)/python -m pip install --quiet pylibmc || echo "pylibmc is not to be had: its tests will be skipped"
	npm install --silent --no-audit --no-fund --prefix $(VENV)/node memcached@2.2.2 || \
	    echo "Node's memcached is not to be had: its tests will be skipped"
	touch $@
