//! What an operator asks the relay.

pub mod check;
