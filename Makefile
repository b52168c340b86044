# sglang-longflow: `make` lists the targets. Everything they need is installed on the first run.
#   PYTHON=python3.12   interpreter for the environment (default: the first of 3.12, 3.11, 3.13 found)
#   VENV=.venv          where the environment lies
#   PYTEST_ARGS=...     passed on to pytest, such as PYTEST_ARGS='-k budget -x'
#   TOOLS=.tools        where the tools of the deployment tests lie
#   PYTEST_WORKERS=2    test files that run at once (each may start a server of 3 GB)
#   GPU_PYTHON=python3  test-gpu with this interpreter instead of the environment

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory

PYTHON ?=
VENV ?= .venv
TOOLS ?= .tools
GPU_PYTHON ?=
PYTEST_ARGS ?=
PYTEST_WORKERS ?= 2

.PHONY: help
help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-14s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

.PHONY: env
env: ## create the environment (once: about 5 minutes, 10 GB of disk)
	@PYTHON="$(PYTHON)" VENV="$(VENV)" bash scripts/bootstrap.sh

# One clock: what bootstrap and demo print counts from here.
demo demo-questions: export LONGFLOW_CLOCK := $(shell cut -d. -f1 /proc/uptime)

.PHONY: demo
demo: env ## one-command demo on the CPU: chains of 2,000 tokens in 400 slots, answers checked
	@"$(VENV)/bin/longflow" demo

.PHONY: demo-questions
demo-questions: env ## eight questions to a small chat model, which is fetched once (93 MB)
	@"$(VENV)/bin/longflow" demo --questions

.PHONY: check
check: env ## lint, types and unit tests: under a minute, the loop while you work
	@$(MAKE) lint
	@"$(VENV)/bin/python" -m pytest --unit -q $(or $(strip $(PYTEST_ARGS)),-n $(PYTEST_WORKERS))

# In the files' own order: xdist would keep files of few tests for the end, and those are the servers
# of minutes, run by one worker while the other has nothing left.
.PHONY: test test-rest
test-rest: PART = --rest
test-rest: ## those of `make test` that `make check` leaves out, without variants
test: ## all tests that need no GPU, the end-to-end ones included
test test-rest: env
	@model="$${LONGFLOW_TEST_MODEL:-$$("$(VENV)/bin/python" -m sglang_longflow.demo.model --path)}"; \
	LONGFLOW_TEST_MODEL="$$model" exec "$(VENV)/bin/python" -m pytest -m "not gpu and not deploy" $(PART) \
	  $(or $(strip $(PYTEST_ARGS)),-n $(PYTEST_WORKERS) --dist loadfile --no-loadscope-reorder)

.PHONY: tools
tools: env tools-only ## tools of the deployment tests: validators, Prometheus, a browser, the router

# They have an environment of their own, so they can be installed while `make env` runs.
.PHONY: tools-only
tools-only:
	@TOOLS="$(TOOLS)" PYTHON="$(PYTHON)" bash scripts/tools.sh

define deploy_pytest
model="$${LONGFLOW_TEST_MODEL:-$$("$(VENV)/bin/python" -m sglang_longflow.demo.model --path)}"; \
	LONGFLOW_TEST_MODEL="$$model" TOOLS="$(TOOLS)" \
	  exec "$(VENV)/bin/python" -m pytest
endef

.PHONY: test-deploy
test-deploy: env tools ## tests of what is in deploy/, with those tools
	@$(deploy_pytest) -m "deploy and not long" tests/deploy \
	  $(or $(strip $(PYTEST_ARGS)),-n $(PYTEST_WORKERS) --dist loadgroup --no-loadscope-reorder)

.PHONY: manifests
manifests: tools ## what deploy/kustomize takes over from the Helm chart
	@"$(TOOLS)/venv/bin/python" scripts/render_manifests.py

.PHONY: test-deploy-long
test-deploy-long: env tools ## those of minutes: autoscaling, the Dockerfile's steps in a clean root, a soak of 3 minutes
	@$(deploy_pytest) -m long tests/deploy $(PYTEST_ARGS)

