//! What happens to the broker and to its routes while the relay works: killed, stopped, cut off,
//! blocked, full, gone, forbidden, silent; and TLS.
#![expect(
    clippy::unwrap_used,
    reason = "clippy exempts test functions alone, and the helpers beside them are tests as well"
)]

mod world;

mod away;
mod canary;
mod limits;
mod refused;
mod short_of_memory;
mod shut;
mod slow;
mod tls;
mod truth;
