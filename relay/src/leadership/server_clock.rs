//! The database's clock, in the time of this process. No IO.

use std::time::{Duration, Instant};

/// The database's clock: one reading of it and when that was.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    at: Instant,
    /// Microseconds since 1970.
    micros: i64,
}

impl Clock {
    /// The database's clock showed `micros` (since 1970) at `at`.
    pub fn new(at: Instant, micros: i64) -> Self {
        Self { at, micros }
    }

    /// When, by this process' clock, the database's clock showed `micros` (since 1970).
    ///
    /// Never in the future: a commit that has been seen has happened, whatever the clocks say.
    pub fn instant_of(&self, micros: i64, now: Instant) -> Instant {
        let behind = micros.saturating_sub(self.micros);
        let distance = Duration::from_micros(behind.unsigned_abs());
        let at = if behind >= 0 {
            self.at.checked_add(distance)
        } else {
            self.at.checked_sub(distance)
        };
        at.unwrap_or(now).min(now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_commit_is_in_the_future() {
        let now = Instant::now();
        let clock = Clock::new(now, 1_000_000);
        assert_eq!(clock.instant_of(301_000_000, now), now);
        assert_eq!(
            clock.instant_of(500_000, now),
            now - Duration::from_millis(500)
        );
    }
}
