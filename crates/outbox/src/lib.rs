//! Transactional outbox and inbox on MySQL and MariaDB.
//!
//! A service that changes its database and then publishes a message can die between the two. Here it
//! writes the message as a row, in the transaction of the change; a relay publishes the row and marks
//! it. The relay may publish twice, never not at all; the consumer's inbox drops the second.
//!
//! ```no_run
//! use outbox::{Claim, Event, Received};
//! use sqlx::{MySqlPool, query};
//!
//! // The producer: the order and its event, both or neither.
//! async fn place_order(pool: &MySqlPool, id: &str) -> Result<(), Box<dyn std::error::Error>> {
//!     let mut tx = pool.begin().await?;
//!     query("INSERT INTO orders (order_id) VALUES (?)").bind(id).execute(&mut *tx).await?;
//!     let body = format!(r#"{{"order_id":"{id}"}}"#);
//!     let placed = Event::new("order", id, "order.placed.v1", "order.pay", body);
//!     outbox::event::write(&mut tx, &placed).await?;
//!     Ok(tx.commit().await?)
//! }
//!
//! // The consumer: acknowledge the delivery once this has returned.
//! async fn store(pool: &MySqlPool, message: &Received) -> Result<(), Box<dyn std::error::Error>> {
//!     let mut tx = pool.begin().await?;
//!     match outbox::inbox::claim(&mut tx, message).await? {
//!         Claim::First => { /* do the work here, or later from the row */ }
//!         Claim::Duplicate | Claim::Conflict => { /* nothing to do: it is counted or parked */ }
//!     }
//!     Ok(tx.commit().await?)
//! }
//! ```
//!
//! The table itself is the interface: a program in any language writes an event with a plain
//! `INSERT` of `message_id`, `aggregate_type`, `aggregate_id`, `event_type`, `routing_key` and
//! `payload`. [`migrations()`] has the tables.

pub mod event;
pub mod inbox;
pub mod message;
mod migrations;
pub mod row;
pub mod statement;

pub use event::{Event, WriteError};
pub use inbox::Claim;
pub use message::{MessageId, Problem, Received};
pub use migrations::{InvalidTableName, migrations, migrations_for};
pub use row::Row;
