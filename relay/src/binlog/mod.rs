//! The binlog: connect, stream, group, decode.

pub mod connect;
pub mod decode;
pub mod group;
pub mod position;
pub mod stream;
