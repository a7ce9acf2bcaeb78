//! A provider that takes nobody's money: for tests, for a first installation.

use std::collections::{HashSet, VecDeque};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use futures::FutureExt;
use futures::future::BoxFuture;
use sha2::{Digest, Sha256};
use uuid::Uuid;

use super::{Charge, ChargeError, Outcome, Provider, Receipt};

/// ISO 4217's code for tests; the simulated provider declines it, and captures all others.
pub const TEST_CURRENCY: &str = "XTS";

/// Orders remembered for the count of charges. The answers need no memory.
const REMEMBERED_MAX: usize = 100_000;

/// How the simulated provider behaves.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct SimulatedSettings {
    /// Share of calls that fail, 0.0 to 1.0. Each call draws by itself.
    pub failure_rate: f64,
    /// How long each call takes.
    pub latency: Duration,
}

/// The simulated provider. Its answer follows from the charge alone, so it stays the same across
/// restarts and between instances.
#[derive(Debug)]
pub struct Simulated {
    settings: SimulatedSettings,
    charged: Mutex<Charged>,
}

#[derive(Debug, Default)]
struct Charged {
    count: u64,
    known: HashSet<Uuid>,
    oldest_first: VecDeque<Uuid>,
}

impl Simulated {
    /// A provider that has charged nothing yet.
    #[must_use]
    pub fn new(settings: SimulatedSettings) -> Self {
        Self {
            settings,
            charged: Mutex::default(),
        }
    }

    /// Orders charged by this instance; a repeated charge of one order counts once.
    #[must_use]
    pub fn charges(&self) -> u64 {
        self.charged
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .count
    }

    fn answer(&self, charge: &Charge) -> Receipt {
        self.charged
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .record(charge.order_id);
        let outcome = match charge.currency.as_str() {
            TEST_CURRENCY => Outcome::Declined,
            _ => Outcome::Captured,
        };
        let digest = Sha256::digest(charge.order_id.as_bytes());
        let reference = digest[..8]
            .iter()
            .fold("sim-".to_owned(), |text, byte| format!("{text}{byte:02x}"));
        Receipt {
            outcome,
            reference: Some(reference),
        }
    }
}

impl Charged {
    fn record(&mut self, order_id: Uuid) {
        if !self.known.insert(order_id) {
            return;
        }
        self.count += 1;
        self.oldest_first.push_back(order_id);
        if self.oldest_first.len() > REMEMBERED_MAX
            && let Some(oldest) = self.oldest_first.pop_front()
        {
            self.known.remove(&oldest);
        }
    }
}

impl Provider for Simulated {
    fn charge<'a>(&'a self, charge: &'a Charge) -> BoxFuture<'a, Result<Receipt, ChargeError>> {
        async move {
            if !self.settings.latency.is_zero() {
                tokio::time::sleep(self.settings.latency).await;
            }
            if rand::random::<f64>() < self.settings.failure_rate {
                return Err(ChargeError::Failed("a simulated failure".to_owned()));
            }
            Ok(self.answer(charge))
        }
        .boxed()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn provider(failure_rate: f64) -> Simulated {
        Simulated::new(SimulatedSettings {
            failure_rate,
            latency: Duration::ZERO,
        })
    }

    fn charge(order: u128, currency: &str) -> Charge {
        let order_id = Uuid::from_u128(order);
        Charge {
            traceparent: None,
            order_id,
            amount_minor: 100,
            currency: currency.to_owned(),
        }
    }

    #[tokio::test]
    async fn an_order_is_charged_once_and_answered_alike() {
        let (one, other) = (provider(0.0), provider(0.0));
        let first = one.charge(&charge(1, "EUR")).await.unwrap();
        assert_eq!(first, one.charge(&charge(1, "EUR")).await.unwrap());
        assert_eq!(first, other.charge(&charge(1, "EUR")).await.unwrap());
        assert_eq!(one.charges(), 1);
        assert_ne!(
            first.reference,
            one.charge(&charge(2, "EUR")).await.unwrap().reference
        );
        assert_eq!(one.charges(), 2);
    }

    #[tokio::test]
    async fn the_failure_rate_is_kept_at_both_ends() {
        for order in 0..50 {
            assert!(provider(0.0).charge(&charge(order, "EUR")).await.is_ok());
            let failed = provider(1.0)
                .charge(&charge(order, "EUR"))
                .await
                .unwrap_err();
            assert_eq!(failed.class(), crate::schedule::Class::ProviderError);
        }
    }

    #[tokio::test]
    async fn the_currency_for_tests_is_declined() {
        let receipt = provider(0.0)
            .charge(&charge(1, TEST_CURRENCY))
            .await
            .unwrap();
        assert_eq!(receipt.outcome, Outcome::Declined);
    }

    #[test]
    fn the_memory_of_charges_is_bounded() {
        let mut charged = Charged::default();
        for order in 0..=REMEMBERED_MAX as u128 {
            charged.record(Uuid::from_u128(order));
        }
        assert_eq!(charged.known.len(), REMEMBERED_MAX);
        assert_eq!(charged.count, REMEMBERED_MAX as u64 + 1);
    }
}
