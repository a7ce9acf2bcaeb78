//! What happens to the database while the relay works: killed, stalled, read-only, replaced, its
//! binlog gone, reset or hiding rows, its clock set, its certificates wrong, a table beside the outbox
//! damaged; and two relays on one of it.

mod pair;
mod world;

mod clocks;
mod companions;
mod connections;
mod dump;
mod failover;
mod faults;
mod hidden;
mod read_only;
mod reset;
mod stall;
mod takeover;
mod tls;
