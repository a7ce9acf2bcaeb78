//! pay-svc: takes each message into an inbox, drops duplicates, pays, retries on a schedule, parks
//! what keeps failing.
//!
//! In the order a message meets them: [`consumer`] (on the [`topology`] it needs) or [`http`] hand
//! it to the [`store`], which commits it before anything is acknowledged; a [`worker`] takes it with
//! a [`claim`], reads it as a [`payment`], calls the [`provider`] and [`settle`]s; what fails is
//! tried again as [`schedule`] decides. When it is long done it is [`prune`]d. [`service`] puts them together.

pub mod config;
pub mod service;

pub mod consumer;
pub mod topology;
mod trace;

pub mod store;

pub mod claim;
pub mod ignore;
pub mod payment;
pub mod provider;
pub mod schedule;
pub mod settle;
pub mod worker;

pub mod prune;
pub mod refusals;
pub mod retention;

pub mod http;
pub mod openapi;

pub mod database;
pub mod gauges;
pub mod metrics;

pub use service::{Service, build, build_with};

use svc_kit::migrate::Set;

/// The migrations this service applies.
#[must_use]
pub fn migrations() -> Vec<Set> {
    vec![Set::new(
        "payments",
        sqlx::migrate!("../migrations/payments"),
    )]
}
