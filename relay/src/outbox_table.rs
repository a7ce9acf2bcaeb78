//! The outbox that a process works on.

use ::ops::Table;
use svc_kit::database::DatabaseUrl;
use svc_kit::migrate::{Set, check_own};

/// The outbox, found.
#[derive(Clone, Debug)]
pub struct OutboxTable {
    /// The server and database.
    pub url: DatabaseUrl,
    /// The table's name, checked to need no quoting beyond backticks.
    pub name: String,
}

impl OutboxTable {
    /// The migrations of an outbox of this name, which is a checked one.
    #[must_use]
    pub fn set(name: &str) -> Set {
        let migrations = outbox::migrations_for(name);
        let migrations = migrations.expect("a checked name is one that migrations can have");
        Set::new(name.to_owned(), migrations).set_by("RELAY_OUTBOX_TABLE")
    }

    /// Refuses tables that are there and somebody else's, before a command looks into them.
    ///
    /// # Errors
    /// [`svc_kit::boot::ConfigError`], what differs and what to do; else why that could not be looked up.
    pub async fn check_own(&self) -> anyhow::Result<()> {
        check_own(&self.url, &[Self::set(&self.name)]).await
    }

    /// As the operators' core calls it.
    #[must_use]
    pub fn for_ops(&self) -> Table {
        let name = self.name.clone();
        Table::Outbox { name }
    }
}
