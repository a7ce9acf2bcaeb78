//! Writing what became of claimed messages: the payments and the inbox rows, in one transaction.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use ops::table::Key;
use ops::{Table, bulk};
use outbox::row::InboxStatus;
use outbox::statement::placeholders;
use sqlx::{AssertSqlSafe, Connection as _, MySql, MySqlPool, Transaction};
use uuid::Uuid;

use crate::claim::{Due, Lease};
use crate::database::retire_if_read_only;
use crate::payment::PlacedOrder;
use crate::provider::Receipt;
use crate::refusals::Record;
use crate::schedule::{Class, Decision};

/// Longest `last_error`, in characters.
const ERROR_MAX: usize = 1000;

/// A claimed message and what became of it.
#[derive(Debug, Clone)]
pub struct Settlement {
    /// The row.
    pub due: Due,
    /// What to write.
    pub verdict: Verdict,
}

impl Settlement {
    /// A bulk it is of is stopped.
    #[must_use]
    pub fn has_failed(&self) -> bool {
        matches!(self.verdict, Verdict::Failed { .. })
    }

    /// What is recorded of it.
    #[must_use]
    pub fn record(&self) -> Record {
        if self.has_failed() {
            Record::Failure
        } else {
            Record::Payment
        }
    }
}

/// What became of a message.
#[derive(Debug, Clone)]
pub enum Verdict {
    /// The provider answered.
    Charged {
        /// What was charged.
        order: PlacedOrder,
        /// The answer.
        receipt: Receipt,
    },
    /// The order has a payment already; there was nothing to do.
    AlreadyPaid,
    /// Its type is not this service's business.
    Ignored,
    /// It failed.
    Failed {
        /// How.
        class: Class,
        /// The operator's text.
        text: String,
        /// What follows.
        decision: Decision,
    },
}

/// What was written for a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Written {
    /// Status 2, with this outcome.
    Processed(&'static str),
    /// Still status 1, due later.
    Retry,
    /// Status 3.
    Parked,
    /// Nothing: the lease had ended, the row is somebody else's by now.
    Lost,
}

/// The outcome of a message whose order had been paid by another message.
pub const ALREADY_PAID: &str = "already_paid";
/// The outcome of a message of a type in `PAY_IGNORE_TYPES`.
pub const IGNORED: &str = "ignored";

/// Why nothing was written, as far as is known.
#[derive(Debug, thiserror::Error)]
pub enum SettleError {
    /// The database's.
    #[error(transparent)]
    Database(#[from] sqlx::Error),
    /// The insert stood back for another payment than the order's: it would forget a charge.
    #[error("the payment of order {0} was not inserted: its message has paid another order")]
    Taken(Uuid),
}

/// Writes all settlements in one transaction, each only while its lease holds. The answers are in
/// the order of the settlements.
///
/// # Errors
/// [`SettleError`].
pub async fn settle(
    pool: &MySqlPool,
    lease: &Lease,
    settlements: &[Settlement],
) -> Result<Vec<Written>, SettleError> {
    let mut connection = pool.acquire().await?;
    let outcome = async {
        let mut tx = connection.begin().await?;
        // Before the rows, as everybody does.
        let bulks = active_bulks(&mut tx, settlements).await?;
        let held = lock_held(&mut tx, lease, settlements).await?;
        let mine: Vec<&Settlement> = settlements
            .iter()
            .filter(|s| held.contains(&s.due.message_id))
            .collect();
        let paid = write_payments(&mut tx, &mine).await?;
        let written: HashMap<&[u8], Written> = mine
            .iter()
            .map(|s| (s.due.message_id.as_slice(), written(s, &paid)))
            .collect();
        mark_processed(&mut tx, &written).await?;
        if let Some(why) = write_failures(&mut tx, &mine).await? {
            for bulk in bulks {
                bulk::stop(&mut tx, &Table::Inbox, bulk, ("pay-svc", &why)).await?;
            }
        }
        tx.commit().await?;
        let of = |s: &Settlement| written.get(s.due.message_id.as_slice()).copied();
        Ok(settlements
            .iter()
            .map(|s| of(s).unwrap_or(Written::Lost))
            .collect())
    }
    .await;
    if let Err(SettleError::Database(err)) = &outcome {
        retire_if_read_only(&mut connection, err);
    }
    outcome
}

/// Lets rows wait whose outcome the database refuses to record, each for its time: nothing is spent,
/// and what is known of them is found out again.
///
/// # Errors
/// The database's: then they wait for the end of their lease.
pub async fn put_off(
    pool: &MySqlPool,
    lease: &Lease,
    rows: &[(&Due, Duration)],
    why: &str,
) -> Result<(), sqlx::Error> {
    let text: String = format!("not recorded: {why}")
        .chars()
        .take(ERROR_MAX)
        .collect();
    let mut connection = pool.acquire().await?;
    let outcome = async {
        let mut tx = connection.begin().await?;
        for (due, wait) in rows {
            sqlx::query(
                "UPDATE inbox SET last_error = ?, \
                 next_attempt_at = UTC_TIMESTAMP(6) + INTERVAL ? MICROSECOND \
                 WHERE message_id = ? AND status = ? AND next_attempt_at = ?",
            )
            .bind(&text)
            .bind(i64::try_from(wait.as_micros()).unwrap_or(i64::MAX))
            .bind(&due.message_id)
            .bind(InboxStatus::Received.code())
            .bind(lease.until)
            .execute(&mut *tx)
            .await?;
        }
        tx.commit().await
    }
    .await;
    if let Err(err) = &outcome {
        retire_if_read_only(&mut connection, err);
    }
    outcome
}

/// A payment that is in the table.
#[derive(Debug, Clone, sqlx::FromRow)]
pub struct Paid {
    /// The order it pays.
    pub order_id: String,
    /// The message it was paid for.
    pub message_id: Vec<u8>,
}

/// The payments of these orders, as far as there are any.
///
/// # Errors
/// The database's.
pub async fn paid<'e>(
    executor: impl sqlx::Executor<'e, Database = MySql>,
    orders: &[Uuid],
) -> Result<HashMap<String, Paid>, sqlx::Error> {
    if orders.is_empty() {
        return Ok(HashMap::new());
    }
    let sql = format!(
        "SELECT order_id, message_id FROM payments WHERE order_id IN ({})",
        placeholders(orders.len(), "?")
    );
    let mut query = sqlx::query_as(AssertSqlSafe(sql));
    for order in orders {
        query = query.bind(order.to_string());
    }
    let rows: Vec<Paid> = query.fetch_all(executor).await?;
    Ok(rows
        .into_iter()
        .map(|row| (row.order_id.clone(), row))
        .collect())
}

