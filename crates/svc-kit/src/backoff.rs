//! How long to wait before the next try.

use std::time::Duration;

use backon::{BackoffBuilder as _, ExponentialBackoff, ExponentialBuilder};
use rand::RngExt as _;

/// Waits that double from `min` to `max`, each drawn anew between `min` and what it has come to:
/// full jitter, so that clients which failed together do not come back together.
#[derive(Debug)]
pub struct Backoff {
    min: Duration,
    max: Duration,
    ceilings: ExponentialBackoff,
}

impl Backoff {
    /// Never shorter than `min`, never longer than `max`.
    #[must_use]
    pub fn new(min: Duration, max: Duration) -> Self {
        let max = max.max(min);
        Self {
            min,
            max,
            ceilings: ceilings(min, max),
        }
    }

    /// The wait before the next try.
    #[expect(
        clippy::should_implement_trait,
        reason = "it never ends, so it has no Option"
    )]
    pub fn next(&mut self) -> Duration {
        let ceiling = self
            .ceilings
            .next()
            .unwrap_or(self.max)
            .clamp(self.min, self.max);
        rand::rng().random_range(self.min..=ceiling)
    }

    /// Starts at `min` again: a try has succeeded.
    pub fn reset(&mut self) {
        self.ceilings = ceilings(self.min, self.max);
    }
}

fn ceilings(min: Duration, max: Duration) -> ExponentialBackoff {
    ExponentialBuilder::new()
        // Twice the least wait: the first one is jittered already.
        .with_min_delay(min.saturating_mul(2).min(max))
        .with_max_delay(max)
        .with_factor(2.0)
        .without_max_times()
        .build()
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIN: Duration = Duration::from_millis(100);
    const MAX: Duration = Duration::from_secs(5);

    #[test]
    fn every_wait_is_within_its_bounds_for_ever() {
        let mut backoff = Backoff::new(MIN, MAX);
        for attempt in 0..10_000 {
            let wait = backoff.next();
            assert!((MIN..=MAX).contains(&wait), "attempt {attempt}: {wait:?}");
        }
    }

    #[test]
    fn waits_grow_to_the_maximum_and_start_again_after_a_reset() {
        let mut backoff = Backoff::new(MIN, MAX);
        assert!(backoff.next() <= MIN * 2);
        let longest = (0..200).map(|_| backoff.next()).max().unwrap();
        assert!(longest > MAX / 2, "{longest:?}");
        backoff.reset();
        assert!(backoff.next() <= MIN * 2);
    }

    #[test]
    fn waits_differ_from_each_other() {
        let mut backoff = Backoff::new(MIN, MAX);
        let waits: std::collections::HashSet<Duration> = (0..20).map(|_| backoff.next()).collect();
        assert!(waits.len() > 10, "{waits:?}");
    }

    #[test]
    fn no_wait_and_a_maximum_below_the_minimum_are_no_trouble() {
        let mut none = Backoff::new(Duration::ZERO, Duration::ZERO);
        let mut swapped = Backoff::new(MAX, MIN);
        for _ in 0..100 {
            assert_eq!(none.next(), Duration::ZERO);
            assert_eq!(swapped.next(), MAX);
        }
    }
}
