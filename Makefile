# make demo   set everything up and climb the ladder: tiny base -> SFT -> DPO -> GRPO      (outputs/ladder/report.md)
# make real   three lessons on a real model, SmolLM2-135M, on two cores; killed, it goes on   (outputs/real/report.md)
# make test   set everything up and prove the mathematics
# make jupyter   open the notebooks
PYTHON ?= python3
BIN := .venv/bin
export OMP_WAIT_POLICY := PASSIVE
# on all cores, a file on one of them; in the order of tests/conftest.py
PYTEST := $(BIN)/python -m pytest -n auto --dist loadfile --no-loadscope-reorder --durations 10

.PHONY: demo real test test-long test-all soak mutate jupyter notebooks lint clean

demo: .venv/installed
	$(BIN)/python -m loops.ladder --config configs/ladder_tiny.yaml --output.overwrite

real: .venv/installed-tasks
	$(BIN)/python -m posttrain.real --config configs/real.yaml $(if $(wildcard outputs/real/results.json),--resume)

test: .venv/installed
	$(PYTEST) -m "not long and not soak"

# what `make test-all` adds: several processes, kills, trackers, notebooks, every YAML, every command of the README
test-long: .venv/installed-extras
	$(PYTEST) -m long

test-all: test test-long

soak: .venv/installed
	$(BIN)/python -m pytest -m soak --durations 10

# opens them in a browser, to change a line and run it again
jupyter: .venv/installed-jupyter
	$(BIN)/jupyter lab notebooks

# executes notebooks/*.py and writes them, with their outputs, as .ipynb
notebooks: .venv/installed-extras
	$(BIN)/python notebooks/build.py

# flips one sign, drops one mask, swaps two arguments at a time in every loss: the tests must notice each
mutate: .venv/installed
	$(BIN)/python tests/mutate.py

lint: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean:
	rm -rf .venv outputs .pytest_cache .ruff_cache

.venv/installed: requirements.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed, this is " + sys.version.split()[0] + "; try: make PYTHON=python3.12 $(MAKECMDGOALS)")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade-strategy only-if-needed -r requirements.txt
	@touch $@

.venv/installed-tasks: .venv/installed requirements-tasks.txt
	$(BIN)/python -m pip install --quiet --upgrade-strategy only-if-needed -r requirements-tasks.txt
	@touch $@

.venv/installed-jupyter: .venv/installed requirements-notebooks.txt requirements-jupyter.txt
	$(BIN)/python -m pip install --quiet --upgrade-strategy only-if-needed -r requirements-notebooks.txt -r requirements-jupyter.txt
	@touch $@

.venv/installed-extras: .venv/installed-tasks requirements-tracking.txt requirements-notebooks.txt requirements-eval.txt requirements-serve.txt requirements-serve-test.txt
	$(BIN)/python -m pip install --quiet --upgrade-strategy only-if-needed -r requirements-tracking.txt -r requirements-notebooks.txt -r requirements-eval.txt -r requirements-serve.txt -r requirements-serve-test.txt
	@touch $@
