# Every target works on a fresh machine with Python 3.11, make, curl and git: it makes .venv itself.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip
SERVICE := $(VENV)/.service
INSTALLED := $(VENV)/.installed

# With it set, every process that a test starts would compile all of torch anew.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: install kernels browser demo serve docs pictures check audit test fuzz crash slow load soak ray bench gpu clean

install: $(INSTALLED)

# What the service needs. --no-compile: Python compiles what is imported, which is a tenth of what is installed.
$(SERVICE): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(PIP) install -qq --constraint constraints.txt --upgrade pip # that of Python 3.11 knows no groups, and is slow
	$(PIP) install -qq --no-compile --constraint constraints.txt --editable .
	touch $@

# What tests and linters need beside.
$(INSTALLED): $(SERVICE)
	$(PIP) install -qq --no-compile --constraint constraints.txt --group dev
	touch $@

demo: $(SERVICE)
	$(BIN)/python -m demo

# With the kernels there, the first requests need not wait for them.
serve: kernels
	$(BIN)/dictserve serve --host 127.0.0.1 --port 8000 --store models

# Into build/site, without the internet. The variable keeps a notice about other programs out of what it prints.
docs: install
	$(BIN)/python -m docs.make
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

# The page's pictures in docs/pictures, taken anew.
pictures: install browser
	$(BIN)/python -m tests.e2e.pictures

check: install
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache
	$(BIN)/python -m tests.licences --check

# Known vulnerabilities of every pinned package. Needs the internet, so CI does not run it; docs/operations.md says when.
audit:
	test -x $(VENV)/audit/bin/pip-audit || { $(PYTHON) -m venv $(VENV)/audit && \
		$(VENV)/audit/bin/python -m pip install --quiet pip-audit==2.10.1; }
	$(VENV)/audit/bin/pip-audit --strict --requirement constraints.txt --no-deps --disable-pip

# Compiled once, before two processes would both do it.
kernels: $(SERVICE)
	$(BIN)/python -m core.warm

# Debian's Chromium, for the tests of the page: root of a Debian gets it, others are told.
browser:
	@command -v chromium >/dev/null || { test "$$(id -u)" = 0 && command -v apt-get >/dev/null && apt-get -qq update \
		&& DEBIAN_FRONTEND=noninteractive apt-get -qq install --yes --no-install-recommends chromium >/dev/null; } \
		|| echo "There is no chromium, and it could not be installed: the browser's tests will be skipped."

# Four at a time, a file staying with one process: with fewer, services that start and clients that wait leave two cores
# idle; with more, what is done costs more, since caches are shared. In the order of tests/conftest.py, the longest first.
test: install kernels browser
	$(BIN)/python -m pytest --numprocesses 4 --dist loadfile --no-loadscope-reorder

# Kills the worker, the service or both N times under load, and checks every promise; SEED says what is done.
N ?= 200
SEED ?= 1
crash: install
	$(BIN)/python -m tests.faults.crash --kills $(N) --seed $(SEED)

# What `make test` asks the same way every time, asked in other ways.
fuzz: install
	$(BIN)/python -m pytest -m hypothesis --hypothesis-profile others
	DICTSERVE_FUZZ_CASES=10000 DICTSERVE_FUZZ_EXAMPLES=200 $(BIN)/python -m pytest tests/faults/test_mutated_bodies.py tests/faults/test_openapi_fuzz.py

# Two nodes of Ray, with replicas, fitters and a node killed; apart from the tests, for it takes minutes.
ray: install
	DICTSERVE_TEST_RAY=1 $(BIN)/python -m pytest tests/e2e/test_ray.py

# Long runs under load, one to two minutes each; they write benchmarks/trust.json and their part of docs/performance.md.
slow: install
	$(BIN)/python -m tests.faults.load trickle

load: install
	$(BIN)/python -m tests.faults.load saturate

soak: install
	$(BIN)/python -m tests.faults.load soak

# Peers may fail to install: the benchmarks say which are absent, and why. overcomplete wants vision
# models and a torchvision that fits torch's build; its factorisation needs neither, so it comes alone. Servers get
# folders of their own, where what they require changes nothing of ours (MLServer wants an older FastAPI and uvloop).
PEERS := $(VENV)/peers
bench: install kernels
	-$(PIP) install -qq --constraint constraints.txt --group bench
	-$(PIP) install -qq --constraint constraints.txt --no-deps overcomplete
	-test -d $(PEERS)/litserve || $(PIP) install -qq --constraint constraints.txt --target $(PEERS)/litserve litserve
	-test -d $(PEERS)/mlserver || $(PIP) install -qq \
		--target $(PEERS)/mlserver mlserver==1.7.1 uvloop==0.21.0 numpy==2.4.6
	$(BIN)/python -m benchmarks

# On a machine with a GPU, with its own Python and what that has: torch, triton, numpy, numba, scikit-learn, pytest.
# Under nine minutes; the figures go to benchmarks/gpu.json, whether or not tests pass. They come first: the kernels for
# the CPU, which the tests want, take a minute to compile, beside them. A test that is cut off still says what passed.
gpu:
	timeout 330 $(PYTHON) -m core.warm & \
		timeout 330 $(PYTHON) -m benchmarks.gpu --seconds 255; figures=$$?; wait; \
		timeout --signal INT --kill-after 10 190 $(PYTHON) -m pytest -c tests/gpu/alone.ini --rootdir . \
		--confcutdir tests/gpu tests/gpu && exit $$figures

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find app benchmarks core demo docs tests -name __pycache__ -prune -exec rm -rf {} +
