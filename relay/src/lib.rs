//! The relay: tails the binlog, publishes each new outbox row to RabbitMQ with publisher confirms,
//! and marks it sent.
//!
//! The rooms in the order of the data path; ARCHITECTURE.md describes the whole.

pub mod config;
pub mod supervisor;

pub mod leadership;
pub mod pause;
pub mod source;

pub mod publish;
pub mod writeback;

pub mod observe;

pub mod cleanup;
pub mod in_list;
pub mod ops;

pub mod intake;
mod jam;
pub mod outflow;
mod room;
pub mod session;
mod told;
pub mod wires;

pub mod answers;
pub mod dispatch;
pub mod effects;
pub mod fault;
pub mod hashed;
pub mod held;
pub mod pass;
pub mod queue;
pub mod route;
pub mod schedule;
pub mod settle;
pub mod shut;

#[cfg(test)]
mod model;
