#!/usr/bin/env bash
# `make fuzz`: every target, or the one that is named, for so many seconds each. New inputs stay in
# fuzz/target/corpus; an input that breaks a check ends the run, and the last lines name its file.
set -euo pipefail
cd "$(dirname "$0")/.."
seconds=$1

if ! command -v c++ >/dev/null; then
  echo 'error: libFuzzer is compiled with a C++ compiler: install the package g++' >&2
  exit 1
fi
cargo +nightly --version >/dev/null 2>&1 || rustup toolchain install nightly --profile minimal
cargo fuzz --version >/dev/null 2>&1 || cargo install --locked cargo-fuzz

for target in ${2:-$(cargo +nightly fuzz list)}; do
  mkdir -p "fuzz/target/corpus/$target"
  echo "$target: $seconds s"
  # No sanitizer: the project has no unsafe code, and without one there are three times as many runs.
  cargo +nightly fuzz run --sanitizer none "$target" \
    "fuzz/target/corpus/$target" "fuzz/corpus/$target" -- \
    -max_total_time="$seconds" -max_len=16384 -timeout=10 -print_final_stats=1
done
