#!/usr/bin/env bash
# `make test`: installs what is missing, fetches the servers Debian stable does not carry, runs all
# tests. Without MySQL it says so at the start and in the last lines; REQUIRE_MYSQL=1 makes that an
# error.
set -euo pipefail
cd "$(dirname "$0")/../.."

crates/e2e/install.sh
. crates/e2e/built.sh
# Also builds the fetcher, with the same features as the tests so that nothing is built twice.
cargo test --workspace --features "$features" --no-run

loudly() { printf '\n%s\n*** %s\n%s\n\n' "$rule" "$1" "$rule" >&2; }
rule='******************************************************************************'

echo "Fetching real MySQL, unless it is there (a minute or two)"
mysql_missing=
if ! "$target/debug/e2e" fetch-mysql; then
  if [ "${REQUIRE_MYSQL:-}" = 1 ]; then
    loudly 'REQUIRE_MYSQL=1, and real MySQL could not be fetched: see the error above'
    exit 1
  fi
  mysql_missing='the MySQL half of the tests is SKIPPED: real MySQL could not be fetched'
  loudly "$mysql_missing (MariaDB is tested)"
fi
echo "Fetching RabbitMQ 4, unless it is there (optional)"
"$target/debug/e2e" fetch-rabbitmq4 || echo "RabbitMQ 4 is left out; the machine's own is tested" >&2

status=0
# All of it, so that one run tells everything that is wrong.
cargo test --workspace --features "$features" --no-fail-fast || status=$?
# The relay once more with its second binlog reader, which is off by default. The whole workspace is
# named, so that the dependencies keep the features they were built with.
cargo test --workspace --features "$features,relay/mysql-cdc" --test reader || status=$?
# The engine in a simulated world: a minute of it. `make simulate` runs as many seeds as are wanted.
cargo build --workspace --features "$features" --bins
"$target/debug/simulator" --seeds 200 --seconds 60 || status=$?
[ -z "$mysql_missing" ] || loudly "$mysql_missing"
exit "$status"
