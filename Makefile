# Two commands: `make study` runs the whole study on a real model, `make test` runs all the tests. Each sets itself up.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
OUT ?= runs/quick
STAMP := $(VENV)/.installed
FLOOR ?= 90

.PHONY: study test coverage audit setup clean

study: setup
	$(BIN)/ssah-lens study --profile quick --model smollm2-135m --out $(OUT)

test: setup
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/ssah-lens fetch smollm2-135m
	$(BIN)/python -m pytest -n 2 --dist loadfile --ignore tests/real $(COVERAGE)
	$(BIN)/python -m pytest tests/real

# All tests, with a floor under what the unit tests cover: before Python 3.12 tracing makes them a quarter slower.
coverage:
	$(MAKE) test COVERAGE="--cov --cov-report=term:skip-covered --cov-fail-under=$(FLOOR)"

# Looks up every pinned dependency in the Python advisory database: needs a network that reaches it (SECURITY.md).
audit:
	$(PYTHON) -m venv $(VENV)/audit
	$(VENV)/audit/bin/python -m pip install --quiet --disable-pip-version-check 'pip-audit>=2.9,<3'
	$(VENV)/audit/bin/pip-audit --requirement constraints.txt --no-deps --disable-pip

setup: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(None if sys.version_info >= (3, 11) else "ssah-lens needs Python 3.11 or newer; try: make PYTHON=python3.11 ...")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[test,notebook,eval,ray]'
	touch $@

clean:
	rm -rf $(VENV) runs
