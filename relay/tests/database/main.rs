//! What happens to the database while the relay works: killed, stalled, read-only, replaced, its
//! binlog gone or hiding rows, its clock set, its certificates wrong; and two relays on one of it.
#![expect(
    clippy::unwrap_used,
    reason = "clippy exempts test functions alone, and the helpers beside them are tests as well"
)]

mod pair;
mod world;

mod clocks;
mod connections;
mod dump;
mod failover;
mod hidden;
mod read_only;
mod stall;
mod takeover;
mod tls;
