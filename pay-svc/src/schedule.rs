//! When a failed message is tried again, and when a person must look. Pure: the age of the message
//! and the jitter are arguments.

use std::time::Duration;

/// Why a message was not processed. The names are persisted in `inbox_attempts.class` and are the
/// label of `inbox_failed_total`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Class {
    /// The body is not what its type promises; it will not become so by itself.
    Malformed,
    /// No handler for this type.
    UnknownType,
    /// The provider understood the charge and failed to carry it out.
    ProviderError,
    /// The provider could not be reached, is overloaded or is down.
    ProviderUnavailable,
    /// The provider did not answer in time; whether it charged is unknown.
    ProviderTimeout,
    /// The database refused the outcome of this one message.
    Settle,
}

/// What a failure costs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Spends {
    /// Nothing: no later try can end otherwise.
    Patience,
    /// One of the message's attempts.
    Attempt,
    /// Only time: it says nothing about the message.
    Age,
}

impl Class {
    /// The name in the table and in the metric.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Malformed => "malformed",
            Self::UnknownType => "unknown_type",
            Self::ProviderError => "provider_error",
            Self::ProviderUnavailable => "provider_unavailable",
            Self::ProviderTimeout => "provider_timeout",
            Self::Settle => "settle",
        }
    }

    /// What a failure of this class costs.
    #[must_use]
    pub const fn spends(self) -> Spends {
        match self {
            Self::Malformed | Self::UnknownType => Spends::Patience,
            Self::ProviderError | Self::Settle => Spends::Attempt,
            Self::ProviderUnavailable | Self::ProviderTimeout => Spends::Age,
        }
    }
}

/// How patient the service is.
#[derive(Debug, Clone, Copy)]
pub struct Policy {
    /// Attempts after which a message is parked.
    pub attempts_max: u32,
    /// Shortest wait between two tries.
    pub backoff_min: Duration,
    /// Longest wait between two tries.
    pub backoff_max: Duration,
    /// Age, since the message was stored, after which even an outage parks it.
    pub age_max: Duration,
}

/// What has been spent on a message before this failure.
#[derive(Debug, Clone, Copy)]
pub struct Spent {
    /// Attempts on the row.
    pub attempts: u32,
    /// Time since the message was stored.
    pub age: Duration,
}

/// What becomes of a message that has failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Decision {
    /// Tried again after this long.
    Retry {
        /// Attempts on the row from now on.
        attempts: u32,
        /// The wait.
        after: Duration,
    },
    /// A person must look.
    Park {
        /// Attempts on the row from now on.
        attempts: u32,
    },
}

/// Decides. `requested` is the wait that the provider has requested; `jitter` is uniform in 0..1 and
/// spreads the tries of messages that failed together.
#[must_use]
pub fn decide(
    policy: &Policy,
    class: Class,
    spent: Spent,
    requested: Option<Duration>,
    jitter: f64,
) -> Decision {
    match class.spends() {
        Spends::Patience => Decision::Park {
            attempts: spent.attempts.saturating_add(1),
        },
        Spends::Attempt => {
            let attempts = spent.attempts.saturating_add(1);
            if attempts >= policy.attempts_max {
                return Decision::Park { attempts };
            }
            let doubled = 2u32.saturating_pow(attempts.min(31));
            let longest = policy.backoff_min.saturating_mul(doubled);
            Decision::Retry {
                attempts,
                after: wait(policy, longest, jitter),
            }
        }
        // No attempt is counted in an outage, so the wait grows with the age instead.
        Spends::Age if spent.age >= policy.age_max => Decision::Park {
            attempts: spent.attempts,
        },
        Spends::Age => {
            let own = put_off(policy, spent.age, jitter);
            Decision::Retry {
                attempts: spent.attempts,
                after: requested.map_or(own, |requested| {
                    own.max(requested_wait(policy, requested, jitter))
                }),
            }
        }
    }
}

/// The wait of a row whose outcome could not be recorded: nothing is spent, so it grows with the age.
#[must_use]
pub fn put_off(policy: &Policy, age: Duration, jitter: f64) -> Duration {
    wait(
        policy,
        age.max(policy.backoff_min.saturating_mul(2)),
        jitter,
    )
}

/// What was requested and up to a quarter more, within the policy's limits: of many messages that
/// got the same wait, not all come back at once.
fn requested_wait(policy: &Policy, requested: Duration, jitter: f64) -> Duration {
    let max = policy.backoff_max.max(policy.backoff_min);
    let longest = requested
        .min(max)
        .mul_f64(1.25)
        .clamp(policy.backoff_min, max);
    let shortest = longest.mul_f64(0.8);
    let span = longest.saturating_sub(shortest);
    (shortest + span.mul_f64(jitter.clamp(0.0, 1.0))).max(policy.backoff_min)
}

