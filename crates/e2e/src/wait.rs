//! Waiting for a condition with a time-out, instead of sleeping and hoping.

use std::{
    future::Future,
    panic::Location,
    time::{Duration, Instant},
};

/// How long the loop rests between two looks.
const POLL_INTERVAL: Duration = Duration::from_millis(20);

/// What a look at the world gave: the value waited for, or nothing yet.
pub trait Outcome {
    /// What the wait returns once the condition holds.
    type Value;
    /// The value, or `None` to look again.
    fn met(self) -> Option<Self::Value>;
}

impl Outcome for bool {
    type Value = ();
    fn met(self) -> Option<()> {
        self.then_some(())
    }
}

impl<T> Outcome for Option<T> {
    type Value = T;
    fn met(self) -> Option<T> {
        self
    }
}

/// The condition did not hold in time.
#[derive(Debug)]
pub struct TimedOut {
    what: String,
    timeout: Duration,
}

impl std::fmt::Display for TimedOut {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "waited {:?} in vain for: {}", self.timeout, self.what)
    }
}

impl std::error::Error for TimedOut {}

/// Calls `look` every 20 ms until it gives `true` or `Some`, at most for `timeout`.
///
/// A look that hangs counts against the time-out as well: it is dropped when the time is over.
pub async fn try_until<F, R>(
    what: &str,
    timeout: Duration,
    mut look: F,
) -> Result<<R::Output as Outcome>::Value, TimedOut>
where
    F: FnMut() -> R,
    R: Future,
    R::Output: Outcome,
{
    let timed_out = || TimedOut {
        what: what.to_owned(),
        timeout,
    };
    let deadline = Instant::now() + timeout;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let outcome = tokio::time::timeout(left, look())
            .await
            .map_err(|_| timed_out())?;
        if let Some(value) = outcome.met() {
            return Ok(value);
        }
        if Instant::now() + POLL_INTERVAL > deadline {
            return Err(timed_out());
        }
        tokio::time::sleep(POLL_INTERVAL).await;
    }
}

/// [`try_until`] for tests.
///
/// # Panics
/// With `what` and the caller's line when the time is over.
#[track_caller]
pub fn until<F, R>(
    what: &str,
    timeout: Duration,
    look: F,
) -> impl Future<Output = <R::Output as Outcome>::Value>
where
    F: FnMut() -> R,
    R: Future,
    R::Output: Outcome,
{
    let caller = Location::caller();
    async move {
        match try_until(what, timeout, look).await {
            Ok(value) => value,
            Err(err) => panic!("{err} (at {caller})"),
        }
    }
}
