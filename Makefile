# Every target sets up what it needs; `make help` lists them.
SHELL := /bin/sh
.DEFAULT_GOAL := help

VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
WORKERS := 2

.PHONY: help setup run test check format bench bench-peers lock clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-11s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(READY) ## make .venv with the locked dependencies and the muster command

run: $(READY) ## run engine, proxy and agent on 127.0.0.1 (Ctrl-C stops all)
	@exec $(BIN)/muster up

test: $(READY) ## run every test that needs no GPU; the batching library's must cover each of its branches
	@$(BIN)/coverage run -m pytest tests/batching $(PYTEST_ARGS)
	@$(BIN)/coverage report
	@$(BIN)/python -m pytest tests --ignore tests/batching --numprocesses $(WORKERS) --dist loadfile --max-worker-restart 0 \
	  $(PYTEST_ARGS)

check: $(READY) ## check format, lint, types and import rules
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/pyright
	@$(BIN)/lint-imports

format: $(READY) ## format the code and mend what the linter can mend
	@$(BIN)/ruff format .
	@$(BIN)/ruff check --fix .

bench: $(READY) ## compare direct, batched and scheduled calls on the embedded engine
	@$(BIN)/python tests/benchmarks/batch_performance.py

bench-peers: $(READY) ## compare Muster with other proxies in one run (installs them beside it, about 500 MB)
	@$(BIN)/python -m tests.benchmarks.peers $(BENCH_ARGS)

lock: $(READY) ## resolve the dependencies anew into requirements.lock
	@$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-header --upgrade \
	  --group dev --output-file requirements.lock pyproject.toml

clean: ## remove what the other targets made here (downloaded weights stay in the cache)
	rm -rf $(VENV) .pytest_cache .ruff_cache .import_linter_cache .hypothesis build dist
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(READY): pyproject.toml requirements.lock .python-version scripts/setup.sh scripts/bootstrap.lock
	@sh scripts/setup.sh $(VENV)
	@touch $(READY)
