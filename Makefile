# One command each: `make demo` shows the runner at work, `make test` runs everything that continuous integration runs.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
WORKERS ?= 4

.PHONY: demo test check unit fuzz large contract docker e2e thorough lint format types clean

$(STAMP): pyproject.toml
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || { echo "python3-venv is missing: apt-get install python3-venv"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -e '.[dev]'
	@touch $@

demo: $(STAMP)
	$(BIN)/python -m examples.demo

test: lint types unit fuzz large contract docker e2e

check: lint types unit contract

lint: $(STAMP)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

format: $(STAMP)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

types: $(STAMP)
	$(BIN)/mypy
	$(BIN)/mypy tests

unit: $(STAMP)
	$(BIN)/pytest -n 2 tests/unit

# FUZZ=100 tries a hundred times as many examples.
fuzz: $(STAMP)
	$(BIN)/pytest -n 2 tests/fuzz

# Files of many gigabytes, and very many of them.
large: $(STAMP)
	$(BIN)/pytest -n 2 tests/large

contract: $(STAMP)
	$(BIN)/pytest -n $(WORKERS) -m "not thorough" tests/contract

docker: $(STAMP)
	$(BIN)/pytest -n 4 --dist loadgroup tests/docker

e2e: $(STAMP)
	$(BIN)/pytest -n 4 -m "not thorough" tests/e2e

# What other tests try in short, at length: thousands of jobs, every recording through a driver. Takes an hour.
thorough: $(STAMP)
	$(BIN)/pytest -n 2 -m thorough tests

clean:
	rm -rf $(VENV) .demo .pytest_cache .mypy_cache .ruff_cache build dist *.egg-info
