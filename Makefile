# The two commands of the README. Prerequisites: Python 3.11 or later, make, and a C++ compiler (g++ or clang++).
PYTHON ?= python3
BIN := .venv/bin
# llama.cpp's libraries: what `edgeqwen engine build` has put into dist/, or else compiled once for this processor alone.
# Where it builds nothing (macOS), pip compiles llama-cpp-python's own.
ARCH := $(shell uname -m)
DIST := $(wildcard dist/edgeqwen_engine-*_$(ARCH).whl)
ENGINE := $(or $(DIST),$(if $(filter Linux-x86_64 Linux-aarch64,$(shell uname -s)-$(ARCH)),build/engine/.built))
WHEELS := $(if $(DIST),dist,build/engine)
install_engine = $(1)/python -m pip install --quiet --force-reinstall --no-deps \
  $(WHEELS)/edgeqwen_engine-*_$(ARCH).whl $(WHEELS)/llama_cpp_python-*-none-any.whl

.PHONY: demo test lint peers reference clients packs boards arm clean

demo: .venv/.llama
	$(BIN)/edgeqwen demo

# Most tests take one core. A file's tests stay together: they share what is slow to make.
test: .venv/.dev lint
	$(BIN)/python -m pytest -n auto --maxprocesses 4 --dist loadfile

lint: .venv/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# The tools that the `peers` tests compare with: see benchmarks/peers.sh.
peers: .venv/.python
	bash benchmarks/peers.sh build/peers

# Both engines against transformers, and the exporter that needs torch: in an environment of their own.
reference: .venv-reference/.ready
	.venv-reference/bin/python -m pytest -m reference
	.venv-reference/bin/python -m pytest -m "not reference" tests/test_backend_contract.py
	EDGEQWEN_ALL_PROMPTS=1 .venv-reference/bin/python -m pytest -n auto --maxprocesses 4 tests/test_identity.py

# Real clients over a real socket, each in an environment of its own. Two of them run on Node 20 or later.
clients: .venv/.dev
	$(BIN)/python tests/clients/install.py build/clients
	EDGEQWEN_CLIENTS=build/clients $(BIN)/python -m pytest -m clients

# Packs made with the real index, and installed where there is no network.
packs: .venv/.dev
	EDGEQWEN_PACKS=build/packs EDGEQWEN_ARM=$(wildcard build/arm) $(BIN)/python -m pytest -m packs

# Emulated Raspberry Pis: the engine is cross-built (apt-get install g++-aarch64-linux-gnu), the rest comes as wheels and
# Debian's arm64 packages. The boards run side by side: an emulated one mostly takes a single core.
boards: .venv/.dev
	@ls build/arm/wheels/edgeqwen_engine-*_aarch64.whl >/dev/null 2>&1 || { \
	  $(BIN)/python -m pip install --quiet cmake && \
	  $(BIN)/edgeqwen engine build --for linux-aarch64 --out build/arm/wheels --work build/arm/engine; }
	$(BIN)/python tests/arm/sysroot.py build/arm

arm: boards
	@EDGEQWEN_ARM=build/arm $(BIN)/python -m pytest -m arm -k pi4 >build/arm/pi4.log 2>&1 & beside=$$!; \
	EDGEQWEN_ARM=build/arm $(BIN)/python -m pytest -m arm -k "not pi4"; code=$$?; \
	wait $$beside || code=$$?; cat build/arm/pi4.log; exit $$code

clean:
	rm -rf .venv .venv-reference build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis

.venv/.python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "edgeqwen needs Python 3.11 or later; $$($(PYTHON) --version) was found. Try: make $(MAKECMDGOALS) PYTHON=python3.12"; exit 1; }
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip
	@touch $@

build/engine/.built: .venv/.python edgeqwen/engine_source.py edgeqwen/engine_build.py $(wildcard edgeqwen/engine_files/*)
	@echo "Compiling llama.cpp once: about 3 minutes on 2 cores ..."
	$(BIN)/python -m pip install --quiet cmake --editable .
	$(BIN)/edgeqwen engine build --variants native --out build/engine --work build/engine/work
	@rm -rf build/engine/work
	@touch $@

.venv/.llama: .venv/.python pyproject.toml $(ENGINE)
	$(if $(ENGINE),$(call install_engine,$(BIN)))
	$(BIN)/python -m pip install --quiet --editable '.[llama]'
	@touch $@

.venv/.dev: .venv/.llama pyproject.toml
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	@touch $@

# torch by itself first: any 2.x is good, and this one is there as a build for CPUs, which is a tenth of the others.
.venv-reference/.ready: .venv/.llama pyproject.toml
	$(PYTHON) -m venv .venv-reference
	.venv-reference/bin/python -m pip install --quiet --upgrade pip
	.venv-reference/bin/python -m pip install --quiet torch==2.13.0
	$(if $(ENGINE),$(call install_engine,.venv-reference/bin))
	.venv-reference/bin/python -m pip install --quiet --editable '.[reference,dev]'
	@touch $@
