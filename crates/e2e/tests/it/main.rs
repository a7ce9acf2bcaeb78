//! The throwaway servers themselves: they start, answer, keep data over a crash, and are gone when
//! their owner is, however it ends.

#![expect(
    clippy::unwrap_used,
    reason = "clippy exempts test functions alone, and the helpers beside them are tests as well"
)]

mod database;
mod defaults;
mod demo;
mod deploy;
mod examples;
mod hostile;
mod idle;
mod imports;
mod observe;
mod owner;
mod product;
mod proxy;
mod rabbit;
mod readme;
mod replay;
mod secrets;
mod system;
mod wait;
