# Two commands for users, `make run` and `make test`; the rest is for developers.
# Everything is installed into .venv, made if it is missing; nothing outside this folder is touched.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: run test check cover prove bench clean

run: $(STAMP)  ## install, then run the demo: a real cluster, killed at random, nothing lost
	$(BIN)/ckptmesh demo

test: $(STAMP)  ## install, then run all tests, in two processes
	$(BIN)/python -m pytest -n 2 --dist loadfile $(ARGS)

check: $(STAMP)  ## lint, types, import contracts
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

cover: $(STAMP)  ## coverage of the pure core, by line and branch
	$(BIN)/python -m coverage run -m pytest tests/unit
	$(BIN)/python -m coverage report --show-missing

MINUTES ?= 60

prove: $(VENV)/.prove  ## the long campaigns, for MINUTES; goes on where it stopped: see docs/proof.md
	$(BIN)/python -m tests.campaign.prove --minutes $(MINUTES) $(ARGS)

bench: $(VENV)/.bench  ## ckptmesh beside Redis, PostgreSQL, SQLite, etcd and NATS, in one run: ARGS=--help
	$(BIN)/python -m bench $(ARGS)

clean:  ## remove what was installed
	rm -rf $(VENV) build dist *.egg-info

$(VENV)/.prove: $(STAMP)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable ".[dev,prove]"
	touch $@

$(VENV)/.bench: $(STAMP)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable ".[dev,bench]"
	touch $@

$(STAMP): pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable ".[dev]"
	touch $@
