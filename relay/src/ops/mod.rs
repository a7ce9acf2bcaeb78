//! What an operator asks the relay.

pub mod audit;
pub mod check;
mod operator;
pub mod pause;
pub mod preflight;
mod progress;
#[cfg(feature = "mysql-cdc")]
mod reader;
pub mod replay;
pub mod status;
mod times;
