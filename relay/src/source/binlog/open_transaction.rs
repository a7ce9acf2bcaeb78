//! The transaction under way between two events. No IO.

use outbox::row::Row;

use super::transaction::{Committed, Doubt, Group};

/// What a row costs in memory besides its payload and headers, in bytes (measured, rounded up). The
/// other columns are short.
const ROW_OVERHEAD: usize = 512;

/// What a row costs in memory, in bytes.
pub fn memory_of(row: &Row) -> usize {
    let headers = row.headers.as_ref().map_or(0, Vec::len);
    row.payload.len() + headers + ROW_OVERHEAD
}

/// A transaction whose end has not come yet.
pub(super) struct Open {
    pub(super) committed: Committed,
    pub(super) rows: Vec<Row>,
    pub(super) deferred: Vec<Row>,
    pub(super) bytes: usize,
    pub(super) inserted: bool,
    pub(super) changed: bool,
    /// Inside BEGIN … COMMIT; a QUERY event outside is a group of its own.
    pub(super) begun: bool,
    pub(super) doubt: Option<Doubt>,
}

impl Open {
    pub(super) fn new(committed: Committed, begun: bool) -> Self {
        Self {
            committed,
            rows: Vec::new(),
            deferred: Vec::new(),
            bytes: 0,
            inserted: false,
            changed: false,
            begun,
            doubt: None,
        }
    }

    pub(super) fn into_group(self) -> Option<Group> {
        let empty = self.rows.is_empty() && self.deferred.is_empty() && self.doubt.is_none();
        (!empty).then_some(Group {
            rows: self.rows,
            deferred: self.deferred,
            committed: self.committed,
            doubt: self.doubt,
        })
    }
}
