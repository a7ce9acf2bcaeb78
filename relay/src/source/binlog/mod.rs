//! The binlog: connection, events, transactions.

#[cfg(feature = "mysql-cdc")]
mod cdc;
pub mod connection;
mod event;
mod images;
mod json;
pub mod library;
pub mod open_transaction;
pub mod position;
pub mod reader_task;
pub mod row_decoder;
mod statement;
pub mod tail;
pub mod transaction;
