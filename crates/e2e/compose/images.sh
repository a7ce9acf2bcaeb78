#!/usr/bin/env bash
# Stand-ins, from Debian's packages, for the images that docker-compose.yml names: for machines that
# reach Debian and crates.io but no image registry.
#
#   debian:trixie-slim      Debian 13
#   mysql, rabbitmq, nginx, prometheus: Debian unstable, which has the versions of those tags
#   rust:1.95-slim-trixie   with the argument `rust` only: Debian 13, a C compiler, make, this
#                           machine's Rust and certificates
#
# A stand-in carries the hash of what it is made from, and the engine keeps it: it is made anew when
# that changes. A real image of the same name is left alone.
set -euo pipefail
cd "$(dirname "$0")"

cache=${OUTBOX_RELAY_CACHE:-/var/cache/outbox-relay}/compose
. ./mirror.sh

hash() { sha256sum | cut -c 1-16; }
say() { printf '%(%H:%M:%S)T  %s\n' -1 "$*"; }

have() { # IMAGE HASH
  local of
  of=$(docker image inspect --format '{{ index .Config.Labels "stand-in" }}' "$1" 2>/dev/null) || return 1
  [ -z "$of" ] || [ "$of" = "$2" ]
}

debian() { # IMAGE:NAME SUITE [PACKAGES]
  local made_from root
  made_from=$(hash <<<"$*")
  have "$1" "$made_from" && return
  say "$1: a stand-in from Debian $2, a minute or two"
  mkdir -p "$cache"
  root=$(mktemp -d "$cache/root.XXXXXX")
  # Its own messages are many; the last ones say what is wrong.
  if ! debootstrap --variant=minbase ${3:+--include="$3"} "$2" "$root" ${mirror:+"$mirror"} >"$root.log"; then
    tail -n 15 "$root.log" >&2
    rm -rf "$root" "$root.log"
    # As where no engine runs: nothing was tried.
    echo "error: no stand-in for $1 can be made now" >&2
    exit 75
  fi
  # What a container would only carry about, as Debian's own slim images have it.
  rm -rf "$root"/var/cache/apt/* "$root"/var/lib/apt/lists/* "$root"/usr/share/{doc,man,locale}/*
  tar --directory "$root" --create --exclude=./proc --exclude=./sys . |
    docker import --change "LABEL stand-in=$made_from" - "$1" >/dev/null
  rm -rf "$root" "$root.log"
}

image() { # IMAGE BASE: the rest of its Dockerfile is read from the standard input
  local rest made_from
  rest=$(cat)
  made_from=$({ echo "$rest"; cat docker-entrypoint.sh; docker image inspect --format '{{ .Id }}' "$2"; } | hash)
  have "$1" "$made_from" && return
  say "$1: a stand-in"
  docker build --quiet --label "stand-in=$made_from" --tag "$1" --file - . >/dev/null <<<"FROM $2
$rest"
}

# Beside each other: they wait for the network and for dpkg in turns.
debian debian:trixie-slim trixie &
slim=$!
debian debian:sid-servers sid \
  mysql-server-core,mysql-client-core,rabbitmq-server,nginx,prometheus,wget
wait $slim

if [ "${1:-}" = rust ]; then
  debian debian:trixie-build trixie gcc,libc6-dev,make,ca-certificates
  made_from=$(rustc --version --verbose | hash)
  if ! have rust:1.95-slim-trixie "$made_from"; then
    say 'rust:1.95-slim-trixie: the Rust of this machine'
    tar --directory "$(rustc --print sysroot)" --exclude=./share --create . |
      docker import - rust-standin >/dev/null
    # A proxy in the way to crates.io signs with an authority that only this machine knows.
    tar --directory /etc/ssl/certs --dereference --create ca-certificates.crt |
      docker import - certificates-standin >/dev/null
    docker build --quiet --label "stand-in=$made_from" --tag rust:1.95-slim-trixie --file - . \
      >/dev/null <<'DOCKERFILE'
FROM rust-standin AS toolchain
FROM certificates-standin AS certificates
FROM debian:trixie-build
COPY --from=toolchain / /usr/local
COPY --from=certificates / /etc/ssl/certs
ENV CARGO_HOME=/usr/local/cargo
DOCKERFILE
  fi
fi

image mysql:9.7 debian:sid-servers <<'DOCKERFILE'
RUN useradd --system mysql && install -d -o mysql /var/lib/mysql /var/run/mysqld
COPY --chmod=755 docker-entrypoint.sh /usr/local/bin/
VOLUME /var/lib/mysql
ENTRYPOINT ["docker-entrypoint.sh"]
DOCKERFILE
image rabbitmq:4-management debian:sid-servers <<'DOCKERFILE'
RUN echo '[rabbitmq_management,rabbitmq_prometheus].' >/etc/rabbitmq/enabled_plugins \
    && mkdir -p /etc/rabbitmq/conf.d \
    && echo 'log.console = true' >/etc/rabbitmq/conf.d/10-defaults.conf \
    && chown -R rabbitmq: /var/lib/rabbitmq /var/log/rabbitmq
VOLUME /var/lib/rabbitmq
ENTRYPOINT ["rabbitmq-server"]
DOCKERFILE
image nginx:1.30-alpine debian:sid-servers </dev/null
image prom/prometheus:v3.5.3 debian:sid-servers <<'DOCKERFILE'
RUN mkdir /prometheus && chown nobody: /prometheus
VOLUME /prometheus
USER nobody
ENTRYPOINT ["prometheus"]
DOCKERFILE
