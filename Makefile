# Each target does all its own set-up, in .venv; a second run finds it done.
#
#   make demo     read a real code base into memory and recall from it, with citations
#   make test     linters, types, the rooms' imports, all tests
#   make format   put the code into the one format that `make test` asks for
#   make sanitize run the native tests under the address and undefined-behaviour sanitizers
#   make memcheck run every kernel under valgrind's memcheck
#   make arm      run the portable kernels as 64-bit Arm, under qemu, against this machine's
#   make soak     the tests that find more the longer they run (MINUTES=60)
#   make clean    remove what the above made

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --disable-pip-version-check --quiet
# What the installed package is built from. Python files are not: the install is editable.
SOURCES := pyproject.toml CMakeLists.txt $(wildcard native/*)

.PHONY: demo test lint format sanitize memcheck arm soak clean
.DELETE_ON_ERROR:

demo: $(VENV)/.installed
	@PATH="$(CURDIR)/$(BIN):$$PATH" sh demo/demo.sh

test: lint
	$(BIN)/python -m pytest -n 2 -q

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
	sh native/sanitize.sh "$(CURDIR)/$(BIN)/python" build/sanitize

memcheck: $(VENV)/.installed
	@mkdir -p build
	sh native/memcheck.sh $(BIN)/python build/memcheck.log

arm:
	sh native/arm.sh build/arm

soak: $(VENV)/.installed-dev
	$(BIN)/python tests/soak.py --minutes $${MINUTES:-60}

clean:
	rm -rf $(VENV) build .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis

$(VENV)/bin/python:
	@sh native/check_python.sh "$(PYTHON)"
	"$(PYTHON)" -m venv $(VENV)

$(VENV)/.installed: $(SOURCES) | $(VENV)/bin/python
	$(PIP) --editable .
	@touch $@

$(VENV)/.installed-dev: $(SOURCES) | $(VENV)/bin/python
	$(PIP) --editable ".[dev]"
	@touch $@ $(VENV)/.installed
