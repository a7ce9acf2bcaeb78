//! Writes that wait for another try. No IO.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

const AGAIN_MIN: Duration = Duration::from_secs(1);
const AGAIN_MAX: Duration = Duration::from_secs(30);

/// A write, and when it is due.
#[derive(Debug)]
pub(super) struct Put<T> {
    pub(super) what: T,
    /// How often it has been refused.
    pub(super) tries: u32,
    /// It has not been put off before.
    pub(super) new: bool,
    due: Instant,
}

/// What was put off.
#[derive(Debug)]
pub(super) struct Later<T> {
    puts: VecDeque<Put<T>>,
    rests_until: Option<Instant>,
}

impl<T> Default for Later<T> {
    fn default() -> Self {
        Self {
            puts: VecDeque::new(),
            rests_until: None,
        }
    }
}

impl<T> Put<T> {
    pub(super) fn new(what: T) -> Self {
        Self {
            what,
            tries: 0,
            new: true,
            due: Instant::now(),
        }
    }
}

impl<T> Later<T> {
    pub(super) fn len(&self) -> usize {
        self.puts.len()
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &T> {
        self.puts.iter().map(|put| &put.what)
    }

    /// Takes out one that is due.
    pub(super) fn pop_due(&mut self, now: Instant) -> Option<Put<T>> {
        if self.is_resting(now) {
            return None;
        }
        let due = self.puts.iter().position(|put| put.due <= now)?;
        self.puts.remove(due)
    }

    /// When one is due.
    pub(super) fn next_due(&self) -> Option<Instant> {
        let due = self.puts.iter().map(|put| put.due).min()?;
        Some(due.max(self.rests_until.unwrap_or(due)))
    }

    /// Until its time comes, the later the more often it was refused.
    pub(super) fn put_off(&mut self, what: T, tries: u32) {
        let wait = match tries {
            0 => Duration::ZERO,
            _ => AGAIN_MAX.min(AGAIN_MIN * (1 << (tries - 1).min(5))),
        };
        self.put_off_for(what, tries, wait);
    }

    pub(super) fn put_off_for(&mut self, what: T, tries: u32, wait: Duration) {
        self.puts.push_back(Put {
            what,
            tries,
            new: false,
            due: Instant::now() + wait,
        });
    }

    /// As if it had never been refused, before all others.
    pub(super) fn put_first(&mut self, what: T) {
        self.put_off(what, 0);
        self.puts.rotate_right(1);
    }

    /// Nothing of it is due for so long.
    pub(super) fn rest(&mut self, wait: Duration) {
        self.rests_until = Some(Instant::now() + wait);
    }

    pub(super) fn is_resting(&self, now: Instant) -> bool {
        self.rests_until.is_some_and(|until| until > now)
    }

    pub(super) fn all_due(&mut self) {
        let now = Instant::now();
        self.rests_until = None;
        for put in &mut self.puts {
            put.due = now;
        }
    }

    pub(super) fn drain(&mut self) -> Vec<T> {
        self.rests_until = None;
        self.puts.drain(..).map(|put| put.what).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_refused_again_and_again_waits_half_a_minute_at_the_most() {
        let now = Instant::now();
        let wait = |tries| {
            let mut later = Later::default();
            later.put_off((), tries);
            (later.next_due().unwrap() - now).as_secs()
        };
        assert_eq!(
            [0, 1, 2, 3, 6, 7, 4_000_000_000].map(wait),
            [0, 1, 2, 4, 30, 30, 30]
        );
    }

    #[test]
    fn a_rest_holds_all_of_them_and_a_success_ends_it() {
        let mut later = Later::default();
        later.put_off(1, 0);
        later.put_off(2, 9);
        later.rest(Duration::from_mins(1));
        assert!(later.pop_due(Instant::now()).is_none());
        later.all_due();
        let popped = || later.pop_due(Instant::now()).map(|put| put.what);
        assert_eq!(
            std::iter::repeat_with(popped).take(3).collect::<Vec<_>>(),
            [Some(1), Some(2), None]
        );
    }
}
