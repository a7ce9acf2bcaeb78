//! A row of the outbox table, and the persisted states of both tables.

use time::PrimitiveDateTime;
use time::format_description::StaticFormatDescription;
use time::macros::format_description;

/// `outbox.status`. The numbers are the contract: programs in any language read and write them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum OutboxStatus {
    /// To be published. Setting a row back to this by hand makes it go out again.
    Pending = 1,
    /// The broker has confirmed it.
    Sent = 2,
    /// It failed too often: a person must look.
    Parked = 3,
    /// A person decided that it is not to be sent.
    Discarded = 4,
}

/// `inbox.status`. The numbers are the contract: programs in any language read and write them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum InboxStatus {
    /// Stored and acknowledged; the work is still to be done.
    Received = 1,
    /// The work is done.
    Processed = 2,
    /// It can't be processed, or failed too often: a person must look.
    Parked = 3,
    /// A person decided that it is not to be processed.
    Discarded = 4,
}

/// A status number that is not in the contract.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("status {0} is none of 1, 2, 3, 4")]
pub struct UnknownStatus(pub u8);

impl OutboxStatus {
    /// The number in the column.
    #[must_use]
    pub const fn code(self) -> u8 {
        self as u8
    }

    /// The word used in answers and on pages.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Sent => "sent",
            Self::Parked => "parked",
            Self::Discarded => "discarded",
        }
    }
}

impl InboxStatus {
    /// The number in the column.
    #[must_use]
    pub const fn code(self) -> u8 {
        self as u8
    }

    /// The word used in answers and on pages.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Received => "received",
            Self::Processed => "processed",
            Self::Parked => "parked",
            Self::Discarded => "discarded",
        }
    }
}

impl TryFrom<u8> for OutboxStatus {
    type Error = UnknownStatus;

    fn try_from(code: u8) -> Result<Self, UnknownStatus> {
        match code {
            1 => Ok(Self::Pending),
            2 => Ok(Self::Sent),
            3 => Ok(Self::Parked),
            4 => Ok(Self::Discarded),
            other => Err(UnknownStatus(other)),
        }
    }
}

impl TryFrom<u8> for InboxStatus {
    type Error = UnknownStatus;

    fn try_from(code: u8) -> Result<Self, UnknownStatus> {
        match code {
            1 => Ok(Self::Received),
            2 => Ok(Self::Processed),
            3 => Ok(Self::Parked),
            4 => Ok(Self::Discarded),
            other => Err(UnknownStatus(other)),
        }
    }
}

/// A time of a table, which holds UTC, as RFC 3339 with microseconds, the precision of the tables.
#[must_use]
pub fn rfc3339(at: PrimitiveDateTime) -> String {
    const MICROSECONDS: StaticFormatDescription =
        format_description!("[year]-[month]-[day]T[hour]:[minute]:[second].[subsecond digits:6]Z");
    at.format(MICROSECONDS)
        .expect("a date and time have every component of the format")
}

/// A row as the relay sees it, whichever of binlog or table it came from.
///
/// Text columns are the bytes as stored: a row that can't be a message must still be representable,
/// so that it can be refused by itself, with a text, and not its whole page.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Row {
    /// `AUTO_INCREMENT` id: the order of insertion, not of commit.
    pub id: u64,
    /// The id a consumer drops duplicates by.
    pub message_id: String,
    /// First half of the ordering key, compared as bytes.
    pub aggregate_type: Vec<u8>,
    /// Second half of the ordering key, compared as bytes.
    pub aggregate_id: Vec<u8>,
    /// Becomes the AMQP property `type`.
    pub event_type: Vec<u8>,
    /// Exchange it is published to; empty is AMQP's default exchange.
    pub exchange: Vec<u8>,
    /// Routing key it is published with.
    pub routing_key: Vec<u8>,
    /// Becomes the AMQP property `content_type`.
    pub content_type: Vec<u8>,
    /// A JSON object of strings, as text.
    pub headers: Option<Vec<u8>>,
    /// The message's body, never re-serialised.
    pub payload: Vec<u8>,
    /// UTC. `None` is a zero date (`0000-00-00`), which only a lax `sql_mode` lets in.
    pub created_at: Option<PrimitiveDateTime>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_status_survives_its_number() {
        for code in 1..=4 {
            assert_eq!(OutboxStatus::try_from(code).unwrap().code(), code);
            assert_eq!(InboxStatus::try_from(code).unwrap().code(), code);
        }
        for code in [0, 5, 255] {
            assert_eq!(OutboxStatus::try_from(code), Err(UnknownStatus(code)));
            assert_eq!(InboxStatus::try_from(code), Err(UnknownStatus(code)));
        }
    }
}
