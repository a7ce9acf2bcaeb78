#!/usr/bin/env bash
# `make test-ui`: installs what is missing, then drives the operators' page in a real browser and
# puts every HTTP contract under a fuzzer, both against real servers. Pictures of the page are in
# target/ui afterwards.
set -euo pipefail
cd "$(dirname "$0")/../.."

schemathesis=4.32.5

as_root() {
  if [ "$(id -u)" -eq 0 ]; then "$@"; else sudo "$@"; fi
}

crates/e2e/install.sh
packages=()
[ -x /usr/bin/chromium ] || packages+=(chromium)
[ -x /usr/bin/chromedriver ] || packages+=(chromium-driver)
python3 -c 'import ensurepip, venv' 2>/dev/null || packages+=(python3-venv)
# Without any font a page is a row of boxes.
command -v fc-list >/dev/null && [ -n "$(fc-list 2>/dev/null)" ] || packages+=(fonts-dejavu-core)
if [ ${#packages[@]} -gt 0 ]; then
  if ! command -v apt-get >/dev/null; then
    echo "error: this is neither Debian nor Ubuntu: install what these hold: ${packages[*]}" >&2
    exit 1
  fi
  echo "Installing ${packages[*]}"
  as_root apt-get update -qq
  as_root env DEBIAN_FRONTEND=noninteractive \
    apt-get install -y -qq --no-install-recommends "${packages[@]}"
fi

. crates/e2e/built.sh
# The version is in the name, so that another one is installed beside it and not over it.
venv=$target/schemathesis-$schemathesis
if ! "$venv/bin/schemathesis" --version >/dev/null 2>&1; then
  echo "Installing schemathesis $schemathesis"
  rm -rf "$venv"
  python3 -m venv "$venv"
  "$venv/bin/pip" install --quiet --disable-pip-version-check "schemathesis==$schemathesis"
fi

mkdir -p "$target/ui"
export UI_PICTURES=$target/ui
export SCHEMATHESIS=$venv/bin/schemathesis
# The programs are built for the tests to run.
cargo build --workspace --features "$features" --bins
cargo test --workspace --features "e2e/ui,$features" --test ui -- --test-threads=1 "$@"
