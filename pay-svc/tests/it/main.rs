//! pay-svc against real databases and real brokers.
#![expect(
    clippy::unwrap_used,
    reason = "clippy exempts test functions alone, and the helpers beside them are tests as well"
)]

mod app;
mod bench;
mod messages;
mod provider;

mod broker_faults;
mod guesses;
mod handover;
mod http_provider;
mod instances;
mod intake;
mod intake_faults;
mod kills;
mod memory;
mod parked;
mod payments_api;
mod process;
mod provider_outage;
mod prune;
mod queues;
mod redelivery;
mod refused;
mod work;
mod work_faults;
