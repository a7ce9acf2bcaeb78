# shellcheck shell=bash
# Sourced by the entry point of the MySQL image on the first start of an empty data directory. Any
# failure ends the container, and start.sh beside this file keeps it down.
docker_process_sql --database=mysql </outbox/init.sql

# Each password is the one in that service's DATABASE_URL, so it is written down once.
unlock_with_password_of() {
    local user=$1 url password
    url=$(cat "/run/secrets/$2")
    password=${url#mysql://"$user":}
    password=${password%%@*}
    # No character that SQL or a URL would read otherwise, so nothing here needs escaping.
    if [[ ! $password =~ ^[A-Za-z0-9]{16,}$ ]]; then
        mysql_error "secret $2: want mysql://$user:PASSWORD@…, a password of 16 or more letters and digits"
    fi
    docker_process_sql --database=mysql \
        <<<"ALTER USER '$user'@'%' IDENTIFIED BY '$password' ACCOUNT UNLOCK;"
}

unlock_with_password_of migrate migrate_orders_database_url
unlock_with_password_of order_svc order_database_url
unlock_with_password_of relay relay_database_url
unlock_with_password_of pay_svc pay_database_url

touch /var/lib/mysql/first-start-done
