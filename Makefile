# `make demo` and `make test` are all the set-up there is: each makes .venv first.
# ACCELERATOR=gpu or tpu installs that JAX instead of the CPU's.
ACCELERATOR ?= cpu
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test test-slow lint env clean

demo: .venv/demo.installed
	$(BIN)/python -m dicetalk_jax.cli.demo $(DEMO)

test: .venv/all.installed
	$(BIN)/python -m pytest -n 2 --dist loadfile -m "not slow" --durations 25 $(TEST)

# Proofs that take minutes or much memory.
test-slow: .venv/all.installed
	$(BIN)/python -m pytest -m slow $(TEST)

lint: .venv/all.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

env: .venv/all.installed

.venv/bin/python:
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip

.venv/demo.installed: pyproject.toml | .venv/bin/python
	$(BIN)/python -m pip install --quiet --editable ".[$(ACCELERATOR)]"
	touch $@

.venv/all.installed: pyproject.toml | .venv/bin/python
	$(BIN)/python -m pip install --quiet --editable ".[$(ACCELERATOR),convert,test]"
	touch $@ .venv/demo.installed

clean:
	rm -rf .venv demo build *.egg-info
