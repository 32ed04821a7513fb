# The two commands of the README, and what developers use. Everything lives in .venv.
# PYTHON=... makes it anew where another Python made it; without, the one that is there stays.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadscope --no-loadscope-reorder
# Of fresh draws; SEED=... repeats them.
SEED := $(or $(SEED),$(shell od -An -N4 -tu4 /dev/urandom | tr -d ' '))

# Which Python has made .venv (nothing: none, or one that is gone), and which one is wanted.
WHICH := import sys; print(sys.version, sys.base_prefix)
MADE_BY := $(shell $(BIN)/python -c '$(WHICH)' 2>/dev/null)
ifeq ($(origin PYTHON),file)
WANTED := $(MADE_BY)
else
WANTED := $(shell $(PYTHON) -c '$(WHICH)')
endif
ifeq ($(MADE_BY),)
ANEW := yes
else ifneq ($(MADE_BY),$(WANTED))
ANEW := yes
endif

.PHONY: demo test test-all lint docs resolve bench clean FORCE

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

# The site, into site/: no warning, no dead link.
docs: $(INSTALLED)
	$(BIN)/python -m pip install -q -c constraints.txt -e '.[docs]'
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict -q

# Whether pip finds versions that go together, for the wheels that the index has for PYTHON. It
# may download 1.6 GB for it; tests/test_constraints.py asks without an index.
resolve:
	$(PYTHON) -m pip install -q --dry-run --ignore-installed --report /dev/null \
		-c constraints.txt torch '.[test]'

bench: $(INSTALLED)
	$(BIN)/python benchmarks/real_architectures.py

clean:
	rm -rf $(VENV) demo-output site build *.egg-info

$(INSTALLED): pyproject.toml constraints.txt $(if $(ANEW),FORCE)
ifdef ANEW
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "normswap needs Python 3.11+")'
	$(PYTHON) -m venv --clear $(VENV)
endif
	$(BIN)/python -m pip install -q -c constraints.txt torch
	$(BIN)/python -m pip install -q -c constraints.txt -e '.[test]'
	touch $@
