#!/usr/bin/env bash
# `make demo`: installs what is missing, builds, and runs the demo.
set -euo pipefail
cd "$(dirname "$0")/../.."

crates/e2e/install.sh
target=$(cargo metadata --format-version 1 --no-deps |
  sed -n 's/.*"target_directory":"\([^"]*\)".*/\1/p')
cargo build --workspace --bins
if [ "${DB:-mariadb}" = mysql ]; then
  "$target/debug/e2e" fetch-mysql
fi
exec "$target/debug/demo"