.PHONY: test-gpu
test-gpu: $(if $(GPU_PYTHON),,env) ## tests that need an NVIDIA GPU
	@LONGFLOW_TEST_DEVICE=cuda "$(or $(GPU_PYTHON),$(VENV)/bin/python)" -m pytest -s -m gpu $(PYTEST_ARGS)

.PHONY: bench-kernels
bench-kernels: $(if $(GPU_PYTHON),,env) ## the decode kernel beside FlashInfer's on a GPU, into docs/results/kernels.csv
	@rm -rf build/kernels
	@PYTHONPATH=kernels "$(or $(GPU_PYTHON),$(VENV)/bin/python)" scripts/bench_kernels.py \
	  --csv build/kernels/kernels.csv
	@"$(or $(GPU_PYTHON),$(VENV)/bin/python)" scripts/pack_results.py --add build/kernels --kind kernels

.PHONY: compile-kernels
compile-kernels: env ## every kernel compiled for five GPUs, none of which is needed; compares the page
	@"$(VENV)/bin/python" -W ignore scripts/compile_kernels.py --check

.PHONY: lint
lint: env ## ruff (rules and format), mypy, and tables that are written by scripts
	@"$(VENV)/bin/ruff" check .
	@"$(VENV)/bin/ruff" format --check .
	@"$(VENV)/bin/mypy"
	@"$(VENV)/bin/python" scripts/hook_table.py --check
	@"$(VENV)/bin/python" scripts/pack_results.py --check
	@"$(VENV)/bin/python" scripts/results_table.py --check
	@"$(VENV)/bin/python" -W ignore scripts/config_table.py --check
	@"$(VENV)/bin/python" -W ignore scripts/config_schema.py --check
	@"$(VENV)/bin/python" scripts/models_table.py --check
	@"$(VENV)/bin/python" scripts/chart_readme.py --check
	@"$(VENV)/bin/python" scripts/quality_table.py --check
	@"$(VENV)/bin/python" scripts/gpu_table.py --check
	@"$(VENV)/bin/python" scripts/import_table.py --check
	@"$(VENV)/bin/python" scripts/check_prose.py
	@"$(VENV)/bin/python" scripts/spdx.py --check

.PHONY: prose
prose: env ## habits of wording in README and docs
	@"$(VENV)/bin/python" scripts/check_prose.py

# Without the environment of 10 GB: any Python 3.11 or later builds the site.
.PHONY: docs
docs: ## the site of docs/ into build/site, strictly: no broken link, no page without a place
	@key=$$(sha256sum < requirements/docs.txt); \
	if [[ ! -f "$(TOOLS)/docs/stamp" || $$(<"$(TOOLS)/docs/stamp") != "$$key" ]]; then \
	  "$(or $(strip $(PYTHON)),$(wildcard $(VENV)/bin/python),python3)" -m venv --clear "$(TOOLS)/docs"; \
	  "$(TOOLS)/docs/bin/pip" install -qq --disable-pip-version-check -r requirements/docs.txt; \
	  echo "$$key" > "$(TOOLS)/docs/stamp"; \
	fi
	@NO_MKDOCS_2_WARNING=1 "$(TOOLS)/docs/bin/mkdocs" build --strict

.PHONY: format
format: env ## let ruff fix and format the code
	@"$(VENV)/bin/ruff" check --fix .
	@"$(VENV)/bin/ruff" format .

.PHONY: hooks
hooks: env ## install the git pre-commit hooks
	@"$(VENV)/bin/pre-commit" install

.PHONY: clean
clean: ## remove caches and build outputs (the environment stays; rm -r .venv removes it)
	@rm -rf build dist *.egg-info kernels/*.egg-info .pytest_cache .mypy_cache .ruff_cache
	@find sglang_longflow kernels tests scripts -name __pycache__ -type d -prune -exec rm -rf {} +
