#!/bin/sh
# Makes deploy/secrets for docker-compose.yml: random passwords, once. It never changes what is there;
# to start over, remove the directory and the volumes (`docker compose down --volumes`).
set -eu
cd "$(dirname "$0")"
[ -d secrets ] && exit 0

new=$(mktemp -d ./secrets.XXXXXX)
trap 'rm -rf "$new"' EXIT

random() { od -An -N16 -tx1 /dev/urandom | tr -d ' \n'; }
put() { printf '%s' "$2" >"$new/$1"; }

put mysql_root_password "$(random)"
migrate=$(random)
put migrate_orders_database_url "mysql://migrate:$migrate@mysql:3306/orders?ssl-mode=REQUIRED"
put migrate_payments_database_url "mysql://migrate:$migrate@mysql:3306/payments?ssl-mode=REQUIRED"
put order_database_url "mysql://order_svc:$(random)@mysql:3306/orders?ssl-mode=REQUIRED"
put relay_database_url "mysql://relay:$(random)@mysql:3306/orders?ssl-mode=REQUIRED"
put pay_database_url "mysql://pay_svc:$(random)@mysql:3306/payments?ssl-mode=REQUIRED"

admin=$(random) relay=$(random) pay=$(random)
put rabbitmq_admin_password "$admin"
put relay_amqp_url "amqp://relay:$relay@rabbitmq:5672/%2f"
put pay_amqp_url "amqp://pay_svc:$pay@rabbitmq:5672/%2f"
put rabbitmq_definitions.json "$(
    sed -e "s/ADMIN_PASSWORD/$admin/" -e "s/RELAY_PASSWORD/$relay/" -e "s/PAY_PASSWORD/$pay/" \
        rabbitmq/definitions.json
)"

put grafana_admin_password "$(random)"
put ops_tokens "operator:operator:$(random)"

# A container's user reads its file through a bind mount, so the files are open and the directory
# is closed.
chmod 644 "$new"/*
chmod 700 "$new"
mv "$new" secrets
trap - EXIT
echo "made $(pwd)/secrets"
