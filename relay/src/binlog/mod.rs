//! The binlog: connect, stream, group, decode.

pub mod connect;
pub mod decode;
mod event;
pub mod group;
pub mod open;
pub mod position;
mod statement;
pub mod stream;
