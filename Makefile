# The two commands of the README, and what developers use. Everything lives in .venv.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadscope --no-loadscope-reorder
# Of fresh draws; SEED=... repeats them.
SEED := $(or $(SEED),$(shell od -An -N4 -tu4 /dev/urandom | tr -d ' '))

.PHONY: demo test test-all lint bench clean

demo: $(INSTALLED)
	$(BIN)/normswap demo -o demo-output

# The same draws on every run.
test: lint
	PYTHONHASHSEED=0 $(PYTEST)

# The whole zoo, and other draws on every run.
test-all: lint
	NORMSWAP_ZOO=all NORMSWAP_DRAWS=fresh NORMSWAP_SEED=$(SEED) PYTHONHASHSEED=$(SEED) $(PYTEST)

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(INSTALLED)
	$(BIN)/python benchmarks/real_architectures.py

clean:
	rm -rf $(VENV) demo-output build *.egg-info

$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "normswap needs Python 3.11+")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q -c constraints.txt torch
	$(BIN)/python -m pip install -q -c constraints.txt -e '.[test]'
	touch $@
