//! From a received message to a payment: claim, charge outside any transaction, settle.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::future::BoxFuture;
use futures::stream::FuturesUnordered;
use futures::{FutureExt, StreamExt};
use outbox::message::OCCURRED_AT;
use svc_kit::backoff::Backoff;
use svc_kit::database::{Fault, classify};
use svc_kit::trace::Span;
use time::OffsetDateTime;
use tokio::sync::{Mutex, Notify, mpsc};
use tokio_util::sync::CancellationToken;

use crate::claim::{Claimed, Due, Lease};
use crate::database::Database;
use crate::ignore::IgnoredTypes;
use crate::metrics::Metrics;
use crate::payment::{self, PlacedOrder};
use crate::provider::{Charge, Provider};
use crate::schedule::{self, Class, Policy, Spent};
use crate::settle::{self, Settlement, Verdict, Written};
use crate::trace;

mod next;

/// What of a lease is left for writing when the provider has used all its time.
pub const SETTLE_TIME: Duration = Duration::from_secs(10);
/// A claim or a settlement that takes longer has failed.
const TRANSACTION_TIMEOUT: Duration = Duration::from_secs(10);
const BACKOFF_MIN: Duration = Duration::from_millis(10);
const BACKOFF_MAX: Duration = Duration::from_secs(1);

/// How a worker works.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Rows claimed, and charged, at once.
    pub claim_max: usize,
    /// A charge without an answer by then has failed.
    pub provider_timeout: Duration,
    /// When to try again.
    pub policy: Policy,
    /// What is not this service's business.
    pub ignored: IgnoredTypes,
}

impl Settings {
    /// How long claimed rows are a worker's.
    #[must_use]
    pub fn lease(&self) -> Duration {
        self.provider_timeout + SETTLE_TIME
    }
}

/// One of several equal workers.
#[derive(Clone)]
pub struct Worker {
    /// The database.
    pub database: Arc<Database>,
    /// Who takes the money.
    pub provider: Arc<dyn Provider>,
    /// What is counted.
    pub metrics: Metrics,
    /// Rung when there is something to do.
    pub work: Arc<Notify>,
    /// Rung after a failure was recorded: a bulk may have been stopped.
    pub failed: Arc<Notify>,
    /// Cancelled when what was stopped before this process began is held back.
    pub bulks_looked_at: CancellationToken,
    /// Held by the worker that looks for work: the others would only find the same rows.
    pub turn: Arc<Mutex<()>>,
    /// What has just been stored, leased to whichever worker takes it.
    pub handed: Arc<Mutex<mpsc::Receiver<Claimed>>>,
    /// How to work.
    pub settings: Settings,
}

/// What one step found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// Nothing was due.
    Idle,
    /// This many rows were claimed and worked on.
    Worked(usize),
}

/// The database could not be worked with; what was claimed comes back when its lease ends.
#[derive(Debug, thiserror::Error)]
pub enum WorkError {
    /// The database said no.
    #[error("the database failed")]
    Database(#[from] sqlx::Error),
    /// The database said nothing.
    #[error("the database did not answer within {} s", TRANSACTION_TIMEOUT.as_secs())]
    Silent,
}

impl Worker {
    /// Works until `drain`; what is claimed by then is finished.
    ///
    /// # Errors
    /// None; the signature is that of a task.
    pub async fn run(self, drain: CancellationToken) -> anyhow::Result<()> {
        let mut backoff = Backoff::new(BACKOFF_MIN, BACKOFF_MAX);
        loop {
            tokio::select! {
                biased;
                () = drain.cancelled() => {}
                () = async { tokio::join!(self.database.up(), self.bulks_looked_at.cancelled()); } => {}
            }
            let outcome = match self.next_claim(&drain).await {
                Ok(Some(claimed)) => self.work(claimed).await,
                Ok(None) => return Ok(()),
                Err(err) => Err(err),
            };
            match outcome {
                Ok(()) => backoff.reset(),
                Err(err) => {
                    self.report(&err);
                    tokio::time::sleep(backoff.next()).await;
                }
            }
        }
    }

    /// Claims what is due, once, and works on it.
    ///
    /// # Errors
    /// [`WorkError`].
    pub async fn step(&self) -> Result<Step, WorkError> {
        match self.claim().await? {
            None => Ok(Step::Idle),
            Some(claimed) => {
                let rows = claimed.rows.len();
                self.work(claimed).await?;
                Ok(Step::Worked(rows))
            }
        }
    }

