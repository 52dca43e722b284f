# `make demo` and `make test` do all the set-up themselves, in .venv.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo test check lint clean

$(VENV)/run: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e .
	@touch $@

$(VENV)/dev: $(VENV)/run
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev,hub]'
	@touch $@

demo: $(VENV)/run  ## the whole recipe in miniature: teacher, SFT, AI feedback, DPO, evaluation
	$(BIN)/potstill run miniature

test: $(VENV)/dev lint  ## what every change must pass, minutes
	$(BIN)/python -m pytest

lint: $(VENV)/dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

check: $(VENV)/dev  ## what is slow
	$(BIN)/python -m pytest -m slow

clean:
	rm -rf $(VENV) build dist runs
