//! How long an inbox row stays, and the rule that keeps it long enough. Pure.
//!
//! The row is the proof that a message was seen: a message that comes back after its row is gone is
//! new again. It can come back for as long as its outbox row can be replayed, then wait in the
//! broker's queue. The relay's side of the rule is `RELAY_INBOX_RETENTION`.

use std::time::Duration;

use svc_kit::boot::ConfigError;

const DAY: Duration = Duration::from_hours(24);

/// The margin for the broker: how long a message that was sent, or sent again, may wait in the queue
/// before it is stored. Longer than any outage of this service that nobody notices.
pub const QUEUE_WAIT_MAX: Duration = DAY.saturating_mul(7);

/// The shortest retention under which no message can come back after its row is gone: the time in
/// which it can be replayed, in which it can wait in the queue, in which it can be tried.
#[must_use]
pub fn least(replay_window: Duration, age_max: Duration) -> Duration {
    replay_window
        .saturating_add(QUEUE_WAIT_MAX)
        .saturating_add(age_max)
}

/// The retention, if it keeps the rule; `None` keeps every row.
///
/// # Errors
/// It does not; the text has the rule and the sum.
pub fn check(
    retention: Duration,
    replay_window: Duration,
    age_max: Duration,
) -> Result<Option<Duration>, ConfigError> {
    if retention.is_zero() {
        return Ok(None);
    }
    let least = least(replay_window, age_max);
    if retention >= least {
        return Ok(Some(retention));
    }
    let problem = format!(
        "{} is too short: a message must not come back after its inbox row is gone, so it must be \
         at least PAY_REPLAY_WINDOW ({}) + {} in the broker's queue + PAY_MAX_AGE ({}) = {}",
        in_words(retention),
        in_words(replay_window),
        in_words(QUEUE_WAIT_MAX),
        in_words(age_max),
        in_words(least)
    );
    let fix = format!(
        "set it to {} or more, or to 0s, which keeps the rows; the relay's RELAY_INBOX_RETENTION must \
         not be longer than it",
        in_words(least)
    );
    Err(ConfigError::new("PAY_RETENTION", problem, fix))
}

/// As a person would write it: `30d`, `36h`, `90s`.
fn in_words(duration: Duration) -> String {
    let seconds = duration.as_secs();
    match seconds {
        _ if seconds.is_multiple_of(86_400) => format!("{}d", seconds / 86_400),
        _ if seconds.is_multiple_of(3600) => format!("{}h", seconds / 3600),
        _ => format!("{seconds}s"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_retention_is_refused_while_a_message_could_outlive_it() {
        let sum = DAY * 15;
        assert_eq!(least(DAY * 7, DAY), sum);
        assert_eq!(check(sum, DAY * 7, DAY).unwrap(), Some(sum));
        let short = sum.checked_sub(Duration::from_secs(1)).unwrap();
        let err = check(short, DAY * 7, DAY).unwrap_err().to_string();
        for part in [
            "PAY_RETENTION: 1295999s is too short",
            "PAY_REPLAY_WINDOW (7d) + 7d in the broker's queue + PAY_MAX_AGE (1d) = 15d",
            "; set it to 15d or more, or to 0s, which keeps the rows; the relay's \
             RELAY_INBOX_RETENTION must not be longer than it",
        ] {
            assert!(err.contains(part), "{part} is not in {err}");
        }
    }

    #[test]
    fn times_are_written_in_the_unit_they_were_given_in() {
        for (seconds, text) in [(86_400 * 33, "33d"), (36 * 3600, "36h"), (90, "90s")] {
            assert_eq!(in_words(Duration::from_secs(seconds)), text);
        }
    }

    #[test]
    fn rows_that_are_kept_for_ever_outlive_everything() {
        let century = DAY * 36_525;
        assert_eq!(check(Duration::ZERO, century, century).unwrap(), None);
        assert!(check(century, century, DAY).is_err());
    }
}
