//! What a probe has told of its row last. No IO, no clock.

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};

use crate::observe::metrics::Reason;
use crate::queue::RowId;
use crate::shut::ROUTES_MAX;

/// Thousands of shut routes are probed every few seconds, nearly always with the same row and the
/// same answer: that is written down and logged once.
#[derive(Debug, Default)]
pub(crate) struct Told(HashMap<RowId, u64>);

impl Told {
    /// Has this not been told of the row already?
    pub(crate) fn is_news(&mut self, row: RowId, reason: Reason, text: &str) -> bool {
        let mut hasher = DefaultHasher::new();
        (reason.name(), text).hash(&mut hasher);
        // Rows of routes that are forgotten stay behind; telling again costs one write each.
        if self.0.len() >= 2 * ROUTES_MAX {
            self.0.clear();
        }
        let told = hasher.finish();
        self.0.insert(row, told) != Some(told)
    }

    /// Something else has become of the row.
    pub(crate) fn forget(&mut self, row: RowId) {
        if !self.0.is_empty() {
            self.0.remove(&row);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_differs_is_news() {
        let mut told = Told::default();
        let row = RowId::new(1, "a");
        assert!(told.is_news(row, Reason::Returned, "312 NO_ROUTE"));
        assert!(!told.is_news(row, Reason::Returned, "312 NO_ROUTE"));
        assert!(told.is_news(row, Reason::Nack, "312 NO_ROUTE"));
        assert!(told.is_news(row, Reason::Nack, "another"));
        assert!(told.is_news(RowId::new(2, "b"), Reason::Nack, "another"));
        told.forget(row);
        assert!(told.is_news(row, Reason::Nack, "another"));
    }
}
