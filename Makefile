# All set-up is done by the targets themselves: on Debian and Ubuntu they install what is missing.
# Settings come from the command line or the environment, and make hands on both by itself:
# DB ORDERS RATE KEEP SEED SEEDS SECONDS TARGET SHARD JOBS REQUIRE_MYSQL QUICK ONLY ROUNDS FAST SHORT SMOKE.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.PHONY: help demo test test-ui test-deploy test-long simulate mutants fuzz bench lint up urls test-up down

help: ## Show the targets
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 13
	@echo
	@echo 'demo:  DB=mariadb|mysql  ORDERS=500  RATE=25 (orders a second)  KEEP=1 (run until Ctrl-C)'
	@echo 'bench: QUICK=1 (MariaDB, smaller, within 8 minutes)  ONLY=key,key  DB=mariadb|mysql  ROUNDS=5'
	@echo '       SMOKE=1 (the form of CI: one round of two keys with the programs of make test)'
	@echo 'test:  REQUIRE_MYSQL=1 makes a missing MySQL an error'
	@echo 'mutants: SHARD=1/8 (an eighth of them)  JOBS=2 (two at once)  SEEDS=30 (of the simulator)'
	@echo 'test-long: ONLY=room  SHORT=1 (the form of CI: the shortest one)'
	@echo 'test-up: FAST=1 (the form of CI: the programs of make test, no kills)'

# The development profile: the tests share its artifacts, a release build with link-time
# optimisation takes minutes longer on two cores, and 25 orders a second need none of it.
demo: ## Run the whole path on private servers, break it, and print a ledger
	@crates/e2e/demo.sh

test: ## Run all tests on real servers
	@crates/e2e/test.sh

test-ui: ## Drive the operators' page in a real browser, fuzz every HTTP contract; pictures: target/ui
	@crates/e2e/test-ui.sh

test-deploy: ## Check scripts, manifests and secrets, without servers
	@crates/e2e/test-deploy.sh

test-long: ## Run the long forms of the fault tests (hours); their figures: target/long/figures.md
	@crates/e2e/test-long.sh

# The development profile checks the engine's invariants, and makes a million events a minute and more.
simulate: ## Run the engine in a simulated world with faults, seed after seed: SEEDS=1000 or SEED=n
	cargo run -p simulator -- $(if $(SEED),--seed $(SEED),--seeds $(or $(SEEDS),1000))

mutants: ## Change engine and decoders at a thousand places: does a test fail? (an hour) docs/mutants.md
	@crates/e2e/mutants.sh

fuzz: ## Fuzz every decoder of what comes from outside: SECONDS=600 each, TARGET=name for one
	@fuzz/run.sh $(or $(SECONDS),600) $(TARGET)

bench: ## Measure raw limits and the product side by side; writes target/bench/results.json and .svg
	@crates/e2e/bench.sh

lint: ## Check format, lints, documentation, and dependency rules
	cargo fmt --all --check
	cargo clippy --workspace --all-targets --all-features -- -D warnings
	RUSTDOCFLAGS='-D warnings' cargo doc --workspace --no-deps --all-features
	@tree=$$(cargo tree --package ops --edges normal --prefix none); \
	if grep -E '^(askama|utoipa)' <<<"$$tree"; then \
	  echo 'error: ops without its feature console must not depend on these' >&2; exit 1; \
	fi
	@if cargo deny --version >/dev/null 2>&1; then \
	  echo 'cargo deny check bans licenses sources'; \
	  cargo deny --all-features check bans licenses sources; \
	else \
	  echo '*** cargo-deny is not installed: bans, licences and sources of dependencies are NOT checked'; \
	fi

up: ## Start everything in containers (docker compose)
	sh deploy/secrets.sh
	docker compose up --build --detach --wait || \
	  { docker compose logs --no-log-prefix --tail 30 mysql migrate-orders migrate-payments; exit 1; }
	@$(MAKE) --no-print-directory urls

urls: ## Print the addresses of what `make up` started
	@echo
	@echo 'a sample order  curl -X POST http://127.0.0.1:8769/order/buy'
	@echo 'orders          http://127.0.0.1:8769/order/orders/ORDER_ID'
	@echo 'payments        http://127.0.0.1:8769/pay/payments/ORDER_ID'
	@echo 'operators       http://127.0.0.1:9764/ops outbox, http://127.0.0.1:9762/ops inbox;'
	@echo '                the token to log in: cut -d: -f3 deploy/secrets/ops_tokens'
	@echo 'metrics         http://127.0.0.1:9763/metrics order-svc'
	@echo '                http://127.0.0.1:9764/metrics relay'
	@echo '                http://127.0.0.1:9762/metrics pay-svc'
	@echo "Prometheus      http://127.0.0.1:$${PROMETHEUS_PORT:-9090}"
	@echo "RabbitMQ        http://127.0.0.1:$${RABBITMQ_PORT:-15672} (admin, deploy/secrets/rabbitmq_admin_password)"
	@echo "Grafana         http://127.0.0.1:$${GRAFANA_PORT:-3000} (admin, deploy/secrets/grafana_admin_password)"

test-up: ## Run docker-compose.yml, kill each container once, balance the books (root)
	@crates/e2e/compose/run.sh

down: ## Stop the containers; their data stays
	docker compose down
