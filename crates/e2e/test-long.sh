#!/usr/bin/env bash
# `make test-long`: the long forms of the fault tests, on real servers, one binary after the other.
# ONLY=broker runs those of one room, whose names begin with long_broker_. SHORT=1 is the form of CI:
# the shortest of them alone, which says that they are built and run.
set -euo pipefail
cd "$(dirname "$0")/../.."

crates/e2e/install.sh
. crates/e2e/built.sh
figures=$target/long/figures.md
mkdir -p "$target/long"
printf '%s, %s cores, %s\n\n| what | figure |\n|---|---|\n' \
  "$(date -u +%F)" "$(nproc)" "$(git rev-parse --short HEAD 2>/dev/null || echo 'no commit')" >"$figures"

if [ "${SHORT:-}" = 1 ]; then
  cargo build --workspace --features "$features" --bins
  cargo test --workspace --features "$features,relay/long" --test it long_database_a_primary -- \
    --test-threads 1 --nocapture
  exit
fi
cargo build -p e2e -p relay -p order-svc -p pay-svc
"$target/debug/e2e" fetch-mysql

# One test after the other: they measure, and each one may take all of the machine.
cargo test -p relay --features long --tests "long_${ONLY:-}" -- --test-threads 1 --nocapture
if [ "${ONLY:-pay}" = pay ]; then
  cargo test -p pay-svc --features long --test it long_pay -- --test-threads 1 --nocapture
fi
# Lists and bulks of a million parked rows, on both kinds of server.
if [ "${ONLY:-it}" = it ]; then
  for db in mariadb mysql; do
    TEST_DB=$db cargo test -p ops --features long --test it long_it -- --nocapture
  done
fi
# The cross: what the short forms do on one kind of server, on the other one, too.
if [ -z "${ONLY:-}" ]; then
  TEST_DB=mysql cargo test -p relay --features long --test it -- --skip long_ \
    broker:: database:: operate::
  TEST_DB=mysql cargo test -p relay --features long --test load -- --skip long_
fi
echo "The figures are in $figures"
