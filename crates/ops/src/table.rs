//! The two tables this works on, and what differs between them.

use sqlx::Row as _;
use sqlx::mysql::MySqlRow;

use crate::filter::State;

/// A relay's canaries, which come and go by themselves, are none of the operators' rows: true of all
/// others, in SQL.
pub const NO_CANARY: &str = "message_id NOT LIKE 'relay-canary-%'";

/// Which table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Table {
    /// A relay's.
    Outbox {
        /// Its name, a plain identifier; the companions are named after it.
        name: String,
    },
    /// pay-svc's.
    Inbox,
}

/// A row's primary key.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Key {
    /// `outbox.id`.
    Id(u64),
    /// `inbox.message_id`.
    Message(Vec<u8>),
}

impl std::fmt::Display for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Id(id) => write!(f, "{id}"),
            Self::Message(id) => f.write_str(&String::from_utf8_lossy(id)),
        }
    }
}

impl Table {
    /// The table's name, to be put between backticks.
    #[must_use]
    pub fn name(&self) -> &str {
        match self {
            Self::Outbox { name } => name,
            Self::Inbox => "inbox",
        }
    }

    /// The primary key's column.
    #[must_use]
    pub fn key_column(&self) -> &'static str {
        match self {
            Self::Outbox { .. } => "id",
            Self::Inbox => "message_id",
        }
    }

    /// The key in a column of a row that was read.
    pub(crate) fn key_of(&self, row: &MySqlRow, index: usize) -> Result<Key, sqlx::Error> {
        Ok(match self {
            Self::Outbox { .. } => Key::Id(row.try_get(index)?),
            Self::Inbox => Key::Message(row.try_get_unchecked(index)?),
        })
    }

    /// The service that works on it, as the audit calls it.
    pub(crate) fn service(&self) -> &'static str {
        match self {
            Self::Outbox { .. } => "relay",
            Self::Inbox => "pay-svc",
        }
    }

    /// The column of the attempts' table that names the row.
    pub(crate) fn attempt_column(&self) -> &'static str {
        match self {
            Self::Outbox { .. } => "outbox_id",
            Self::Inbox => "message_id",
        }
    }

    /// When the row came to be.
    #[must_use]
    pub fn created_column(&self) -> &'static str {
        match self {
            Self::Outbox { .. } => "created_at",
            Self::Inbox => "received_at",
        }
    }

    /// The columns that an index has behind `status`, by which pages are read.
    pub(crate) fn order_columns(&self) -> &'static [&'static str] {
        match self {
            Self::Outbox { .. } => &["id"],
            Self::Inbox => &["received_at", "message_id"],
        }
    }

    /// What this table calls a state.
    #[must_use]
    pub fn state_name(&self, state: State) -> &'static str {
        match (self, state) {
            (Self::Outbox { .. }, State::Waiting) => "pending",
            (Self::Inbox, State::Waiting) => "received",
            (Self::Outbox { .. }, State::Done) => "sent",
            (Self::Inbox, State::Done) => "processed",
            (_, State::Parked) => "parked",
            (_, State::Discarded) => "discarded",
        }
    }

    /// The key as the table has it; `None` when no row can have it.
    #[must_use]
    pub fn key(&self, text: &str) -> Option<Key> {
        match self {
            Self::Outbox { .. } => text
                .bytes()
                .all(|byte| byte.is_ascii_digit())
                .then(|| text.parse().ok().map(Key::Id))?,
            Self::Inbox => (1..=128)
                .contains(&text.len())
                .then(|| Key::Message(text.into())),
        }
    }

    /// `operator_actions.target` of a row. Several outboxes may share the audit.
    #[must_use]
    pub fn target(&self, key: &Key) -> String {
        match self {
            Self::Outbox { name } if name != "outbox" => format!("{name} {key}"),
            Self::Outbox { .. } | Self::Inbox => key.to_string(),
        }
    }

    /// `operator_actions.target` of a bulk.
    #[must_use]
    pub fn bulk_target(&self, bulk: u64) -> String {
        match self {
            Self::Outbox { name } if name != "outbox" => format!("{name} bulk {bulk}"),
            Self::Outbox { .. } | Self::Inbox => format!("bulk {bulk}"),
        }
    }

    /// The class of a row's `last_error`, as SQL. Whoever records a failure begins its text with the
    /// class; what the inbox parks at its arrival is known by its text.
    pub(crate) const CLASS: &'static str = "CASE WHEN last_error IS NULL THEN NULL \
         WHEN last_error LIKE 'message_id %known with another body%' THEN 'id_conflict' \
         WHEN last_error LIKE 'message_id %' THEN 'bad_message_id' \
         WHEN LOCATE(': ', last_error) BETWEEN 2 AND 33 THEN SUBSTRING_INDEX(last_error, ':', 1) \
         ELSE 'unknown' END";
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_that_no_row_can_have_is_none() {
        let outbox = Table::Outbox {
            name: "outbox".into(),
        };
        assert_eq!(outbox.key("42"), Some(Key::Id(42)));
        for wrong in ["", "+1", "-1", "1.5", "abc", "18446744073709551616"] {
            assert_eq!(outbox.key(wrong), None, "{wrong}");
        }
        assert_eq!(Table::Inbox.key("m-1"), Some(Key::Message(b"m-1".to_vec())));
        assert_eq!(Table::Inbox.key(""), None);
        assert_eq!(Table::Inbox.key(&"x".repeat(129)), None);
    }
}
