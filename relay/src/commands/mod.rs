//! The commands of the program besides `run`.

pub mod audit;
pub mod check;
pub mod condition;
mod definition;
mod operator;
pub mod pause;
pub mod preflight;
mod progress;
#[cfg(feature = "mysql-cdc")]
mod reader;
pub mod replay;
mod rights;
pub mod status;
mod times;
