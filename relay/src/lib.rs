//! The relay: reads in the binlog which outbox rows are new, publishes each to RabbitMQ with publisher
//! confirms, and marks it sent.
//!
//! The rooms in the order of the data path; ARCHITECTURE.md describes the whole.

pub mod config;
pub mod database;
pub mod outbox_table;
pub mod supervisor;

pub mod leadership;
pub mod pause;
pub mod session;

pub mod source;

pub mod engine;
pub mod hash;

pub mod publish;
pub mod writeback;

pub mod observe;

pub mod cleanup;
pub mod commands;