    /// Rounds of one message per order, until all rows are settled or the lease has no room for
    /// another round.
    async fn work(&self, claimed: Claimed) -> Result<(), WorkError> {
        let Claimed { lease, mut rows } = claimed;
        while !rows.is_empty() {
            let round_ends = Instant::now() + self.settings.provider_timeout;
            if round_ends >= lease.expires {
                tracing::info!(rows = rows.len(), "rows left to the end of their lease");
                break;
            }
            rows = self.round(&lease, rows).await?;
        }
        Ok(())
    }

    /// Charges at most one message of each order and settles as the answers come. Returns the
    /// further messages of the same orders: by then they are paid already, or it is their turn.
    async fn round(&self, lease: &Lease, rows: Vec<Due>) -> Result<Vec<Due>, WorkError> {
        let mut orders = HashSet::new();
        let (mut later, mut now, mut ignored) = (Vec::new(), Vec::new(), Vec::new());
        for due in rows {
            if self.settings.ignored.contains(due.event_type.as_deref()) {
                let verdict = Verdict::Ignored;
                ignored.push(Settlement { due, verdict });
                continue;
            }
            let occurred_at = due.header(OCCURRED_AT);
            let read = payment::read(
                due.event_type.as_deref(),
                &due.payload,
                occurred_at.as_deref(),
            );
            match &read {
                Ok(order) if !orders.insert(order.order_id) => later.push(due),
                Ok(_) | Err(_) => now.push((due, read)),
            }
        }
        if !ignored.is_empty() {
            self.write(lease, ignored).await?;
        }
        let orders: Vec<_> = orders.into_iter().collect();
        let paid = in_time(settle::paid(self.database.pool(), &orders)).await?;
        let mut verdicts: FuturesUnordered<_> = now
            .into_iter()
            .map(|(due, read)| {
                let span = trace::processing(&due);
                let settlement = match read {
                    Ok(order) if paid.contains_key(&order.order_id.to_string()) => {
                        let verdict = Verdict::AlreadyPaid;
                        futures::future::ready(Settlement { due, verdict }).boxed()
                    }
                    Ok(order) => self.charge(lease, due, order, span.as_ref()),
                    Err(unpayable) => {
                        let verdict = self.failed(&due, unpayable.class, unpayable.text, None);
                        futures::future::ready(Settlement { due, verdict }).boxed()
                    }
                };
                trace::judged(span, settlement)
            })
            .collect();
        // Settles what is there together, and never waits for more.
        while let Some((first, span)) = verdicts.next().await {
            let (mut group, mut spans) = (vec![first], vec![span]);
            while let Some(Some((next, span))) = verdicts.next().now_or_never() {
                group.push(next);
                spans.push(span);
            }
            self.write(lease, group).await?;
            // They end here.
            drop(spans);
        }
        Ok(later)
    }

