//! From deliveries to inbox rows: one transaction for all that came together. Both ways in, the
//! queue and `POST /pay`, end here.

use std::sync::Arc;
use std::time::Duration;

use outbox::inbox::{self, Claim, Claims};
use outbox::message::Received;
use sqlx::{Connection as _, MySql, Transaction};
use svc_kit::backoff::Backoff;
use svc_kit::database::{Fault, classify, is_answer};
use time::PrimitiveDateTime;
use tokio::sync::{Notify, mpsc};

use crate::claim::{Claimed, Due, HELD_BYTES, Lease, begin_lease};
use crate::database::{Database, retire_if_read_only};
use crate::metrics::Metrics;
use crate::refusals::Record;
use crate::trace;

/// A transaction that has not ended by then has failed; whether it committed is unknown.
const TRANSACTION_TIMEOUT: Duration = Duration::from_secs(30);
/// Deadlocks and lock waits in a row after which the database counts as away.
const BUSY_MAX: u32 = 10;
const BUSY_BACKOFF_MIN: Duration = Duration::from_millis(5);
const BUSY_BACKOFF_MAX: Duration = Duration::from_millis(500);
/// Room for statements that a connection may keep.
const KEPT_BYTES: usize = 1024 * 1024;
/// What is kept of a body whose message the database does not take for its values, in bytes.
const LAST_RESORT_BYTES: usize = 1024;
/// Headers of such a message that are longer, as JSON, are not kept either.
const LAST_RESORT_HEADERS: usize = 16 * 1024;

/// Where messages that have just been stored are worked on without being looked for: that saves one of
/// the three transactions a message goes through.
#[derive(Debug, Clone)]
pub struct Handover {
    /// With no place in it, messages are stored for whoever finds them.
    pub workers: mpsc::Sender<Claimed>,
    /// A batch of more messages is more than a worker may have at once.
    pub rows_max: usize,
    /// How long they belong to the worker then.
    pub lease: Duration,
}

/// Writes deliveries into the inbox.
#[derive(Debug, Clone)]
pub struct Store {
    /// The database.
    pub database: Arc<Database>,
    /// What is counted.
    pub metrics: Metrics,
    /// Wakes a worker when there is something to do.
    pub work: Arc<Notify>,
}

/// Nothing was stored, as far as is known: the deliveries must not be acknowledged.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The database said no, or said nothing more.
    #[error("the database did not store the messages")]
    Database(#[from] sqlx::Error),
    /// The transaction did not end in time.
    #[error("the database did not answer within {} s", TRANSACTION_TIMEOUT.as_secs())]
    Silent,
}

impl StoreError {
    /// Did the database answer, and refuse?
    #[must_use]
    pub fn is_answer(&self) -> bool {
        matches!(self, Self::Database(err) if is_answer(err))
    }
}

/// Who put a message in by hand, for the audit.
#[derive(Debug, Clone)]
pub struct Operator(pub String);

impl Store {
    /// Stores deliveries that came together. When this returns claims, they are committed and may be
    /// acknowledged; there is one for each, in their order.
    ///
    /// A message whose own values keep the others from being stored is stored truncated, and parked;
    /// every other refusal is the database's, and nothing is cut for it.
    /// What is to be worked on goes to `handover` if a worker has the time.
    ///
    /// # Errors
    /// [`StoreError`]; none of the deliveries is then known to be stored.
    pub async fn take_in(
        &self,
        mut batch: Vec<Received>,
        handover: Option<&Handover>,
    ) -> Result<Vec<Claim>, StoreError> {
        let place = handover
            .filter(|to| batch.len() <= to.rows_max && bytes_of(&batch) <= HELD_BYTES)
            .and_then(|to| Some((to.workers.try_reserve().ok()?, to.lease)));
        let wanted = match &place {
            Some((_, lease)) => Beside::Lease(*lease),
            None => Beside::Nothing,
        };
        let spans = trace::receiving(&batch);
        let (claims, lease) = match self.commit(&mut batch, wanted).await {
            Err(StoreError::Database(err)) if matches!(classify(&err), Fault::Data) => {
                tracing::warn!(error = %err, messages = batch.len(), "batch refused, storing one by one");
                (self.one_by_one(&mut batch).await?, None)
            }
            outcome => outcome?,
        };
        drop(spans);
        self.count(&batch, &claims);
        match place.zip(lease) {
            Some(((place, _), lease)) => {
                let rows: Vec<Due> = to_work_on(batch, &claims)
                    .map(|received| Due::stored(received, lease.until))
                    .collect();
                if !rows.is_empty() {
                    place.send(Claimed { lease, rows });
                }
            }
            None if to_work_on(batch, &claims).next().is_some() => self.work.notify_one(),
            None => {}
        }
        Ok(claims)
    }

