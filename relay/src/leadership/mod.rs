//! Which relay is active, and on which server.

pub mod lock;
pub mod server_clock;
pub mod server_identity;
