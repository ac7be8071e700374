# `make demo` and `make test` do everything, set-up included, on a machine with Python 3.11, make and gcc.
# `make setup KIND=gpu` takes the CUDA builds instead.
PYTHON ?= python3.11
KIND ?= cpu
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready-$(KIND)
REQUIREMENTS := requirements/$(KIND).txt requirements/dev.txt
PYTEST := $(BIN)/python -m pytest
CHECKED := $(wildcard rlhf_ray tests examples benchmarks)

# Where the environment forbids it, every process that a run starts would compile all of torch and vLLM anew.
export PYTHONDONTWRITEBYTECODE :=

.DEFAULT_GOAL := help
.PHONY: help setup demo test browser slow chaos gpu-test lint format bench docs clean distclean

help:  ## Show the targets.
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 18

setup: $(READY)  ## Make .venv with the pinned packages and this one; nothing to do when it is current.

$(READY): $(REQUIREMENTS) pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info[:2] not in ((3, 11), (3, 12)))' \
	  || { echo "Python 3.11 or 3.12 is needed; say which: make setup PYTHON=/path/to/python3.11" >&2; exit 2; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --disable-pip-version-check --quiet --no-deps --no-compile $(addprefix -r ,$(REQUIREMENTS))
	$(BIN)/pip install --disable-pip-version-check --quiet --no-deps --no-build-isolation --editable .
	$(BIN)/rlhf doctor --setup $(KIND)
	@rm -f $(VENV)/.ready-* && touch $@

demo: setup  ## Language model, reward model and PPO on product reviews; results in outputs/demo.
	$(BIN)/python -m examples.reviews.demo --output outputs/demo

test: setup  ## All tests that need no GPU and take no minutes, in two processes.
	$(PYTEST) --numprocesses 2

slow: setup  ## Learning runs and benchmarks' own tests.
	$(PYTEST) -m slow

chaos: setup  ## Tests that kill processes and machines, or break a run in another way.
	$(PYTEST) -m chaos

gpu-test:  ## What only a GPU can show, by PART="train decode" or all of it; first `make setup KIND=gpu`.
	$(BIN)/python -m benchmarks.gpu $(PART)

browser: setup  ## Tests of the labelling pages in Chromium of the system's packages: apt-get install -y chromium
	$(PYTEST) -m "browser and not slow"

lint: setup  ## Style, types, the order of the layers, and code that nothing calls.
	$(BIN)/ruff check $(CHECKED)
	$(BIN)/ruff format --check $(CHECKED)
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/vulture

format: setup  ## Rewrite files in the project's style.
	$(BIN)/ruff check --fix $(CHECKED)
	$(BIN)/ruff format $(CHECKED)

bench: setup  ## Ratios against peers and floors, each in one run.
	$(BIN)/python -m benchmarks

docs: setup  ## Write docs/configuration.md and schemas/ from the schema, docs/metrics.md from the names.
	$(BIN)/python -m rlhf_ray.config.reading.docs_page > docs/.new && mv docs/.new docs/configuration.md
	$(BIN)/python -m rlhf_ray.tracking.names > docs/metrics.md
	$(BIN)/rlhf schema schemas

clean:  ## Remove caches; runs in outputs/ stay.
	rm -rf build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +

distclean: clean  ## Also remove .venv.
	rm -rf $(VENV) rlhf_ray.egg-info
