//! Writing to the outbox what became of its rows.

mod backlog;
mod failure_record;
mod later;
pub mod marker_task;
mod sent_mark;
