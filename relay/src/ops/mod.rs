//! What an operator asks the relay.

pub mod check;
pub mod pause;
pub mod preflight;
#[cfg(feature = "mysql-cdc")]
mod reader;
pub mod status;
