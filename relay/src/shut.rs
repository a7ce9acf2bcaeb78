//! Routes that are shut, and which of them may be probed. No IO, no clock.
//!
//! A shut route is probed with one of its rows, after a back-off that never exceeds [`PROBE_MAX`]:
//! so long its rows may wait once it is open again. How a probe went last tells how the next one may
//! go: a refusal comes at once, but a route that did not answer may not answer again, and then its
//! lane waits for the whole time-out.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use crate::queue::{Pace, RowId};
use crate::route::Route;
use crate::schedule::Schedule;

/// Longest wait between two probes of a route; `RELAY_BACKOFF_MAX` may make it shorter.
pub const PROBE_MAX: Duration = Duration::from_secs(10);
/// Shut routes that are known by name, a megabyte or two. The rows of further ones wait one by one,
/// in the table.
pub const ROUTES_MAX: usize = 10_000;
/// A paused route is due when it is resumed.
const NOT_BY_ITSELF: Duration = Duration::from_hours(24 * 365);

/// What a pass may do with a row of a shut route.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Turn {
    /// Send it: it is the probe.
    Probe,
    /// The route is probed at this time.
    At(Instant),
    /// An answer is awaited, of this route's probe or of others': it wakes.
    Answer,
}

/// What a row's failure meant for its route.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shutting {
    /// The row's text tells why the route is shut; it is probed at this time.
    Sample(Instant),
    /// The route was shut already.
    Known,
    /// There are too many: the row has to wait by itself.
    Unnamed,
}

#[derive(Debug)]
struct Shut {
    failures: u32,
    due: Instant,
    pace: Pace,
    probe: Option<RowId>,
    waiting: u64,
    counting: u64,
    /// By an operator, who alone opens it again: there is no probe.
    paused: bool,
}

impl Shut {
    fn new(due: Instant) -> Self {
        Self {
            failures: 0,
            due,
            pace: Pace::Prompt,
            probe: None,
            waiting: 0,
            counting: 0,
            paused: false,
        }
    }
}

/// Who may be probed: the routes that were due before `last`, and so many that were due then.
#[derive(Clone, Copy, Debug)]
struct Turns {
    last: Instant,
    left: usize,
}

/// The shut routes.
#[derive(Debug)]
pub struct Routes {
    schedule: Schedule,
    shut: HashMap<Route, Shut>,
    /// What may still be probed in the pass at hand, by pace; `None` is not looked at yet.
    turns: [Option<Turns>; 2],
    /// A route that is due was not probed because others are.
    crowded: bool,
}

impl Routes {
    /// None is shut.
    pub fn new(schedule: Schedule) -> Self {
        let max = schedule.max.min(PROBE_MAX);
        let schedule = Schedule { max, ..schedule };
        Self {
            schedule,
            shut: HashMap::new(),
            turns: [None; 2],
            crowded: false,
        }
    }

    /// True when none is shut.
    pub fn is_empty(&self) -> bool {
        self.shut.is_empty()
    }

    /// Is this one shut?
    pub fn contains(&self, route: &Route) -> bool {
        self.shut.contains_key(route)
    }

    /// If this row is the one that probes its route: how it may go.
    pub fn probe(&self, route: &Route, row: RowId) -> Option<Pace> {
        let shut = self.shut.get(route)?;
        (shut.probe == Some(row)).then_some(shut.pace)
    }

    /// The shut routes with the number of rows waiting for each, the fullest first.
    pub fn waiting(&self) -> Vec<(&Route, u64)> {
        let mut waiting: Vec<_> = self.shut.iter().map(|(r, s)| (r, s.waiting)).collect();
        waiting.sort_by_key(|(_, rows)| std::cmp::Reverse(*rows));
        waiting
    }

    /// Another row waits for the route; when it is probed, if it is shut.
    pub fn leave(&mut self, route: &Route) -> Option<Instant> {
        let shut = self.shut.get_mut(route)?;
        shut.waiting += 1;
        Some(shut.due)
    }

    /// A pass begins: it gives turns anew and, if it is to see all rows, counts the waiting ones anew.
    pub fn pass_began(&mut self, whole: bool) {
        self.turns = [None; 2];
        self.crowded = false;
        if whole {
            for shut in self.shut.values_mut() {
                shut.counting = 0;
            }
        }
    }

    /// When the next probe may be sent; `None` when none is to be or there are enough on their way.
    pub fn next_probe(&self) -> Option<Instant> {
        let of_pace = |pace| self.shut.values().filter(move |shut| shut.pace == pace);
        let next = |pace: Pace| {
            let out = of_pace(pace).filter(|shut| shut.probe.is_some()).count();
            of_pace(pace)
                .filter(|shut| shut.probe.is_none() && !shut.paused && out < pace.probes_max())
                .map(|shut| shut.due)
                .min()
        };
        next(Pace::Prompt).into_iter().chain(next(Pace::Slow)).min()
    }

    /// A pass met a row that waits behind another one of its key.
    pub fn count(&mut self, route: &Route) {
        if let Some(shut) = self.shut.get_mut(route) {
            shut.counting += 1;
        }
    }

