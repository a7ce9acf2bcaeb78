//! What an operator asks the relay.

pub mod check;
pub mod pause;
pub mod preflight;
