//! Writing to the outbox what became of its rows.

mod backlog;
mod failure_record;
mod later;
pub mod marker_task;
mod sent_mark;

/// Rows in one UPDATE. MariaDB makes a subquery of a list of 1,000 literals; of parameters it does not.
pub const MARK_MAX: usize = 1024;
