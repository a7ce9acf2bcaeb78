//! From a received message to a payment: claim, charge outside any transaction, settle.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::future::BoxFuture;
use futures::stream::FuturesUnordered;
use futures::{FutureExt, Stream, StreamExt};
use outbox::message::OCCURRED_AT;
use svc_kit::backoff::Backoff;
use svc_kit::database::{Fault, classify, is_answer};
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
use crate::refusals::Record;
use crate::schedule::{self, Class, Policy, Spent};
use crate::settle::{self, SettleError, Settlement, Verdict, Written};
use crate::trace;

mod next;

/// What of a lease is left for writing when the provider has used all its time.
pub const SETTLE_TIME: Duration = Duration::from_secs(10);
/// A claim or a settlement that takes longer has failed.
const TRANSACTION_TIMEOUT: Duration = Duration::from_secs(10);
/// Deadlocks, and locks that others hold, are waited out for so long.
const BUSY_TIME: Duration = Duration::from_secs(2);
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
    /// The charge of one message can't be written beside that of another.
    #[error(transparent)]
    Taken(SettleError),
}

impl From<SettleError> for WorkError {
    fn from(err: SettleError) -> Self {
        match err {
            SettleError::Database(err) => Self::Database(err),
            SettleError::Taken(_) => Self::Taken(err),
        }
    }
}

/// What a server that answers does not write.
#[derive(Debug)]
struct Refusal {
    why: String,
    /// For the values of a row.
    is_data: bool,
    /// Others are in the way, and go on being so.
    is_busy: bool,
}

