//! The binlog: connect, stream, group, decode.

pub mod connect;
pub mod decode;
mod event;
pub mod group;
pub mod position;
mod statement;
pub mod stream;
