//! What happens to the broker and to its routes while the relay works: killed, stopped, cut off,
//! blocked, full, gone, forbidden, silent; and TLS.

mod world;

mod away;
mod canary;
mod closed_routes;
mod limits;
mod refused;
mod short_of_memory;
mod slow;
mod tls;
mod truth;
