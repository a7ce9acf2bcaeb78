//! The engine and the simulator as `make mutants` builds them; each finds its paths as in its own crate.
#![allow(dead_code, reason = "the programs around them use the rest")]

extern crate self as outbox;
extern crate self as relay;

pub mod engine;
pub mod publish {
    pub mod confirms;
}
pub mod row;

#[cfg(all(test, feature = "simulator"))]
mod coverage;
#[cfg(all(test, feature = "simulator"))]
mod faults;
#[cfg(all(test, feature = "simulator"))]
mod queue;
#[cfg(all(test, feature = "simulator"))]
mod rng;
#[cfg(all(test, feature = "simulator"))]
mod run;
#[cfg(all(test, feature = "simulator"))]
mod scenario;
#[cfg(all(test, feature = "simulator"))]
mod seeds;
#[cfg(all(test, feature = "simulator"))]
mod trace;
#[cfg(all(test, feature = "simulator"))]
mod world;
