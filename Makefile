# Each target explains itself: `make help`.
.DEFAULT_GOAL := help
SHELL := /bin/sh
BOOTSTRAP := ./scripts/bootstrap
RUN := . ./.nightshift/env.sh && .venv/bin

# Folders are given as seen from the shell that called make.
LANDING_PATH = $(if $(filter /%,$(LANDING)),$(LANDING),$(PWD)/$(LANDING))

.PHONY: help
help: ## This list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-13s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

.PHONY: setup
setup: ## uv, Python 3.12, Java and the locked packages, as far as they are missing
	@$(BOOTSTRAP)

.PHONY: demo
demo: setup ## One night end to end; LANDING=<folder> AS_OF=<date> for your own files
	@$(RUN)/nightshift demo $(if $(LANDING),--landing "$(LANDING_PATH)") $(if $(AS_OF),--as-of "$(AS_OF)")

.PHONY: up
up: setup ## Start Postgres and Airflow, print their URLs and logins
	@$(RUN)/nightshift up

.PHONY: down
down: setup ## Stop them; the data stays
	@$(RUN)/nightshift down

.PHONY: status
status: setup ## What runs where, with logins
	@$(RUN)/nightshift status

.PHONY: reset
reset: setup ## Stop them and delete their data: YES=1
	@$(RUN)/nightshift reset $(if $(YES),--yes)

.PHONY: doctor
doctor: setup ## Check every prerequisite and service; a remedy for what fails
	@$(RUN)/nightshift doctor

.PHONY: mlflow
mlflow: setup ## MLflow's web UI on the tracking store, until Ctrl-C
	@$(RUN)/python -m nightshift.services.mlflow_store ui

.PHONY: test
test: setup ## All tests, on services of their own
	@scripts/chromium || true
	@$(RUN)/python -m pytest -n 2 --no-loadscope-reorder $(PYTEST_ARGS)

.PHONY: test-unit
test-unit: setup ## The tests that need no service
	@$(RUN)/python -m pytest tests/unit tests/architecture $(PYTEST_ARGS)

.PHONY: screenshots
screenshots: setup ## The pictures of Airflow's web UI in docs/images, anew
	@scripts/chromium
	@$(RUN)/python -m pytest tests/integration/test_browser.py -p no:randomly --screenshots docs/images $(PYTEST_ARGS)

.PHONY: bench-ingest
bench-ingest: setup ## Load 10 M order lines, against a prepared binary COPY; BENCH_ARGS=…
	@$(RUN)/python tests/benchmarks/bench_ingest.py $(BENCH_ARGS)

.PHONY: bench-night
bench-night: setup ## A day's lines on 10 M of history, file to checked marts; BENCH_ARGS=…
	@$(RUN)/python tests/benchmarks/bench_night.py $(BENCH_ARGS)

.PHONY: bench-features
bench-features: setup ## The feature job on 10 M order lines, against DuckDB on the same files; BENCH_ARGS=…
	@$(RUN)/python tests/benchmarks/bench_features.py $(BENCH_ARGS)

.PHONY: bench-train
bench-train: setup ## A training of 1 M rows by 80 features, against bare XGBoost; BENCH_ARGS=…
	@$(RUN)/python tests/benchmarks/bench_train.py $(BENCH_ARGS)

.PHONY: bench-publish
bench-publish: setup ## 1 M predictions to readers, against a bare binary COPY; BENCH_ARGS=…
	@$(RUN)/python tests/benchmarks/bench_publish.py $(BENCH_ARGS)

.PHONY: bench-backfill
bench-backfill: setup ## Thirty nights in one backfill, against one night; BENCH_ARGS=…
	@$(RUN)/python tests/benchmarks/bench_backfill.py $(BENCH_ARGS)

.PHONY: bench-score
bench-score: setup ## 1 M rows scored and published from a cold process, against MLflow's UDF and JDBC; BENCH_ARGS=…
	@$(RUN)/python tests/benchmarks/bench_score.py $(BENCH_ARGS)

.PHONY: bench-nightly
bench-nightly: setup ## A whole night through Airflow on 10 M of history, against the command line; BENCH_ARGS=…
	@$(RUN)/python tests/benchmarks/bench_nightly.py $(BENCH_ARGS)

.PHONY: bench-usecases
bench-usecases: setup ## A night of all use cases, against one of churn alone; BENCH_ARGS=…
	@$(RUN)/python tests/benchmarks/bench_usecases.py $(BENCH_ARGS)

.PHONY: audit
audit: setup ## Known vulnerabilities of the locked packages; AUDIT_ARGS=--may-skip
	@$(RUN)/python scripts/audit.py $(AUDIT_ARGS)

.PHONY: chaos
chaos: setup ## Nights, trainings, backfills disturbed at random, under a reader's eyes; CHAOS_ARGS=…
	@. ./.nightshift/env.sh && PYTHONPATH=tests .venv/bin/python -m chaos $(CHAOS_ARGS)

.PHONY: lint
lint: setup ## Style, types, import layers
	@$(RUN)/ruff check .
	@$(RUN)/ruff format --check .
	@$(RUN)/mypy
	@$(RUN)/lint-imports --no-cache

.PHONY: fmt
fmt: setup ## Format the code
	@$(RUN)/ruff check --fix --exit-zero -q .
	@$(RUN)/ruff format .

.PHONY: contracts
contracts: setup ## The files that are generated from the source contracts
	@$(RUN)/python -m nightshift.contracts.dbt_sources

.PHONY: reference
reference: setup ## docs/reference.md, from the declarations' docstrings
	@$(RUN)/python scripts/reference.py

.PHONY: requirements
requirements: setup ## requirements.txt from uv.lock
	@. ./.nightshift/env.sh && "$$UV" export --frozen --quiet --all-groups --no-hashes \
		--no-annotate --no-header --no-emit-project --output-file requirements.txt
