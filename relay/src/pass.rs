//! A pass over the pending rows: the one way to read the table. No IO; [`crate::source::table`] has the SQL.
//!
//! While the tail is on, a page is *verified* before anything of it is sent: the position after the
//! page was read is waited for, so whatever the tail was about to bring has been brought, and what
//! is left is what the tail will not bring.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use outbox::row::Row;

use crate::dispatch::{Dispatch, Head};
use crate::hashed::HashedSet;
use crate::queue::RowId;
use crate::source::binlog::position::Position;
use crate::source::table::{Ask, PAGE, Page, PageAsk};

/// A pass that sent little rests this many times as long as the database took for it, so that reading
/// a table full of waiting rows takes a tenth of a core at the most. What the pass waited for, room
/// or the tail, is not counted.
const REST_FACTOR: u32 = 9;
const REST_MAX: Duration = Duration::from_secs(30);
/// Rows that the last pass of a catch-up may send: they are the tail's duplicate filter, two
/// megabytes of ids. With a bound of a page, a pass that read a million waiting rows for ten seconds
/// never sent so few.
const SENT_MAX: usize = 1 << 16;

/// How a pass is to be made.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    /// Commit a fence first, so that everything before it is visible.
    pub fence: bool,
    /// Read binlog positions: they cost a statement each.
    pub positions: bool,
    /// Wait for the tail before sending what a page holds.
    pub verify: bool,
    /// What the tail did not bring counts as missed.
    pub count_missed: bool,
    /// Only as far as the first rows of shut routes that are due: a probe must not wait until all
    /// that waits has been read, nor for the rest after that. Such a pass counts as cut short.
    pub probes_only: bool,
}

/// What a complete pass has found.
#[derive(Debug)]
pub struct Summary {
    /// Its number.
    pub number: u64,
    /// How it was made.
    pub plan: Plan,
    /// Where the binlog was before its fence.
    pub start: Option<Position>,
    /// Where the binlog was after its last page.
    pub end: Option<Position>,
    /// The rows it sent, or `None` when they were too many to remember.
    pub sent: Option<HashedSet<RowId>>,
    /// It was broken off: the tail went away.
    pub cut_short: bool,
}

/// What to do next.
#[derive(Debug)]
pub enum Progress {
    /// Nothing until something happens.
    Wait,
    /// Ask the table.
    Ask(Ask),
    /// The pass has ended.
    Ended(Box<Summary>),
    /// Rows have gone to the queue: there is less room now.
    Took,
}

#[derive(Debug)]
enum Step {
    Resting,
    Reading,
    /// The page at hand waits for the tail to pass the position after it.
    Verifying {
        deadline: Instant,
    },
    Admitting,
    Loading {
        asked: Vec<Head>,
    },
}

struct Current {
    number: u64,
    plan: Plan,
    /// When the table was asked last, and how long it took for all answers so far.
    asked_at: Instant,
    reading: Duration,
    upto: Option<u64>,
    start: Option<Position>,
    end: Option<Position>,
    sent: HashedSet<RowId>,
    sent_too_many: bool,
    page: VecDeque<Head>,
    /// The small rows of the page, whole.
    small: VecDeque<(Row, u32)>,
    /// Rows of the page, and how many of them were sent: where most wait, no payload comes along.
    met: usize,
    taken: usize,
    read_at: Instant,
    last_page: bool,
    after: u64,
    cut_short: bool,
}

/// Passes, one after the other.
pub struct Passes {
    step: Step,
    current: Option<Current>,
    number: u64,
    rest_until: Instant,
    probe_rest_until: Instant,
    missed: u64,
}

/// How much more may be queued.
#[derive(Clone, Copy, Debug)]
pub struct Room {
    /// Rows.
    pub rows: usize,
    /// Bytes.
    pub bytes: usize,
}

impl Passes {
    /// None has been made.
    pub fn new(now: Instant) -> Self {
        Self {
            step: Step::Resting,
            current: None,
            number: 0,
            rest_until: now,
            probe_rest_until: now,
            missed: 0,
        }
    }

    /// No pass is being made.
    pub fn is_idle(&self) -> bool {
        self.current.is_none()
    }

    /// The earliest time for the next pass.
    pub fn rest_until(&self) -> Instant {
        self.rest_until
    }

    /// The earliest time for the next pass for probes alone.
    pub fn probe_rest_until(&self) -> Instant {
        self.probe_rest_until
    }

    /// There is much to send now: the next pass need not wait.
    pub fn end_rest(&mut self, now: Instant) {
        self.rest_until = now;
    }

    /// Rows that the tail should have brought, counted since the last call.
    pub fn take_missed(&mut self) -> u64 {
        std::mem::take(&mut self.missed)
    }

    /// Whole rows are being loaded. The tail must wait when keys are ordered: what it brings now may
    /// be later than a row that is being loaded.
    pub fn is_loading(&self) -> bool {
        matches!(self.step, Step::Loading { .. })
    }

    /// The position that the tail must pass before the page is sent.
    pub fn awaited(&self) -> Option<(&Position, Instant)> {
        let Step::Verifying { deadline } = self.step else {
            return None;
        };
        let end = self.current.as_ref()?.end.as_ref()?;
        Some((end, deadline))
    }

    /// The tail could not go on for a reason of ours: it gets more time.
    pub fn extend(&mut self, until: Instant) {
        if let Step::Verifying { deadline } = &mut self.step {
            *deadline = until;
        }
    }

