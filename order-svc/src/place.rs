//! Placing an order: the order, its event and its idempotency key, all or nothing.

use std::time::Duration;

use outbox::event::{self, Event, WriteError};
use outbox::row::OutboxStatus;
use sqlx::{Connection as _, FromRow, MySql, MySqlPool, Transaction};
use svc_kit::backoff::Backoff;
use svc_kit::database::{Fault, classify};
use time::OffsetDateTime;
use uuid::Uuid;

use crate::idempotency::{self, Claim, IdempotencyKey};
use crate::order::Order;
use crate::request::OrderRequest;

/// What an order is to the outbox: with its id, the ordering key.
const AGGREGATE_TYPE: &str = "order";
/// The type of the event.
pub const EVENT_TYPE: &str = "order.placed.v1";
/// Where its consumers listen.
pub const ROUTING_KEY: &str = "order.pay";

/// Deadlocks in a row after which the database counts as overloaded.
const BUSY_MAX: u32 = 6;
const BUSY_BACKOFF_MIN: Duration = Duration::from_millis(2);
const BUSY_BACKOFF_MAX: Duration = Duration::from_millis(100);

/// How a request was answered. The texts are the body of the 201.
#[derive(Debug, PartialEq, Eq)]
pub enum Placed {
    /// The order is committed.
    New(String),
    /// The same request was answered with this before; nothing was placed.
    Again(String),
    /// The idempotency key belongs to another request; nothing was placed.
    KeyReused,
}

/// Nothing was placed, as far as is known.
#[derive(Debug, thiserror::Error)]
pub enum PlaceError {
    /// The database's; after a lost connection the order may have been placed.
    #[error("the order could not be written")]
    Database(#[from] sqlx::Error),
    /// The event can't be a row, which is a mistake of this program.
    #[error("the event could not be written")]
    Event(#[source] WriteError),
}

impl From<WriteError> for PlaceError {
    fn from(err: WriteError) -> Self {
        match err {
            WriteError::Database(err) => Self::Database(err),
            WriteError::Invalid { .. } => Self::Event(err),
        }
    }
}

/// Places an order in a transaction of its own, again while the database only says that others are
/// in the way. To be run in a task of its own: a client that goes away must not leave half of it.
///
/// # Errors
/// [`PlaceError`].
pub async fn place(
    pool: &MySqlPool,
    order: &Order,
    key: Option<&IdempotencyKey>,
) -> Result<Placed, PlaceError> {
    let mut backoff = Backoff::new(BUSY_BACKOFF_MIN, BUSY_BACKOFF_MAX);
    for _ in 1..BUSY_MAX {
        match attempt(pool, order, key).await {
            Err(PlaceError::Database(err)) if matches!(classify(&err), Fault::Busy) => {
                tracing::debug!(error = %err, "orders are busy, trying again");
                tokio::time::sleep(backoff.next()).await;
            }
            outcome => return outcome,
        }
    }
    attempt(pool, order, key).await
}

async fn attempt(
    pool: &MySqlPool,
    order: &Order,
    key: Option<&IdempotencyKey>,
) -> Result<Placed, PlaceError> {
    let mut connection = pool.acquire().await?;
    let outcome = async {
        let mut tx = connection.begin().await?;
        let placed = write(&mut tx, order, key).await?;
        match placed {
            Placed::New(_) => tx.commit().await?,
            Placed::Again(_) | Placed::KeyReused => tx.rollback().await?,
        }
        Ok(placed)
    }
    .await;
    if let Err(PlaceError::Database(err)) = &outcome
        && matches!(classify(err), Fault::ReadOnly)
    {
        // A demoted primary: the next connection resolves the name again.
        connection.close_on_drop();
    }
    outcome
}

/// Writes an order, its event and its key in the caller's transaction, which must be committed when
/// this returns [`Placed::New`].
///
/// # Errors
/// [`PlaceError`]; the transaction must be rolled back.
pub async fn write(
    tx: &mut Transaction<'_, MySql>,
    order: &Order,
    key: Option<&IdempotencyKey>,
) -> Result<Placed, PlaceError> {
    let receipt = order.receipt();
    // The key first: whoever holds it makes the others wait before they have written anything.
    if let Some(key) = key {
        match idempotency::claim(tx, key, &order.request.digest(), &receipt).await? {
            Claim::First => {}
            Claim::Answered(receipt) => return Ok(Placed::Again(receipt)),
            Claim::Reused => return Ok(Placed::KeyReused),
        }
    }
    insert(tx, order).await?;
    let aggregate_id = order.order_id.to_string();
    let event = Event::new(
        AGGREGATE_TYPE,
        aggregate_id,
        EVENT_TYPE,
        ROUTING_KEY,
        order.payload(),
    )
    .message_id(order.message_id());
    event::write(tx, &event).await?;
    Ok(Placed::New(receipt))
}

async fn insert(tx: &mut Transaction<'_, MySql>, order: &Order) -> Result<(), sqlx::Error> {
    sqlx::query(
        "INSERT INTO orders (order_id, customer_id, amount_minor, currency, description, created_at) \
         VALUES (?, ?, ?, ?, ?, ?)",
    )
    .bind(order.order_id.to_string())
    .bind(&order.request.customer_id)
    .bind(order.request.amount_minor)
    .bind(&order.request.currency)
    .bind(&order.request.description)
    .bind(order.placed_at)
    .execute(&mut **tx)
    .await?;
    Ok(())
}

/// An order in the table, and how far its event has come.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// The order.
    pub order: Order,
    /// How far its event has come.
    pub delivery: OutboxStatus,
}

#[derive(FromRow)]
struct Row {
    customer_id: String,
    amount_minor: i64,
    currency: String,
    description: Option<String>,
    created_at: OffsetDateTime,
    status: Option<u8>,
}

/// Looks an order up.
///
/// # Errors
/// The database's.
pub async fn find(pool: &MySqlPool, order_id: Uuid) -> Result<Option<Found>, sqlx::Error> {
    let row: Option<Row> = sqlx::query_as(
        "SELECT o.customer_id, o.amount_minor, o.currency, o.description, o.created_at, e.status \
         FROM orders o LEFT JOIN outbox e ON e.message_id = o.order_id WHERE o.order_id = ?",
    )
    .bind(order_id.to_string())
    .fetch_optional(pool)
    .await?;
    let Some(row) = row else { return Ok(None) };
    let request = OrderRequest {
        customer_id: row.customer_id,
        amount_minor: row.amount_minor,
        currency: row.currency,
        description: row.description,
    };
    let delivery = match row.status {
        Some(code) => {
            OutboxStatus::try_from(code).map_err(|err| sqlx::Error::Decode(err.into()))?
        }
        // Clean-up takes rows only after they were sent.
        None => OutboxStatus::Sent,
    };
    Ok(Some(Found {
        order: Order::new(order_id, row.created_at, request),
        delivery,
    }))
}
