//! Which rows an audit is about. What it looks at in a row is at the end of both tables' columns.

use sqlx::Row as _;
use sqlx::mysql::MySqlRow;
use time::PrimitiveDateTime;

use crate::engine::route::Route;

/// Everything that a row must be.
#[derive(Clone, Debug, Default)]
pub(super) struct Chosen {
    /// Written, or received, at this time or later.
    pub(super) since: Option<PrimitiveDateTime>,
    /// `event_type`.
    pub(super) event_type: Option<String>,
    /// `exchange` and `routing_key`.
    pub(super) route: Option<Route>,
}

impl Chosen {
    /// Looks at the columns from `at` on: the time, `event_type`, `exchange`, `routing_key`.
    pub(super) fn takes(&self, row: &MySqlRow, at: usize) -> bool {
        let written = row.try_get_unchecked::<Option<PrimitiveDateTime>, _>(at);
        let is = |index: usize, wanted: &[u8]| {
            let found: Result<Option<Vec<u8>>, _> = row.try_get_unchecked(index);
            found.is_ok_and(|found| found.as_deref() == Some(wanted))
        };
        // A row without a usable time is looked at rather than left out.
        self.since
            .is_none_or(|since| !matches!(written, Ok(Some(time)) if time < since))
            && self
                .event_type
                .as_ref()
                .is_none_or(|t| is(at + 1, t.as_bytes()))
            && self
                .route
                .as_ref()
                .is_none_or(|r| is(at + 2, &r.exchange) && is(at + 3, &r.routing_key))
    }

    /// For the ledger; `None`: everything.
    pub(super) fn text(&self) -> Option<String> {
        let mut parts = Vec::new();
        parts.extend(self.event_type.as_ref().map(|t| format!("type {t}")));
        parts.extend(self.route.as_ref().map(|r| format!("route {r}")));
        (!parts.is_empty()).then(|| parts.join(", "))
    }
}