/// A point between the shortest wait and `longest`, which never exceeds the policy's.
fn wait(policy: &Policy, longest: Duration, jitter: f64) -> Duration {
    let longest = longest.clamp(
        policy.backoff_min,
        policy.backoff_max.max(policy.backoff_min),
    );
    let span = longest.saturating_sub(policy.backoff_min);
    policy.backoff_min + span.mul_f64(jitter.clamp(0.0, 1.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    const POLICY: Policy = Policy {
        attempts_max: 4,
        backoff_min: Duration::from_secs(1),
        backoff_max: Duration::from_secs(300),
        age_max: Duration::from_secs(24 * 3600),
    };

    fn after(class: Class, attempts: u32, age_s: u64, jitter: f64) -> Decision {
        let spent = Spent {
            attempts,
            age: Duration::from_secs(age_s),
        };
        decide(&POLICY, class, spent, None, jitter)
    }

    #[test]
    fn a_failed_attempt_is_counted_and_the_waits_double() {
        let waits: Vec<_> = (0..3)
            .map(|n| after(Class::ProviderError, n, 0, 1.0))
            .collect();
        let retry = |attempts, secs| Decision::Retry {
            attempts,
            after: Duration::from_secs(secs),
        };
        assert_eq!(waits, [retry(1, 2), retry(2, 4), retry(3, 8)]);
    }

    #[test]
    fn the_last_attempt_parks() {
        assert_eq!(
            after(Class::ProviderError, 3, 0, 0.5),
            Decision::Park { attempts: 4 }
        );
        assert_eq!(
            after(Class::Settle, 3, 0, 0.5),
            Decision::Park { attempts: 4 }
        );
    }

    #[test]
    fn an_outage_spends_no_attempt_but_age() {
        for age in [0, 10, 3600, 24 * 3600 - 1] {
            let Decision::Retry { attempts: 3, after } =
                after(Class::ProviderUnavailable, 3, age, 1.0)
            else {
                panic!("an outage of {age} s parked the message or spent an attempt");
            };
            assert!(after <= POLICY.backoff_max);
        }
        let too_old = after(Class::ProviderTimeout, 3, 24 * 3600, 0.0);
        assert_eq!(too_old, Decision::Park { attempts: 3 });
    }

    #[test]
    fn what_can_never_succeed_parks_at_once() {
        for class in [Class::Malformed, Class::UnknownType] {
            assert_eq!(after(class, 0, 0, 0.0), Decision::Park { attempts: 1 });
        }
    }

    #[test]
    fn waits_stay_within_their_limits_whatever_the_dice_say() {
        let patient = Policy {
            attempts_max: u32::MAX,
            ..POLICY
        };
        for attempts in [0, 1, 8, 31, 32, 1_000_000, u32::MAX - 2] {
            for jitter in [0.0, 0.3, 1.0] {
                let spent = Spent {
                    attempts,
                    age: Duration::ZERO,
                };
                let decision = decide(&patient, Class::ProviderError, spent, None, jitter);
                let Decision::Retry { after, .. } = decision else {
                    panic!("{decision:?}")
                };
                assert!(
                    (POLICY.backoff_min..=POLICY.backoff_max).contains(&after),
                    "{after:?}"
                );
            }
        }
    }

    /// Every hour's outage, at whatever rate it is tried: the clock is the age alone.
    #[test]
    fn an_hour_of_outage_parks_nothing_and_is_tried_less_and_less_often() {
        for (requested, jitter) in [(None, 0.0), (None, 0.9), (Some(7), 0.5), (Some(9999), 1.0)] {
            let requested = requested.map(Duration::from_secs);
            let (mut age, mut tries) = (Duration::ZERO, 0_u32);
            while age < Duration::from_hours(1) {
                let spent = Spent { attempts: 2, age };
                let decision = decide(
                    &POLICY,
                    Class::ProviderUnavailable,
                    spent,
                    requested,
                    jitter,
                );
                let Decision::Retry { attempts: 2, after } = decision else {
                    panic!("{decision:?} at the age of {age:?}");
                };
                assert!((POLICY.backoff_min..=POLICY.backoff_max).contains(&after));
                (age, tries) = (age + after, tries + 1);
            }
            // Only a jitter that is always the least tries each second.
            assert!(
                tries <= 3600 && (jitter == 0.0 || tries < 600),
                "{tries} tries"
            );
        }
    }

    #[test]
    fn a_wait_that_was_requested_is_kept_within_limits() {
        let after = |requested_s: u64, age_s: u64, jitter| {
            let spent = Spent {
                attempts: 0,
                age: Duration::from_secs(age_s),
            };
            let requested = Some(Duration::from_secs(requested_s));
            match decide(
                &POLICY,
                Class::ProviderUnavailable,
                spent,
                requested,
                jitter,
            ) {
                Decision::Retry { after, .. } => after.as_secs_f64(),
                Decision::Park { .. } => panic!("parked"),
            }
        };
        assert_eq!((after(100, 0, 0.0), after(100, 0, 1.0)), (100.0, 125.0));
        // At the limit they are spread below it.
        assert_eq!((after(300, 0, 0.0), after(86_400, 0, 1.0)), (240.0, 300.0));
        assert_eq!(after(0, 0, 0.0), 1.0);
        // It never makes the own wait shorter.
        assert_eq!(after(2, 3600, 1.0), 300.0);
    }

    #[test]
    fn messages_that_fail_together_are_not_retried_together() {
        let early = after(Class::ProviderError, 0, 0, 0.1);
        assert_ne!(early, after(Class::ProviderError, 0, 0, 0.9));
    }
}