    /// Begins a pass. Only when [`Passes::is_idle`].
    pub fn begin(&mut self, plan: Plan, dispatch: &mut Dispatch, now: Instant) -> Ask {
        self.number += 1;
        dispatch.pass_began(self.number, !plan.probes_only);
        self.current = Some(Current {
            number: self.number,
            plan,
            asked_at: now,
            reading: Duration::ZERO,
            upto: None,
            start: None,
            end: None,
            sent: HashedSet::default(),
            sent_too_many: false,
            page: VecDeque::new(),
            small: VecDeque::new(),
            met: 0,
            taken: 0,
            read_at: now,
            last_page: false,
            after: 0,
            cut_short: false,
        });
        self.ask_page(dispatch, now)
    }

    fn ask_page(&mut self, dispatch: &mut Dispatch, now: Instant) -> Ask {
        self.step = Step::Reading;
        if let Some(pass) = &mut self.current {
            pass.asked_at = now;
        }
        dispatch.page_asked();
        let current = self.current.as_ref();
        let plan = current.map(|pass| pass.plan);
        Ask::Page(PageAsk {
            after: current.map_or(0, |pass| pass.after),
            upto: current.and_then(|pass| pass.upto),
            fence: plan.is_some_and(|plan| plan.fence),
            positions: plan.is_some_and(|plan| plan.positions),
            // A page that is verified first may wait for the tail: its rows would be stale.
            small: current.is_some_and(|pass| !pass.plan.verify && pass.taken * 2 >= pass.met),
        })
    }

    /// A page has arrived; `verify_until` is when the tail must have passed it.
    pub fn page(&mut self, page: Page, verify_until: Instant, now: Instant) {
        let Some(pass) = &mut self.current else {
            return;
        };
        pass.reading += now.saturating_duration_since(pass.asked_at);
        pass.upto = Some(page.upto);
        pass.start = pass.start.take().or(page.start);
        pass.end = page.end;
        pass.after = page.read_to;
        pass.last_page = page.read_to >= page.upto;
        pass.read_at = page.read_at;
        if !page.heads.is_empty() {
            pass.met = page.heads.len();
            pass.taken = 0;
        }
        pass.page = page.heads.into();
        pass.small = page.small.into();
        self.step = if pass.plan.verify && pass.end.is_some() {
            Step::Verifying {
                deadline: verify_until,
            }
        } else {
            Step::Admitting
        };
    }

    /// The first position of the pass at hand, for the tail that starts with it.
    pub fn start(&self) -> Option<&Position> {
        let pass = self.current.as_ref().filter(|pass| !pass.cut_short)?;
        pass.start.as_ref()
    }

    /// The tail has passed the page at hand, or there is no tail to wait for.
    pub fn verified(&mut self) {
        if matches!(self.step, Step::Verifying { .. }) {
            self.step = Step::Admitting;
        }
    }

    /// The tail is gone: what is not verified yet can't be. The pass goes on without if `go_on`, as
    /// in Polling, and ends here otherwise; an answer that is under way is taken, then dropped.
    pub fn unverifiable(&mut self, go_on: bool) {
        let Some(pass) = &mut self.current else {
            return;
        };
        pass.plan.verify = false;
        pass.plan.count_missed = false;
        if !go_on {
            pass.cut_short = true;
            pass.page.clear();
            pass.small.clear();
        }
        self.verified();
    }

    /// The rows that were asked for are in the queue.
    pub fn loaded(&mut self, now: Instant) -> Vec<Head> {
        if let Some(pass) = &mut self.current {
            pass.reading += now.saturating_duration_since(pass.asked_at);
        }
        match std::mem::replace(&mut self.step, Step::Admitting) {
            Step::Loading { asked } => asked,
            _ => Vec::new(),
        }
    }

    /// Works through the page at hand as far as there is room.
    pub fn go_on(&mut self, dispatch: &mut Dispatch, room: Room, now: Instant) -> Progress {
        if !matches!(self.step, Step::Admitting) {
            return Progress::Wait;
        }
        let Some(pass) = &mut self.current else {
            return Progress::Wait;
        };
        if pass.cut_short {
            return self.end(dispatch, now);
        }
        if room.rows == 0 || room.bytes == 0 {
            return Progress::Wait;
        }
        let (asked, whole) = pass.admit(dispatch, room, now, &mut self.missed);
        if !whole.is_empty() {
            dispatch.loaded(&asked, whole, now);
            return Progress::Took;
        }
        if !asked.is_empty() {
            let ids = asked.iter().map(|head| head.id.id).collect();
            pass.asked_at = now;
            self.step = Step::Loading { asked };
            return Progress::Ask(Ask::Rows(ids));
        }
        dispatch.page_done();
        let probed = pass.plan.probes_only && !dispatch.held.wants_probe(now);
        if pass.last_page || probed {
            return self.end(dispatch, now);
        }
        Progress::Ask(self.ask_page(dispatch, now))
    }

    fn end(&mut self, dispatch: &mut Dispatch, now: Instant) -> Progress {
        dispatch.page_done();
        self.step = Step::Resting;
        let Some(pass) = self.current.take() else {
            return Progress::Wait;
        };
        // Where much was sent, much more may have come meanwhile: no rest.
        let rest = if pass.sent.len() >= PAGE {
            Duration::ZERO
        } else {
            pass.reading.saturating_mul(REST_FACTOR).min(REST_MAX)
        };
        if pass.plan.probes_only {
            self.probe_rest_until = now + rest;
        } else {
            self.rest_until = now + rest;
        }
        Progress::Ended(Box::new(Summary {
            number: pass.number,
            plan: pass.plan,
            start: pass.start,
            end: pass.end,
            sent: (!pass.sent_too_many).then_some(pass.sent),
            cut_short: pass.cut_short || pass.plan.probes_only,
        }))
    }
}

mod page;
#[cfg(test)]
mod tests;
