#!/usr/bin/env bash
# `make test-up`: runs docker-compose.yml, places orders through the gateway, kills every container
# once while orders go on, and balances the books. Images that no registry can give are stood in for
# by images.sh; Grafana, which Debian does not have, is left out then.
#
# FAST=1 is the form of CI, within a few minutes: the programs of the development profile are copied
# in, nothing is compiled in a container and nothing is killed. Ends with 75 where no engine can run or
# neither a registry nor Debian gives the images.
#
# It is a project of its own (outbox-test) with volumes of its own, which it removes at the end; the
# ports are those of `make up`, so that one must be down. BUILD=0 runs the images of the last build.
set -euo pipefail
cd "$(dirname "$0")/../../.."
say() { printf '%(%H:%M:%S)T  %s\n' -1 "$*"; }
say "docker-compose.yml is run and tried${FAST:+, the fast form}"

project=outbox-test
gateway=http://127.0.0.1:8769
compose() { docker compose --project-name $project "$@"; }

engine_of_this_run=
work=$(mktemp -d)
orders=$work/orders
placer=
end() {
  status=$?
  trap - EXIT ERR
  [ -z "$placer" ] || kill "$placer" 2>/dev/null || true
  if [ -n "${ready:-}" ]; then
    [ $status -eq 0 ] || compose logs --tail 20 || true
    compose down --volumes --timeout 5 >/dev/null 2>&1 || true
  fi
  rm -rf "$work"
  [ -z "$engine_of_this_run" ] || stop_engine
  exit $status
}
trap end EXIT
trap 'say "failed: line $LINENO"' ERR

. crates/e2e/compose/engine.sh
# What a run that was killed has left would be in the way.
compose down --volumes --timeout 5 >/dev/null 2>&1 || true
ready=1

services=(order-svc order-svc-2 relay relay-2 pay-svc gateway prometheus)
if docker pull --quiet nginx:1.30-alpine >/dev/null 2>&1; then
  [ "${FAST:-}" = 1 ] || services+=(grafana)
elif [ "${FAST:-}" = 1 ]; then
  crates/e2e/compose/images.sh
else
  crates/e2e/compose/images.sh rust
  say 'Grafana is left out: its image can not be had here'
fi

# The images of the Dockerfile, but for its first stage: the programs are those of this machine, whose
# C library is not newer than that of the images.
copy_programs_in() {
  local program
  . crates/e2e/built.sh
  cargo build --workspace --features "$features" --bins
  mkdir -p "$work/programs/out" "$work/programs/etc/ssl/certs"
  cp /etc/ssl/certs/ca-certificates.crt "$work/programs/etc/ssl/certs/"
  for program in relay order-svc pay-svc; do
    objcopy --strip-debug "$target/debug/$program" "$work/programs/out/$program"
  done
  tar --directory "$work/programs" --create . | docker import - outbox/programs >/dev/null
  { echo 'FROM outbox/programs AS build'; sed -n '/^FROM debian:/,$p' Dockerfile; } >"$work/Dockerfile"
  for program in relay order-svc pay-svc; do
    docker build --quiet --tag "outbox/$program" --target "$program" --file "$work/Dockerfile" . >/dev/null
  done
}

sh deploy/secrets.sh
if [ "${FAST:-}" = 1 ]; then
  say 'copying the programs into their images'
  copy_programs_in
elif [ "${BUILD:-1}" != 0 ]; then
  say 'building'
  compose build "${services[@]}"
fi

