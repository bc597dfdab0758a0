# Everything runs inside .venv, which `make setup` fills from a lock and leaves alone while it is up to date.
.DEFAULT_GOAL := help
.PHONY: help setup quickstart chain test test-gpu check format

PYTHON := .venv/bin/python

help:  ## list the commands
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-11s %s\n", $$1, $$2}' Makefile

setup:  ## create .venv from the pinned lock (skipped when up to date)
	@bash launch/setup.sh

quickstart: setup  ## train a small policy with PPO against verifiers, and show what it learnt
	@bash launch/quickstart.sh

chain: setup  ## SFT, preference pairs, DPO, reward model and PPO in a row, measured after each stage
	@bash launch/chain.sh

test: setup  ## run every test that needs no GPU
	@$(PYTHON) -m pytest -m "not gpu"

test-gpu: setup  ## run the tests that need a CUDA device
	@$(PYTHON) -m pytest -m gpu

check: setup  ## lint, formatting and types
	@$(PYTHON) -m ruff check
	@$(PYTHON) -m ruff format --check
	@$(PYTHON) -m mypy

format:  ## apply the formatter and the safe lint repairs
	@$(PYTHON) -m ruff check --fix
	@$(PYTHON) -m ruff format
