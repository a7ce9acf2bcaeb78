#!/usr/bin/env bash
# Stand-ins, from Debian's packages, for the images that docker-compose.yml names: for machines that
# reach Debian and crates.io but no image registry. An image that is there already is left alone.
#
#   rust:1.95-slim-trixie   Debian 13, a C compiler, make, this machine's Rust and certificates
#   debian:trixie-slim      Debian 13
#   mysql, rabbitmq, nginx, prometheus: Debian unstable, which has the versions of those tags
set -euo pipefail
cd "$(dirname "$0")"

cache=${OUTBOX_RELAY_CACHE:-/var/cache/outbox-relay}/compose
. ./mirror.sh

have() { docker image inspect "$1" >/dev/null 2>&1; }

debian() { # IMAGE:NAME SUITE [PACKAGES]
  have "$1" && return
  local root=$cache/${1#*:}
  echo "$1: Debian $2"
  mkdir -p "$cache"
  if [ ! -e "$root.done" ]; then
    rm -rf "$root"
    debootstrap --variant=minbase ${3:+--include="$3"} "$2" "$root" "$mirror" >"$root.log"
    # What a container would only carry about, as Debian's own slim images have it.
    rm -rf "$root"/var/cache/apt/* "$root"/var/lib/apt/lists/* "$root"/usr/share/{doc,man,locale}/*
    touch "$root.done"
  fi
  tar --directory "$root" --create --exclude=./proc --exclude=./sys . |
    docker import - "$1" >/dev/null
}

image() { # TAG: the Dockerfile is read from the standard input, its context is this directory
  have "$1" && return
  echo "$1"
  docker build --quiet --tag "$1" --file - . >/dev/null
}

debian debian:trixie-slim trixie
debian debian:trixie-build trixie gcc,libc6-dev,make,ca-certificates
if ! have rust:1.95-slim-trixie; then
  echo 'rust:1.95-slim-trixie: the Rust of this machine'
  tar --directory "$(rustc --print sysroot)" --exclude=./share --create . |
    docker import - rust-standin >/dev/null
  # A proxy in the way to crates.io signs with an authority that only this machine knows.
  tar --directory /etc/ssl/certs --dereference --create ca-certificates.crt |
    docker import - certificates-standin >/dev/null
  image rust:1.95-slim-trixie <<'DOCKERFILE'
FROM rust-standin AS toolchain
FROM certificates-standin AS certificates
FROM debian:trixie-build
COPY --from=toolchain / /usr/local
COPY --from=certificates / /etc/ssl/certs
ENV CARGO_HOME=/usr/local/cargo
DOCKERFILE
fi

debian debian:sid-servers sid \
  mysql-server-core,mysql-client-core,rabbitmq-server,nginx,prometheus,wget
image mysql:9.7 <<'DOCKERFILE'
FROM debian:sid-servers
RUN useradd --system mysql && install -d -o mysql /var/lib/mysql /var/run/mysqld
COPY --chmod=755 mysql-entrypoint.sh /usr/local/bin/
VOLUME /var/lib/mysql
ENTRYPOINT ["mysql-entrypoint.sh"]
DOCKERFILE
image rabbitmq:4-management <<'DOCKERFILE'
FROM debian:sid-servers
RUN echo '[rabbitmq_management,rabbitmq_prometheus].' >/etc/rabbitmq/enabled_plugins \
    && mkdir -p /etc/rabbitmq/conf.d \
    && echo 'log.console = true' >/etc/rabbitmq/conf.d/10-defaults.conf \
    && chown -R rabbitmq: /var/lib/rabbitmq /var/log/rabbitmq
VOLUME /var/lib/rabbitmq
ENTRYPOINT ["rabbitmq-server"]
DOCKERFILE
image nginx:1.30-alpine <<'DOCKERFILE'
FROM debian:sid-servers
DOCKERFILE
image prom/prometheus:v3.5.3 <<'DOCKERFILE'
FROM debian:sid-servers
RUN mkdir /prometheus && chown nobody: /prometheus
VOLUME /prometheus
USER nobody
ENTRYPOINT ["prometheus"]
DOCKERFILE
