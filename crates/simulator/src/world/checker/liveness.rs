//! Nothing starves, and in the end everything is level.
//!
//! A row is healthy when nothing is wrong with it, its route and its key: then it has to be gone (sent)
//! within [`bound`] of the moment when the last thing that may delay it ended. Such a moment is: the
//! row became visible, due, or was changed by hand; the row before it in its key was done with; a fault
//! of its route or a fault of everybody (no leader, broker or database away) ended.

use std::time::Duration;

use super::{Checker, View};
use crate::queue::{Micros, SECOND};
use crate::world::{RowFault, Stored};
use relay::engine::Order;

/// About what a row takes in the index.
const ENTRY_BYTES: usize = 224;

fn micros(duration: Duration) -> Micros {
    Micros::try_from(duration.as_micros()).unwrap_or(Micros::MAX)
}

/// The time within which a healthy row has to be sent: a fixed part; twice the longest back-off, after
/// which a route breaker or a key tries again; confirm time-outs of batches shared with a silent route;
/// sweeps, where the binlog is not to be had (a scan rests nine times as long as it took); the largest
/// backlog until now at the speed of the slowest settings; and a second for each time that backlog would
/// fill the index: rows that wait take most of it, and the others pass through the rest. (The real index
/// has room for 238,000 rows, so this second is for each of those.)
fn bound(view: &View<'_>, peak: usize) -> Micros {
    let settings = &view.scenario.settings;
    let pending = peak as u64;
    let index_rows = (settings.index_bytes / ENTRY_BYTES).max(1) as u64;
    let pages = pending / (view.scenario.page as u64 / 2).max(1) + 1;
    15 * SECOND
        + 2 * micros(settings.backoff_max)
        + 3 * view.scenario.confirm_timeout
        + 2 * micros(settings.sweep_interval)
        + pages * 100_000
        + pending / index_rows * SECOND
        + pending * 15_000 / settings.publishers as u64
}

impl Checker {
    /// Looks at the whole table.
    pub(crate) fn inspect(&mut self, view: &View<'_>) {
        self.peak = self.peak.max(view.server.pending.len());
        let bound = bound(view, self.peak);
        let heads = view.server.by_key.values().filter_map(|ids| ids.first());
        let starved = match self.order {
            Order::Key => heads.copied().find(|id| self.is_starved(*id, view, bound)),
            Order::None => view
                .server
                .pending
                .iter()
                .copied()
                .find(|id| self.is_starved(*id, view, bound)),
        };
        if let Some(id) = starved {
            let row = view.server.rows[&id];
            let text = format!(
                "row {id} message {} of key {} and route {} waits longer than {:.1} s at {:.3}; {row:?}",
                row.message,
                row.key,
                row.route,
                bound as f64 / 1e6,
                view.now as f64 / 1e6,
            );
            self.fail("no healthy row starves", text);
        }
        if view.now > view.scenario.troubled + SECOND {
            self.must_be_level(view, bound);
        }
    }

    fn is_starved(&self, id: u64, view: &View<'_>, bound: Micros) -> bool {
        let row = view.server.rows[&id];
        if view.messages[row.message as usize].fault != RowFault::None {
            return false;
        }
        let waits = row.next.map_or(0, |next| next - view.database_time);
        if waits > 0 {
            return false;
        }
        let due = view.now - Micros::try_from(-waits).unwrap_or(0).min(view.now);
        let due = if row.next.is_some() { due } else { 0 };
        let route = self.routes.get(&row.route).copied().unwrap_or(0);
        let released = match self.order {
            Order::Key => view.server.progress.get(&row.key).copied().unwrap_or(0),
            Order::None => 0,
        };
        let since = [row.since, due, route, released, self.disturbed]
            .into_iter()
            .max()
            .unwrap_or(0);
        view.now > since + bound
    }

    /// Once faults have ended, everything is level within a time that the bad rows determine: each of
    /// them is tried so often, one after the other.
    fn must_be_level(&mut self, view: &View<'_>, bound: Micros) {
        let now = view.now;
        let by = *self
            .level_by
            .get_or_insert_with(|| now + time_to_level(view, bound));
        if now > by && !view.server.pending.is_empty() {
            let rows: Vec<(&u64, &Stored)> = view
                .server
                .pending
                .iter()
                .take(5)
                .map(|id| (id, &view.server.rows[id]))
                .collect();
            let text = format!("{} rows are pending: {rows:?}", view.server.pending.len());
            self.fail("in the end everything is level", text);
        }
    }
}

fn time_to_level(view: &View<'_>, bound: Micros) -> Micros {
    let settings = &view.scenario.settings;
    let tries = u64::from(settings.attempts_max) + 2;
    let each = micros(settings.backoff_max) * 3 / 2 + view.scenario.confirm_timeout + 8 * SECOND;
    let mut bad = 0;
    let mut latest = 0;
    for id in &view.server.pending {
        let row = view.server.rows[id];
        bad += u64::from(view.messages[row.message as usize].fault != RowFault::None);
        let waits = row.next.map_or(0, |next| next - view.database_time);
        latest = latest.max(Micros::try_from(waits).unwrap_or(0));
    }
    2 * bound + 60 * SECOND + latest + bad * tries * each
}
