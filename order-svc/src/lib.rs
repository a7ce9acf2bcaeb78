//! order-svc: takes orders over HTTP; one transaction writes the order and its event.
//!
//! In the order they meet it: [`http`] takes a [`request`] for an [`order`], [`commit`] gathers those that
//! come at once in a [`batch`], [`place`] writes them with their events and [`idempotency`] keys. What
//! carries the events on is not known here.
//! [`service`] puts them together.

pub mod config;
pub mod service;

pub mod http;
pub mod openapi;

pub mod request;
pub mod trace;

pub mod order;
pub mod statement;

pub mod batch;
pub mod commit;
pub mod idempotency;
pub mod place;

pub mod metrics;
pub mod probe;
pub mod prune;

pub use service::{Service, build};

use svc_kit::migrate::Set;

/// The migrations this service applies: its own, and those of the outbox in its database.
#[must_use]
pub fn migrations() -> Vec<Set> {
    vec![
        Set::new("outbox", outbox::migrations()),
        Set::new("orders", sqlx::migrate!("../migrations/orders")),
    ]
}
