//! Which rows are meant. No IO, no clock.

use std::fmt;

use time::PrimitiveDateTime;

use super::read::Head;
use crate::commands::times::rfc3339;
use crate::observe::canary;

/// Everything that a row must be.
#[derive(Clone, Debug)]
pub(super) struct Filter {
    /// `sent_at` is this or later.
    pub(super) from: PrimitiveDateTime,
    /// `sent_at` is before this.
    pub(super) to: PrimitiveDateTime,
    /// `event_type`.
    pub(super) event_type: Option<String>,
    /// `aggregate_id`.
    pub(super) key: Option<String>,
    /// `id` is higher.
    pub(super) after: u64,
}

impl Filter {
    /// A row that was set to sent by hand, without a time, is not meant by any, nor is the relay's own.
    pub(super) fn takes(&self, head: &Head) -> bool {
        let same = |wanted: &Option<String>, found: &[u8]| {
            wanted
                .as_ref()
                .is_none_or(|wanted| wanted.as_bytes() == found)
        };
        head.id > self.after
            && !canary::is_one(&head.message_id)
            && head
                .sent_at
                .is_some_and(|sent| self.from <= sent && sent < self.to)
            && same(&self.event_type, &head.event_type)
            && same(&self.key, &head.aggregate_id)
    }

    /// The part of the command that goes on behind the row `after` which names the rows.
    pub(super) fn go_on(&self, after: u64) -> String {
        let mut command = format!(
            "relay replay --from {} --to {} --after {after}",
            rfc3339(self.from),
            rfc3339(self.to)
        );
        for (flag, value) in [("--type", &self.event_type), ("--key", &self.key)] {
            if let Some(value) = value {
                command.push_str(&format!(" {flag} {}", quoted(value)));
            }
        }
        command
    }
}

/// For a shell.
pub(super) fn quoted(text: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "._-:/@".contains(c);
    if !text.is_empty() && text.chars().all(plain) {
        return text.to_owned();
    }
    format!("'{}'", text.replace('\'', r"'\''"))
}

/// As an operator reads it.
impl fmt::Display for Filter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "sent_at from {} to {}",
            rfc3339(self.from),
            rfc3339(self.to)
        )?;
        if let Some(event_type) = &self.event_type {
            write!(f, ", type {event_type:?}")?;
        }
        if let Some(key) = &self.key {
            write!(f, ", key {key:?}")?;
        }
        if self.after > 0 {
            write!(f, ", id after {}", self.after)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use time::macros::datetime;

    fn filter() -> Filter {
        Filter {
            from: datetime!(2026-01-31 12:00),
            to: datetime!(2026-01-31 13:00),
            event_type: None,
            key: None,
            after: 0,
        }
    }

    fn head(sent_at: Option<PrimitiveDateTime>) -> Head {
        Head {
            id: 7,
            message_id: "m".into(),
            key: 1,
            event_type: b"order.placed.v1".to_vec(),
            aggregate_id: b"42".to_vec(),
            route: crate::engine::route::Route::new(b"x", b"k"),
            written: None,
            sent_at,
        }
    }

    #[test]
    fn from_is_taken_and_to_is_not() {
        let takes = |sent| filter().takes(&head(sent));
        assert!(takes(Some(datetime!(2026-01-31 12:00))));
        assert!(takes(Some(datetime!(2026-01-31 12:59:59.999_999))));
        assert!(!takes(Some(datetime!(2026-01-31 13:00))));
        assert!(!takes(Some(datetime!(2026-01-31 11:59:59.999_999))));
        assert!(!takes(None));
    }

    #[test]
    fn each_part_of_the_filter_counts() {
        let row = head(Some(datetime!(2026-01-31 12:30)));
        let with = |change: fn(&mut Filter)| {
            let mut filter = filter();
            change(&mut filter);
            filter.takes(&row)
        };
        assert!(with(|f| f.event_type = Some("order.placed.v1".into())));
        assert!(!with(|f| f.event_type = Some("order.placed".into())));
        assert!(with(|f| f.key = Some("42".into())));
        assert!(!with(|f| f.key = Some("4".into())));
        assert!(with(|f| f.after = 6));
        assert!(!with(|f| f.after = 7));
        let canary = Head {
            message_id: "relay-canary-0".into(),
            ..row.clone()
        };
        assert!(filter().takes(&row) && !filter().takes(&canary));
    }

    #[test]
    fn the_command_that_goes_on_survives_a_shell() {
        let filter = Filter {
            key: Some("o'hara $1".into()),
            ..filter()
        };
        assert_eq!(
            filter.go_on(9),
            r"relay replay --from 2026-01-31T12:00:00Z --to 2026-01-31T13:00:00Z --after 9 --key 'o'\''hara $1'"
        );
    }
}
