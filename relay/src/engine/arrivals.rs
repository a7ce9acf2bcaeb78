//! Ids that were reported and whose rows are not read yet, in the order of their commits.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use rustc_hash::FxHashSet;

/// Ids at once; 2 MiB of them.
pub(super) const ARRIVALS_MAX: usize = 1 << 16;
/// A row that is not visible yet is read again at once, so often: the server reports a commit a fraction of
/// a millisecond before it is visible, and a timer knows only whole ones.
const RETRIES_AT_ONCE: u32 = 4;
/// And then after so long, and after twice as long each time.
const RETRY_MIN: Duration = Duration::from_millis(1);
const RETRY_MAX: Duration = Duration::from_millis(50);

/// A row that was reported and is not pending may have been set back by a commit that is not visible yet:
/// it is read once more, so long after the report.
const LOOK_AGAIN: Duration = Duration::from_millis(50);

/// A reported id.
#[derive(Clone, Copy, Debug)]
pub(super) struct Arrival {
    pub(super) id: u64,
    pub(super) at: Instant,
    pub(super) why: Why,
    /// It was absent when a later commit was there.
    passed: bool,
}

impl Arrival {
    pub(super) fn new(id: u64, at: Instant, why: Why) -> Self {
        let passed = false;
        Self {
            id,
            at,
            why,
            passed,
        }
    }
}

/// Who reported it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Why {
    /// The binlog, with the time of the commit.
    Committed(Instant),
    /// A sweep: the binlog should have.
    Swept,
    /// It has to be looked at again.
    Again,
}

/// See the module.
#[derive(Debug)]
pub(super) struct Arrivals {
    ids: VecDeque<Arrival>,
    /// Ids to be read once more, and when.
    looks: VecDeque<(Instant, u64)>,
    retry_at: Instant,
    /// Since something was found.
    retries: u32,
    /// The highest id that was ever read.
    highest: u64,
    /// A fence: what was reported before it began is visible since it was reported committed.
    fenced: Option<(Instant, Instant)>,
}

impl Arrivals {
    pub(super) fn new(now: Instant) -> Self {
        Self {
            ids: VecDeque::new(),
            looks: VecDeque::new(),
            retry_at: now,
            retries: 0,
            highest: 0,
            fenced: None,
        }
    }

    pub(super) fn len(&self) -> usize {
        self.ids.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.ids.is_empty()
    }

    pub(super) fn clear(&mut self) {
        self.ids = VecDeque::new();
        self.looks = VecDeque::new();
        self.retries = 0;
    }

    /// The row of a report is not pending.
    pub(super) fn is_not_pending(&mut self, arrival: &Arrival, now: Instant) {
        let look_at = arrival.at + LOOK_AGAIN;
        let is_fresh = matches!(arrival.why, Why::Committed(_)) && now < look_at;
        if is_fresh && self.looks.len() < ARRIVALS_MAX {
            self.looks.push_back((look_at, arrival.id));
        }
    }

    /// Queues what is to be read once more by now.
    pub(super) fn release_looks(&mut self, now: Instant) {
        while let Some((_, id)) = self.looks.pop_front_if(|(at, _)| *at <= now) {
            self.again(id, now);
        }
    }

    /// When the next row is to be read once more.
    pub(super) fn look_at(&self) -> Option<Instant> {
        self.looks.front().map(|(at, _)| *at)
    }

    pub(super) fn committed(&mut self, id: u64, committed: Instant, now: Instant) {
        let why = Why::Committed(committed);
        self.ids.push_back(Arrival::new(id, now, why));
    }

    pub(super) fn swept(&mut self, id: u64, now: Instant) {
        let why = Why::Swept;
        self.ids.push_back(Arrival::new(id, now, why));
    }

    pub(super) fn again(&mut self, id: u64, now: Instant) {
        let why = Why::Again;
        self.ids.push_back(Arrival::new(id, now, why));
    }

    /// A fence that began then has been committed.
    pub(super) fn fenced(&mut self, began: Instant, now: Instant) {
        self.fenced = Some((began, now));
    }

    /// A scan begins: this is the highest id in the table, and no visible row is above it. It may be lower
    /// than before, after a TRUNCATE.
    pub(super) fn scan_began(&mut self, highest: u64) {
        self.highest = highest;
    }

    /// When the first of them may be read.
    pub(super) fn retry_at(&self) -> Option<Instant> {
        (!self.ids.is_empty()).then_some(self.retry_at)
    }

    pub(super) fn first(&self, count: usize) -> impl Iterator<Item = &Arrival> {
        self.ids.iter().take(count)
    }

    /// The commit that has waited longest.
    pub(super) fn oldest_commit(&self) -> Option<Instant> {
        self.ids.iter().find_map(|arrival| match arrival.why {
            Why::Committed(at) => Some(at),
            Why::Swept | Why::Again => None,
        })
    }

    /// The first `count` of them were read by a query of `queried_at`, and `is_there` says which are in the
    /// table. Returns those, and keeps the ones that may not be visible yet; `in_order` also those behind
    /// the first that may not be.
    ///
    /// Commits become visible in their order, but one snapshot may show a commit and miss the one before
    /// it: MariaDB copies the list of open transactions while they commit. The next snapshot shows both.
    /// So one that is absent although an earlier answer had a later one has been deleted. A row that is
    /// there says that its commit is visible only if it is new: if its id is above all that were ever read.
    pub(super) fn read(
        &mut self,
        count: usize,
        queried_at: Instant,
        now: Instant,
        (in_order, is_there): (bool, impl Fn(u64) -> bool),
    ) -> Vec<Arrival> {
        let rest = self.ids.split_off(count.min(self.ids.len()));
        let read: Vec<Arrival> = std::mem::replace(&mut self.ids, rest).into();
        let mut before = FxHashSet::default();
        let mut later = 0;
        for (place, arrival) in read.iter().enumerate() {
            let is_first = before.insert(arrival.id);
            let is_new = matches!(arrival.why, Why::Committed(_)) && arrival.id > self.highest;
            if is_first && is_new && is_there(arrival.id) {
                later = place;
            }
        }
        let fenced = self.fenced.filter(|(_, done)| *done <= queried_at);
        let (mut found, mut kept) = (Vec::with_capacity(read.len()), Vec::new());
        let (mut is_awaited, mut is_passed) = (false, false);
        for (place, mut arrival) in read.into_iter().enumerate() {
            if is_there(arrival.id) {
                match in_order && is_awaited {
                    true => kept.push(arrival),
                    false => found.push(arrival),
                }
                continue;
            }
            let past_fence = fenced.is_some_and(|(began, _)| arrival.at < began);
            let is_decided = past_fence || arrival.passed;
            if matches!(arrival.why, Why::Committed(_)) && !is_decided {
                arrival.passed = place < later;
                is_awaited = true;
                is_passed |= arrival.passed;
                kept.push(arrival);
            }
        }
        self.retries = match !is_awaited || is_passed {
            true => 0,
            false => self.retries.saturating_add(1),
        };
        self.retry_at = now + wait_before(self.retries);
        for arrival in &found {
            self.highest = self.highest.max(arrival.id);
        }
        for arrival in kept.into_iter().rev() {
            self.ids.push_front(arrival);
        }
        found
    }
}

/// Before so many-th reading of the same rows.
fn wait_before(retries: u32) -> Duration {
    match retries.checked_sub(RETRIES_AT_ONCE + 1) {
        None => Duration::ZERO,
        Some(doublings) => RETRY_MIN
            .saturating_mul(1 << doublings.min(6))
            .min(RETRY_MAX),
    }
}
