# `make demo` and `make test` do everything. Both first create .venv from requirements.lock.

PYTHON ?= python3
BIN := .venv/bin
DEMO := runs/demo

.DEFAULT_GOAL := help
.PHONY: help system-deps test-deps demo test test-all test-kernels lint docs lock clean

help:
	@echo "make demo          train, evaluate, export, check and bench on built-in data; writes $(DEMO)/report.html"
	@echo "make test          install what is missing, then run the quick tests"
	@echo "make test-all      all tests with coverage, then test-kernels"
	@echo "make test-kernels  the tests that depend on floating-point kernels, for AVX2, AVX-512 and this processor"
	@echo "make lint          ruff, mypy and the import contracts"
	@echo "make docs          the documentation site, in site/"
	@echo "make lock          resolve requirements.lock again from pyproject.toml"

# Installs the missing packages of a list as root or by sudo, and otherwise prints the command. A package that this system lacks
# is reported and left out: the tests that need it are skipped. Where systemd would start an SSH server on installation, that
# package is left to the user.
define install
	@missing=""; for package in $$(cat $(1)); do \
	  if [ $$package = openssh-server ] && [ -d /run/systemd/system ]; then continue; fi; \
	  dpkg -s "$$package" >/dev/null 2>&1 || command -v "$$package" >/dev/null || missing="$$missing $$package"; done; \
	if [ -z "$$missing" ]; then exit 0; fi; \
	if ! command -v apt-get >/dev/null; then echo "not a Debian system; the equivalents of$$missing are needed"; exit 0; fi; \
	if [ "$$(id -u)" = 0 ]; then root=""; elif sudo -n true 2>/dev/null; then root=sudo; \
	else echo "these packages are missing: run  sudo apt-get install$$missing"; exit 0; fi; \
	install="env DEBIAN_FRONTEND=noninteractive apt-get install -qy"; $$root apt-get update -q; \
	$$root $$install $$missing || for package in $$missing; do \
	  $$root $$install "$$package" || echo "$$package can't be installed here"; done
endef

system-deps:
	$(call install,system-packages.txt)

# The tests need a JDK, a browser, an ssh server, adb and emulated processors, too.
test-deps: system-deps build/android.jar build/adbd build/onnxruntime
	$(call install,tests/system-packages.txt)

# The Android demo's sources are compiled against it in the tests.
build/android.jar:
	@$(PYTHON) tests/android/fetch_android_jar.py $@

# Takes the place of a phone in the tests of adb.
build/adbd:
	@$(PYTHON) tests/bench/fetch_adbd.py $@

# onnxruntime's headers, for the C++ program in docs/embed.md.
build/onnxruntime:
	@$(PYTHON) tests/fetch_onnxruntime_headers.py $@

# An arm64 device's Python, emulated by qemu, for the slow tests.
build/arm64: .venv/installed
	@$(BIN)/python tests/bench/fetch_arm64.py $@

.venv/installed: requirements.lock pyproject.toml
	@$(MAKE) --no-print-directory system-deps
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install -q --disable-pip-version-check uv
	$(BIN)/uv pip install -q --compile-bytecode --python $(BIN)/python --no-deps -r requirements.lock
	$(BIN)/uv pip install -q --python $(BIN)/python --no-deps --no-build-isolation --editable .
	touch $@

demo: .venv/installed
	$(BIN)/python -m stlm_edge.data.demo --out $(DEMO)-data
	$(BIN)/stlm-train --data $(DEMO)-data --recipe quick --size 224 --out $(DEMO) --resume
	$(BIN)/stlm-eval --checkpoint $(DEMO)/checkpoint.safetensors --data $(DEMO)-data --out $(DEMO)/evaluation
	$(BIN)/stlm-export --target cpu --precision fp32 --checkpoint $(DEMO)/checkpoint.safetensors \
	  --data $(DEMO)-data --out $(DEMO)/bundles/cpu-fp32 --force
	$(BIN)/stlm-export --target cpu --precision int8 --checkpoint $(DEMO)/checkpoint.safetensors \
	  --data $(DEMO)-data --out $(DEMO)/bundles/cpu-int8 --force
	$(BIN)/stlm-bench --quick --bundle $(DEMO)/bundles/cpu-fp32 --bundle $(DEMO)/bundles/cpu-int8 \
	  --checkpoint $(DEMO)/checkpoint.safetensors --data $(DEMO)-data --out $(DEMO)

test: .venv/installed test-deps
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadgroup

test-all: .venv/installed test-deps build/arm64
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadgroup -m "slow or not slow" --cov --cov-report term:skip-covered
	$(MAKE) --no-print-directory test-kernels

# Where a processor lacks an instruction set, the libraries use the next smaller one.
KERNEL_TESTS := tests/model tests/teachers tests/training/test_step.py tests/converters
test-kernels: .venv/installed
	ATEN_CPU_CAPABILITY=avx2 ONEDNN_MAX_CPU_ISA=AVX2 MKL_ENABLE_INSTRUCTIONS=AVX2 \
	  $(BIN)/python -m pytest -m "slow or not slow" $(KERNEL_TESTS)
	ATEN_CPU_CAPABILITY=avx512 ONEDNN_MAX_CPU_ISA=AVX512_CORE MKL_ENABLE_INSTRUCTIONS=AVX512 \
	  $(BIN)/python -m pytest -m "slow or not slow" $(KERNEL_TESTS)
	$(BIN)/python -m pytest -m "slow or not slow" $(KERNEL_TESTS)

lint: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest tests/test_import_contracts.py

docs: .venv/installed
	$(BIN)/python docs/cli_reference.py
	$(BIN)/mkdocs build

lock:
	$(BIN)/uv pip compile --universal --python-version 3.10 --no-emit-index-url --no-annotate --no-header \
	  --extra train --extra export --extra test --extra docs pyproject.toml -o requirements.lock

clean:
	rm -rf .venv build site *.egg-info
