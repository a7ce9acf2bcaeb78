//! Keys and routes that are served from the table until they are level. No IO, no clock.
//!
//! A hold says: rows of this key (or route) are waiting in the table, so a row that the tail brings
//! now must not overtake them. Only passes feed a held key. It is **level**, and the tail may have
//! it back, when a pass that began after a fence met nothing of it that it had to leave, and the
//! tail left nothing of it in the table since that pass began: then everything pending is in its
//! lane, in order, and the lane keeps the order. Nothing is remembered of a held row but its key.

mod crowd;

use std::collections::HashMap;
use std::time::{Duration, Instant};

use self::crowd::Crowd;
use crate::config::Order;
use crate::queue::{Pace, RowId};
pub use crate::route::Route;
use crate::schedule::Schedule;
use crate::shut::{Routes, Shutting, Turn};

/// Keys held by name, ten megabytes of them; of further ones only a bit of their hash is known.
pub const KEYS_MAX: usize = 1 << 17;

/// What a pass may do with a row it met.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Admit {
    /// Send it.
    Go,
    /// It stays in the table for now; its key is held if keys are ordered.
    Leave,
}

/// Which pass asks, and when.
#[derive(Clone, Copy, Debug)]
pub struct Visit {
    /// Number of the pass.
    pub pass: u64,
    /// Now.
    pub now: Instant,
}

#[derive(Debug)]
struct KeyHold {
    /// When, in touches, the tail or a failure last left a row of it in the table.
    touch: u64,
    /// The last pass that had to leave a row of it: it leaves all rows behind that one too.
    left: u64,
    /// The head waits until then: what comes behind it is no reason for a pass.
    until: Option<Instant>,
}

/// The held keys and routes.
#[derive(Debug)]
pub struct Held {
    order: Order,
    keys: HashMap<u64, KeyHold>,
    routes: Routes,
    touches: u64,
    began: u64,
    wake: Option<Instant>,
    /// Touches before the pass before this one began.
    began_before: u64,
    /// The keys beyond [`KEYS_MAX`].
    crowd: Crowd,
    /// Of the routes; known here because it is asked for at every event.
    next_probe: Option<Instant>,
    has_opened: bool,
}

/// Rows behind a head whose answer is awaited are no reason for a pass before that.
const ANSWER_AWAITED: Duration = Duration::from_secs(1);

impl Held {
    /// Nothing held.
    pub fn new(order: Order, schedule: Schedule) -> Self {
        Self {
            order,
            keys: HashMap::new(),
            routes: Routes::new(schedule),
            touches: 0,
            began: 0,
            wake: None,
            began_before: 0,
            crowd: Crowd::default(),
            next_probe: None,
            has_opened: false,
        }
    }

    /// True when nothing is held, so the tail need not ask.
    pub fn is_empty(&self) -> bool {
        self.keys.is_empty() && self.routes.is_empty() && self.crowd.is_empty()
    }

    /// If this row is the one that probes its route: how it may go.
    pub fn probe(&self, route: &Route, row: RowId) -> Option<Pace> {
        self.routes.probe(route, row)
    }

    /// Without an order no key tells why a row is in the table; when some were put there since the
    /// pass before this one began, it may be any row.
    pub fn explains_any(&self) -> bool {
        self.order == Order::None && self.touches > self.began_before
    }

    /// A pass is wanted now.
    pub fn wake_now(&mut self, now: Instant) {
        self.wake_at(now);
    }

    /// When the next pass is wanted for what is held.
    pub fn wake(&self) -> Option<Instant> {
        self.wake
    }

    /// The shut routes with the number of rows waiting for each, the fullest first.
    pub fn waiting(&self) -> Vec<(&Route, u64)> {
        self.routes.waiting()
    }

    /// Must a row of the tail stay in the table?
    pub fn holds(&self, key: u64, route: &Route) -> bool {
        self.keys.contains_key(&key) || self.crowd.holds(key) || self.routes.contains(route)
    }

    /// The tail left a row in the table: because it is held, or because the table serves it.
    pub fn leave(&mut self, key: u64, route: &Route, now: Instant) {
        let route_due = self.routes.leave(route);
        self.touch(key, 0, route_due, now);
    }

    /// A row of the key is in the table again, or still: after a failure, or taken out of a lane
    /// behind one. Later rows of it wait at least until the pass after `pass`.
    pub fn put_back(&mut self, key: u64, pass: u64, until: Option<Instant>, now: Instant) {
        self.touch(key, pass, until, now);
    }

    fn touch(&mut self, key: u64, left: u64, until: Option<Instant>, now: Instant) {
        self.touches += 1;
        if self.order == Order::None {
            self.wake_at(until.unwrap_or(now));
            return;
        }
        if self.is_for_crowd(key) {
            self.crowd.leave(key);
            return self.wake_at(until.unwrap_or(now));
        }
        let hold = self.keys.entry(key).or_insert(KeyHold {
            touch: self.touches,
            left,
            until: None,
        });
        hold.touch = self.touches;
        hold.left = hold.left.max(left);
        if hold.until.is_none_or(|waits| waits <= now) {
            hold.until = until;
        }
        let wake = hold.until.unwrap_or(now);
        self.wake_at(wake);
    }

    fn wake_at(&mut self, at: Instant) {
        self.wake = Some(self.wake.map_or(at, |wake| wake.min(at)));
    }

    /// A pass begins that is to see all rows, unless it is one for probes alone. Rows that it leaves
    /// set the next wake anew.
    pub fn pass_began(&mut self, whole: bool) {
        self.routes.pass_began(whole);
        self.crowd.pass_began();
        if whole {
            self.began_before = self.began;
            self.began = self.touches;
            self.wake = None;
        }
    }