    /// Stores one message that an operator put in, together with who did so.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn take_in_by_hand(
        &self,
        received: Received,
        operator: Operator,
    ) -> Result<Claim, StoreError> {
        let mut batch = [received];
        let (claims, _) = self.commit(&mut batch, Beside::Audit(&operator)).await?;
        self.count(&batch, &claims);
        self.work.notify_one();
        Ok(claims
            .into_iter()
            .next()
            .expect("one claim for one message"))
    }

    async fn one_by_one(&self, batch: &mut [Received]) -> Result<Vec<Claim>, StoreError> {
        let mut claims = Vec::with_capacity(batch.len());
        for index in 0..batch.len() {
            let one = &mut batch[index..=index];
            let (claim, _) = match self.commit(one, Beside::Nothing).await {
                Err(StoreError::Database(err)) if matches!(classify(&err), Fault::Data) => {
                    let id = one[0].message_id.as_str();
                    tracing::warn!(error = %err, message_id = id, "message refused, storing its beginning");
                    self.last_resort(one).await?
                }
                outcome => outcome?,
            };
            claims.extend(claim);
        }
        Ok(claims)
    }

    /// The beginning of a message that the database does not take as it is; without its texts when
    /// one of those is what it does not take, as in a table of another character set.
    async fn last_resort(
        &self,
        one: &mut [Received],
    ) -> Result<(Vec<Claim>, Option<Lease>), StoreError> {
        one[0].reduce(LAST_RESORT_BYTES, LAST_RESORT_HEADERS);
        match self.commit(one, Beside::Nothing).await {
            Err(StoreError::Database(err)) if matches!(classify(&err), Fault::Data) => {
                one[0].reduce(LAST_RESORT_BYTES, 0);
                (one[0].event_type, one[0].aggregate_id) = (None, None);
                one[0].exchange.clear();
                one[0].routing_key.clear();
                self.commit(one, Beside::Nothing).await
            }
            outcome => outcome,
        }
    }

    /// One transaction, tried again while the database only says that others are in the way.
    async fn commit(
        &self,
        batch: &mut [Received],
        beside: Beside<'_>,
    ) -> Result<(Vec<Claim>, Option<Lease>), StoreError> {
        let mut backoff = Backoff::new(BUSY_BACKOFF_MIN, BUSY_BACKOFF_MAX);
        for _ in 1..BUSY_MAX {
            match self.attempt(batch, beside).await {
                Err(StoreError::Database(err)) if matches!(classify(&err), Fault::Busy) => {
                    tracing::debug!(error = %err, "inbox is busy, trying again");
                    tokio::time::sleep(backoff.next()).await;
                }
                outcome => return outcome,
            }
        }
        self.attempt(batch, beside).await
    }

    async fn attempt(
        &self,
        batch: &mut [Received],
        beside: Beside<'_>,
    ) -> Result<(Vec<Claim>, Option<Lease>), StoreError> {
        let attempt = tokio::time::timeout(TRANSACTION_TIMEOUT, self.transaction(batch, beside));
        match attempt.await {
            Ok(Ok(stored)) => Ok(stored),
            Ok(Err(err)) => {
                self.database.suspect(&err);
                Err(StoreError::Database(err))
            }
            Err(_elapsed) => {
                self.database.suspect_silent();
                Err(StoreError::Silent)
            }
        }
    }

    async fn transaction(
        &self,
        batch: &mut [Received],
        beside: Beside<'_>,
    ) -> Result<(Vec<Claim>, Option<Lease>), sqlx::Error> {
        let mut connection = self.database.pool().acquire().await?;
        let outcome = async {
            let mut tx = connection.begin().await?;
            let lease = match beside {
                Beside::Lease(lease) => Some(begin_lease(&mut tx, lease).await?),
                Beside::Nothing | Beside::Audit(_) => None,
            };
            let Claims { claims, unrecorded } =
                claim(&mut tx, batch, lease.map(|lease| lease.until)).await?;
            if let (Beside::Audit(operator), [received]) = (beside, &*batch) {
                audit(&mut tx, operator, received).await?;
            }
            tx.commit().await?;
            self.report_recorded(batch, unrecorded.as_ref());
            Ok((claims, lease))
        }
        .await;
        if let Err(err) = &outcome {
            retire_if_read_only(&mut connection, err);
        }
        // Each pooled connection would keep the room of the largest statement that it ever sent.
        if bytes_of(batch) > KEPT_BYTES {
            connection.shrink_buffers();
        }
        outcome
    }

    /// The messages are stored either way, and the rows say why they are parked.
    fn report_recorded(&self, batch: &[Received], unrecorded: Option<&sqlx::Error>) {
        let refusals = self.database.refusals();
        match unrecorded {
            Some(err) => {
                let name = Record::Parked.name();
                self.metrics.refused.with_label_values(&[name]).inc();
                refusals.refused(Record::Parked, &err.to_string());
            }
            None if batch.iter().any(|received| received.problem.is_some()) => {
                refusals.recorded(Record::Parked);
            }
            None => {}
        }
    }

    fn count(&self, batch: &[Received], claims: &[Claim]) {
        self.metrics.received.inc_by(claims.len() as u64);
        for (received, claim) in batch.iter().zip(claims) {
            let class = match (claim, &received.problem) {
                (Claim::Duplicate, _) => {
                    self.metrics.duplicates.inc();
                    continue;
                }
                (Claim::First, None) => continue,
                (Claim::First, Some(problem)) => problem.class(),
                (Claim::Conflict, _) => "id_conflict",
            };
            self.metrics.failed.with_label_values(&[class]).inc();
            let id = received.message_id.as_str();
            tracing::warn!(message_id = id, class, "message stored and parked");
        }
    }
}

