//! What every service of this project needs around its own work.
//!
//! In the order a service meets them: [`boot`] and [`settings`] before the runtime starts,
//! [`telemetry`], [`signals`], [`systemd`] and [`tasks`] while it runs, [`database`], [`migrate`],
//! [`retention`] and `amqp` for the two servers it talks to, [`backoff`] when they do not answer, [`admin`] and [`http`] for
//! their callers.

pub mod boot;
pub mod settings;

pub mod telemetry;
pub mod trace;

pub mod signals;
pub mod systemd;
pub mod tasks;

#[cfg(feature = "amqp")]
pub mod amqp;
pub mod backoff;
pub mod database;
pub mod migrate;
pub mod retention;

pub mod admin;
pub mod http;
pub mod operators;