    /// When the next probe of a shut route may be sent, if one is to be.
    pub fn next_probe(&self) -> Option<Instant> {
        self.next_probe
    }

    /// Is a route to be probed now that a pass has not met yet?
    pub fn wants_probe(&mut self, now: Instant) -> bool {
        self.find_probe();
        self.next_probe.is_some_and(|at| at <= now)
    }

    /// Has a route been opened since the last call? Then a pass will find much to send.
    pub fn take_opened(&mut self) -> bool {
        std::mem::take(&mut self.has_opened)
    }

    /// A pass met a pending row that is not on its way. `later` is its `next_attempt_at` when that
    /// is still to come.
    pub fn admit(
        &mut self,
        row: RowId,
        (key, route): (u64, &Route),
        later: Option<Instant>,
        visit: Visit,
    ) -> Admit {
        let held = self.keys.get(&key);
        if held.is_some_and(|hold| hold.left == visit.pass) || self.crowd.is_left(key) {
            self.routes.count(route);
            return Admit::Leave;
        }
        if let Some(later) = later {
            self.wake_at(later);
            self.leave_in_pass(key, visit, later);
            return Admit::Leave;
        }
        let until = match self.routes.visit(route, row, visit.now) {
            None | Some(Turn::Probe) => return Admit::Go,
            Some(Turn::Answer) => visit.now + ANSWER_AWAITED,
            Some(Turn::At(due)) => {
                self.wake_at(due);
                due
            }
        };
        self.leave_in_pass(key, visit, until);
        Admit::Leave
    }

    /// A pass met a row whose failure is being written, which wakes: it and what is behind it stay.
    pub fn leave_failing(&mut self, key: u64, visit: Visit) {
        self.leave_in_pass(key, visit, visit.now + ANSWER_AWAITED);
    }

    /// A pass met a row of a key that has enough rows in the queue: the rest stays until the next
    /// pass, which is wanted as soon as passes may be made.
    pub fn leave_hot(&mut self, key: u64, visit: Visit) {
        self.wake_at(visit.now);
        self.leave_in_pass(key, visit, visit.now);
    }

    fn leave_in_pass(&mut self, key: u64, visit: Visit, until: Instant) {
        if self.order == Order::None {
            return;
        }
        if self.is_for_crowd(key) {
            return self.crowd.leave(key);
        }
        let hold = self.keys.entry(key).or_insert(KeyHold {
            touch: 0,
            left: 0,
            until: None,
        });
        hold.left = visit.pass;
        hold.until = Some(until);
    }

    fn is_for_crowd(&self, key: u64) -> bool {
        self.keys.len() >= KEYS_MAX && !self.keys.contains_key(&key)
    }

    /// A pass has read the whole table. `fenced`: it began after a fence, so what it did not meet is
    /// not there.
    pub fn pass_ended(&mut self, pass: u64, fenced: bool) {
        self.routes.pass_ended(fenced);
        self.find_probe();
        if fenced {
            self.crowd.pass_ended();
            let began = self.began;
            self.keys
                .retain(|_, hold| hold.left == pass || hold.touch > began);
            self.keys.shrink_to(2 * self.keys.len());
        }
    }

    /// A row failed by its route's fault; `answered` when the broker said so itself.
    pub fn shut_route(
        &mut self,
        route: &Route,
        row: RowId,
        answered: bool,
        (dice, now): (f64, Instant),
    ) -> Shutting {
        let shutting = self.routes.shut(route, row, answered, (dice, now));
        if let Shutting::Sample(due) = shutting {
            self.wake_at(due);
            self.find_probe();
            self.probe_back(now);
        }
        shutting
    }

    /// How long a row waits whose route is not known by name.
    pub fn unnamed_wait(&self, dice: f64) -> Duration {
        self.routes.unnamed_wait(dice)
    }

    /// A row was confirmed; if it was its route's probe the route is open. Returns true then.
    pub fn confirmed(&mut self, route: &Route, row: RowId, now: Instant) -> bool {
        let opened = self.routes.confirmed(route, row);
        if opened {
            self.opened(now);
        }
        opened
    }

    fn opened(&mut self, now: Instant) {
        for hold in self.keys.values_mut() {
            hold.until = None;
        }
        self.has_opened = true;
        // Explains, where no key does, why the next pass finds rows.
        self.touches += 1;
        self.wake_at(now);
    }

    /// An operator has paused the route. What has not gone yet is the caller's to put back.
    pub fn pause_route(&mut self, route: &Route, now: Instant) {
        self.routes.pause(route, now);
    }

    /// An operator has resumed the route: its rows go, in order, with the next pass.
    pub fn resume_route(&mut self, route: &Route, now: Instant) {
        if self.routes.resume(route) {
            self.opened(now);
        }
    }

    /// The row did not go after all, or its answer tells nothing of the route; if it was a probe,
    /// another may be. `pace`: what that one may cost, when that is known better now.
    pub fn probe_gone(&mut self, route: &Route, row: RowId, pace: Option<Pace>, now: Instant) {
        if self.routes.probe_gone(route, row, pace) {
            self.wake_at(now);
            self.find_probe();
        }
    }

    /// After whatever may have changed it.
    pub fn find_probe(&mut self) {
        self.next_probe = self.routes.next_probe();
    }

    /// Another route may have waited for this probe's turn to end.
    fn probe_back(&mut self, now: Instant) {
        if self.routes.is_crowded() {
            self.wake_at(now);
        }
    }
}

#[cfg(test)]
mod tests;
