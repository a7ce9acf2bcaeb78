//! The binlog: reader, connect, stream, group, decode.

#[cfg(feature = "mysql-cdc")]
mod cdc;
pub mod connect;
pub mod decode;
mod event;
pub mod group;
mod images;
mod json;
pub mod open;
pub mod position;
pub mod reader;
mod statement;
pub mod stream;
