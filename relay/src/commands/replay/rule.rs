//! The rule of dedupe: what is sent again must still be known to the inbox when it comes out of the
//! broker's queue. pay-svc refuses a `PAY_RETENTION` by the same rule. No IO, no clock.

use std::time::Duration;

use svc_kit::boot::ConfigError;

use crate::commands::times::in_words;

/// `age + RELAY_REPLAY_MARGIN <= RELAY_INBOX_RETENTION`.
#[derive(Clone, Copy, Debug)]
pub(super) struct Rule {
    /// `RELAY_INBOX_RETENTION`; zero: the inbox forgets nothing.
    retention: Duration,
    /// `RELAY_REPLAY_MARGIN`.
    margin: Duration,
}

impl Rule {
    pub(super) fn new(retention: Duration, margin: Duration) -> Result<Self, ConfigError> {
        if !retention.is_zero() && margin >= retention {
            return Err(ConfigError::new(
                "RELAY_REPLAY_MARGIN",
                format!(
                    "{} is not shorter than RELAY_INBOX_RETENTION ({})",
                    in_words(margin),
                    in_words(retention)
                ),
                "make it shorter, or RELAY_INBOX_RETENTION and the consumer's PAY_RETENTION longer",
            ));
        }
        Ok(Self { retention, margin })
    }

    /// May a message of this age be sent again? Its age is that of its row: it can't be in the inbox
    /// for longer.
    pub(super) fn permits(&self, age: Duration) -> bool {
        self.retention.is_zero() || age.saturating_add(self.margin) <= self.retention
    }

    /// Rule, sum and setting, for rows that it does not permit.
    pub(super) fn refusal(&self, rows: u64, oldest: Duration) -> String {
        let Self { retention, margin } = *self;
        format!(
            "{rows} of the rows are so old that a message could come back after its inbox row is \
             gone, and be applied a second time. The rule: age of the row + time in the broker's \
             queue (RELAY_REPLAY_MARGIN) <= RELAY_INBOX_RETENTION. The oldest: {} + {} = {}, more \
             than {}. Choose a later --from; or, where the consumer's PAY_RETENTION is longer than \
             that, set RELAY_INBOX_RETENTION to it, and never to more than it",
            in_words(oldest),
            in_words(margin),
            in_words(oldest.saturating_add(margin)),
            in_words(retention),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAY: Duration = Duration::from_hours(24);

    #[test]
    fn what_the_inbox_may_have_forgotten_is_refused_to_the_second() {
        let rule = Rule::new(30 * DAY, 2 * DAY).unwrap();
        assert!(rule.permits(28 * DAY));
        assert!(!rule.permits(28 * DAY + Duration::from_secs(1)));
        assert!(!rule.permits(Duration::MAX));
    }

    #[test]
    fn an_inbox_that_forgets_nothing_permits_all() {
        assert!(
            Rule::new(Duration::ZERO, 2 * DAY)
                .unwrap()
                .permits(Duration::MAX)
        );
    }

    #[test]
    fn a_margin_that_leaves_nothing_is_refused() {
        let err = Rule::new(2 * DAY, 2 * DAY).unwrap_err();
        assert_eq!(err.field, "RELAY_REPLAY_MARGIN");
    }

    #[test]
    fn the_refusal_tells_rule_sum_and_setting() {
        let rule = Rule::new(30 * DAY, 7 * DAY).unwrap();
        let says = rule.refusal(12, 24 * DAY);
        for part in [
            "12 of the rows",
            "age of the row + time in the broker's queue (RELAY_REPLAY_MARGIN) <= \
             RELAY_INBOX_RETENTION",
            "24days + 7days = 1month 13h 26m 24s, more than",
            "PAY_RETENTION",
        ] {
            assert!(says.contains(part), "{part}: {says}");
        }
    }
}
