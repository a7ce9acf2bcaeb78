//! A provider that does what a test sets, and records its requests.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Instant;

use futures::FutureExt;
use futures::future::BoxFuture;
use pay_svc::provider::{Charge, ChargeError, Outcome, Provider, Receipt};
use uuid::Uuid;

/// What to do when requested the nth time (from 1) to charge an order.
type Script = Box<dyn Fn(&Charge, usize) -> Act + Send + Sync>;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Act {
    Capture,
    Decline,
    Fail,
    Unavailable,
    /// Takes the money and never answers.
    ChargeAndHang,
    /// Answers with more than the table holds.
    TooMuch,
}

#[derive(Default)]
struct Book {
    calls: HashMap<Uuid, Vec<Instant>>,
    /// What was taken for each order, by its idempotency key: once.
    charged: HashMap<Uuid, i64>,
    under_way: HashMap<Uuid, usize>,
    overlaps: usize,
}

pub(crate) struct Scripted {
    script: Script,
    book: Mutex<Book>,
}

impl Scripted {
    pub(crate) fn new(script: impl Fn(&Charge, usize) -> Act + Send + Sync + 'static) -> Arc<Self> {
        Arc::new(Self {
            script: Box::new(script),
            book: Mutex::default(),
        })
    }

    pub(crate) fn always(act: Act) -> Arc<Self> {
        Self::new(move |_, _| act)
    }

    /// When an order was requested.
    pub(crate) fn calls(&self, order: Uuid) -> Vec<Instant> {
        self.book
            .lock()
            .unwrap()
            .calls
            .get(&order)
            .cloned()
            .unwrap_or_default()
    }

    pub(crate) fn all_calls(&self) -> usize {
        self.book.lock().unwrap().calls.values().map(Vec::len).sum()
    }

    /// Orders that money was taken for.
    pub(crate) fn charged(&self) -> usize {
        self.book.lock().unwrap().charged.len()
    }

    /// Calls for an order while another for the same order was under way.
    pub(crate) fn overlaps(&self) -> usize {
        self.book.lock().unwrap().overlaps
    }

    fn begin(&self, charge: &Charge) -> Act {
        let mut book = self.book.lock().unwrap();
        let calls = book.calls.entry(charge.order_id).or_default();
        calls.push(Instant::now());
        let act = (self.script)(charge, calls.len());
        let under_way = book.under_way.entry(charge.order_id).or_default();
        *under_way += 1;
        let overlap = *under_way > 1;
        book.overlaps += usize::from(overlap);
        if matches!(act, Act::Capture | Act::ChargeAndHang | Act::TooMuch) {
            book.charged.insert(charge.order_id, charge.amount_minor);
        }
        act
    }

    fn end(&self, order: Uuid) {
        *self
            .book
            .lock()
            .unwrap()
            .under_way
            .entry(order)
            .or_default() -= 1;
    }
}

/// The provider for a service, while the test keeps its own.
pub(crate) fn handle(provider: &Arc<Scripted>) -> Arc<dyn Provider> {
    Arc::<Scripted>::clone(provider)
}

impl Provider for Scripted {
    fn charge<'a>(&'a self, charge: &'a Charge) -> BoxFuture<'a, Result<Receipt, ChargeError>> {
        async move {
            let act = self.begin(charge);
            // Lets others in, as a real provider's answer would.
            tokio::task::yield_now().await;
            let receipt = |outcome, reference: String| {
                let reference = Some(reference);
                Ok(Receipt { outcome, reference })
            };
            let answer = match act {
                Act::Capture => receipt(Outcome::Captured, format!("ref-{}", charge.order_id)),
                Act::Decline => receipt(Outcome::Declined, "no".to_owned()),
                Act::TooMuch => receipt(Outcome::Captured, "x".repeat(129)),
                Act::Fail => Err(ChargeError::Failed("card reader on fire".to_owned())),
                Act::Unavailable => Err(ChargeError::Unavailable {
                    text: "503".to_owned(),
                    retry_after: None,
                }),
                Act::ChargeAndHang => std::future::pending().await,
            };
            self.end(charge.order_id);
            answer
        }
        .boxed()
    }
}
