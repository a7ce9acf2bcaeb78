//! Writes that wait for another try. No IO.

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

const AGAIN_MIN: Duration = Duration::from_secs(1);
const AGAIN_MAX: Duration = Duration::from_secs(30);

/// A write.
#[derive(Debug)]
pub(super) struct Put<T> {
    pub(super) what: T,
    /// How often it has been refused.
    pub(super) tries: u32,
    /// It has not been put off before.
    pub(super) new: bool,
}

/// How much waits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Load {
    pub(super) marks: usize,
    pub(super) failures: usize,
    pub(super) samples: usize,
    pub(super) bytes: usize,
}

/// What can be put off.
pub(super) trait Weigh {
    fn load(&self) -> Load;
}

/// What was put off. It may be tens of thousands of writes, and is looked at after each one.
#[derive(Debug)]
pub(super) struct Later<T> {
    /// Due at once.
    ready: VecDeque<Put<T>>,
    /// By the time when it is due; the number distinguishes what is due at the same time.
    waiting: BTreeMap<(Instant, u64), Put<T>>,
    number: u64,
    rests_until: Option<Instant>,
    load: Load,
}

impl<T> Default for Later<T> {
    fn default() -> Self {
        Self {
            ready: VecDeque::new(),
            waiting: BTreeMap::new(),
            number: 0,
            rests_until: None,
            load: Load::default(),
        }
    }
}

impl<T> Put<T> {
    pub(super) fn new(what: T) -> Self {
        Self {
            what,
            tries: 0,
            new: true,
        }
    }
}

impl Load {
    fn add(&mut self, other: Self) {
        self.marks += other.marks;
        self.failures += other.failures;
        self.samples += other.samples;
        self.bytes += other.bytes;
    }

    fn take(&mut self, other: Self) {
        self.marks -= other.marks;
        self.failures -= other.failures;
        self.samples -= other.samples;
        self.bytes -= other.bytes;
    }
}

impl<T: Weigh> Later<T> {
    pub(super) fn load(&self) -> Load {
        self.load
    }

    /// Takes out one that is due.
    pub(super) fn pop_due(&mut self, now: Instant) -> Option<Put<T>> {
        if self.is_resting(now) {
            return None;
        }
        // One at a time: what is due late gets its turn among what is ready again and again.
        if let Some(first) = self.waiting.first_entry()
            && first.key().0 <= now
        {
            self.ready.push_back(first.remove());
        }
        let put = self.ready.pop_front()?;
        self.load.take(put.what.load());
        Some(put)
    }

    /// When one is due.
    pub(super) fn next_due(&self, now: Instant) -> Option<Instant> {
        let due = match (self.ready.is_empty(), self.waiting.first_key_value()) {
            (false, _) => now,
            (true, Some(((due, _), _))) => *due,
            (true, None) => return None,
        };
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
        self.load.add(what.load());
        let put = Put {
            what,
            tries,
            new: false,
        };
        if wait.is_zero() {
            return self.ready.push_back(put);
        }
        self.number += 1;
        self.waiting
            .insert((Instant::now() + wait, self.number), put);
    }

    /// As if it had never been refused, before all others.
    pub(super) fn put_first(&mut self, what: T) {
        self.put_off(what, 0);
        self.ready.rotate_right(1);
    }

    /// Nothing of it is due for so long.
    pub(super) fn rest(&mut self, wait: Duration) {
        self.rests_until = Some(Instant::now() + wait);
    }

    pub(super) fn is_resting(&self, now: Instant) -> bool {
        self.rests_until.is_some_and(|until| until > now)
    }

    pub(super) fn all_due(&mut self) {
        self.rests_until = None;
        let waiting = std::mem::take(&mut self.waiting);
        self.ready.extend(waiting.into_values());
    }

    pub(super) fn drain(&mut self) -> Vec<T> {
        self.all_due();
        self.load = Load::default();
        self.ready.drain(..).map(|put| put.what).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    impl Weigh for usize {
        fn load(&self) -> Load {
            Load {
                marks: *self,
                ..Load::default()
            }
        }
    }

    #[test]
    fn what_is_refused_again_and_again_waits_half_a_minute_at_the_most() {
        let now = Instant::now();
        let wait = |tries| {
            let mut later = Later::default();
            later.put_off(1, tries);
            (later.next_due(now).unwrap() - now).as_secs()
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

    #[test]
    fn what_waits_is_counted_without_a_look_at_each() {
        let mut later = Later::default();
        later.put_off(1, 0);
        later.put_off(20, 3);
        later.put_first(300);
        assert_eq!(later.load().marks, 321);
        assert_eq!(later.pop_due(Instant::now()).unwrap().what, 300);
        assert_eq!(later.load().marks, 21);
        assert_eq!(later.drain(), [1, 20]);
        assert_eq!(later.load(), Load::default());
    }

    #[test]
    fn what_comes_back_at_once_keeps_no_other_that_is_due_from_its_turn() {
        let mut later = Later::default();
        later.put_off_for(7, 1, Duration::from_millis(1));
        let due = Instant::now() + Duration::from_millis(2);
        for turn in 0..3 {
            later.put_off(1, 0);
            if later.pop_due(due).unwrap().what == 7 {
                return assert!(turn <= 1);
            }
        }
        panic!("it has had no turn");
    }
}
