# shellcheck shell=bash disable=SC2034
# Sourced: sees to it that `docker compose` works, with an engine of its own if none answers.
# Ends with 75 where this machine can't run an engine at all: a caller may skip what needs one.
as_root() { if [ "$(id -u)" -eq 0 ]; then "$@"; else sudo "$@"; fi; }
can_not() { echo "error: no Docker engine runs here: $*" >&2; exit 75; }

install_packages() { # COMMAND:PACKAGE…: those whose command is missing
  local packages=() pair
  for pair in "$@"; do
    PATH="$PATH:/usr/sbin:/sbin" command -v "${pair%:*}" >/dev/null || packages+=("${pair#*:}")
  done
  [ ${#packages[@]} -gt 0 ] || return 0
  command -v apt-get >/dev/null ||
    can_not "this is neither Debian nor Ubuntu: install what these packages hold: ${packages[*]}"
  echo "installing ${packages[*]}"
  as_root apt-get update -qq
  as_root env DEBIAN_FRONTEND=noninteractive \
    apt-get install -y -qq --no-install-recommends "${packages[@]}" >/dev/null
}

start_engine() {
  [ "$(id -u)" -eq 0 ] || command -v sudo >/dev/null || can_not 'that needs root, and there is no sudo'
  install_packages dockerd:docker.io iptables:iptables
  export DOCKER_HOST=unix:///var/run/outbox-docker.sock
  docker version >/dev/null 2>&1 && return
  echo 'starting a Docker engine (its log: /var/log/outbox-docker.log)'
  as_root setsid dockerd --host "$DOCKER_HOST" --data-root /var/lib/outbox-docker \
    --exec-root /var/run/outbox-docker --pidfile /var/run/outbox-docker.pid \
    >/var/log/outbox-docker.log 2>&1 &
  engine=$!
  for _ in $(seq 120); do
    if docker version >/dev/null 2>&1; then
      engine_of_this_run=1
      return
    fi
    # Without the right or the kernel for it, it ends at once.
    kill -0 "$engine" 2>/dev/null || break
    sleep 0.5
  done
  tail -n 5 /var/log/outbox-docker.log >&2
  can_not 'the lines above are its last ones'
}

stop_engine() {
  local pid
  pid=$(cat /var/run/outbox-docker.pid 2>/dev/null) || return 0
  as_root kill "$pid"
  # Its containers are gone by now; the next run finds its images.
  for _ in $(seq 60); do
    as_root kill -0 "$pid" 2>/dev/null || return 0
    sleep 0.5
  done
}

# Debian 12 has neither compose nor buildx; the programs of Debian 13 run on it.
fetch_plugins() { # NAME…
  local mirror work plugin
  . crates/e2e/compose/mirror.sh
  [ -n "$mirror" ] || can_not "docker has no plugins $*, and apt uses no Debian archive that has them"
  work=$(mktemp -d)
  chmod 755 "$work"
  mkdir -p "$work/lists/partial" ~/.docker/cli-plugins
  echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $mirror trixie main" \
    >"$work/sources.list"
  apt_of_trixie() {
    (cd "$work" && apt-get -qq -o "Dir::Etc::SourceList=$work/sources.list" -o Dir::Etc::SourceParts=- \
      -o "Dir::State::Lists=$work/lists" -o Dir::Cache::pkgcache= -o Dir::Cache::srcpkgcache= \
      -o APT::Sandbox::User=root "$@")
  }
  apt_of_trixie update
  apt_of_trixie download "${@/#/docker-}"
  for plugin in "$@"; do
    dpkg-deb --extract "$work/docker-${plugin}_"*.deb "$work/$plugin"
    install "$work/$plugin/usr/libexec/docker/cli-plugins/docker-$plugin" ~/.docker/cli-plugins/
  done
  rm -rf "$work"
}

install_packages curl:curl debootstrap:debootstrap
docker version >/dev/null 2>&1 || start_engine
missing=()
for plugin in compose buildx; do
  docker "$plugin" version >/dev/null 2>&1 || missing+=("$plugin")
done
if [ ${#missing[@]} -gt 0 ]; then
  echo "fetching docker's plugins ${missing[*]}"
  fetch_plugins "${missing[@]}"
fi
