# Two commands for a new machine: `make demo` and `make test`. All needs Python >= 3.10 with venv, and a C++17 compiler.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
COMPILED := CMakeLists.txt $(shell find csrc -type f)
CXX_SOURCES := $(filter %.h %.cpp %.cu %.cuh,$(COMPILED)) $(wildcard tests/kernels/ptx/*)

.PHONY: demo test lint format wheel clean

demo: $(INSTALLED)  ## export a real classifier, explain real photographs, draw pictures
	$(BIN)/finercam demo -o demo-output

test: $(INSTALLED)  ## all tests; those that need a GPU or the shared assets say that they skip
	@# one thread a process: two processes of two threads wait for each other's cores, and waiting burns them
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses 2 --dist loadfile

lint: $(INSTALLED)  ## what CI checks before the tests
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/clang-format --dry-run --Werror $(CXX_SOURCES)
	@# export/ is installed as finercam_rt.export: mypy must see it there
	rm -rf build/mypy && mkdir -p build/mypy
	cp -r finercam_rt build/mypy/ && cp -r export build/mypy/finercam_rt/export
	cd build/mypy && $(abspath $(BIN))/mypy --config-file ../../pyproject.toml -p finercam_rt

format: $(INSTALLED)  ## write all files as lint wants them
	$(BIN)/ruff format . && $(BIN)/ruff check --fix .
	$(BIN)/clang-format -i $(CXX_SOURCES)

wheel: $(INSTALLED)  ## dist/finercam_rt-*.whl
	rm -rf dist
	$(BIN)/python -m pip wheel --quiet --no-deps --wheel-dir dist .

clean:  ## everything that the commands above made
	rm -rf $(VENV) build dist demo-output .pytest_cache .mypy_cache .ruff_cache

$(INSTALLED): pyproject.toml constraints.txt $(COMPILED)
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@# no bytecode of all files of all packages, which takes minutes: what is imported is compiled then
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile --constraint constraints.txt \
	  --editable ".[export,hub,evaluate,demo,test,lint]"
	touch $@
