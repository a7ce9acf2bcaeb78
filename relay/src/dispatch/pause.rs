//! Rows that go back to the table because intake ends, or an operator has paused their route.

use std::time::Instant;

use crate::dispatch::Dispatch;
use crate::held::Route;

impl Dispatch {
    /// Intake has ended: what has not gone yet stays in the table.
    pub fn put_back_all(&mut self, now: Instant) {
        for item in self.queue.clear() {
            self.forget(&item, now);
        }
        for (id, (_, route)) in std::mem::take(&mut self.loading) {
            self.flights.remove(&id);
            self.held.probe_gone(&route, id, None, now);
        }
    }

    /// An operator has paused a route: its rows wait in the table, and behind them those of their keys.
    pub fn pause_route(&mut self, route: &Route, now: Instant) {
        self.held.pause_route(route, now);
        for item in self
            .queue
            .drop_matching(|item| Route::of(&item.row) == *route)
        {
            self.put_back(&item, now);
        }
        let loading: Vec<_> = self.loading.extract_if(|_, (_, to)| to == route).collect();
        for (id, (key, _)) in loading {
            self.flights.remove(&id);
            self.hold_key(key, None, now);
        }
    }

    /// An operator has resumed a route.
    pub fn resume_route(&mut self, route: &Route, now: Instant) {
        self.held.resume_route(route, now);
    }
}
