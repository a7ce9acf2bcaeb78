//! The table: what the rows are.

pub mod loader;
pub mod page_reader;
mod page_size;
pub mod queries;
mod refusal;
mod rows;

use crate::engine::{Page, Rows};
use crate::pause::Pauses;

/// What the tasks that read the table report.
#[derive(Debug)]
pub enum TableNews {
    /// The page that was queried.
    Page(Page),
    /// The rows that were queried.
    Rows(Rows),
    /// Somebody holds a lock on the table, which is waited for: the answer follows later.
    Refused(String),
    /// An operator has paused or resumed something.
    Pauses(Pauses),
}
