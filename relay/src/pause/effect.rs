//! What a pause does to a session.

use std::time::Instant;

use crate::observe::metrics::Phase;
use crate::pause::Pauses;
use crate::session::Session;

impl Session<'_> {
    /// Nothing is taken in: neither from the tail nor from the table.
    pub(crate) fn is_paused(&self) -> bool {
        self.pauses.whole.is_some()
    }

    /// An operator has paused or resumed something.
    ///
    /// A paused relay keeps its connections and its lock; what it has read and not sent goes back to
    /// the table, what the broker has is confirmed and marked, and then it holds nothing. Resumed, it
    /// finds its rows as at the start of a session.
    pub(crate) fn take_pauses(&mut self, new: Pauses, now: Instant) {
        let old = std::mem::replace(&mut self.pauses, new);
        for (route, pause) in &self.pauses.routes {
            if !old.routes.contains_key(route) {
                tracing::warn!(%route, actor = pause.actor, reason = pause.reason,
                    "a route is paused, its rows wait");
                self.dispatch.pause_route(route, now);
            }
        }
        for route in old.routes.keys() {
            if !self.pauses.routes.contains_key(route) {
                tracing::info!(%route, "a route is resumed");
                self.dispatch.resume_route(route, now);
            }
        }
        match (&old.whole, &self.pauses.whole) {
            (None, Some(pause)) => {
                let (actor, reason) = (&pause.actor, &pause.reason);
                tracing::warn!(actor, reason, "the relay is paused, intake stops");
                self.dispatch.put_back_all(now);
                self.catch_up(now);
            }
            (Some(_), None) => {
                tracing::info!("the relay is resumed");
                self.catch_up(now);
            }
            (None, None) | (Some(_), Some(_)) => {}
        }
        self.pauses.show(self.readiness, self.metrics);
    }

    /// Orders flow whichever way rows are found, so no way clears readiness.
    pub(crate) fn show_way(&self, why: &str) {
        let phase = if self.is_paused() {
            Phase::Paused
        } else {
            self.intake.phase()
        };
        self.metrics.set_phase(phase);
        self.readiness
            .set("binlog", true, format!("{}{why}", phase.name()));
    }
}
