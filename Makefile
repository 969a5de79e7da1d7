# Uses the active environment (virtualenv or conda); without one, makes .venv.
ifneq ($(or $(VIRTUAL_ENV),$(CONDA_PREFIX)),)
ENV := $(or $(VIRTUAL_ENV),$(CONDA_PREFIX))
else
ENV := $(CURDIR)/.venv
endif
PYTHON := $(ENV)/bin/python
INSTALLED := $(ENV)/.p2c-installed
export PYTHON

.PHONY: demo test lint setup

demo: $(INSTALLED)
	bash scripts/demo.sh

# Two processes of one thread each: the tests' models are so small that more threads only wait for each other.
test: $(INSTALLED)
	OMP_NUM_THREADS=1 $(PYTHON) -m pytest --numprocesses 2 --dist loadfile

lint: $(INSTALLED)
	$(PYTHON) -m ruff check .

setup: $(INSTALLED)

$(INSTALLED): setup.py
	test -x $(PYTHON) || python3 -m venv $(ENV)
	$(PYTHON) -m pip install --quiet --upgrade pip
	$(PYTHON) -m pip install --quiet --editable '.[test]'
	touch $@
