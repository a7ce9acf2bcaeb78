//! The relay against real MySQL, MariaDB and RabbitMQ. Each room has a topic; `load` beside this
//! binary has what takes all of the machine, and `reader` what needs the second binlog reader.
#![expect(
    clippy::unwrap_used,
    reason = "clippy exempts test functions alone, and the helpers beside them are tests as well"
)]

mod broker;
mod database;
mod decoder;
mod operate;
mod path;
mod start;
mod tasks;
