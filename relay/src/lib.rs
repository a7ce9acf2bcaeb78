//! The relay: tails the binlog, publishes each new outbox row to RabbitMQ with publisher confirms,
//! and marks it sent.
//!
//! The modules in the order of the data path; ARCHITECTURE.md tells the whole.

use outbox::statement as in_list;

pub mod config;
mod connect;
pub mod lease;
pub mod relay;
pub mod server;

pub mod intake;
mod jam;
pub mod outflow;
mod room;
pub mod session;
mod told;
pub mod wires;

pub mod binlog;
pub mod pass;
pub mod pauses;
pub mod table;
pub mod tail;

pub mod answers;
pub mod dispatch;
pub mod effects;
pub mod fault;
pub mod hashed;
pub mod held;
pub mod queue;
pub mod route;
pub mod schedule;
pub mod shut;

pub mod broker;
pub mod lane;
pub mod mark;
pub mod publish;
pub mod settle;
pub mod trace;

#[cfg(test)]
mod model;

pub mod canary;
pub mod cleanup;
pub mod commands;
pub mod gauges;
pub mod metrics;
