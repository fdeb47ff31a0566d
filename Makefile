# Every target makes the virtual environment first, so `make demo` and `make test` work from a bare clone.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test lint gpu clean

demo: .venv/installed
	$(BIN)/ctf demo

test: .venv/installed
	$(BIN)/python -m pytest

lint: .venv/installed
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

gpu: .venv/installed
	$(BIN)/python benchmarks/gpu.py

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --constraint constraints.txt --editable '.[dev]'
	touch $@

clean:
	rm -rf .venv runs build dist