/// Locks the rows whose lease still is the one they were claimed with.
async fn lock_held(
    tx: &mut Transaction<'_, MySql>,
    lease: &Lease,
    settlements: &[Settlement],
) -> Result<HashSet<Vec<u8>>, sqlx::Error> {
    let sql = format!(
        "SELECT message_id FROM inbox FORCE INDEX (PRIMARY) WHERE message_id IN ({}) \
         AND status = ? AND next_attempt_at = ? FOR UPDATE",
        placeholders(settlements.len(), "?")
    );
    let mut query = sqlx::query_scalar(AssertSqlSafe(sql));
    for settlement in settlements {
        query = query.bind(&settlement.due.message_id);
    }
    let ids: Vec<Vec<u8>> = query
        .bind(InboxStatus::Received.code())
        .bind(lease.until)
        .fetch_all(&mut **tx)
        .await?;
    Ok(ids.into_iter().collect())
}

/// Inserts the payments, leaving those that are there as they are; returns who paid what.
async fn write_payments(
    tx: &mut Transaction<'_, MySql>,
    settlements: &[&Settlement],
) -> Result<HashMap<String, Paid>, SettleError> {
    let charged: Vec<(&Due, &PlacedOrder, &Receipt)> = settlements
        .iter()
        .filter_map(|s| match &s.verdict {
            Verdict::Charged { order, receipt } => Some((&s.due, order, receipt)),
            Verdict::AlreadyPaid | Verdict::Ignored | Verdict::Failed { .. } => None,
        })
        .collect();
    if charged.is_empty() {
        return Ok(HashMap::new());
    }
    let rows = placeholders(charged.len(), "(?, ?, ?, ?, ?, ?, ?)");
    let sql = format!(
        "INSERT INTO payments (payment_id, order_id, message_id, amount_minor, currency, outcome, \
         provider_ref) VALUES {rows} ON DUPLICATE KEY UPDATE payment_id = payment_id"
    );
    let mut query = sqlx::query(AssertSqlSafe(sql));
    for (due, order, receipt) in &charged {
        query = query
            .bind(Uuid::now_v7().to_string())
            .bind(order.order_id.to_string())
            .bind(&due.message_id)
            .bind(order.amount_minor)
            .bind(&order.currency)
            .bind(receipt.outcome.name())
            .bind(&receipt.reference);
    }
    query.execute(&mut **tx).await?;
    let orders: Vec<Uuid> = charged.iter().map(|(_, order, _)| order.order_id).collect();
    let paid = paid(&mut **tx, &orders).await?;
    // The insert stands back for a payment of the same order, which is then found here. Should it
    // have stood back for anything else, a charge would be forgotten.
    match orders
        .iter()
        .find(|order| !paid.contains_key(&order.to_string()))
    {
        None => Ok(paid),
        Some(order) => Err(SettleError::Taken(*order)),
    }
}

