//! From deliveries to inbox rows: one transaction for all that came together. Both ways in, the
//! queue and `POST /pay`, end here.

use std::sync::Arc;
use std::time::Duration;

use outbox::inbox::{self, Claim};
use outbox::message::Received;
use sqlx::{Connection as _, MySql, Transaction};
use svc_kit::backoff::Backoff;
use svc_kit::database::{Fault, classify};
use tokio::sync::Notify;

use crate::database::{Database, retire_if_read_only};
use crate::metrics::Metrics;
use crate::trace;

/// A transaction that has not ended by then has failed; whether it committed is unknown.
const TRANSACTION_TIMEOUT: Duration = Duration::from_secs(30);
/// Deadlocks and lock waits in a row after which the database counts as away.
const BUSY_MAX: u32 = 10;
const BUSY_BACKOFF_MIN: Duration = Duration::from_millis(5);
const BUSY_BACKOFF_MAX: Duration = Duration::from_millis(500);
/// What is kept of a body that the database does not take for a reason of its own, in bytes.
const LAST_RESORT_BYTES: usize = 1024;

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

/// Who put a message in by hand, for the audit.
#[derive(Debug, Clone)]
pub struct Operator(pub String);

impl Store {
    /// Stores deliveries that came together. When this returns claims, they are committed and may be
    /// acknowledged; there is one for each, in their order.
    ///
    /// A message that alone keeps the others from being stored is stored truncated, and parked.
    ///
    /// # Errors
    /// [`StoreError`]; none of the deliveries is then known to be stored.
    pub async fn take_in(&self, mut batch: Vec<Received>) -> Result<Vec<Claim>, StoreError> {
        let spans = trace::receiving(&batch);
        let claims = match self.commit(&mut batch, None).await {
            Err(StoreError::Database(err)) if matches!(classify(&err), Fault::Other) => {
                tracing::warn!(error = %err, messages = batch.len(), "batch refused, storing one by one");
                self.one_by_one(&mut batch).await?
            }
            outcome => outcome?,
        };
        drop(spans);
        self.count(&batch, &claims);
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
        let claims = self.commit(&mut batch, Some(&operator)).await?;
        self.count(&batch, &claims);
        Ok(claims
            .into_iter()
            .next()
            .expect("one claim for one message"))
    }

    async fn one_by_one(&self, batch: &mut [Received]) -> Result<Vec<Claim>, StoreError> {
        let mut claims = Vec::with_capacity(batch.len());
        for index in 0..batch.len() {
            let one = &mut batch[index..=index];
            let claim = match self.commit(one, None).await {
                Err(StoreError::Database(err)) if matches!(classify(&err), Fault::Other) => {
                    let id = one[0].message_id.as_str();
                    tracing::warn!(error = %err, message_id = id, "message refused, storing its beginning");
                    one[0].truncate(LAST_RESORT_BYTES);
                    one[0].headers = serde_json::Value::Object(serde_json::Map::new());
                    self.commit(one, None).await?
                }
                outcome => outcome?,
            };
            claims.extend(claim);
        }
        Ok(claims)
    }

    /// One transaction, tried again while the database only says that others are in the way.
    async fn commit(
        &self,
        batch: &mut [Received],
        operator: Option<&Operator>,
    ) -> Result<Vec<Claim>, StoreError> {
        let mut backoff = Backoff::new(BUSY_BACKOFF_MIN, BUSY_BACKOFF_MAX);
        for _ in 1..BUSY_MAX {
            match self.attempt(batch, operator).await {
                Err(StoreError::Database(err)) if matches!(classify(&err), Fault::Busy) => {
                    tracing::debug!(error = %err, "inbox is busy, trying again");
                    tokio::time::sleep(backoff.next()).await;
                }
                outcome => return outcome,
            }
        }
        self.attempt(batch, operator).await
    }

    async fn attempt(
        &self,
        batch: &mut [Received],
        operator: Option<&Operator>,
    ) -> Result<Vec<Claim>, StoreError> {
        let attempt = tokio::time::timeout(TRANSACTION_TIMEOUT, self.transaction(batch, operator));
        match attempt.await {
            Ok(Ok(claims)) => Ok(claims),
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
        operator: Option<&Operator>,
    ) -> Result<Vec<Claim>, sqlx::Error> {
        let mut connection = self.database.pool().acquire().await?;
        let outcome = async {
            let mut tx = connection.begin().await?;
            let claims = claim(&mut tx, batch).await?;
            if let (Some(operator), [received]) = (operator, &*batch) {
                audit(&mut tx, operator, received).await?;
            }
            tx.commit().await?;
            Ok(claims)
        }
        .await;
        if let Err(err) = &outcome {
            retire_if_read_only(&mut connection, err);
        }
        outcome
    }

    fn count(&self, batch: &[Received], claims: &[Claim]) {
        self.metrics.received.inc_by(claims.len() as u64);
        let mut work = false;
        for (received, claim) in batch.iter().zip(claims) {
            let class = match (claim, &received.problem) {
                (Claim::Duplicate, _) => {
                    self.metrics.duplicates.inc();
                    continue;
                }
                (Claim::First, None) => {
                    work = true;
                    continue;
                }
                (Claim::First, Some(problem)) => problem.class(),
                (Claim::Conflict, _) => "id_conflict",
            };
            self.metrics.failed.with_label_values(&[class]).inc();
            let id = received.message_id.as_str();
            tracing::warn!(message_id = id, class, "message stored and parked");
        }
        if work {
            self.work.notify_one();
        }
    }
}

/// Claims the batch, cutting down what the server would not take as it is.
async fn claim(
    tx: &mut Transaction<'_, MySql>,
    batch: &mut [Received],
) -> Result<Vec<Claim>, sqlx::Error> {
    loop {
        match inbox::claim_all(tx, batch).await {
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
