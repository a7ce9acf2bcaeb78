#!/bin/bash
# What docker-compose.yml needs of the official image's entry point: a first start that runs the
# files of /docker-entrypoint-initdb.d, and the root password from its secret.
set -euo pipefail
data=/var/lib/mysql
server() { mysqld --no-defaults --user=mysql --datadir=$data --secure-file-priv= "$@"; }
mysql_error() { echo "$*" >&2; exit 1; }
docker_process_sql() { mysql --socket=/tmp/first.sock --user=root "$@"; }

chown mysql: $data
if [ ! -d $data/mysql ]; then
  server --initialize-insecure
  server "$@" --skip-networking --socket=/tmp/first.sock &
  until mysqladmin --socket=/tmp/first.sock --user=root --silent ping; do
    kill -0 $! || mysql_error 'the first start failed'
    sleep 0.2
  done
  for file in /docker-entrypoint-initdb.d/*; do
    case $file in
      # shellcheck source=/dev/null
      *.sh) . "$file" ;;
      *.sql) docker_process_sql <"$file" ;;
    esac
  done
  docker_process_sql <<<"ALTER USER root@localhost IDENTIFIED BY '$(cat "$MYSQL_ROOT_PASSWORD_FILE")';
    SHUTDOWN;" || true
  wait
fi
exec mysqld --no-defaults --user=mysql --datadir=$data --secure-file-priv= "$@"
