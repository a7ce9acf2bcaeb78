//! The binlog: which rows have been added.

#[cfg(feature = "mysql-cdc")]
mod cdc;
pub mod commit_clock;
pub mod connection;
mod event;
pub mod library;
pub mod position;
pub mod reader_task;
pub mod row_decoder;
mod statement;
pub mod transaction;

use futures::stream::BoxStream;
use mysql_async::binlog::events::Event;

/// Events in the binlog's order, without end but by an error. A compressed transaction is followed by
/// its events.
pub type Events = BoxStream<'static, anyhow::Result<Event>>;