    /// A pass has read the whole table. `fenced`: what it did not meet is not there.
    pub fn pass_ended(&mut self, fenced: bool) {
        for shut in self.shut.values_mut() {
            shut.waiting = shut.counting;
        }
        if fenced {
            // One that nothing waits for any more is forgotten: there is nothing to probe with.
            self.shut
                .retain(|_, shut| shut.counting > 0 || shut.probe.is_some() || shut.paused);
        }
    }

    /// A pass met a row whose key may go; `None` when its route is not shut.
    pub fn visit(&mut self, route: &Route, row: RowId, now: Instant) -> Option<Turn> {
        // The probe waits for its route like the others: it counts too.
        let shut = self.shut.get_mut(route)?;
        shut.counting += 1;
        let (due, pace) = (shut.due, shut.pace);
        if shut.probe.is_some() {
            return Some(Turn::Answer);
        }
        if due > now {
            return Some(Turn::At(due));
        }
        let turns = self.turns(pace, now);
        if due > turns.last || (due == turns.last && turns.left == 0) {
            self.crowded = true;
            return Some(Turn::Answer);
        }
        turns.left -= usize::from(due == turns.last);
        if let Some(shut) = self.shut.get_mut(route) {
            shut.probe = Some(row);
        }
        Some(Turn::Probe)
    }

    /// Those routes of a pace that have waited longest, as many as there is room for. With one after
    /// the other in the order of their rows, the last ones would never have their turn.
    fn turns(&mut self, pace: Pace, now: Instant) -> &mut Turns {
        let shut = &self.shut;
        self.turns[usize::from(pace == Pace::Slow)].get_or_insert_with(|| {
            let of_pace = shut.values().filter(|shut| shut.pace == pace);
            let out = of_pace.clone().filter(|shut| shut.probe.is_some()).count();
            let mut due: Vec<Instant> = of_pace
                .filter(|shut| shut.probe.is_none() && shut.due <= now)
                .map(|shut| shut.due)
                .collect();
            let free = pace.probes_max().saturating_sub(out).min(due.len());
            let Some(at) = free.checked_sub(1) else {
                // Before any that is shut.
                let last = due.into_iter().min().unwrap_or(now);
                return Turns { last, left: 0 };
            };
            let (before, last, _) = due.select_nth_unstable(at);
            let earlier = before.iter().filter(|due| **due < *last).count();
            let (last, left) = (*last, free - earlier);
            Turns { last, left }
        })
    }

    /// A row failed by its route's fault; `answered` when the broker said so itself.
    pub fn shut(
        &mut self,
        route: &Route,
        row: RowId,
        answered: bool,
        (dice, now): (f64, Instant),
    ) -> Shutting {
        let first = !self.shut.contains_key(route);
        if first && self.shut.len() >= ROUTES_MAX {
            return Shutting::Unnamed;
        }
        let shut = self.shut.entry(route.clone()).or_insert(Shut::new(now));
        let probe = shut.probe == Some(row);
        shut.waiting += u64::from(!probe);
        if !first && !probe {
            return Shutting::Known;
        }
        shut.failures += 1;
        shut.probe = None;
        shut.pace = if answered { Pace::Prompt } else { Pace::Slow };
        shut.due = now + self.schedule.delay(shut.failures, dice);
        Shutting::Sample(shut.due)
    }

    /// How long a row waits whose route is not known by name.
    pub fn unnamed_wait(&self, dice: f64) -> Duration {
        self.schedule.delay(u32::MAX, dice)
    }

    /// A row was confirmed; if it was its route's probe the route is open. Returns true then.
    pub fn confirmed(&mut self, route: &Route, row: RowId) -> bool {
        let opened = self.probe(route, row).is_some();
        if opened {
            self.shut.remove(route);
        }
        opened
    }

    /// An operator has paused the route.
    pub fn pause(&mut self, route: &Route, now: Instant) {
        let shut = self.shut.entry(route.clone()).or_insert(Shut::new(now));
        shut.paused = true;
        shut.probe = None;
        shut.due = now + NOT_BY_ITSELF;
    }

    /// An operator has resumed the route; whether it was paused.
    pub fn resume(&mut self, route: &Route) -> bool {
        let paused = self.shut.get(route).is_some_and(|shut| shut.paused);
        if paused {
            self.shut.remove(route);
        }
        paused
    }

    /// The row did not go after all, or its answer tells nothing; if it was a probe, another may be,
    /// and true is returned. `pace`: what it may cost.
    pub fn probe_gone(&mut self, route: &Route, row: RowId, pace: Option<Pace>) -> bool {
        let shut = self.shut.get_mut(route);
        let Some(shut) = shut.filter(|shut| shut.probe == Some(row)) else {
            return false;
        };
        shut.probe = None;
        shut.pace = pace.unwrap_or(shut.pace);
        true
    }

    /// A probe came back: does a route wait for that?
    pub fn is_crowded(&self) -> bool {
        self.crowded
    }
}

#[cfg(test)]
mod tests;
