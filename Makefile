# Uses the active environment (virtualenv or conda); without one, makes .venv.
ifneq ($(or $(VIRTUAL_ENV),$(CONDA_PREFIX)),)
ENV := $(or $(VIRTUAL_ENV),$(CONDA_PREFIX))
else
ENV := $(CURDIR)/.venv
endif
PYTHON := $(ENV)/bin/python
INSTALLED := $(ENV)/.p2c-installed
export PYTHON

.PHONY: demo test lint bench gpu-check faults study-smoke setup

demo: $(INSTALLED)
	bash scripts/demo.sh

# Two processes of one thread each: the tests' models are so small that more threads only wait for each other.
test: $(INSTALLED)
	OMP_NUM_THREADS=1 $(PYTHON) -m pytest --numprocesses 2 --dist loadfile

lint: $(INSTALLED)
	$(PYTHON) -m ruff check .
	bash tests/lint.sh $(PYTHON)

# What docs/performance.md shows, on this machine (an hour or more), also into bench.txt; QUICK=1: a dry run of minutes.
# One that fails does not keep the others from running.
BENCHMARKS := step grid
bench: $(INSTALLED)
	@bash -o pipefail -c '{ status=0; for name in $(BENCHMARKS); do \
	    printf "\n== benchmarks/%s.py\n" $$name; \
	    $(PYTHON) benchmarks/$$name.py $(if $(QUICK),--quick) || status=1; \
	done; exit $$status; } 2>&1 | tee bench$(if $(QUICK),-quick).txt'

# Checks and measures a GPU in at most eight minutes; WHEELS=FOLDER: packages that are missing come from there.
gpu-check: $(INSTALLED)
	$(PYTHON) benchmarks/gpu_check.py $(if $(WHEELS),--wheels $(WHEELS))

# Kills runs, fills their disks and damages their files, some ten minutes; SECTIONS="kills damage" SEED=7: a part of it.
faults: $(INSTALLED)
	OMP_NUM_THREADS=1 $(PYTHON) tests/faults/run.py $(SECTIONS) $(if $(SEED),--seed $(SEED))

# The whole of the study (docs/results.md) on a small scale, in 10 minutes on two cores.
study-smoke: $(INSTALLED)
	$(PYTHON) -m p2c study configs/studies/smoke.yaml --output output/study-smoke

setup: $(INSTALLED)

$(INSTALLED): setup.py
	test -x $(PYTHON) || python3 -m venv $(ENV)
	$(PYTHON) -m pip install --quiet --upgrade pip
	$(PYTHON) -m pip install --quiet --editable '.[test]'
	touch $@
