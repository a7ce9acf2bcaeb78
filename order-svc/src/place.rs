//! Placing orders: each with its event and its idempotency key, all or nothing.

use outbox::event::{self, Event, WriteError};
use outbox::row::OutboxStatus;
use outbox::statement::placeholders;
use sqlx::mysql::MySqlDatabaseError;
use sqlx::{AssertSqlSafe, FromRow, MySql, MySqlPool, Transaction};
use svc_kit::database::{Fault, classify, is_answer};
use time::OffsetDateTime;
use uuid::Uuid;

use crate::batch::{self, Placed, Wanted};
use crate::idempotency::{self, Key};
use crate::order::Order;
use crate::request::OrderRequest;
use crate::statement;

/// What an order is to the outbox: with its id, the ordering key.
const AGGREGATE_TYPE: &str = "order";
/// The type of the event.
pub const EVENT_TYPE: &str = "order.placed.v1";
/// Where its consumers listen.
pub const ROUTING_KEY: &str = "order.pay";

/// A row lock was not had in time.
const LOCK_WAIT_TIMEOUT: u16 = 1205;
/// A batch took too long or was killed (`ER_QUERY_INTERRUPTED`, MariaDB's `ER_STATEMENT_TIMEOUT`,
/// `ER_QUERY_TIMEOUT`), or a trigger refused one of it (`ER_SIGNAL_EXCEPTION`).
const OF_A_STATEMENT: [u16; 4] = [1317, 1644, 1969, 3024];
/// A foreign key or a CHECK that somebody has added: it refuses this order and may take the others.
const CONSTRAINTS: [u16; 4] = [1216, 1452, 3819, 4025];

