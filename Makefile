# make demo    a fresh machine to a split model that answers, narrated
# make test    a fresh machine to all tests passed
# make check   format, lint, types, architecture, unit tests: before each commit
# make lint    the first three of these
# make bench-lab  how exact the lab is (docs/lab.md); any tests/bench/NAME.py is bench-NAME
# make evaluate   the paper's three use cases on the lab, static and adaptive; writes docs/evaluation.md. Needs root.
#                 SCENARIO=my.yaml: another one; REPEAT=3: as many repetitions of 13 minutes. What is done already is kept
# make fuzz    ten million hostile inputs for whatever reads bytes of others
# make soak    twenty minutes of clients that come and go while epochs change
# make tools   what the tests need of the system, through apt; only root can
# make models  every model family transformers knows, cut and compared; writes docs/models.md
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test check lint evaluate models soak fuzz tools clean

demo: .venv/ready
	$(BIN)/python plans/demo/demo.py

# Those of fleets keep time: one after the other, but for some. The rest shares two cores, so a process computes on one.
TIMELESS := $(addprefix tests/fleet/test_,exact.py push_fleet.py beyond_text_fleet.py environment_fleet.py \
	kill_fleet.py security_fleet.py)
test: .venv/ready
	OMP_NUM_THREADS=1 $(BIN)/pytest --numprocesses 2 --dist worksteal tests/unit tests/model $(TIMELESS)
	$(BIN)/pytest tests/lab tests/fleet $(TIMELESS:%=--ignore=%)

check: lint
	$(BIN)/pytest --numprocesses 2 --dist worksteal -m "not ssh" tests/unit

lint: .venv/ready
	$(BIN)/ruff format --check edgesplit tests plans
	$(BIN)/ruff check edgesplit tests plans
	$(BIN)/mypy

# prints a table, writes build/bench/NAME.json
bench-%: .venv/ready
	PYTHONPATH=tests $(BIN)/python tests/bench/$*.py

SCENARIO ?= plans/evaluation/emergency.yaml plans/evaluation/manufacturing.yaml plans/evaluation/roadside.yaml
REPEAT ?= 1
REPORT ?= $(if $(filter file,$(origin SCENARIO)),docs/evaluation.md,build/evaluation/report.md)

evaluate: .venv/ready
	$(BIN)/edgesplit evaluate $(SCENARIO) --repeat $(REPEAT) --report $(REPORT)

# sshd and ssh, `ip` for the lab, `ps`; whoever is not root has them or goes without.
tools:
	@if command -v ip >/dev/null && command -v ssh >/dev/null && command -v ps >/dev/null && [ -x /usr/sbin/sshd ]; then \
	  :; elif [ "$$(id -u)" = 0 ]; then apt-get update -qq && apt-get install -y -qq --no-install-recommends \
	  iproute2 openssh-server openssh-client procps; \
	else echo "not root: install iproute2, openssh-server, openssh-client and procps for the tests of SSH and the lab"; fi

soak: .venv/ready
	EDGESPLIT_SOAK=1200 $(BIN)/pytest tests/fleet/test_soak.py

fuzz: .venv/ready
	EDGESPLIT_FUZZ=10000000 $(BIN)/pytest --timeout 0 tests/unit/test_fuzz.py

models: .venv/ready
	PYTHONPATH=tests $(BIN)/python -m families.run

# The stamp is made last: an install that was broken off is begun again.
.venv/ready: pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable ".[dev]"
	touch $@

clean:
	rm -rf .venv build .mypy_cache .pytest_cache .ruff_cache .hypothesis *.egg-info
