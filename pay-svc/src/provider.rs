//! Who takes the money. The order's id is the idempotency key of its charge: requested again for the
//! same order, a provider answers as it did the first time and takes nothing more.

mod answer;
mod http;
mod simulated;

use std::time::Duration;

use futures::future::BoxFuture;
use svc_kit::trace::TraceParent;
use uuid::Uuid;

use crate::schedule::Class;

pub(crate) use http::is_header;
pub use http::{Http, HttpSettings};
pub use simulated::{Simulated, SimulatedSettings, TEST_CURRENCY};

/// What is to be charged.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Charge {
    /// The order, and the idempotency key.
    pub order_id: Uuid,
    /// The amount in the currency's minor unit.
    pub amount_minor: i64,
    /// ISO 4217, three capital letters.
    pub currency: String,
    /// Where in a trace this is, for the provider to join in.
    pub traceparent: Option<TraceParent>,
}

/// How a charge ended. A decline is an outcome, not a failure: it is not tried again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// The money is ours.
    Captured,
    /// The provider, or the customer's bank, said no.
    Declined,
}

impl Outcome {
    /// The name in the table, in answers and in the metric.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Captured => "captured",
            Self::Declined => "declined",
        }
    }
}

/// A provider's answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Receipt {
    /// How the charge ended.
    pub outcome: Outcome,
    /// The provider's own name for it, if it has reported one: at most 128 bytes of ASCII.
    pub reference: Option<String>,
}

/// A charge without an answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ChargeError {
    /// The provider understood and failed; this spends an attempt.
    #[error("the provider failed: {0}")]
    Failed(String),
    /// The provider can't be reached, is overloaded, is down or is still at it; this spends only
    /// time.
    #[error("the provider is unavailable: {text}")]
    Unavailable {
        /// What it said.
        text: String,
        /// How long it requests to be left alone.
        retry_after: Option<Duration>,
    },
}

impl ChargeError {
    /// The class of the failed try.
    #[must_use]
    pub const fn class(&self) -> Class {
        match self {
            Self::Failed(_) => Class::ProviderError,
            Self::Unavailable { .. } => Class::ProviderUnavailable,
        }
    }

    /// How long the provider requests to be left alone.
    #[must_use]
    pub const fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Failed(_) => None,
            Self::Unavailable { retry_after, .. } => *retry_after,
        }
    }
}

/// Takes money for orders.
///
/// A call can be dropped at any await (time-out, shutdown, crash): its outcome is then unknown, and
/// the same charge is made again with the same key.
pub trait Provider: Send + Sync + 'static {
    /// Charges an order, once, however often it is called.
    fn charge<'a>(&'a self, charge: &'a Charge) -> BoxFuture<'a, Result<Receipt, ChargeError>>;
}
