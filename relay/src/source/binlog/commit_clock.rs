//! When a transaction was committed, by this process' clock. No IO.

use std::time::{Duration, Instant};

use crate::leadership::server_clock::Clock;

/// The commit time of a transaction as the binlog has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Committed {
    /// Microseconds since 1970 by the server's clock (MySQL).
    Micros(u64),
    /// Whole seconds since 1970 by the server's clock (MariaDB has no finer time).
    Seconds(u32),
}

/// When an event arrived.
#[derive(Clone, Copy, Debug)]
pub struct Arrived {
    /// When.
    pub at: Instant,
    /// The stream was idle then, so everything that came later was committed later.
    pub idle_at: Option<Instant>,
}

/// Finds commit times. It belongs to one stream, whose transactions come in the order of their commits.
#[derive(Clone, Copy, Debug, Default)]
pub struct CommitClock {
    last: Option<Instant>,
}

impl CommitClock {
    /// When the next transaction of the stream was committed.
    ///
    /// The order of the commits holds when the server's clock was set, and so does what an idle stream
    /// says; what the server's clock says does not.
    pub fn instant_of(
        &mut self,
        committed: Committed,
        arrived: Arrived,
        clock: Option<Clock>,
    ) -> Instant {
        let at = by_clock(committed, arrived.at, clock);
        let at = at.max(arrived.idle_at.unwrap_or(at));
        let at = at.max(self.last.unwrap_or(at));
        self.last = Some(at);
        at
    }
}

/// MariaDB has whole seconds only. A second that is not over is as good as now, which is when the event
/// arrived: it does so within 0.05 ms of the commit.
fn by_clock(committed: Committed, at: Instant, clock: Option<Clock>) -> Instant {
    let Some(clock) = clock else { return at };
    match committed {
        Committed::Micros(micros) => clock.instant_of(micros.cast_signed(), at),
        Committed::Seconds(seconds) => {
            let end_of_second = clock.instant_of((i64::from(seconds) + 1) * 1_000_000, at);
            match at - end_of_second < Duration::from_secs(1) {
                true => at,
                false => end_of_second,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);
    const NOW_S: u32 = 1_000_000;

    /// The server's clock shows [`NOW_S`] at `now`.
    fn instant_of(committed: Committed, now: Instant) -> Instant {
        let clock = Clock::new(now, i64::from(NOW_S) * 1_000_000);
        let arrived = Arrived {
            at: now,
            idle_at: None,
        };
        CommitClock::default().instant_of(committed, arrived, Some(clock))
    }

    #[test]
    fn microseconds_are_taken_as_they_are_but_never_from_the_future() {
        let now = Instant::now();
        let micros = |offset: i64| {
            let micros = i64::from(NOW_S) * 1_000_000 + offset;
            instant_of(Committed::Micros(micros.cast_unsigned()), now)
        };
        assert_eq!(micros(-250_000), now - SECOND / 4);
        assert_eq!(micros(250_000), now);
    }

    #[test]
    fn a_second_that_is_not_long_over_is_now() {
        let now = Instant::now();
        assert_eq!(instant_of(Committed::Seconds(NOW_S), now), now);
        assert_eq!(instant_of(Committed::Seconds(NOW_S - 1), now), now);
        let old = instant_of(Committed::Seconds(NOW_S - 61), now);
        assert_eq!(old, now - 60 * SECOND);
    }

    #[test]
    fn commits_are_in_the_order_of_the_stream_whatever_the_clock_says() {
        let now = Instant::now();
        let clock = Clock::new(now, i64::from(NOW_S) * 1_000_000);
        let mut commits = CommitClock::default();
        let mut at = |seconds: u32, idle_at| {
            let arrived = Arrived { at: now, idle_at };
            commits.instant_of(Committed::Seconds(seconds), arrived, Some(clock))
        };
        let first = at(NOW_S - 100, None);
        assert_eq!(first, now - 99 * SECOND);
        assert_eq!(at(NOW_S - 500, None), first, "the clock was set back");
        let idle = now - 5 * SECOND;
        assert_eq!(at(NOW_S - 90, Some(idle)), idle, "it was idle after that");
        assert_eq!(at(NOW_S - 90, None), idle);
    }

    #[test]
    fn without_a_clock_an_event_is_committed_when_it_arrives() {
        let now = Instant::now();
        let arrived = Arrived {
            at: now,
            idle_at: None,
        };
        let at = CommitClock::default().instant_of(Committed::Micros(5), arrived, None);
        assert_eq!(at, now);
    }
}
