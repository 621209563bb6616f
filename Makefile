# `make demo` and `make test` set up everything they need in .venv; nothing else has to be installed by hand.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Strict editable installs link file by file (static tools can follow them), so a new file needs a new install.
SOURCES := $(shell find edgeact quantize targets -name '*.py' -o -name '*.html' -o -name '*.json' -o -name '*.safetensors' | sort | cksum | cut -d' ' -f1)

PARALLEL := --numprocesses auto --maxprocesses 8 --dist worksteal

# Tests pass wrong types on purpose, and a test function's signature says little that its body does not.
TEST_TYPES := --allow-untyped-defs --allow-incomplete-defs --allow-untyped-calls --no-warn-unused-ignores \
	$(foreach code,arg-type call-arg var-annotated attr-defined no-any-return type-arg operator misc \
		type-var func-returns-value comparison-overlap unreachable,--disable-error-code $(code))

.PHONY: demo test test-all check format install clean
demo: $(VENV)/.demo-$(SOURCES)
	$(BIN)/edgeact export --target openvino --out bundles

test: $(VENV)/.dev-$(SOURCES)
	$(BIN)/pytest $(PARALLEL) -m "not slow" --durations 15

test-all: $(VENV)/.dev-$(SOURCES)
	$(BIN)/pytest $(PARALLEL) --hypothesis-profile thorough -o faulthandler_timeout=3600

check: $(VENV)/.dev-$(SOURCES)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy edgeact quantize targets
	$(BIN)/mypy $(TEST_TYPES) tests

format: $(VENV)/.dev-$(SOURCES)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

install: $(VENV)/.dev-$(SOURCES)

$(VENV)/bin/python:
	$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13) and "edgeact needs Python 3.11 to 3.13, found " + sys.version + "; name one with PYTHON=python3.11")'
	$(PYTHON) -m venv $(VENV)

# --config-settings: see SOURCES. constraints.txt is the one set of versions that is tested.
$(VENV)/.demo-$(SOURCES): pyproject.toml constraints.txt | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --config-settings editable_mode=strict -c constraints.txt -e '.[export,openvino]'
	rm -f $(VENV)/.demo-* && touch $@

$(VENV)/.dev-$(SOURCES): pyproject.toml constraints.txt | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --config-settings editable_mode=strict -c constraints.txt -e '.[dev]'
	rm -f $(VENV)/.dev-* $(VENV)/.demo-* && touch $@ $(VENV)/.demo-$(SOURCES)

clean:
	rm -rf $(VENV) build bundles *.egg-info
