//! When something that failed is tried again.

use std::time::Duration;

/// `RELAY_BACKOFF_MIN`, `RELAY_BACKOFF_MAX` and `RELAY_MAX_ATTEMPTS`.
#[derive(Clone, Copy, Debug)]
pub(super) struct Retry {
    /// Wait after the first failure.
    pub(super) min: Duration,
    /// Longest wait.
    pub(super) max: Duration,
    /// Attempts after which a message is parked, at least 1.
    pub(super) attempts_max: u32,
}

impl Retry {
    /// The wait after `failures` failures in a row: doubled each time up to the maximum, of which
    /// `jitter` (0..1) takes away up to a half so that what failed together does not retry together.
    pub(super) fn delay(&self, failures: u32, jitter: f64) -> Duration {
        let doublings = failures.saturating_sub(1).min(31);
        let full = self.min.saturating_mul(1 << doublings).min(self.max);
        full.mul_f64(1.0 - jitter.clamp(0.0, 1.0) / 2.0)
    }

    /// Is the `attempts`-th failed attempt the last one?
    pub(super) fn parks(&self, attempts: u32) -> bool {
        attempts >= self.attempts_max
    }
}

/// Where jitter comes from: splitmix64 from a seed, so that a run can be repeated.
#[derive(Clone, Debug)]
pub(super) struct Jitter(u64);

impl Jitter {
    /// From a seed.
    pub(super) fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// A number of 0..1.
    pub(super) fn next(&mut self) -> f64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^= mixed >> 31;
        // Half of the bits are enough, and a u32 is a f64 exactly.
        f64::from(u32::try_from(mixed >> 32).unwrap_or(0)) / (f64::from(u32::MAX) + 1.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const RETRY: Retry = Retry {
        min: Duration::from_secs(1),
        max: Duration::from_mins(5),
        attempts_max: 5,
    };

    #[test]
    fn the_last_attempt_parks() {
        assert!(!RETRY.parks(4));
        assert_eq!(RETRY.delay(4, 0.0), Duration::from_secs(8));
        assert!(RETRY.parks(5));
    }

    #[test]
    fn jitter_takes_away_up_to_a_half() {
        for (jitter, millis) in [(0.0, 8000), (0.5, 6000), (1.0, 4000)] {
            assert_eq!(RETRY.delay(4, jitter), Duration::from_millis(millis));
        }
        assert_eq!(RETRY.delay(1, 0.0), RETRY.min);
        assert_eq!(RETRY.delay(u32::MAX, 0.0), RETRY.max);
    }

    /// The numbers of splitmix64, as its authors publish it, for the seed 1234567.
    #[test]
    fn jitter_is_splitmix64() {
        let published: [u64; 3] = [
            6_457_827_717_110_365_317,
            3_203_168_211_198_807_973,
            9_817_491_932_198_370_423,
        ];
        let mut jitter = Jitter::new(1_234_567);
        for number in published {
            let expected = (number >> 32) as f64 / 4_294_967_296.0;
            assert_eq!(jitter.next(), expected);
        }
    }

    proptest! {
        #[test]
        fn a_delay_is_never_under_half_the_minimum_nor_over_the_maximum(
            failures in any::<u32>(), jitter in 0.0..=1.0f64,
        ) {
            let delay = RETRY.delay(failures, jitter);
            prop_assert!(delay >= RETRY.min / 2 && delay <= RETRY.max);
        }

        #[test]
        fn further_failures_never_make_the_wait_shorter(
            failures in 0..u32::MAX, jitter in 0.0..=1.0f64, min in 1..u64::MAX, longer in any::<u64>(),
        ) {
            // Whatever settings there can be: in milliseconds, a hundred years at the most.
            let century = 100 * 366 * 24 * 3_600_000;
            let (min, max) = (min % century, (min % century).saturating_add(longer % century));
            let retry = Retry {
                min: Duration::from_millis(min),
                max: Duration::from_millis(max),
                ..RETRY
            };
            let (one, more) = (retry.delay(failures, jitter), retry.delay(failures + 1, jitter));
            prop_assert!(one <= more && more <= retry.max);
        }

        #[test]
        fn jitter_is_of_0_to_1_and_follows_from_its_seed(seed in any::<u64>()) {
            let (mut one, mut other) = (Jitter::new(seed), Jitter::new(seed));
            let numbers: Vec<f64> = (0..10).map(|_| one.next()).collect();
            prop_assert!(numbers.iter().all(|number| (0.0..1.0).contains(number)));
            prop_assert_eq!(numbers, (0..10).map(|_| other.next()).collect::<Vec<_>>());
        }
    }
}
