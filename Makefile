# demo · test · check · golden · images · bench: the only verbs. Everything else here is a file that they need.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := demo
.PHONY: demo test check golden images bench

PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --quiet --disable-pip-version-check
RAW := .understudy/raw
MIN_TESTS ?= 2850
DEBIAN_PACKAGES := postgresql git chromium
export HF_HUB_OFFLINE ?= 1
export PIP_ROOT_USER_ACTION ?= ignore

demo: $(VENV)/.installed $(RAW)/demonstrations.jsonl
	@$(BIN)/understudy run

test: $(VENV)/.installed-dev
	@$(MAKE) --no-print-directory check
	@bash tests/run.sh $(MIN_TESTS)

check: $(VENV)/.installed-dev
	@echo "ruff";         $(BIN)/ruff check understudy components pipelines examples experiments k8s benchmarks tests
	@echo "mypy";         $(BIN)/mypy
	@echo "lint-imports"; $(BIN)/lint-imports --cache-dir .import_linter_cache
	@echo "compiled";     $(BIN)/understudy pipeline compile --check
	@echo "schedules";    $(BIN)/understudy schedule check
	@echo "k8s";          $(BIN)/python -m k8s.check
	@echo "hadolint";     $(BIN)/hadolint docker/*.Dockerfile

golden: $(VENV)/.installed-dev
	@$(BIN)/understudy pipeline compile

images:
	@docker/build.sh

# Ours beside transformers and TRL, one thread each: docs/speed.md. BENCH="--quick" tries it out in minutes.
bench: $(VENV)/.installed-bench $(RAW)/demonstrations.jsonl
	@OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks $(BENCH)

# torch first and alone: resolved together with the rest, pip may take a build with gigabytes of CUDA.
$(VENV)/.torch: constraints.txt
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "installing torch"
	@$(PIP) install "$$(grep -i '^torch==' constraints.txt)"
	@touch $@

$(VENV)/.installed: $(VENV)/.torch pyproject.toml constraints.txt
	@echo "installing understudy (a few minutes the first time)"
	@$(PIP) install -c constraints.txt -e .
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	@echo "installing what tests need"
	@$(PIP) install -c constraints.txt -e ".[dev]"
	@missing=$$(for name in $(DEBIAN_PACKAGES); do dpkg -s $$name >/dev/null 2>&1 || echo $$name; done); \
	if [ -n "$$missing" ] && [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
	  (apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $$missing) >/dev/null; fi
	@touch $@

$(VENV)/.installed-bench: $(VENV)/.installed
	@echo "installing the peers"
	@$(PIP) install -c constraints.txt -e ".[bench]"
	@touch $@

$(RAW)/demonstrations.jsonl:
	@$(MAKE) --no-print-directory $(VENV)/.installed
	@echo "fetching the default demonstrations"
	@$(BIN)/python -m examples.fetch --out $(RAW)
