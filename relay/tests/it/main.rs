//! The relay against real MySQL, MariaDB and RabbitMQ.
#![expect(
    clippy::unwrap_used,
    reason = "clippy exempts test functions alone, and the helpers beside them are tests as well"
)]

mod batch;
mod companions;
mod config;
mod crash;
mod defects;
mod definitions;
mod faults;
mod image;
mod keys;
mod latency;
mod order;
mod path;
mod poison;
mod reset;
mod routes;
mod set_back;
mod strangers;
mod transactions;
