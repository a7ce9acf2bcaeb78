//! The engine and the simulator as `make mutants` builds them; each finds its paths as in its own crate.
#![allow(dead_code, reason = "the programs around them use the rest")]

extern crate self as outbox;
extern crate self as relay;

pub mod engine;
pub mod publish {
    pub mod confirms;
}
pub mod row;

#[cfg(all(test, feature = "second"))]
mod coverage;
#[cfg(all(test, feature = "second"))]
mod faults;
#[cfg(all(test, feature = "second"))]
mod queue;
#[cfg(all(test, feature = "second"))]
mod rng;
#[cfg(all(test, feature = "second"))]
mod run;
#[cfg(all(test, feature = "second"))]
mod scenario;
#[cfg(all(test, feature = "second"))]
mod seeds;
#[cfg(all(test, feature = "second"))]
mod trace;
#[cfg(all(test, feature = "second"))]
mod world;
