# Everything sets itself up in .venv; all that a machine needs is Python 3.11+ and make.
#   make demo            the whole story on generated slides
#   make test            format, lint, types, tests, docs in step
#   make pages           the commands of the documentation, run as they are written
#   TORCH_BACKEND=cpu make test    hands uv's torch backend choice through (small CPU build)

PYTHON ?= $(shell for p in python3.13 python3.12 python3.11 python3; do command -v $$p >/dev/null 2>&1 && $$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
TORCH_BACKEND ?=
BIN := .venv/bin
STAMP := .venv/.installed-$(shell cat pyproject.toml constraints.txt 2>/dev/null | cksum | cut -d' ' -f1)

.PHONY: demo test check lint format types unit docs docs-check setup viewer pins wheel clean pages campaign

demo: setup
	$(BIN)/lobule demo

test: check unit

check: lint types docs-check

setup: $(STAMP)
	@scripts/viewer

viewer: $(STAMP)
	@scripts/viewer

$(STAMP):
	@test -n "$(PYTHON)" || { echo "Lobule needs Python 3.11 or newer on the PATH."; exit 2; }
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	$(BIN)/uv pip install --quiet --python $(BIN)/python $(if $(TORCH_BACKEND),--torch-backend=$(TORCH_BACKEND),) $(if $(wildcard constraints.txt),-c constraints.txt,) -e '.[all]' --group dev
	@rm -f .venv/.installed-*; touch $@

lint: setup
	@scripts/lint

format: setup
	$(BIN)/ruff format src tests benchmarks experiments docs scripts/same_code scripts/code_lines
	$(BIN)/ruff check --fix src tests benchmarks experiments docs scripts/same_code scripts/code_lines

types: setup
	@scripts/types

docs-check: setup
	@scripts/docs --check

docs: setup
	@scripts/docs

unit: setup
	@scripts/test

# The commands of the tutorials, of the README and of "Add a method", as they are written.
pages: setup
	@scripts/test -m pages --dist load tests/test_tutorials.py tests/toy_method

campaign: setup
	@scripts/test -m campaign

pins: setup
	$(BIN)/uv pip compile --quiet --upgrade --universal --python-version 3.11 --no-emit-index-url --no-header --no-annotate --extra all --group dev -o constraints.new pyproject.toml
	@# what torch brings along for one kind of accelerator is torch's to choose
	@grep -vE '^(nvidia-|cuda-|triton)' constraints.new > constraints.txt; rm constraints.new

wheel: setup
	$(BIN)/python -m build --installer uv --wheel

clean:
	rm -rf .venv .mypy_cache .pytest_cache .ruff_cache dist site web/node_modules src/lobule/server/static
