//! The second reader against the first, over the binlogs of real servers.
#![expect(
    clippy::unwrap_used,
    reason = "clippy exempts test functions alone, and the helpers beside them are tests as well"
)]

mod differential;
mod limits;
mod reading;
mod smoke;
mod workload;