/// What else a transaction that stores messages does.
#[derive(Clone, Copy)]
enum Beside<'a> {
    Nothing,
    /// What is to be worked on belongs to a worker from the start, for so long.
    Lease(Duration),
    Audit(&'a Operator),
}

fn bytes_of(batch: &[Received]) -> usize {
    batch.iter().map(|received| received.payload.len()).sum()
}

fn to_work_on(batch: Vec<Received>, claims: &[Claim]) -> impl Iterator<Item = Received> {
    let claimed = batch.into_iter().zip(claims);
    let new = |(received, claim): (Received, &Claim)| {
        (*claim == Claim::First && received.problem.is_none()).then_some(received)
    };
    claimed.filter_map(new)
}

/// Claims the batch, cutting down what the server would not take as it is.
async fn claim(
    tx: &mut Transaction<'_, MySql>,
    batch: &mut [Received],
    due_at: Option<PrimitiveDateTime>,
) -> Result<Claims, sqlx::Error> {
    loop {
        match inbox::claim_all_until(tx, batch, due_at).await {
            Ok(claims) => return Ok(claims),
            Err(inbox::Error::Database(err)) => return Err(err),
            Err(inbox::Error::TooLarge {
                index,
                bytes,
                max_payload,
            }) => {
                // Strictly shorter each time, so that this ends.
                batch[index].truncate(max_payload.min(bytes.saturating_sub(1)));
            }
        }
    }
}

async fn audit(
    tx: &mut Transaction<'_, MySql>,
    operator: &Operator,
    received: &Received,
) -> Result<(), sqlx::Error> {
    sqlx::query("INSERT INTO operator_actions (actor, action, target) VALUES (?, 'put_in', ?)")
        .bind(&operator.0)
        .bind(received.message_id.as_str())
        .execute(&mut **tx)
        .await?;
    Ok(())
}
