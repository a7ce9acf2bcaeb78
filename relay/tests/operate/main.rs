//! What operators do with a relay and see of it, on real servers.
#![expect(
    clippy::unwrap_used,
    reason = "clippy exempts test functions alone, and the helpers beside them are tests as well"
)]

mod audit;
mod hands;
mod parked;
mod pause;
mod readiness;
mod replay;
mod rounds;
mod shutdown;
mod status;
mod systemd;
