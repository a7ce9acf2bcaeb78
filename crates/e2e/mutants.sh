#!/usr/bin/env bash
# `make mutants`: changes one operator, match arm or function body after the other, and looks whether a
# test fails. docs/mutants.md has the last figures and the survivors.
#
# The relay takes too long to build for a thousand mutants. So the engine with the confirms, and the
# decoders, are laid out as two small crates under target/mutants: one is built in a second.
# The fast unit tests judge a mutant first. What they miss is judged again, by all unit tests and the
# simulator (engine), or by the events of real servers (decoders).
#
# SHARD=1/8 takes an eighth of the mutants, JOBS=2 builds two at once, SEEDS=30 are the simulator's.
set -euo pipefail
cd "$(dirname "$0")/../.."
root=$PWD

if ! cargo mutants --version >/dev/null 2>&1; then
  echo 'error: cargo-mutants is not installed: cargo install --locked cargo-mutants' >&2
  exit 1
fi
. crates/e2e/built.sh
work=$target/mutants
# A mutant may allocate without end.
ulimit -v 16000000

# Lays out a crate: its name, then what its sources are, as "from to".
lay_out() {
  local name=$1 from to
  local to_root=$work/$name
  rm -rf "$to_root/src" "$to_root/tests"
  mkdir -p "$to_root/src"
  cp Cargo.lock "crates/e2e/mutants/$name/Cargo.toml" "$to_root/"
  cp "crates/e2e/mutants/$name/"*.rs "$to_root/src/"
  while read -r from to; do
    mkdir -p "$(dirname "$to_root/$to")"
    cp -r "$root/$from" "$to_root/$to"
  done
}

of_shard=()
[ -z "${SHARD:-}" ] || of_shard=(--shard "$SHARD" --sharding round-robin)
no_checks=(--exclude-re '::check( |$)')

# One pass in a crate: its name, then arguments of cargo mutants.
pass() {
  local name=$1 how=(--in-place)
  shift
  if [ "${JOBS:-1}" -gt 1 ]; then
    # Each job has a copy of the tree, which is below a directory that Git ignores.
    how=(--jobs "$JOBS" --gitignore=false)
  fi
  # 2 and 3 are mutants that were missed or ran into the time-out: `report` has the last word.
  (cd "$work/$name" &&
    cargo mutants "${how[@]}" --output "$work" --no-shuffle --colors never "${no_checks[@]}" "$@") ||
    [ $? -le 3 ]
}

# Both passes: the crate, the files, `--`, and arguments of `cargo test` in the first pass.
judge() {
  local name=$1 files=() again=() line
  shift
  while [ "$1" != -- ]; do
    files+=(--file "$1")
    shift
  done
  shift
  rm -rf "$work/mutants.out" "$work/mutants.out.old"
  (cd "$work/$name" && cargo mutants --list "${no_checks[@]}" "${of_shard[@]}" "${files[@]}") \
    >"$work/$name-all.txt"
  pass "$name" --timeout 20 "${of_shard[@]}" "${files[@]}" -- "$@"
  cp "$work/mutants.out/unviable.txt" "$work/$name-unviable.txt"
  cp "$work/mutants.out/missed.txt" "$work/$name-missed.txt"
  while read -r line; do
    again+=(--re "^$(sed 's/[][\.|$(){}?+*^]/\\&/g' <<<"$line")\$")
  done <"$work/$name-missed.txt"
  [ ${#again[@]} -gt 0 ] || return 0
  # Optimized: the simulator takes a sixth of the time.
  CARGO_PROFILE_DEV_OPT_LEVEL=1 SEEDS=${SEEDS:-30} \
    pass "$name" --timeout 180 --features second "${again[@]}" "${files[@]}"
  # cargo-mutants takes the deletion of a field whatever --re says.
  awk 'NR == FNR { missed[$0]; next } $0 in missed' "$work/mutants.out/missed.txt" \
    "$work/$name-missed.txt" >"$work/$name-missed.new"
  mv "$work/$name-missed.new" "$work/$name-missed.txt"
}

# The score of each file, and 1 when it is under 90 % in one of the places.
report() {
  awk -F: '
    FILENAME ~ /-all/ { all[$1]++ }
    FILENAME ~ /-unviable/ && !seen[$0]++ { all[$1]-- }
    FILENAME ~ /-missed/ { missed[$1]++ }
    function show(name, of, without) {
      printf "%-44s %5d %5d %6.1f %%\n", name, of, without, of ? 100 * (of - without) / of : 100
    }
    END {
      printf "%-44s %5s %5s %8s\n", "file", "all", "missed", "score"
      for (file in all) {
        place = file ~ /engine\// ? "engine" : file
        of[place] += all[file]
        without[place] += missed[file]
        show(file, all[file], missed[file]) | "sort"
      }
      close("sort")
      for (place in of) {
        show("= " place, of[place], without[place])
        if (without[place] * 10 > of[place]) under = 1
      }
      exit under
    }' "$work"/{engine,decoder}-{all,unviable,missed}.txt
}

mkdir -p "$work"
lay_out engine <<'FILES'
relay/src/engine src/engine
relay/src/publish/confirms.rs src/publish/confirms.rs
crates/outbox/src/row.rs src/row.rs
crates/simulator/src/coverage.rs src/coverage.rs
crates/simulator/src/faults.rs src/faults.rs
crates/simulator/src/queue.rs src/queue.rs
crates/simulator/src/rng.rs src/rng.rs
crates/simulator/src/run.rs src/run.rs
crates/simulator/src/scenario.rs src/scenario.rs
crates/simulator/src/trace.rs src/trace.rs
crates/simulator/src/world src/world
crates/simulator/seeds.txt src/seeds.txt
FILES
lay_out decoder <<'FILES'
relay/src/engine/position.rs src/engine/position.rs
relay/src/leadership/server_clock.rs src/leadership/server_clock.rs
relay/src/source/binlog/commit_clock.rs src/source/binlog/commit_clock.rs
relay/src/source/binlog/event.rs src/source/binlog/event.rs
relay/src/source/binlog/row_decoder.rs src/source/binlog/row_decoder.rs
relay/src/source/binlog/statement.rs src/source/binlog/statement.rs
relay/src/source/binlog/transaction.rs src/source/binlog/transaction.rs
relay/src/source/binlog/transaction src/source/binlog/transaction
relay/tests/it/decoder tests/decoder
FILES

# The tests at bounds of many thousands take most of the time of all of them: in the second pass.
judge engine 'src/engine/**' src/publish/confirms.rs -- \
  --lib -- --skip thousand --skip 32768 --skip 65536 --skip 8192 --skip looks_are_bounded
judge decoder src/source/binlog/transaction.rs src/source/binlog/row_decoder.rs -- --lib

echo
cat "$work"/{engine,decoder}-missed.txt
echo
report
