#!/usr/bin/env bash
# `make bench`: installs what is missing, builds release programs, and runs the benchmark. SMOKE=1 is
# the form of CI: one round of two keys with the programs of `make test`, which says only that the bench
# runs and that its ledger balances.
set -euo pipefail
cd "$(dirname "$0")/../.."

crates/e2e/install.sh
. crates/e2e/built.sh
if [ "${SMOKE:-}" = 1 ]; then
  cargo build --workspace --features "$features" --bins
  QUICK=1 ROUNDS=1 ONLY=${ONLY:-relay_latency_idle,whole_path} exec "$target/debug/bench" --dir "$target/bench-smoke"
fi
# One call, so that all programs share their dependencies.
cargo build --release -p relay -p order-svc -p pay-svc -p e2e
if [ "${QUICK:-}" != 1 ] && [ "${DB:-}" != mariadb ]; then
  "$target/release/e2e" fetch-mysql ||
    echo '*** real MySQL could not be fetched: MariaDB alone is measured' >&2
fi
exec "$target/release/bench" --dir "$target/bench"
