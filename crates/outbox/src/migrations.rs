//! The tables of the outbox, as migrations to apply.

use std::borrow::Cow;

use sqlx::migrate::{Migration, Migrator};
use sqlx::{AssertSqlSafe, SqlSafeStr as _};

/// Longest name of an outbox table: the tracking table `_{table}_migrations` must fit 64 characters.
const MAX_TABLE_CHARACTERS: usize = 52;

/// A name that can't be that of an outbox table.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("table name {name:?} is not 1 to {MAX_TABLE_CHARACTERS} of the characters A-Z a-z 0-9 _")]
pub struct InvalidTableName {
    /// The name as given.
    pub name: String,
}

/// The migrations of `outbox`, `outbox_fence`, `outbox_attempts`, `outbox_pauses`, `outbox_bulks`,
/// `outbox_bulk_rows` and `operator_actions`.
#[must_use]
pub fn migrations() -> Migrator {
    sqlx::migrate!("../../migrations/outbox")
}

/// As [`migrations`], for an outbox with another name: `{table}`, `{table}_fence` and so on.
/// `operator_actions` is shared by all outboxes of a database.
///
/// # Errors
/// A name that is not a plain identifier.
pub fn migrations_for(table: &str) -> Result<Migrator, InvalidTableName> {
    let plain = |c: char| c.is_ascii_alphanumeric() || c == '_';
    if !(1..=MAX_TABLE_CHARACTERS).contains(&table.len()) || !table.chars().all(plain) {
        return Err(InvalidTableName {
            name: table.to_owned(),
        });
    }
    let renamed = migrations()
        .iter()
        .map(|migration| rename(migration, table))
        .collect();
    Ok(Migrator::with_migrations(renamed))
}

fn rename(migration: &Migration, table: &str) -> Migration {
    let sql = ["", "_fence", "_attempts", "_pauses", "_bulks", "_bulk_rows"]
        .iter()
        .fold(migration.sql.as_str().to_owned(), |sql, suffix| {
            sql.replace(&format!("`outbox{suffix}`"), &format!("`{table}{suffix}`"))
        });
    Migration::new(
        migration.version,
        Cow::Owned(migration.description.to_string()),
        migration.migration_type,
        AssertSqlSafe(sql).into_sql_str(),
        migration.no_tx,
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sql(migrator: &Migrator) -> String {
        migrator
            .iter()
            .map(|migration| migration.sql.as_str())
            .collect()
    }

    #[test]
    fn the_default_name_changes_nothing() {
        let (default, named) = (migrations(), migrations_for("outbox").unwrap());
        assert_eq!(sql(&default), sql(&named));
        for (a, b) in default.iter().zip(named.iter()) {
            assert_eq!(a.checksum, b.checksum, "version {}", a.version);
        }
    }

    #[test]
    fn every_table_of_another_outbox_has_its_name() {
        let sql = sql(&migrations_for("billing_events").unwrap());
        for table in [
            "`billing_events`",
            "`billing_events_fence`",
            "`billing_events_attempts`",
            "`billing_events_pauses`",
            "`billing_events_bulks`",
            "`billing_events_bulk_rows`",
        ] {
            assert!(
                sql.contains(&format!("TABLE IF NOT EXISTS {table}")),
                "{table}"
            );
        }
        assert!(sql.contains("INTO `billing_events_fence`"));
        for table in [
            "`outbox`",
            "`outbox_fence`",
            "`outbox_attempts`",
            "`outbox_pauses`",
            "`outbox_bulks`",
            "`outbox_bulk_rows`",
        ] {
            assert!(!sql.contains(table), "{table}");
        }
    }

    #[test]
    fn a_name_that_needs_quoting_is_refused() {
        for name in ["", "a`b", "orders.outbox", "out box", "å", &"a".repeat(53)] {
            assert!(migrations_for(name).is_err(), "{name}");
        }
        assert!(migrations_for(&"a".repeat(52)).is_ok());
    }
}
