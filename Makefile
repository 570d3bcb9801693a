# `make demo` and `make test` set up their own virtual environment when there is none.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
RUN := demo/digits
PYTHONS ?= python3.11 python3.13 # the oldest and the newest that are supported
export PYTHONDONTWRITEBYTECODE := # empty: compiled modules are kept, for the processes of tests
PROSE := $(wildcard *.md docs/*.md docs/examples/*.py docs/how_to/*.py docs/tutorials/*.py)

.PHONY: oldest demo test mutants promises outputs support lint types static unit format attack bench tables docs release setup clean

setup: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || (echo "error: Python 3.11 or newer is needed; set PYTHON=..." && exit 1)
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile --editable '.[dev,docs]'
	touch $@

demo: setup ## train on scikit-learn's digits, sample, evaluate, write demo/digits/report.html and gallery.png
	$(BIN)/sdekit-diffusion train $(RUN) --data digits --weighting plain --steps 2200 --lr 4e-3 --overwrite
	$(BIN)/sdekit-diffusion report $(RUN)
	$(BIN)/python docs/examples/strip.py $(RUN)

test: setup ## everything that must pass
	$(MAKE) --no-print-directory --jobs 2 unit static

static: lint types

lint: setup
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/python tests/measures.py
	$(BIN)/codespell $(PROSE) docs/choosing.toml sdekit sdekit_diffusion tests benchmarks
	$(BIN)/python tests/prose.py
	$(BIN)/proselint check --config docs/proselint.json $(PROSE)

types: setup
	NODE_OPTIONS=--max-semi-space-size=64 $(BIN)/pyright --pythonpath $(BIN)/python

# One thread per process: waiting threads of BLAS take the time of the other process.
unit: setup
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -p no:logging --numprocesses 2 --dist worksteal --quiet

mutants: setup ## whether the tests notice mistakes: tests/mutants.toml, one to two hours on two cores
	$(BIN)/python tests/mutants.py

promises: setup ## breaks each promise of tests/promises.toml, shows that a test fails, writes docs/promises.md
	$(BIN)/python tests/promises.py

support: setup ## what each solver supports, by the lists of the tests
	$(BIN)/python docs/supported.py

outputs: setup ## renews what the examples of README.md, CONTRIBUTING.md and docs/*.md print, and scripts when the pages were built
	$(BIN)/python tests/outputs.py
	$(BIN)/python docs/printed.py

oldest: ## the tests on the oldest supported dependencies, in an environment of their own
	$(PYTHON) -m venv .venv-oldest
	.venv-oldest/bin/python -m pip install --quiet --requirement tests/oldest.txt coverage hypothesis pytest pytest-xdist
	.venv-oldest/bin/python -m pip install --quiet --no-deps --editable .
	.venv-oldest/bin/python -m pytest --numprocesses 2 --quiet -W ignore::DeprecationWarning

format: setup
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

attack: setup ## all methods and solvers with faulty models, drifts and diffusions: no silent error
	$(BIN)/python benchmarks/attack.py

bench: setup ## the scripts of docs/benchmarks.md; after make demo, on a quiet machine
	$(BIN)/python benchmarks/throughput.py
	$(BIN)/python benchmarks/imports.py
	$(BIN)/python benchmarks/synchronisation.py
	$(BIN)/python benchmarks/mixture.py
	$(BIN)/python benchmarks/order.py
	$(BIN)/python benchmarks/adaptive.py
	$(BIN)/python benchmarks/work_precision.py
	$(BIN)/python benchmarks/stiff.py
	$(BIN)/python benchmarks/gradient.py
	$(BIN)/python benchmarks/latent_sde.py
	$(BIN)/python benchmarks/their_tests.py
	$(BIN)/python benchmarks/likelihood.py
	$(BIN)/python benchmarks/calibration.py
	$(BIN)/python benchmarks/probability_flow.py
	$(BIN)/python benchmarks/choice.py
	$(BIN)/python benchmarks/peer_grids.py
	$(BIN)/python benchmarks/networks.py
	$(BIN)/python benchmarks/grids.py
	$(BIN)/python benchmarks/editing.py
	$(BIN)/python benchmarks/editing_pictures.py
	$(BIN)/python benchmarks/samplers.py
	$(BIN)/python benchmarks/scale.py
	$(BIN)/python benchmarks/images.py
	$(BIN)/python benchmarks/ncsn.py
	$(BIN)/python benchmarks/conditional.py
	$(BIN)/python benchmarks/inference.py
	$(BIN)/python benchmarks/inference_sbi.py
	$(BIN)/python benchmarks/posterior.py
	$(BIN)/python benchmarks/posterior.py --calibrate
	$(BIN)/python benchmarks/posterior_error.py
	$(BIN)/python benchmarks/posterior_coverage.py
	$(BIN)/python benchmarks/posterior_digits.py
	$(BIN)/python benchmarks/fuzz.py
	$(BIN)/python benchmarks/scaling.py
	$(BIN)/python benchmarks/kill.py
	$(BIN)/python benchmarks/recipes.py
	$(BIN)/python benchmarks/distillation.py
	$(BIN)/python benchmarks/report.py

tables: setup ## writes the tables of docs/results into the pages
	$(BIN)/python docs/registered.py

docs: setup
	$(BIN)/sphinx-build -W -b html docs docs/_build/html

release: setup ## wheel and sdist, each in fresh environments of the oldest and the newest Python
	$(BIN)/python tests/release.py $(PYTHONS)

clean:
	rm -rf $(VENV) demo docs/_build docs/_cache docs/gallery docs/how_to_guides docs/images/measured docs/tutorial_pages .mutants build dist .pytest_cache .ruff_cache .hypothesis