# `docker compose up` with one thing wrong, in a project of its own: it must fail, and SERVICE's log
# must say why. It is not healthy, and nothing waits for ever.
comes_not_up() { # SERVICE WANTED_OF_THE_LOG OVERRIDE
  local log=$work/broken.log
  broken() {
    MYSQL_PORT=0 timeout 100 docker compose --project-name outbox-test-broken \
      --file docker-compose.yml --file "$work/broken.yml" "$@"
  }
  echo "$3" >"$work/broken.yml"
  local ended=0
  broken up --detach --no-build --wait order-svc >/dev/null 2>&1 || ended=$?
  for _ in $(seq 40); do
    broken logs --no-log-prefix "$1" >"$log" 2>&1
    ! grep -q "$2" "$log" || break
    sleep 0.5
  done
  broken down --volumes --timeout 0 >/dev/null 2>&1
  [ $ended -ne 0 ] || { say "order-svc came up though $1 can not work"; return 1; }
  [ $ended -ne 124 ] || { say "order-svc waits for $1, which can not work, for ever"; return 1; }
  grep -q "$2" "$log" || { tail -n 20 "$log"; say "$1 does not say: $2"; return 1; }
}
mkdir "$work/mysql"
cp deploy/mysql/* "$work/mysql"
echo 'GRANT INSERT ON orders.there_is_no_such_table TO relay;' >>"$work/mysql/init.sql"
comes_not_up mysql 'the first start of this database failed' \
  "services: { mysql: { volumes: ['$work/mysql:/outbox:ro'] } }"
grep -q 'ERROR 1146 .*there_is_no_such_table' "$work/broken.log" || { tail -n 20 "$work/broken.log"; exit 1; }
say 'a first start that fails ends MySQL with the error, and it stays down'
comes_not_up migrate-orders 'DATABASE_URL: is not a URL' \
  "services: { migrate-orders: { environment: { DATABASE_URL_FILE: /etc/hostname } } }"
say 'a migration with a wrong setting ends, and with it the start'

say 'starting'
compose up --detach --no-build --wait --wait-timeout 240 "${services[@]}" >"$work/up" 2>&1 ||
  { cat "$work/up"; exit 1; }
say 'everything is healthy'

# An order is placed again under its key until it is answered: what a client does.
place() { # KEY PATH
  local answer
  for _ in $(seq 240); do
    if answer=$(curl --silent --fail --max-time 10 --request POST --header "Idempotency-Key: $1" \
      --header 'Content-Type: application/json' --include "$gateway$2" \
      --data '{"customer_id":"compose","amount_minor":1250,"currency":"EUR"}'); then
      sed -n 's/.*"order_id":"\([^"]*\)".*/\1/p' <<<"$answer" >>"$orders"
      return
    fi
    sleep 0.5
  done
  say "order $1 was not taken for two minutes"
  return 1
}
paid() { # ORDER_ID: within a minute
  curl --silent --fail --retry 120 --retry-delay 1 --retry-all-errors --retry-max-time 60 \
    --output /dev/null "$gateway/pay/payments/$1"
}

# It is relative to the request's own path, so it is right through the prefix of the gateway.
location=$(curl --silent --include --request POST "$gateway/order/buy" |
  tr -d '\r' | sed -n 's/^[Ll]ocation: //p')
case $location in
  orders/*) say "an order by the gateway: /order/$location" ;;
  *) say "the Location is wrong: $location"; exit 1 ;;
esac
curl --silent --fail --output /dev/null "$gateway/order/$location"
basename "$location" >"$orders"
for n in $(seq 20); do place "first-$n" /order/orders; done
for id in $(cat "$orders"); do paid "$id"; done
say '21 orders are paid'

# What `make up` prints is there.
for url in $(make -s urls | grep -oE 'http://[^ ,;]+'); do
  case $url in
    */buy) continue ;; # was requested above
    *:"${GRAFANA_PORT:-3000}") [[ " ${services[*]} " == *' grafana '* ]] || continue ;;
  esac
  url=${url/ORDER_ID/$(head -n 1 "$orders")}
  curl --silent --fail --location --output /dev/null "$url" || { say "$url does not answer"; exit 1; }
done
token=$(cut -d: -f3 deploy/secrets/ops_tokens)
for port in 9764 9762; do
  curl --silent --fail --output /dev/null --header "Authorization: Bearer $token" \
    "http://127.0.0.1:$port/ops/api/rows" || { say "the token does not open :$port/ops"; exit 1; }
done
status=$(for relay in relay relay-2; do compose exec -T $relay relay status; done)
grep -q tailing <<<"$status" || { say "neither relay works: $status"; exit 1; }
say 'every address answers, and the token opens the console'

prometheus=http://127.0.0.1:${PROMETHEUS_PORT:-9090}/api/v1
rules=$(curl --silent --fail "$prometheus/rules")
[ "$(grep -o '"type":"alerting"' <<<"$rules" | wc -l)" = \
  "$(grep -c -- '- alert:' grafana/prometheus/rules.yml)" ] && ! grep -q '"health":"err"' <<<"$rules" ||
  { say "Prometheus has other rules than rules.yml: $rules"; exit 1; }
