//! The database accounts of the services: the rights README.md and `deploy/mysql` give them, so that
//! the demo proves them sufficient.

use crate::{Db, Flavor};

/// One service's account.
pub(crate) struct Account {
    name: &'static str,
    database: &'static str,
    grants: &'static [&'static str],
    /// The right to log less of its own marks, which each server names differently.
    logs_less: bool,
}

impl Account {
    /// Writes orders and events, never changes one; it deletes old idempotency keys.
    pub(crate) const ORDER: Self = Self {
        name: "order_svc",
        database: "orders",
        grants: &[
            "SELECT, INSERT ON orders.*",
            "DELETE ON orders.idempotency_keys",
        ],
        logs_less: false,
    };
    /// Reads the binlog and the outbox; it can't read orders.
    pub(crate) const RELAY: Self = Self {
        name: "relay",
        database: "orders",
        grants: &[
            "REPLICATION SLAVE, REPLICATION CLIENT ON *.*",
            "SELECT, UPDATE, DELETE ON orders.outbox",
            "SELECT, UPDATE ON orders.outbox_fence",
            "SELECT, INSERT ON orders.outbox_attempts",
            "SELECT, INSERT, DELETE ON orders.outbox_pauses",
            "SELECT, INSERT, UPDATE ON orders.outbox_bulks",
            "SELECT, INSERT, UPDATE, DELETE ON orders.outbox_bulk_rows",
            "SELECT, INSERT ON orders.operator_actions",
        ],
        logs_less: true,
    };
    /// Its inbox and the payments.
    pub(crate) const PAY: Self = Self {
        name: "pay_svc",
        database: "payments",
        grants: &[
            "SELECT, INSERT, UPDATE, DELETE ON payments.inbox",
            "SELECT, INSERT, DELETE ON payments.inbox_attempts",
            "SELECT, INSERT, UPDATE ON payments.inbox_bulks",
            "SELECT, INSERT, UPDATE, DELETE ON payments.inbox_bulk_rows",
            "SELECT, INSERT, UPDATE ON payments.payments",
            "SELECT, INSERT ON payments.operator_actions",
        ],
        logs_less: false,
    };

    /// One more right, on both kinds of server.
    pub(crate) async fn grant(&self, db: &Db, right: &str) -> anyhow::Result<()> {
        let Self { name, .. } = self;
        db.execute(&format!("GRANT {right} TO {name}@'%'")).await?;
        Ok(())
    }

    /// Creates the account, after the migrations have made its tables; gives its URL.
    pub(crate) async fn create(&self, db: &Db) -> anyhow::Result<String> {
        let password = uuid::Uuid::now_v7().simple().to_string();
        let mut grants: Vec<String> = self.grants.iter().map(|&grant| grant.to_owned()).collect();
        if self.logs_less {
            grants.push(match db.flavor() {
                Flavor::MariaDb => "BINLOG ADMIN ON *.*".to_owned(),
                Flavor::MySql => "SESSION_VARIABLES_ADMIN ON *.*".to_owned(),
            });
        }
        db.create_user(self.name, &password, &grants).await?;
        Ok(db.user_url(self.name, &password, self.database))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::Account;

    /// What a page of SQL grants to an account. CREATE is there for a right on a table that is not
    /// made yet, and taken back.
    fn granted(sql: &str, name: &str) -> BTreeSet<String> {
        let grants = sql.lines().filter_map(|line| line.strip_prefix("GRANT "));
        let to = format!(" TO '{name}'@'%';");
        grants
            .filter_map(|grant| grant.split_once(&to))
            .map(|(grant, _)| grant.replace("CREATE, ", ""))
            .collect()
    }

    #[test]
    fn the_rights_tried_here_are_those_of_readme_and_of_compose() {
        let compose = include_str!("../../../deploy/mysql/init.sql");
        let readme = include_str!("../../../README.md");
        for account in [Account::ORDER, Account::RELAY, Account::PAY] {
            let mut grants: BTreeSet<String> = account
                .grants
                .iter()
                .map(|&grant| grant.to_owned())
                .collect();
            if account.logs_less {
                grants.insert("SESSION_VARIABLES_ADMIN ON *.*".to_owned());
                assert_eq!(granted(readme, account.name), grants, "README");
                // Compose is ready for a canary.
                grants.insert("INSERT ON orders.outbox".to_owned());
            }
            assert_eq!(granted(compose, account.name), grants, "{}", account.name);
        }
    }
}