    /// Never under way when the lease ends: then the order may be somebody else's to charge.
    fn charge<'a>(
        &'a self,
        lease: &Lease,
        due: Due,
        order: PlacedOrder,
        processing: Option<&Span>,
    ) -> BoxFuture<'a, Settlement> {
        let span = trace::charging(processing);
        let limit = self.settings.provider_timeout;
        let ends = lease.expires.min(Instant::now() + limit);
        async move {
            let charge = Charge {
                order_id: order.order_id,
                amount_minor: order.amount_minor,
                currency: order.currency.clone(),
                traceparent: span.as_ref().map(Span::place),
            };
            let answer = tokio::select! {
                biased;
                // First: a process that was stopped wakes up late, and must not ask then.
                () = tokio::time::sleep_until(ends.into()) => None,
                answer = self.provider.charge(&charge) => Some(answer),
            };
            if let Some(span) = span {
                span.end();
            }
            let verdict = match answer {
                Some(Ok(receipt)) => Verdict::Charged { order, receipt },
                Some(Err(err)) => {
                    self.failed(&due, err.class(), err.to_string(), err.retry_after())
                }
                None => {
                    let text = format!("the provider did not answer within {limit:?}");
                    self.failed(&due, Class::ProviderTimeout, text, None)
                }
            };
            Settlement { due, verdict }
        }
        .boxed()
    }

    fn failed(&self, due: &Due, class: Class, text: String, asked: Option<Duration>) -> Verdict {
        let spent = Spent {
            attempts: due.attempts,
            age: due.age(),
        };
        let decision = schedule::decide(&self.settings.policy, class, spent, asked, rand::random());
        Verdict::Failed {
            class,
            text,
            decision,
        }
    }

    /// Writes a group; when the database refuses it, each alone, so that one can't hold up others.
    async fn write(&self, lease: &Lease, group: Vec<Settlement>) -> Result<(), WorkError> {
        match self.settle(lease, &group).await {
            Err(WorkError::Database(err)) if matches!(classify(&err), Fault::Data) => {
                tracing::warn!(error = %err, messages = group.len(), "group refused, settling one by one");
            }
            outcome => return outcome,
        }
        for settlement in group {
            match self.settle(lease, std::slice::from_ref(&settlement)).await {
                Err(WorkError::Database(err)) if matches!(classify(&err), Fault::Data) => {
                    let verdict =
                        self.failed(&settlement.due, Class::Settle, err.to_string(), None);
                    let refused = [Settlement {
                        due: settlement.due,
                        verdict,
                    }];
                    self.settle(lease, &refused).await?;
                }
                outcome => outcome?,
            }
        }
        Ok(())
    }

    /// Settles, again and again while the lease holds and the database is only busy or away.
    async fn settle(&self, lease: &Lease, group: &[Settlement]) -> Result<(), WorkError> {
        let mut backoff = Backoff::new(BACKOFF_MIN, BACKOFF_MAX);
        loop {
            let err = match in_time(settle::settle(self.database.pool(), lease, group)).await {
                Ok(written) => {
                    if group.iter().any(Settlement::has_failed) {
                        self.failed.notify_one();
                    }
                    self.count(group, &written);
                    return Ok(());
                }
                Err(err) => err,
            };
            let lasting = match &err {
                WorkError::Database(err) => matches!(classify(err), Fault::Data),
                WorkError::Silent => false,
            };
            if lasting || Instant::now() >= lease.expires {
                return Err(err);
            }
            self.report(&err);
            tokio::time::sleep(backoff.next()).await;
        }
    }

    fn count(&self, group: &[Settlement], written: &[Written]) {
        for (Settlement { due, verdict }, written) in group.iter().zip(written) {
            match written {
                Written::Processed(outcome) => {
                    self.metrics.processed.with_label_values(&[*outcome]).inc();
                }
                Written::Lost => {
                    tracing::warn!(
                        message_id = due.id(),
                        "lease lost, outcome left to its new owner"
                    );
                    continue;
                }
                Written::Retry | Written::Parked => {}
            }
            match verdict {
                Verdict::Charged { order, .. }
                    if *written != Written::Processed(settle::ALREADY_PAID) =>
                {
                    self.observe(order);
                }
                Verdict::Charged { .. } | Verdict::AlreadyPaid | Verdict::Ignored => {}
                Verdict::Failed { class, text, .. } => {
                    self.metrics.failed.with_label_values(&[class.name()]).inc();
                    let (id, class, parked) = (due.id(), class.name(), *written == Written::Parked);
                    tracing::warn!(
                        message_id = id,
                        class,
                        parked,
                        error = text,
                        "message failed"
                    );
                }
            }
        }
    }

    fn observe(&self, order: &PlacedOrder) {
        if let Some(placed_at) = order.placed_at {
            // Clocks differ between machines: a payment is never before its order.
            let taken = OffsetDateTime::now_utc() - placed_at;
            self.metrics
                .order_to_payment
                .observe(taken.as_seconds_f64().max(0.0));
        }
    }

    fn report(&self, err: &WorkError) {
        match err {
            WorkError::Database(err) => {
                tracing::debug!(error = %err, "worker could not use the database");
                self.database.suspect(err);
            }
            WorkError::Silent => self.database.suspect_silent(),
        }
    }
}

async fn in_time<T>(work: impl Future<Output = Result<T, sqlx::Error>>) -> Result<T, WorkError> {
    match tokio::time::timeout(TRANSACTION_TIMEOUT, work).await {
        Ok(outcome) => Ok(outcome?),
        Err(_elapsed) => Err(WorkError::Silent),
    }
}
