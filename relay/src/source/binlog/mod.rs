//! The binlog: which rows have been added.

#[cfg(feature = "mysql-cdc")]
mod cdc;
pub mod commit_clock;
pub mod connection;
mod event;
pub mod library;
pub mod position;
pub mod reader_task;
pub mod row_decoder;
mod statement;
pub mod transaction;
