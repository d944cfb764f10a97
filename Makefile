# `make demo` searches a small network for digits that are hard to read, in four minutes; `make test` is what has to be green before a
# commit; `make bench` measures what docs/results/performance.md lacks (on a quiet machine, an hour and more; it carries on
# where it was stopped) and writes that page.
# `make chaos` kills runs 200 times, wherever they write, import or compile, and fills their disk (half an hour; it goes on where it was stopped),
# then damages each kind of file 250 times (ten minutes).
# `make fuzz` tries 100,000 damaged inputs on all parsers (ten minutes).
# The first call makes .venv and installs into it; later ones are quick until pyproject.toml or constraints.txt changes.

# The first of these that runs and is new enough. `make PYTHON=/path/to/python demo` takes another one.
CANDIDATES := python3.11 python3.12 python3.13 python3
NEW_ENOUGH := -c 'import sys; sys.exit(sys.version_info < (3, 11))'
PYTHON ?= $(shell for p in $(CANDIDATES); do $$p $(NEW_ENOUGH) 2>/dev/null && echo $$p && break; done)

BIN := .venv/bin
INSTALLED := .venv/.installed

# Two processes with one thread each: more threads than cores make small tensors many times slower. Each begins with one half of the tests,
# so that what a file builds once is built once, and takes from the other when it is done.
PYTEST := OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 $(BIN)/pytest -n 2 --dist worksteal

.PHONY: docs demo test test-all chaos fuzz bench mutants lint clean

demo: $(INSTALLED)
	$(BIN)/oche search --data digits_hard --max-params 20k --max-macs 1M --compare 2 --time 4m

test: lint
	$(PYTEST) -m "not slow"

test-all: lint
	$(PYTEST)

chaos: $(INSTALLED)
	OMP_NUM_THREADS=1 PYTHONPATH=src:tests $(BIN)/python tests/chaos/harness.py --kills 200 --disks 30
	OMP_NUM_THREADS=1 PYTHONPATH=src:tests $(BIN)/python tests/chaos/damage.py --flips 200 --cuts 50

fuzz: $(INSTALLED)
	OMP_NUM_THREADS=1 PYTHONPATH=src:tests $(BIN)/python tests/fuzz/harness.py --inputs 100000

bench: $(INSTALLED)
	$(BIN)/python benchmarks/table.py

# Breaks the methods one constant or rule at a time: half an hour, resumable. METHODS="gdas drnas" for some, MINUTES=20 for a part,
# PAGE=docs/results/mutants.md writes the page.
mutants: $(INSTALLED)
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/mutants.py --minutes $(or $(MINUTES),90) $(if $(PAGE),--page $(PAGE)) $(METHODS)

# The pages as a site, in build/docs; a warning is an error.
docs: $(INSTALLED)
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[docs]'
	$(BIN)/python -m sphinx -W --keep-going -q -b html docs build/docs

lint: $(INSTALLED)
	$(BIN)/ruff check
	$(BIN)/mypy

clean:
	rm -rf build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find src tests -name __pycache__ -type d -prune -exec rm -rf {} +

$(BIN)/python:
	@$(or $(PYTHON),false) $(NEW_ENOUGH) 2>/dev/null || { \
	  echo "oche needs Python 3.11 or newer, and '$(or $(PYTHON),$(CANDIDATES))' is not: install one, or name it with 'make PYTHON=/path/to/python3.11'." >&2; \
	  exit 1; }
	$(PYTHON) -m venv .venv

# torch comes first, at the tested version: a plain `pip install torch` may fetch gigabytes of CUDA packages.
$(INSTALLED): pyproject.toml constraints.txt | $(BIN)/python
	$(BIN)/python -m pip install --quiet -c constraints.txt torch
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[dev]'
	@touch $@