impl Refusal {
    /// `None` for a server that does not answer.
    fn of(err: &WorkError) -> Option<Self> {
        let fault = match err {
            WorkError::Database(err) if is_answer(err) => classify(err),
            WorkError::Taken(_) => Fault::Data,
            WorkError::Database(_) | WorkError::Silent => return None,
        };
        let why = match err {
            WorkError::Database(err) => err.to_string(),
            err => err.to_string(),
        };
        Some(Self {
            why,
            is_data: fault == Fault::Data,
            is_busy: fault == Fault::Busy,
        })
    }
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
        let paid = match in_time(settle::paid(self.database.pool(), &orders)).await {
            Err(err) => {
                let (payable, rest) = now.into_iter().partition(|(_, read)| read.is_ok());
                now = rest;
                self.not_looked_up(lease, payable, err).await?;
                HashMap::new()
            }
            paid => paid?,
        };
        let verdicts: FuturesUnordered<_> = now
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
        self.settle_as_they_come(lease, verdicts).await?;
        Ok(later)
    }

    /// Settles what is there together, and never waits for more. Failures come last: where they can't
    /// be recorded, no outcome waits behind them.
    async fn settle_as_they_come(
        &self,
        lease: &Lease,
        mut verdicts: impl Stream<Item = (Settlement, Option<Span>)> + Unpin,
    ) -> Result<(), WorkError> {
        let (mut failures, mut failed_spans) = (Vec::new(), Vec::new());
        while let Some(first) = verdicts.next().await {
            let mut ready = vec![first];
            while let Some(Some(next)) = verdicts.next().now_or_never() {
                ready.push(next);
            }
            let (mut group, mut spans) = (Vec::new(), Vec::new());
            for (settlement, span) in ready {
                if settlement.has_failed() {
                    failures.push(settlement);
                    failed_spans.push(span);
                } else {
                    group.push(settlement);
                    spans.push(span);
                }
            }
            if !group.is_empty() {
                self.write(lease, group).await?;
            }
            // They end here.
            drop(spans);
        }
        if !failures.is_empty() {
            self.write(lease, failures).await?;
        }
        drop(failed_spans);
        Ok(())
    }

    /// Without the table of payments nothing is charged: an order may be paid already.
    async fn not_looked_up(
        &self,
        lease: &Lease,
        payable: Vec<(Due, Result<PlacedOrder, payment::Unpayable>)>,
        err: WorkError,
    ) -> Result<(), WorkError> {
        let refusal = match Refusal::of(&err) {
            Some(refusal) if self.database.look().await => refusal,
            _ => return Err(err),
        };
        let refused = &self.metrics.refused;
        let record = Record::Payment;
        refused
            .with_label_values(&[record.name()])
            .inc_by(payable.len() as u64);
        self.database.refusals().refused(record, &refusal.why);
        let rows: Vec<&Due> = payable.iter().map(|(due, _)| due).collect();
        self.let_wait(lease, &rows, &refusal.why).await
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
                // First: a process that was stopped wakes up late, and must not charge then.
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

    fn failed(
        &self,
        due: &Due,
        class: Class,
        text: String,
        requested: Option<Duration>,
    ) -> Verdict {
        let spent = Spent {
            attempts: due.attempts,
            age: due.age(),
        };
        let decision = schedule::decide(
            &self.settings.policy,
            class,
            spent,
            requested,
            rand::random(),
        );
        Verdict::Failed {
            class,
            text,
            decision,
        }
    }

    /// Writes a group; when the database refuses it, each alone, so that one can't hold up others.
    async fn write(&self, lease: &Lease, group: Vec<Settlement>) -> Result<(), WorkError> {
        let Err(refusal) = self.settle(lease, &group).await? else {
            return Ok(());
        };
        let all_failed = group.iter().all(Settlement::has_failed);
        if group.len() == 1 || (refusal.is_busy && all_failed) {
            return self.refused(lease, group, refusal).await;
        }
        tracing::warn!(
            error = refusal.why,
            messages = group.len(),
            "group refused, settling one by one"
        );
        for settlement in group {
            if Instant::now() >= lease.expires {
                tracing::info!("rows left to the end of their lease");
                break;
            }
            let alone = vec![settlement];
            if let Err(refusal) = self.settle(lease, &alone).await? {
                self.refused(lease, alone, refusal).await?;
            }
        }
        Ok(())
    }

    /// An outcome whose values are refused has failed. Everything else waits: nothing is known to be
    /// wrong with the row.
    async fn refused(
        &self,
        lease: &Lease,
        rows: Vec<Settlement>,
        refusal: Refusal,
    ) -> Result<(), WorkError> {
        let values = refusal.is_data && !rows.iter().any(Settlement::has_failed);
        if !values {
            return self.put_off(lease, &rows, &refusal.why).await;
        }
        let failed = rows.into_iter().map(|Settlement { due, .. }| {
            let verdict = self.failed(&due, Class::Settle, refusal.why.clone(), None);
            Settlement { due, verdict }
        });
        let failed: Vec<Settlement> = failed.collect();
        match self.settle(lease, &failed).await? {
            Ok(()) => Ok(()),
            Err(refusal) => self.put_off(lease, &failed, &refusal.why).await,
        }
    }

    async fn put_off(
        &self,
        lease: &Lease,
        rows: &[Settlement],
        why: &str,
    ) -> Result<(), WorkError> {
        for row in rows {
            let record = row.record();
            self.metrics
                .refused
                .with_label_values(&[record.name()])
                .inc();
            self.database.refusals().refused(record, why);
        }
        let rows: Vec<&Due> = rows.iter().map(|row| &row.due).collect();
        self.let_wait(lease, &rows, why).await
    }

    async fn let_wait(&self, lease: &Lease, rows: &[&Due], why: &str) -> Result<(), WorkError> {
        let policy = &self.settings.policy;
        let wait = |due: &Due| schedule::put_off(policy, due.age(), rand::random());
        let rows: Vec<(&Due, Duration)> = rows.iter().map(|due| (*due, wait(due))).collect();
        in_time(settle::put_off(self.database.pool(), lease, &rows, why)).await
    }

    /// Settles, again and again while the lease holds and the database is away. The inner error is of
    /// a server that can be worked with.
    async fn settle(
        &self,
        lease: &Lease,
        group: &[Settlement],
    ) -> Result<Result<(), Refusal>, WorkError> {
        let begun = Instant::now();
        let mut backoff = Backoff::new(BACKOFF_MIN, BACKOFF_MAX);
        loop {
            let err = match in_time(settle::settle(self.database.pool(), lease, group)).await {
                Ok(written) => {
                    if group.iter().any(Settlement::has_failed) {
                        self.failed.notify_one();
                    }
                    self.count(group, &written);
                    return Ok(Ok(()));
                }
                Err(err) => err,
            };
            let refusal = Refusal::of(&err);
            let is_over = begun.elapsed() >= BUSY_TIME;
            match refusal {
                Some(refusal) if refusal.is_data => return Ok(Err(refusal)),
                Some(refusal) if refusal.is_busy && !is_over => {}
                Some(refusal) if self.database.look().await => return Ok(Err(refusal)),
                Some(_) | None => self.report(&err),
            }
            if Instant::now() >= lease.expires {
                return Err(err);
            }
            tokio::time::sleep(backoff.next()).await;
        }
    }

    fn count(&self, group: &[Settlement], written: &[Written]) {
        for (settlement, written) in group.iter().zip(written) {
            let Settlement { due, verdict } = settlement;
            if *written != Written::Lost {
                self.database.refusals().recorded(settlement.record());
            }
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
            WorkError::Taken(_) => {}
        }
    }
}

async fn in_time<T, E>(work: impl Future<Output = Result<T, E>>) -> Result<T, WorkError>
where
    WorkError: From<E>,
{
    match tokio::time::timeout(TRANSACTION_TIMEOUT, work).await {
        Ok(outcome) => Ok(outcome?),
        Err(_elapsed) => Err(WorkError::Silent),
    }
}
