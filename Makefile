# One environment, made from the lock: everything below runs in .venv and nowhere else.
PYTHON ?= python3
BIN := .venv/bin
DEMO_OUTPUT ?= demo-output
UV_VERSION := $(shell sed -n 's/^uv==\([0-9.]*\).*/\1/p' requirements.lock)

# Ray starts many Python processes: without cached bytecode each would compile torch again.
unexport PYTHONDONTWRITEBYTECODE
# What a machine may set for other projects: other modules, asserts left out, pip outside of .venv, pytest's options.
unexport PYTHONPATH PYTHONHOME PYTHONSAFEPATH PYTHONOPTIMIZE PYTHONWARNINGS
unexport RECAP_RAY_TESTS_MADE RECAP_RAY_TESTS_THREADS
unexport PIP_USER PIP_TARGET PIP_PREFIX PIP_REQUIRE_HASHES PYTEST_ADDOPTS PYTEST_PLUGINS PYTEST_DISABLE_PLUGIN_AUTOLOAD
export RAY_USAGE_STATS_ENABLED := 0

.DEFAULT_GOAL := help
.PHONY: help install demo compare test test-processors faults pictures reference docs-check lint format lock wheel clean

help:            ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/'

install: .venv/.installed  ## make .venv from requirements.lock

.venv/.installed: requirements.lock pyproject.toml
	@test -x $(BIN)/python || { $(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "recap-ray needs Python 3.11 or newer, $(PYTHON) is older: run 'make PYTHON=/path/to/python3.11'"; exit 2; }; \
	  $(PYTHON) -m venv .venv; }
	@test -x $(BIN)/uv || $(BIN)/python -m pip install --quiet "uv==$(UV_VERSION)"
	$(BIN)/uv pip sync --quiet --python $(BIN)/python --require-hashes requirements.lock
	$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --no-build-isolation --editable .
	@touch $@

demo: install    ## caption rendered scenes offline, with and without alignment
	$(BIN)/recap-ray demo --output $(DEMO_OUTPUT)

compare: install ## train clipcap and capdec on rendered scenes, and compare them with recap
	$(BIN)/recap-ray demo --methods recap,clipcap,capdec --output $(DEMO_OUTPUT)-compare

# Two files at a time: most of a test with Ray is one process that starts, and one core that waits. In their order, for
# the files with the fewest tests take the longest.
test: install lint  ## lint, then all tests
	$(BIN)/python -m pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder

test-processors: install  ## run the numeric tests as other processors and thread counts would
	$(BIN)/python -m tests.processors

faults: install  ## kill processes at random moments, each kind five times, and count what was lost
	$(BIN)/python -m tests.faults --times 5

pictures: demo   ## take README's pictures of the demo's pages, with Chromium
	$(BIN)/python -m tests.pictures $(DEMO_OUTPUT)

reference: install  ## write docs/reference.md from the settings and the schema
	$(BIN)/python -m tests.reference

docs-check: install  ## run every recap-ray command of README.md and the usage pages, on rendered scenes with the embedded models
	$(BIN)/python -m tests.docs_check

lint: install    ## style, docstrings, words and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python -m tests.words
	$(BIN)/mypy

format: install  ## rewrite the code in the project's style
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

lock: install    ## add what pyproject.toml asks for to requirements.lock, keeping the other pins
	$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url \
	  --extra cpu --extra eval --extra plots --extra dev pyproject.toml --output-file requirements.lock

wheel: install   ## make dist/: the wheel, and the pinned versions, that cluster.yaml and deploy/Dockerfile install
	@rm -f dist/recap_ray-*.whl
	$(BIN)/uv build --quiet --wheel --no-build-isolation --python $(BIN)/python --out-dir dist
	@sed -n -E 's/^([A-Za-z0-9_.-]+==[^\\]*[^ \\]) *\\?$$/\1/p' requirements.lock > dist/constraints.txt

clean:           ## remove what make built
	rm -rf .venv dist $(DEMO_OUTPUT) $(DEMO_OUTPUT)-compare .pytest_cache .mypy_cache .ruff_cache
