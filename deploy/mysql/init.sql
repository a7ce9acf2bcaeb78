-- Databases, accounts and least rights, for a server that holds both databases.
--
-- The accounts are made locked; first-start.sh beside this file gives each its password. A DBA who
-- runs this by hand does the same: ALTER USER … IDENTIFIED BY '…' ACCOUNT UNLOCK.
--
-- On MariaDB, write BINLOG ADMIN for SESSION_VARIABLES_ADMIN; the rest is the same.
--
-- A right on one table can be given before the table exists only together with CREATE on it, so
-- each such GRANT names CREATE and the REVOKE after it takes that back. After a migration has made
-- the tables, the GRANTs without CREATE do the same.

CREATE DATABASE IF NOT EXISTS orders CHARACTER SET utf8mb4 COLLATE utf8mb4_bin;
CREATE DATABASE IF NOT EXISTS payments CHARACTER SET utf8mb4 COLLATE utf8mb4_bin;

-- TLS is asked of everyone: a login of caching_sha2_password without it would send the password in
-- a way that the services refuse.
CREATE USER IF NOT EXISTS 'migrate'@'%' REQUIRE SSL ACCOUNT LOCK;
CREATE USER IF NOT EXISTS 'order_svc'@'%' REQUIRE SSL ACCOUNT LOCK;
CREATE USER IF NOT EXISTS 'relay'@'%' REQUIRE SSL ACCOUNT LOCK;
CREATE USER IF NOT EXISTS 'pay_svc'@'%' REQUIRE SSL ACCOUNT LOCK;

-- migrate: the only account that changes tables; used by the one-shot `… migrate` commands alone.
GRANT SELECT, INSERT, UPDATE, DELETE, CREATE, ALTER, INDEX, REFERENCES ON orders.* TO 'migrate'@'%';
GRANT SELECT, INSERT, UPDATE, DELETE, CREATE, ALTER, INDEX, REFERENCES ON payments.* TO 'migrate'@'%';

-- order-svc: writes orders and events, never changes one; it deletes old idempotency keys.
GRANT SELECT, INSERT ON orders.* TO 'order_svc'@'%';
GRANT CREATE, DELETE ON orders.idempotency_keys TO 'order_svc'@'%';
REVOKE CREATE ON orders.idempotency_keys FROM 'order_svc'@'%';

-- relay: the outbox tables and the binlog. It can't read orders.
GRANT REPLICATION SLAVE, REPLICATION CLIENT ON *.* TO 'relay'@'%';
-- For RELAY_BINLOG_ROW_IMAGE=minimal: a mark then adds 3 % to the binlog of an insert instead of
-- 102 %. The relay works without this right.
GRANT SESSION_VARIABLES_ADMIN ON *.* TO 'relay'@'%';
-- INSERT is for the canary (RELAY_CANARY_INTERVAL) and for `relay parked edit`.
GRANT CREATE, SELECT, UPDATE, DELETE ON orders.outbox TO 'relay'@'%';
GRANT CREATE, INSERT ON orders.outbox TO 'relay'@'%';
GRANT CREATE, SELECT, UPDATE ON orders.outbox_fence TO 'relay'@'%';
GRANT CREATE, SELECT, INSERT ON orders.outbox_attempts TO 'relay'@'%';
-- INSERT and DELETE are for `relay pause` and `relay resume` with this account.
GRANT CREATE, SELECT, INSERT, DELETE ON orders.outbox_pauses TO 'relay'@'%';
-- The operators' bulk retry.
GRANT CREATE, SELECT, INSERT, UPDATE ON orders.outbox_bulks TO 'relay'@'%';
GRANT CREATE, SELECT, INSERT, UPDATE, DELETE ON orders.outbox_bulk_rows TO 'relay'@'%';
GRANT CREATE, SELECT, INSERT ON orders.operator_actions TO 'relay'@'%';
REVOKE CREATE ON orders.outbox FROM 'relay'@'%';
REVOKE CREATE ON orders.outbox_fence FROM 'relay'@'%';
REVOKE CREATE ON orders.outbox_attempts FROM 'relay'@'%';
REVOKE CREATE ON orders.outbox_pauses FROM 'relay'@'%';
REVOKE CREATE ON orders.outbox_bulks FROM 'relay'@'%';
REVOKE CREATE ON orders.outbox_bulk_rows FROM 'relay'@'%';
REVOKE CREATE ON orders.operator_actions FROM 'relay'@'%';

-- pay-svc: its inbox and payments. It never changes a payment: UPDATE there is what MySQL asks for
-- ON DUPLICATE KEY UPDATE, by which a second payment of an order is left out.
GRANT CREATE, SELECT, INSERT, UPDATE, DELETE ON payments.inbox TO 'pay_svc'@'%';
GRANT CREATE, SELECT, INSERT, DELETE ON payments.inbox_attempts TO 'pay_svc'@'%';
GRANT CREATE, SELECT, INSERT, UPDATE ON payments.payments TO 'pay_svc'@'%';
GRANT CREATE, SELECT, INSERT, UPDATE ON payments.inbox_bulks TO 'pay_svc'@'%';
GRANT CREATE, SELECT, INSERT, UPDATE, DELETE ON payments.inbox_bulk_rows TO 'pay_svc'@'%';
GRANT CREATE, SELECT, INSERT ON payments.operator_actions TO 'pay_svc'@'%';
REVOKE CREATE ON payments.inbox FROM 'pay_svc'@'%';
REVOKE CREATE ON payments.inbox_attempts FROM 'pay_svc'@'%';
REVOKE CREATE ON payments.payments FROM 'pay_svc'@'%';
REVOKE CREATE ON payments.inbox_bulks FROM 'pay_svc'@'%';
REVOKE CREATE ON payments.inbox_bulk_rows FROM 'pay_svc'@'%';
REVOKE CREATE ON payments.operator_actions FROM 'pay_svc'@'%';
