# Two commands do all the set-up on a machine with Python 3.10+: `make demo` and `make test`.
PYTHON ?= python3
# Set TORCH to the build you want, for instance TORCH="torch --index-url <address of a CUDA build>".
TORCH ?= torch==2.13.0
VENV := .venv
PY := $(VENV)/bin/python

.PHONY: demo test lint clean

demo: $(VENV)/ready
	$(PY) -m spectral_adapters demo

test: $(VENV)/ready
	$(PY) -m ruff check .
	$(PY) -m pytest -n 2 --dist loadfile

lint: $(VENV)/ready
	$(PY) -m ruff check .

$(VENV)/ready: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(PY) -m pip install --quiet --upgrade pip
	$(PY) -c "import torch" 2>/dev/null || $(PY) -m pip install --quiet $(TORCH)
	$(PY) -m pip install --quiet --editable ".[test]"
	touch $@

clean:
	rm -rf $(VENV) output
