# Sourced: sees to it that `docker compose` works, with an engine of its own if none answers.
as_root() { if [ "$(id -u)" -eq 0 ]; then "$@"; else sudo "$@"; fi; }

if ! docker version >/dev/null 2>&1; then
  if ! command -v dockerd >/dev/null; then
    as_root apt-get update -qq
    as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends \
      docker.io debootstrap iptables curl
  fi
  export DOCKER_HOST=unix:///var/run/outbox-docker.sock
  if ! docker version >/dev/null 2>&1; then
    echo 'starting a Docker engine'
    as_root setsid dockerd --host "$DOCKER_HOST" --data-root /var/lib/outbox-docker \
      --exec-root /var/run/outbox-docker --pidfile /var/run/outbox-docker.pid \
      >/var/log/outbox-docker.log 2>&1 &
    for _ in $(seq 60); do
      ! docker version >/dev/null 2>&1 || break
      sleep 0.5
    done
  fi
fi
# Debian 12 has neither compose nor buildx; the programs of Debian unstable run on it.
for plugin in compose buildx; do
  docker "$plugin" version >/dev/null 2>&1 && continue
  . crates/e2e/compose/mirror.sh
  file=$(curl --silent --fail "$mirror/dists/sid/main/binary-amd64/Packages.xz" | xz --decompress |
    awk -v package="docker-$plugin" '$0 == "Package: " package { found = 1 }
      found && /^Filename:/ { print $2; exit }')
  curl --silent --fail --output "/tmp/docker-$plugin.deb" "$mirror/$file"
  dpkg-deb --fsys-tarfile "/tmp/docker-$plugin.deb" |
    tar --extract --to-stdout "./usr/libexec/docker/cli-plugins/docker-$plugin" \
      >"/tmp/docker-$plugin"
  mkdir -p ~/.docker/cli-plugins
  install "/tmp/docker-$plugin" ~/.docker/cli-plugins/
  rm "/tmp/docker-$plugin.deb" "/tmp/docker-$plugin"
done