/// Nothing was placed, as far as is known.
#[derive(Debug, thiserror::Error)]
pub enum PlaceError {
    /// The database's, before the commit: nothing was placed.
    #[error("the order could not be written")]
    Database(#[from] sqlx::Error),
    /// The commit failed or gave no answer: the order may have been placed, so nothing is tried again.
    #[error("whether the order was committed is not known")]
    Unknown(#[source] sqlx::Error),
    /// The table of idempotency keys can't be used; the database answers: nothing was placed, and
    /// orders without a key may be.
    #[error("the idempotency keys could not be taken")]
    Keys(#[source] sqlx::Error),
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

impl PlaceError {
    /// Of the keys, unless it is what may be said of any statement: a batch that took too long, values,
    /// locks.
    fn of_keys(err: sqlx::Error) -> Self {
        let is_read_only = classify(&err) == Fault::ReadOnly;
        // IGNORE skips a row that a constraint refuses: then it is not there.
        let is_answer = is_answer(&err) || matches!(err, sqlx::Error::RowNotFound);
        match is_answer && !is_read_only && !is_of_statement(&err) {
            true => Self::Keys(err),
            false => Self::Database(err),
        }
    }

    /// Whether the neighbours of the order at fault might be placed without it. A server that is full or
    /// lacks a table refuses all alike: one statement for each would only add to its trouble.
    #[must_use]
    pub fn may_be_one_orders(&self) -> bool {
        match self {
            Self::Event(_) => true,
            Self::Database(err) => is_of_statement(err) || is_constraint(err),
            Self::Unknown(_) | Self::Keys(_) => false,
        }
    }

    /// The database never takes this order.
    #[must_use]
    pub fn is_refusal(&self) -> bool {
        match self {
            Self::Event(_) => true,
            Self::Database(err) => classify(err) == Fault::Data || is_constraint(err),
            Self::Unknown(_) | Self::Keys(_) => false,
        }
    }

    /// All of it is rolled back, and the other side is through by now: trying again helps. After a
    /// lock that was not had in time it would only take as long once more.
    #[must_use]
    pub fn is_deadlock(&self) -> bool {
        let Self::Database(err) = self else {
            return false;
        };
        classify(err) == Fault::Busy && number(err) != Some(LOCK_WAIT_TIMEOUT)
    }

    /// Somebody holds the key, and goes on holding it: whoever requests the same key would wait as long.
    #[must_use]
    pub fn is_lock_wait(&self) -> bool {
        matches!(self, Self::Database(err) if number(err) == Some(LOCK_WAIT_TIMEOUT))
    }

    /// The connection is gone, or leads to a demoted primary: the next one resolves the name again.
    #[must_use]
    pub fn must_reconnect(&self) -> bool {
        match self {
            Self::Event(_) => false,
            Self::Database(err) | Self::Keys(err) => {
                matches!(classify(err), Fault::Unavailable | Fault::ReadOnly)
            }
            Self::Unknown(_) => true,
        }
    }
}

/// What the database says of a batch and may not say of the orders one by one.
fn is_of_statement(err: &sqlx::Error) -> bool {
    let is_listed = number(err).is_some_and(|number| OF_A_STATEMENT.contains(&number));
    is_listed || matches!(classify(err), Fault::Data | Fault::Busy)
}

fn is_constraint(err: &sqlx::Error) -> bool {
    number(err).is_some_and(|number| CONSTRAINTS.contains(&number))
}

fn number(err: &sqlx::Error) -> Option<u16> {
    let err = err.as_database_error()?;
    Some(err.try_downcast_ref::<MySqlDatabaseError>()?.number())
}

/// Writes orders, their events and their keys in the caller's transaction, which must then be
/// committed. No two may have one key. The outcomes are in the order of `wanted`.
///
/// # Errors
/// [`PlaceError`]; the transaction must be rolled back.
pub async fn write(
    tx: &mut Transaction<'_, MySql>,
    wanted: &[&Wanted],
) -> Result<Vec<Placed>, PlaceError> {
    let mut placed: Vec<Option<Placed>> = vec![None; wanted.len()];
    let mut new = Vec::with_capacity(wanted.len());
    let order = batch::by_key(wanted);
    // The keys first: whoever holds one makes the others wait before they have written anything.
    let claim = |&index: &usize| {
        let Wanted { key, receipt, .. } = wanted[index];
        Some((key.as_ref()?, receipt.as_str()))
    };
    let claims: Vec<(&Key, &str)> = order.iter().filter_map(claim).collect();
    let known = idempotency::claim(tx, &claims).await;
    let known = known.map_err(PlaceError::of_keys)?;
    for index in order {
        let key = wanted[index].key.as_ref();
        let answer = key.and_then(|key| Some(batch::from_known(key, known.get(&key.key)?)));
        if answer.is_none() {
            new.push(wanted[index]);
        }
        placed[index] = answer;
    }
    insert(tx, &new).await?;
    let events: Vec<Event> = new.iter().map(|wanted| event(wanted)).collect();
    for range in statement::ranges(events.len()) {
        event::write_all(tx, &events[range]).await?;
    }
    let of = |(placed, wanted): (Option<Placed>, &&Wanted)| {
        placed.unwrap_or_else(|| Placed::New(wanted.receipt.clone()))
    };
    Ok(placed.into_iter().zip(wanted).map(of).collect())
}

fn event(Wanted { order, trace, .. }: &Wanted) -> Event {
    let aggregate_id = order.order_id.to_string();
    let event = Event::new(
        AGGREGATE_TYPE,
        aggregate_id,
        EVENT_TYPE,
        ROUTING_KEY,
        order.payload(),
    );
    trace.on(event.message_id(order.message_id()))
}

async fn insert(tx: &mut Transaction<'_, MySql>, new: &[&Wanted]) -> Result<(), sqlx::Error> {
    for range in statement::ranges(new.len()) {
        let sql = format!(
            "INSERT INTO orders (order_id, customer_id, amount_minor, currency, description, \
             created_at) VALUES {}",
            placeholders(range.len(), "(?, ?, ?, ?, ?, ?)")
        );
        let mut query = sqlx::query(AssertSqlSafe(sql));
        for Wanted { order, .. } in &new[range] {
            query = query
                .bind(order.order_id.to_string())
                .bind(&order.request.customer_id)
                .bind(order.request.amount_minor)
                .bind(&order.request.currency)
                .bind(&order.request.description)
                .bind(order.placed_at);
        }
        query.execute(&mut **tx).await?;
    }
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