say 'Prometheus has all the rules'

# One order-svc is stopped, as by a deployment: its address goes from the gateway's list, and no
# request fails meanwhile. `placed_by` counts the instances that answered.
placed_by() { compose logs --no-log-prefix --since "$1" gateway | # "upstream":"dead : alive"
  grep '"uri":"/order/orders","status":201' | sed -E 's/.*"upstream":"([^"]* )?([^"]+)".*/\2/' | sort -u | wc -l; }
now() { date --utc +%FT%T.%NZ; }
since=$(now)
for n in $(seq 20); do place "both-$n" /order/orders; done
[ "$(placed_by "$since")" = 2 ] || { say 'the gateway does not use both instances'; exit 1; }
compose stop order-svc >/dev/null 2>&1
since=$(now)
for n in $(seq 50); do
  curl --silent --fail --max-time 5 --output /dev/null --request POST "$gateway/order/orders" \
    --header 'Content-Type: application/json' \
    --data '{"customer_id":"compose","amount_minor":1250,"currency":"EUR"}' ||
    { say "order $n was refused while one of two instances was stopped"; exit 1; }
done
[ "$(placed_by "$since")" = 1 ] || { say 'the gateway still answers for a stopped instance'; exit 1; }
compose up --detach --no-build --wait --wait-timeout 60 order-svc >/dev/null 2>&1
for _ in $(seq 20); do
  since=$(now)
  for n in $(seq 10); do place "again-$since-$n" /order/orders; done
  [ "$(placed_by "$since")" != 2 ] || break
done
[ "$(placed_by "$since")" = 2 ] || { say 'an instance that came back gets no orders'; exit 1; }
say 'an instance was stopped: no order was refused; it came back and gets orders again'

kill_each() {
  n=0
  while :; do n=$((n + 1)); place "more-$n" /order/orders; done &
  placer=$!
  for service in order-svc order-svc-2 relay relay-2 pay-svc gateway rabbitmq mysql; do
    container=$(compose ps --quiet "$service")
    # From outside: `docker kill` counts as a wish, and the container would stay down.
    as_root kill -9 "$(docker inspect --format '{{.State.Pid}}' "$container")"
    started=$SECONDS
    compose up --detach --no-build --no-recreate --wait --wait-timeout 240 "${services[@]}" >/dev/null 2>&1
    restarts=$(docker inspect --format '{{.RestartCount}}' "$container")
    [ "$restarts" -ge 1 ] || { say "$service was not started again by the engine"; exit 1; }
    say "killed $service; everything is healthy again after $((SECONDS - started)) s," \
      "$(wc -l <"$orders") orders so far"
  done
  kill $placer && wait $placer 2>/dev/null || true
  placer=
}
[ "${FAST:-}" = 1 ] || kill_each

for id in $(tail -n 3 "$orders"); do paid "$id"; done
sql() {
  compose exec -T mysql sh -c \
    'mysql --user=root --password="$(cat /run/secrets/mysql_root_password)" --skip-column-names' \
    2>/dev/null <<<"$1"
}
books='SELECT (SELECT COUNT(*) FROM orders.orders), (SELECT COUNT(*) FROM orders.outbox),
  (SELECT COUNT(*) FROM orders.outbox WHERE status = 2),
  (SELECT COUNT(*) FROM payments.payments), (SELECT COUNT(*) FROM payments.inbox WHERE status = 2)'
for _ in $(seq 60); do
  read -r placed events sent payments processed < <(sql "$books")
  [ "$placed" = "$sent" ] && [ "$placed" = "$payments" ] && [ "$placed" = "$processed" ] && break
  sleep 1
done
say "orders $placed, events $events, sent $sent, processed $processed, payments $payments"
[ "$placed" = "$events" ] && [ "$placed" = "$sent" ] && [ "$placed" = "$payments" ] &&
  [ "$placed" = "$processed" ] && [ "$placed" -ge "$(sort -u "$orders" | wc -l)" ]
up=$(curl --silent --fail "$prometheus/query" --data-urlencode \
  'query=count(up{job=~"relay|order-svc|pay-svc"} == 1)' | grep -oE '"[0-9]+"\]' | tr -dc 0-9)
[ "$up" = 5 ] || { say "Prometheus sees $up of 5 services"; exit 1; }
say 'the books balance, and Prometheus sees all five services'
