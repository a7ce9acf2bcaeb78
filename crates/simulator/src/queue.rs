//! Virtual time, and what is to happen in it.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::time::{Duration, Instant};

/// Microseconds since the run began.
pub(crate) type Micros = u64;

/// One millisecond.
pub(crate) const MILLI: Micros = 1_000;
/// One second.
pub(crate) const SECOND: Micros = 1_000_000;

struct Entry<T> {
    at: Micros,
    number: u64,
    what: T,
}

impl<T> PartialEq for Entry<T> {
    fn eq(&self, other: &Self) -> bool {
        (self.at, self.number) == (other.at, other.number)
    }
}

impl<T> Eq for Entry<T> {}

impl<T> PartialOrd for Entry<T> {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl<T> Ord for Entry<T> {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.at, self.number).cmp(&(other.at, other.number))
    }
}

/// Happenings by time; those of one moment in the order in which they were planned.
pub(crate) struct Queue<T> {
    base: Instant,
    now: Micros,
    planned: u64,
    heap: BinaryHeap<Reverse<Entry<T>>>,
}

impl<T> Queue<T> {
    pub(crate) fn new() -> Self {
        Self {
            base: Instant::now(),
            now: 0,
            planned: 0,
            heap: BinaryHeap::new(),
        }
    }

    /// The time now.
    pub(crate) fn now(&self) -> Micros {
        self.now
    }

    /// The time now as the engine takes it.
    pub(crate) fn instant(&self) -> Instant {
        self.instant_of(self.now)
    }

    /// Any time as the engine takes it.
    pub(crate) fn instant_of(&self, at: Micros) -> Instant {
        self.base + Duration::from_micros(at)
    }

    /// The first microsecond that is not before `instant`.
    pub(crate) fn micros_of(&self, instant: Instant) -> Micros {
        let since = instant.saturating_duration_since(self.base);
        let nanos = since.as_nanos().div_ceil(1_000);
        Micros::try_from(nanos).unwrap_or(Micros::MAX)
    }

    /// Plans something; what lies in the past happens now.
    pub(crate) fn at(&mut self, at: Micros, what: T) {
        self.planned += 1;
        self.heap.push(Reverse(Entry {
            at: at.max(self.now),
            number: self.planned,
            what,
        }));
    }

    /// Plans something from now on.
    pub(crate) fn after(&mut self, wait: Micros, what: T) {
        self.at(self.now + wait, what);
    }

    /// Goes to the next happening.
    pub(crate) fn pop(&mut self) -> Option<T> {
        let Reverse(entry) = self.heap.pop()?;
        self.now = entry.at;
        Some(entry.what)
    }
}
