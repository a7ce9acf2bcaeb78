# shellcheck shell=bash disable=SC2034
# Sourced: `mirror`, the Debian archive this machine's apt uses, in either format of its files; empty
# where it uses none.
mirror=$(cat /etc/apt/sources.list /etc/apt/sources.list.d/* 2>/dev/null |
  awk '/^ *#/ { next }
    !found && match($0, /https?:\/\/[^ ]+\/debian\/?( |$)/) { found = substr($0, RSTART, RLENGTH) }
    END { sub(/\/? *$/, "", found); print found }') || true
