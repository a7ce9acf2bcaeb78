#!/usr/bin/env bash
# Installs what the tests and the demo need and this machine lacks. Debian and Ubuntu only; anywhere
# else it names what is missing and fails.
set -euo pipefail

have() { PATH="$PATH:/usr/sbin:/sbin" command -v "$1" >/dev/null 2>&1; }

packages=()
# The linker for Rust, and the compiler for ring's assembler and, with make, for jemalloc.
have cc || packages+=(gcc libc6-dev)
have make || packages+=(make)
# For the relay's second binlog reader, whose crate links OpenSSL: `make lint` builds all features, and
# the tests compare both readers.
have pkg-config || packages+=(pkg-config)
[ -e /usr/include/openssl/ssl.h ] || packages+=(libssl-dev)
have mariadbd && have mariadb-install-db && have my_print_defaults ||
  packages+=(mariadb-server-core mariadb-client-core)
[ -x /usr/lib/rabbitmq/bin/rabbitmq-server ] || packages+=(rabbitmq-server)
# For servers whose clock is set by a test.
compgen -G '/usr/lib/*/faketime/libfaketimeMT.so.1' >/dev/null || packages+=(libfaketime)
# For the examples of docs/writing-events.md.
/usr/bin/python3 -c 'import pymysql, cryptography' 2>/dev/null ||
  packages+=(python3-pymysql python3-cryptography)
/usr/bin/php -r 'exit((int) !extension_loaded("pdo_mysql"));' 2>/dev/null || packages+=(php-cli php-mysql)
# The dashboards' expressions and the alert rules are tried on a real one.
have prometheus && have promtool || packages+=(prometheus)
# For real MySQL, which Debian's stable releases do not carry.
have debootstrap || packages+=(debootstrap)
[ -e /usr/share/keyrings/debian-archive-keyring.gpg ] || packages+=(debian-archive-keyring)

if ! have cargo; then
  echo "error: Rust is not installed: see https://rustup.rs" >&2
  exit 1
fi
if [ ${#packages[@]} -eq 0 ]; then
  exit 0
fi
if ! have apt-get; then
  {
    echo "error: this is neither Debian nor Ubuntu, so install yourself what these packages hold:"
    echo "         ${packages[*]}"
    echo "       or run the whole system in containers: make up"
  } >&2
  exit 1
fi

as_root() {
  if [ "$(id -u)" -eq 0 ]; then
    "$@"
  elif have sudo; then
    sudo "$@"
  else
    echo "error: installing ${packages[*]} needs root, and there is no sudo" >&2
    exit 1
  fi
}

echo "Installing ${packages[*]}"
# The tests start servers of their own; the packages must not start any on the usual ports.
policy=/usr/sbin/policy-rc.d
if [ ! -e "$policy" ]; then
  printf '#!/bin/sh\nexit 101\n' | as_root tee "$policy" >/dev/null
  trap 'as_root rm -f "$policy"' EXIT
  as_root chmod 755 "$policy"
fi
as_root apt-get update -qq
as_root env DEBIAN_FRONTEND=noninteractive \
  apt-get install -y -qq --no-install-recommends "${packages[@]}"
