# Two commands for a fresh machine: `make demo` and `make test`. Both set up their own environment in .venv.
PYTHON ?= python3
VENV ?= .venv
# Two tests at a time, one thread each: their networks are too small for more.
PYTEST = OMP_NUM_THREADS=1 $(1)/bin/python -m pytest -n 2 --dist worksteal
INSTALLED := $(VENV)/.installed

.PHONY: install demo test test-lowest lint clean

install: $(INSTALLED)

$(INSTALLED): pyproject.toml setup.py
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/pip install --quiet --upgrade pip
	$(VENV)/bin/pip install --quiet -e ".[dev]"
	touch $@

demo: install
	$(VENV)/bin/dualcl demo -o demo_output

test: install
	$(call PYTEST,$(VENV))

# The lowest releases of what we depend on; tests of the benchmarks need newer ones.
LOWEST ?= .ci/lowest.txt .ci/lowest_torch.txt
test-lowest:
	$(PYTHON) -m venv $(VENV)-lowest
	$(VENV)-lowest/bin/pip install --quiet $(addprefix -c ,$(LOWEST)) -e . "pytest>=8,<10" "pytest-xdist>=3.8,<4" "highdicom>=0.27,<1"
	$(call PYTEST,$(VENV)-lowest) $(addprefix tests/,data dataset_conversion export losses networks preprocessing trainers training)

lint: install
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy --python-version 3.10
	$(VENV)/bin/mypy --python-version 3.13

clean:
	rm -rf $(VENV) $(VENV)-lowest demo_output build *.egg-info
