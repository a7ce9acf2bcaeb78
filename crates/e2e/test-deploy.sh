#!/usr/bin/env bash
# `make test-deploy`: what deploy/ and the scripts hold, without any server: shellcheck over every
# script, the Kubernetes manifests against Kubernetes' own schemas, the secrets that compose names, and
# what `make urls` prints, the workflows. The units, the alert rules and the Dockerfile are looked at by `make test`,
# the compose file and the gateway by `make test-up`.
set -euo pipefail
cd "$(dirname "$0")/../.."
. crates/e2e/built.sh

kubernetes_validate=1.37.0
say() { printf '%(%H:%M:%S)T  %s\n' -1 "$*"; }

missing=()
command -v shellcheck >/dev/null || missing+=(shellcheck)
command -v python3 >/dev/null && python3 -c 'import ensurepip, venv' 2>/dev/null || missing+=(python3-venv)
# Its systemd-analyze looks at the units in a test of the relay, which says so when it is not there.
command -v systemd-analyze >/dev/null || missing+=(systemd)
if [ ${#missing[@]} -gt 0 ]; then
  command -v apt-get >/dev/null || { echo "error: install what these packages hold: ${missing[*]}" >&2; exit 1; }
  say "installing ${missing[*]}"
  as_root=
  [ "$(id -u)" -eq 0 ] || as_root=sudo
  $as_root apt-get update -qq
  $as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}"
fi

scripts=(.ci/run crates/e2e/*.sh crates/e2e/compose/*.sh deploy/*.sh deploy/mysql/*.sh)
shellcheck --external-sources --severity=warning "${scripts[@]}"
say "shellcheck has nothing against ${#scripts[@]} scripts"

venv=$target/kubernetes-validate-$kubernetes_validate
if ! "$venv/bin/kubernetes-validate" --version >/dev/null 2>&1; then
  say "installing kubernetes-validate $kubernetes_validate"
  rm -rf "$venv"
  python3 -m venv "$venv"
  "$venv/bin/pip" install --quiet --disable-pip-version-check "kubernetes-validate==$kubernetes_validate"
fi
# The oldest version that runs sidecars without a switch, and the newest known.
for version in 1.29 1.37; do
  "$venv/bin/kubernetes-validate" --strict --quiet --kubernetes-version "$version" deploy/kubernetes/*.yaml
done
say 'Kubernetes 1.29 and 1.37 take the manifests'

"$venv/bin/python" - .github/workflows/*.yml docker-compose.yml grafana/*/*.yml grafana/provisioning/*/*.y*ml <<'PYTHON'
import sys, yaml
for name in sys.argv[1:]:
    with open(name) as file:
        yaml.safe_load(file)
PYTHON
for target in $(grep -ohE '\bmake [a-z][a-z-]*' .github/workflows/*.yml .ci/run | cut -d' ' -f2 | sort -u); do
  make --dry-run "$target" >/dev/null
done
say 'every workflow can be read, and the targets that CI makes are there'

printf 'a <b> & c\nLEDGER orders=1\n' | crates/e2e/demo-picture.sh | python3 -c \
  'import sys, xml.dom.minidom; xml.dom.minidom.parse(sys.stdin)'
say "the demo's picture can be drawn"

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cp -r deploy "$work"
rm -rf "$work/deploy/secrets"
sh "$work/deploy/secrets.sh" >/dev/null
before=$(cat "$work"/deploy/secrets/*)
sh "$work/deploy/secrets.sh"
[ "$before" = "$(cat "$work"/deploy/secrets/*)" ] || { say 'secrets.sh changed what was there'; exit 1; }
for file in $(sed -n 's|.*{ file: \(deploy/secrets/.*\) }|\1|p' docker-compose.yml); do
  [ -s "$work/$file" ] || { say "secrets.sh makes no $file"; exit 1; }
done
say 'the secrets are made once, all that compose names'

urls=$(make -s urls | grep -oE 'http://[^ ,;]+')
[ "$(wc -l <<<"$urls")" -ge 11 ] || { say "make urls prints only: $urls"; exit 1; }
for url in $urls; do
  port=${url#http://127.0.0.1:}
  port=${port%%/*}
  grep -qE "127\.0\.0\.1:(\\$\{[A-Z_]+:-)?$port\}?:" docker-compose.yml || { say "compose publishes no $port"; exit 1; }
done
say 'compose publishes every address that `make urls` prints'
