#!/usr/bin/env bash
# `make demo`: installs what is missing, builds, and runs the demo.
set -euo pipefail
cd "$(dirname "$0")/../.."

crates/e2e/install.sh
. crates/e2e/built.sh
cargo build --workspace --bins
if [ "${DB:-mariadb}" = mysql ]; then
  "$target/debug/e2e" fetch-mysql
fi
exec "$target/debug/demo"
