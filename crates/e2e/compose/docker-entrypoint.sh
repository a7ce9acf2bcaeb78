#!/bin/bash
# What docker-compose.yml needs of the official MySQL image's entry point: a first start that sets the
# root password from its secret and then runs the files of /docker-entrypoint-initdb.d. As there, a
# file that fails ends the container, and the next start takes the data directory as it is.
set -eo pipefail
data=/var/lib/mysql
server() { mysqld --no-defaults --user=mysql --datadir=$data --secure-file-priv= "$@"; }
mysql_error() { echo "[ERROR] [Entrypoint]: $*" >&2; exit 1; }
docker_process_sql() {
  mysql --socket=/tmp/first.sock --user=root --password="$(cat "$MYSQL_ROOT_PASSWORD_FILE")" --comments "$@"
}

chown mysql: $data
if [ ! -d $data/mysql ]; then
  server --initialize-insecure
  server "$@" --skip-networking --socket=/tmp/first.sock &
  until mysqladmin --socket=/tmp/first.sock --user=root --silent ping; do
    kill -0 $! || mysql_error 'the first start failed'
    sleep 0.2
  done
  mysql --socket=/tmp/first.sock --user=root \
    --execute="ALTER USER root@localhost IDENTIFIED BY '$(cat "$MYSQL_ROOT_PASSWORD_FILE")'"
  for file in /docker-entrypoint-initdb.d/*; do
    echo "[Note] [Entrypoint]: running $file"
    if [[ $file == *.sh ]]; then
      # shellcheck source=/dev/null
      . "$file"
    else
      docker_process_sql <"$file"
    fi
  done
  docker_process_sql --execute=SHUTDOWN
  wait
fi
exec mysqld --no-defaults --user=mysql --datadir=$data --secure-file-priv= "$@"