fn written(settlement: &Settlement, paid: &HashMap<String, Paid>) -> Written {
    match &settlement.verdict {
        Verdict::AlreadyPaid => Written::Processed(ALREADY_PAID),
        Verdict::Ignored => Written::Processed(IGNORED),
        Verdict::Charged { order, receipt } => match paid.get(&order.order_id.to_string()) {
            Some(row) if row.message_id == settlement.due.message_id => {
                Written::Processed(receipt.outcome.name())
            }
            // Another message of the order was settled first; the provider took its money once.
            Some(_) | None => Written::Processed(ALREADY_PAID),
        },
        Verdict::Failed {
            decision: Decision::Retry { .. },
            ..
        } => Written::Retry,
        Verdict::Failed {
            decision: Decision::Park { .. },
            ..
        } => Written::Parked,
    }
}

async fn mark_processed(
    tx: &mut Transaction<'_, MySql>,
    written: &HashMap<&[u8], Written>,
) -> Result<(), sqlx::Error> {
    let mut processed: Vec<&[u8]> = written
        .iter()
        .filter(|(_, written)| matches!(written, Written::Processed(_)))
        .map(|(id, _)| *id)
        .collect();
    if processed.is_empty() {
        return Ok(());
    }
    processed.sort_unstable();
    let sql = format!(
        "UPDATE inbox SET status = ?, processed_at = UTC_TIMESTAMP(6), next_attempt_at = NULL, \
         last_error = NULL WHERE message_id IN ({})",
        placeholders(processed.len(), "?")
    );
    let mut query = sqlx::query(AssertSqlSafe(sql)).bind(InboxStatus::Processed.code());
    for id in processed {
        query = query.bind(id);
    }
    query.execute(&mut **tx).await?;
    Ok(())
}

/// Returns the first failure's text.
async fn write_failures(
    tx: &mut Transaction<'_, MySql>,
    settlements: &[&Settlement],
) -> Result<Option<String>, sqlx::Error> {
    let mut why: Option<String> = None;
    for settlement in settlements {
        let Verdict::Failed {
            class,
            text,
            decision,
        } = &settlement.verdict
        else {
            continue;
        };
        // The class first, as in the outbox: the console groups by it.
        let text = format!("{}: {text}", class.name());
        let text: String = text.chars().take(ERROR_MAX).collect();
        sqlx::query(
            "INSERT INTO inbox_attempts (message_id, attempt, class, error) VALUES (?, ?, ?, ?)",
        )
        .bind(&settlement.due.message_id)
        .bind(settlement.due.attempts.saturating_add(1))
        .bind(class.name())
        .bind(&text)
        .execute(&mut **tx)
        .await?;
        let (status, attempts, wait_micros) = match decision {
            Decision::Retry { attempts, after } => {
                let micros = i64::try_from(after.as_micros()).unwrap_or(i64::MAX);
                (InboxStatus::Received, *attempts, Some(micros))
            }
            Decision::Park { attempts } => (InboxStatus::Parked, *attempts, None),
        };
        // Without a wait the sum is NULL, which is what a parked row has.
        sqlx::query(
            "UPDATE inbox SET status = ?, attempts = ?, last_error = ?, \
             next_attempt_at = UTC_TIMESTAMP(6) + INTERVAL ? MICROSECOND WHERE message_id = ?",
        )
        .bind(status.code())
        .bind(attempts)
        .bind(&text)
        .bind(wait_micros)
        .bind(&settlement.due.message_id)
        .execute(&mut **tx)
        .await?;
        why.get_or_insert(text);
    }
    Ok(why)
}

/// The bulks to be stopped when these messages are recorded as failed.
async fn active_bulks(
    tx: &mut Transaction<'_, MySql>,
    settlements: &[Settlement],
) -> Result<Vec<u64>, sqlx::Error> {
    let failed: Vec<Key> = settlements
        .iter()
        .filter(|s| s.has_failed())
        .map(|s| Key::Message(s.due.message_id.clone()))
        .collect();
    match failed.is_empty() {
        true => Ok(Vec::new()),
        false => bulk::active(tx, &Table::Inbox, &failed).await,
    }
}
