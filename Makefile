# Two commands do everything: `make demo` and `make test`. Both first make .venv from requirements.lock.

PYTHON ?= python3
BIN := .venv/bin
DEMO := runs/demo

.DEFAULT_GOAL := help
.PHONY: help system-deps test-deps demo test test-all lint lock clean

help:
	@echo "make demo      train, evaluate, export, prove and bench on built-in data; writes $(DEMO)/report.html"
	@echo "make test      install what is missing, then run the tests"
	@echo "make test-all  the same, slow tests included"
	@echo "make lint      ruff and mypy"
	@echo "make lock      resolve requirements.lock anew from pyproject.toml"

# Installs those packages of a list that are missing, where the user may; says what to run otherwise. One that this system
# hasn't is said and left out: the tests that need it are skipped. Where systemd would start an SSH server as soon as it is
# installed, that is left to the user.
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

# What the tests take besides: a JDK, a browser, an ssh server, adb, emulated processors.
test-deps: system-deps build/android.jar build/adbd build/onnxruntime
	$(call install,tests/system-packages.txt)

# What the Android demo's sources are compiled against in the tests.
build/android.jar:
	@$(PYTHON) tests/android/fetch_android_jar.py $@

# What stands for a phone in the tests of adb.
build/adbd:
	@$(PYTHON) tests/bench/fetch_adbd.py $@

# onnxruntime's headers, for the C++ program of docs/embed.md.
build/onnxruntime:
	@$(PYTHON) tests/fetch_onnxruntime_headers.py $@

# An arm64 device's Python, which qemu emulates, for the slow tests.
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
	$(BIN)/python -m pytest -m "slow or not slow"

lint: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

lock:
	$(BIN)/uv pip compile --universal --python-version 3.10 --no-emit-index-url --no-annotate --no-header \
	  --extra train --extra export --extra test pyproject.toml -o requirements.lock

clean:
	rm -rf .venv build *.egg-info
