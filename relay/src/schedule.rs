//! When a failed message is tried again. No clock and no randomness: both are arguments.

use std::time::Duration;

/// `RELAY_BACKOFF_MIN`, `RELAY_BACKOFF_MAX` and `RELAY_MAX_ATTEMPTS`.
#[derive(Clone, Copy, Debug)]
pub struct Schedule {
    /// Wait after the first failure.
    pub min: Duration,
    /// Longest wait.
    pub max: Duration,
    /// Attempts after which a message is parked, at least 1.
    pub attempts_max: u32,
}

/// What becomes of a message that failed by its own fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// Try again after this time.
    Retry(Duration),
    /// A person must look.
    Park,
}

impl Schedule {
    /// Decides after the `attempts`-th failed attempt (1 is the first).
    pub fn after_failure(&self, attempts: u32, dice: f64) -> Next {
        if attempts >= self.attempts_max {
            Next::Park
        } else {
            Next::Retry(self.delay(attempts, dice))
        }
    }

    /// The wait after `failures` failures in a row: doubled each time up to the maximum, of which
    /// `dice` (0..1) takes away up to a half so that what failed together does not retry together.
    pub fn delay(&self, failures: u32, dice: f64) -> Duration {
        let doublings = failures.saturating_sub(1).min(31);
        let full = self.min.saturating_mul(1 << doublings).min(self.max);
        full.mul_f64(1.0 - dice.clamp(0.0, 1.0) / 2.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const SCHEDULE: Schedule = Schedule {
        min: Duration::from_secs(1),
        max: Duration::from_mins(5),
        attempts_max: 5,
    };

    #[test]
    fn the_last_attempt_parks() {
        assert_eq!(
            SCHEDULE.after_failure(4, 0.0),
            Next::Retry(Duration::from_secs(8))
        );
        assert_eq!(SCHEDULE.after_failure(5, 0.0), Next::Park);
    }

    proptest! {
        #[test]
        fn a_delay_is_never_under_half_the_minimum_nor_over_the_maximum(
            failures in any::<u32>(), dice in 0.0..=1.0f64,
        ) {
            let delay = SCHEDULE.delay(failures, dice);
            prop_assert!(delay >= SCHEDULE.min / 2 && delay <= SCHEDULE.max);
        }

        #[test]
        fn further_failures_never_make_the_wait_shorter(
            failures in 0..u32::MAX, dice in 0.0..=1.0f64, min in 1..u64::MAX, longer in any::<u64>(),
        ) {
            // Whatever settings there can be: in milliseconds, a hundred years at the most.
            let century = 100 * 366 * 24 * 3_600_000;
            let (min, max) = (min % century, (min % century).saturating_add(longer % century));
            let schedule = Schedule {
                min: Duration::from_millis(min),
                max: Duration::from_millis(max),
                ..SCHEDULE
            };
            let (one, more) = (schedule.delay(failures, dice), schedule.delay(failures + 1, dice));
            prop_assert!(one <= more && more <= schedule.max);
        }

        #[test]
        fn the_attempts_of_the_setting_are_made_and_no_more(
            attempts_max in 1..=1_000_000_u32, attempts in 1..u32::MAX, dice in 0.0..=1.0f64,
        ) {
            let schedule = Schedule { attempts_max, ..SCHEDULE };
            let parks = schedule.after_failure(attempts, dice) == Next::Park;
            prop_assert_eq!(parks, attempts >= attempts_max);
        }
    }
}
