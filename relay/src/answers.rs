//! What each answer of the broker means for the rows of its batch. No IO, no clock.

use std::collections::HashSet;
use std::time::Instant;

use crate::dispatch::{Dispatch, Stage};
use crate::effects::{Effects, Failure, Mark, Sample, cut};
use crate::fault::{self, Fault};
use crate::observe::metrics::Reason;
use crate::publish::publisher_task::Done;
use crate::queue::{Item, Pace};
use crate::route::Route;
use crate::schedule::Next;
use crate::shut::Shutting;

/// Alone with the broker when it closed: this often, and the row is to blame.
const STRIKES_MAX: u32 = 2;
/// Suspects remembered: far more than the batches of all lanes hold. One that is forgotten only makes
/// the broker close once more.
const SUSPECTS_MAX: usize = 1 << 17;

impl Dispatch {
    /// A batch has come back.
    pub fn done(&mut self, done: &Done, dice: f64, now: Instant) -> Effects {
        let mut effects = Effects::default();
        let mut shut = HashSet::new();
        let alone = done.items.len() == 1;
        for (at, item) in done.items.iter().enumerate() {
            match fault::find(&done.outcome, at, alone) {
                Fault::None => self.confirmed(item, &mut effects, now),
                Fault::Nobody => self.put_back(item, now),
                Fault::Suspect(text) => self.suspect(item, text, &mut effects, (dice, now)),
                Fault::Route(reason, text) => {
                    effects.refused.push(reason);
                    if self.route_failed(item, (reason, text), &mut effects, (dice, now)) {
                        shut.insert(Route::of(&item.row));
                    }
                }
                Fault::Message(reason, text) => {
                    self.failed(item, (reason, text), &mut effects, (dice, now));
                }
            }
        }
        if !shut.is_empty() {
            for item in self
                .queue
                .drop_matching(|item| shut.contains(&Route::of(&item.row)))
            {
                self.put_back(&item, now);
            }
        }
        self.queue.settled(done.lane, &done.items);
        effects
    }

    fn confirmed(&mut self, item: &Item, effects: &mut Effects, now: Instant) {
        if !self.held.is_empty() {
            self.held.confirmed(&Route::of(&item.row), item.id(), now);
        }
        if item.is_suspect() {
            self.suspects.remove(&item.id());
        }
        effects
            .sent
            .push((Mark::of(item), item.source, item.committed));
    }

    /// True when the route is shut from now on.
    fn route_failed(
        &mut self,
        item: &Item,
        (reason, text): (Reason, String),
        effects: &mut Effects,
        (dice, now): (f64, Instant),
    ) -> bool {
        // The route is to blame, so the row is not.
        self.suspects.remove(&item.id());
        let route = Route::of(&item.row);
        let answered = reason != Reason::Timeout;
        let shutting = self
            .held
            .shut_route(&route, item.id(), answered, (dice, now));
        let mut sample = Sample {
            row: Mark::of(item),
            reason,
            text: cut(text),
            wait: None,
        };
        match shutting {
            Shutting::Known => self.put_back(item, now),
            Shutting::Sample(_) => {
                effects.samples.push(sample);
                self.put_back(item, now);
            }
            Shutting::Unnamed => {
                let wait = self.held.unnamed_wait(dice);
                sample.wait = Some(wait);
                effects.samples.push(sample);
                self.flights.insert(item.id(), Stage::Failing);
                self.hold_key(item.key, Some(now + wait), now);
            }
        }
        shutting != Shutting::Unnamed
    }

    fn suspect(
        &mut self,
        item: &Item,
        text: String,
        effects: &mut Effects,
        (dice, now): (f64, Instant),
    ) {
        // It does not keep silent: its next probe needs no lane for the silent ones.
        let prompt = Some(Pace::Prompt);
        self.held
            .probe_gone(&Route::of(&item.row), item.id(), prompt, now);
        if self.suspects.len() >= SUSPECTS_MAX {
            self.suspects.clear();
        }
        let strikes = self.suspects.entry(item.id()).or_insert(0);
        if item.is_suspect() {
            *strikes += 1;
        }
        if *strikes >= STRIKES_MAX {
            self.failed(item, (Reason::ChannelClosed, text), effects, (dice, now));
        } else {
            effects.refused.push(Reason::ChannelClosed);
            self.put_back(item, now);
        }
    }

    fn failed(
        &mut self,
        item: &Item,
        (reason, text): (Reason, String),
        effects: &mut Effects,
        (dice, now): (f64, Instant),
    ) {
        self.suspects.remove(&item.id());
        let attempts = item.attempts.saturating_add(1);
        let next = self.schedule.after_failure(attempts, dice);
        let until = match next {
            Next::Retry(after) => Some(now + after),
            Next::Park => None,
        };
        self.flights.insert(item.id(), Stage::Failing);
        if !self.held.is_empty() {
            let prompt = Some(Pace::Prompt);
            self.held
                .probe_gone(&Route::of(&item.row), item.id(), prompt, now);
        }
        self.hold_key(item.key, until, now);
        effects.failed.push(Failure {
            row: Mark::of(item),
            attempts,
            reason,
            text: cut(text),
            next,
        });
    }
}
