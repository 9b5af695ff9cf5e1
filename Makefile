# make demo | test | lint | docs: each sets up .venv by itself and is quick when it is there already.
PYTHON ?= python3
PYTEST_ARGS ?=
BIN := .venv/bin
STAMP := .venv/.installed
define DEMO_PROMPT
        raise <mask>('not found')
        return None
    def close(self)
endef
export DEMO_PROMPT

.PHONY: help demo test lint docs clean
.DELETE_ON_ERROR:

help:
	@echo 'make demo   train a deep model on two processes, report, export, generate (runs/demo)'
	@echo 'make test   lint, docs and the whole test suite'
	@echo 'make lint   ruff, mypy, import-linter'
	@echo 'make docs   build the documentation into site/'
	@echo 'make clean  remove .venv and what builds leave; runs/ stays'

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	    { echo 'Python 3.11 or newer is needed, $(PYTHON) is not: make PYTHON=/path/to/python3.11 $(MAKECMDGOALS)'; exit 2; }
	@$(PYTHON) -c 'import ensurepip, venv' 2> /dev/null || \
	    { echo '$(PYTHON) cannot make virtual environments (on Debian: apt-get install python3-venv)'; exit 2; }
	@echo 'setting up .venv (a few minutes the first time)'
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@# torch first and by its tested version: asked for by a range, pip would take the newest one.
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt torch
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	@touch $@

demo: $(STAMP)
	DS_ACCELERATOR=cpu $(BIN)/deepspeed --num_gpus 2 pretrain/train.py --recipe demo
	$(BIN)/python tools/convert_hf.py export runs/demo runs/demo/hf --overwrite
	$(BIN)/python tools/report.py runs/demo
	$(BIN)/python tools/generate.py runs/demo --prompt "$$DEMO_PROMPT"

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

docs: $(STAMP)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

test: lint docs
	$(BIN)/python -m pytest --numprocesses 2 --dist loadfile $(PYTEST_ARGS)

clean:
	rm -rf .venv site build *.egg-info .pytest_cache .mypy_cache .ruff_cache .import_linter_cache
