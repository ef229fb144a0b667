# make demo    a fresh machine to a split model that answers, narrated
# make test    a fresh machine to all tests passed
# make check   format, lint, types, architecture, unit tests: before each commit
# make models  every model family transformers knows, cut and compared; writes docs/models.md
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test check models unit clean

demo: .venv/ready
	$(BIN)/python plans/demo/demo.py

test: .venv/ready
	$(BIN)/pytest

check: .venv/ready
	$(BIN)/ruff format --check edgesplit tests plans
	$(BIN)/ruff check edgesplit tests plans
	$(BIN)/mypy
	$(BIN)/pytest --numprocesses 2 --dist worksteal -m "not ssh" tests/unit

models: .venv/ready
	PYTHONPATH=tests $(BIN)/python -m families.run

# The stamp is made last: an install that was broken off is begun again.
.venv/ready: pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable ".[dev]"
	touch $@

clean:
	rm -rf .venv build .mypy_cache .pytest_cache .ruff_cache .hypothesis *.egg-info
