# Every target makes the virtual environment first, so `make demo` and `make test` work from a bare clone.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test lint docs notebook gpu clean

demo: .venv/installed
	$(BIN)/ctf demo

# On all cores, a file of tests on one of them. `python -m pytest tests/test_cli.py` runs one file in the foreground.
test: .venv/installed
	$(BIN)/python -m pytest --numprocesses logical --maxprocesses 8 --dist loadfile

lint: .venv/installed
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

# The site, in site/: open site/index.html. `make notebook` runs the tour and stores what it shows.
docs: .venv/docs-installed
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

notebook: .venv/docs-installed
	$(BIN)/jupyter nbconvert --to notebook --execute --inplace --ExecutePreprocessor.record_timing=False docs/tour.ipynb

gpu: .venv/installed
	$(BIN)/python benchmarks/gpu.py

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --constraint constraints.txt --editable '.[dev]'
	touch $@

.venv/docs-installed: .venv/installed
	$(BIN)/pip install --constraint constraints.txt --editable '.[dev,docs]'
	touch $@

clean:
	rm -rf .venv build dist site
