#!/usr/bin/env bash
# `make bench`: installs what is missing, builds release programs, and runs the benchmark.
set -euo pipefail
cd "$(dirname "$0")/../.."

crates/e2e/install.sh
target=$(cargo metadata --format-version 1 --no-deps |
  sed -n 's/.*"target_directory":"\([^"]*\)".*/\1/p')
# One call, so that all programs share their dependencies.
cargo build --release -p relay -p order-svc -p pay-svc -p e2e
if [ "${QUICK:-}" != 1 ] && [ "${DB:-}" != mariadb ]; then
  "$target/release/e2e" fetch-mysql ||
    echo '*** real MySQL could not be fetched: MariaDB alone is measured' >&2
fi
exec "$target/release/bench" --dir "$target/bench"
