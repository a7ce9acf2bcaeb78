//! What the engine wants the world to do.

use std::time::{Duration, Instant};

use outbox::row::Row;

use super::position::Position;
use super::route::Route;
use crate::publish::confirms::Confirmed;

/// A thing to do. Commands are executed in order.
#[derive(Debug)]
pub enum Command {
    /// Open a binlog stream there. Answered by [`super::Event::BinlogOpened`] or
    /// [`super::Event::BinlogEnded`]; meanwhile the engine goes on.
    OpenBinlog(Position),
    /// Drop the binlog stream, or the attempt to open one. Nothing of it may be reported any more.
    CloseBinlog,
    /// Read a page of pending rows. One at a time; answered by [`super::Event::Page`].
    ReadPage(PageQuery),
    /// Read rows by id, whatever their status. One at a time; answered by [`super::Event::Rows`].
    Load(LoadQuery),
    /// Publish a batch. Answered by [`super::Event::Published`] with a verdict for each row, in order.
    Publish {
        /// Which publisher: one that is idle.
        publisher: usize,
        /// The rows in the order they are to be published.
        batch: Vec<Row>,
    },
    /// Write to the table. Answered by [`super::Event::Written`].
    Write(Write),
    /// Something to log, count or show.
    Report(Report),
    /// The session is over.
    End(End),
}

/// A page of the pending rows with `after < id <= upto`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PageQuery {
    /// Where the page before ended.
    pub after: u64,
    /// `None` begins a scan: see [`super::Page::start`].
    pub upto: Option<u64>,
    /// Commit an own row first: everything committed before it is visible afterwards.
    pub fence: bool,
    /// Read the binlog's position too: before the fence and after the page.
    pub positions: bool,
    /// Bring the small rows whole.
    pub payloads: bool,
}

/// Rows to be read by id.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LoadQuery {
    /// Their ids, without repetition.
    pub ids: Vec<u64>,
    /// Bring payloads, in the order of `ids`, up to so many bytes in all; 0 brings none. The first
    /// pending one comes whatever its size if this is not 0.
    pub bytes: usize,
}

/// What is to be written.
#[derive(Debug)]
pub enum Write {
    /// These are confirmed: mark them sent.
    Sent(Vec<Confirmed>),
    /// What happened to one row.
    Record(Record),
}

/// What is written about one row, beside its mark.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// `outbox.id`.
    pub id: u64,
    /// The write is conditional on it.
    pub message_id: String,
    /// The class.
    pub reason: Reason,
    /// The broker's or our own text for the operator.
    pub text: String,
    /// What follows.
    pub then: Then,
}

/// What follows from a failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Then {
    /// The message's own fault: try again after this time.
    Retry {
        /// Failed attempts, this one included.
        attempts: u32,
        /// From now on.
        after: Duration,
    },
    /// The message's own fault, and the last attempt: a person must look.
    Park {
        /// Failed attempts, this one included.
        attempts: u32,
    },
    /// The route's fault: the text says why its rows wait. No attempt is spent.
    Explain,
    /// The route's fault, and there are too many routes to remember: the row waits by itself.
    Wait(Duration),
}

/// Why a publish failed; the label `reason` of `failed_total`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Reason {
    /// basic.nack.
    Nack,
    /// basic.return: no queue is bound.
    Returned,
    /// No confirm in time.
    Timeout,
    /// The broker closed the channel or the connection.
    ChannelClosed,
    /// 406: larger than the broker takes.
    TooLarge,
    /// It can't be a message.
    Invalid,
}

impl Reason {
    /// All of them.
    pub const ALL: [Self; 6] = [
        Self::Nack,
        Self::Returned,
        Self::Timeout,
        Self::ChannelClosed,
        Self::TooLarge,
        Self::Invalid,
    ];

    /// Label value, and the class in `outbox_attempts`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Nack => "nack",
            Self::Returned => "returned",
            Self::Timeout => "timeout",
            Self::ChannelClosed => "channel_closed",
            Self::TooLarge => "too_large",
            Self::Invalid => "invalid",
        }
    }
}

/// Who found a row; the label `source` of `published_total`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Source {
    /// The binlog reported its id.
    Binlog,
    /// A table scan.
    Sweep,
}

impl Source {
    /// Label value.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Binlog => "binlog",
            Self::Sweep => "sweep",
        }
    }
}

/// Something to log, count or show.
#[derive(Clone, Debug, PartialEq)]
pub enum Report {
    /// A row was confirmed.
    Confirmed {
        /// Who found it.
        source: Source,
        /// Since its commit, for rows that the binlog reported.
        took: Option<Duration>,
    },
    /// Rows were given to a publisher.
    Published {
        /// Who found them.
        source: Source,
        /// How many.
        rows: usize,
    },
    /// A row failed by its own fault.
    Failed(Record),
    /// A row failed by its route's fault, or was in a batch that the broker answered by closing.
    Refused(Reason),
    /// A route breaker has opened or stays open; the record says why. Reported when it is news.
    RouteClosed(Record),
    /// A route breaker has closed: its rows go.
    RouteOpened(Route),
    /// A sweep found rows that the binlog should have reported.
    MissedByBinlog(u64),
    /// The broker closed a channel over a batch.
    ChannelClosed {
        /// Its text.
        why: String,
        /// Rows in the batch.
        rows: usize,
    },
    /// The binlog stream is dead or went backwards: another one is opened.
    BinlogBroken(&'static str),
    /// The binlog stream is not to be had: scans alone find rows until then.
    BinlogAway {
        /// Why.
        why: String,
        /// When it is tried again.
        retry_at: Instant,
    },
    /// Confirmed rows can't be marked: nothing is published until they are (true), or they are (false).
    WriteStall(bool),
}

/// Why a session is over.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum End {
    /// Everything on its way is confirmed and marked.
    Drained,
    /// The broker is gone, and what was on its way has been settled as far as it can be.
    BrokerLost(String),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn label_values_are_those_of_the_metrics() {
        let names = [
            "nack",
            "returned",
            "timeout",
            "channel_closed",
            "too_large",
            "invalid",
        ];
        assert_eq!(Reason::ALL.map(Reason::name), names);
        let sources = [Source::Binlog, Source::Sweep].map(Source::name);
        assert_eq!(sources, ["binlog", "sweep"]);
    }
}
