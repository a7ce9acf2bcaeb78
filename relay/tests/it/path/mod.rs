//! A row's way from its commit to its mark: in order, once, whatever the row is like and however
//! often the relay is killed.

mod batch;
mod crash;
mod defects;
mod image;
mod keys;
mod latency;
mod order;
mod poison;
mod routes;
mod set_back;
mod transactions;
mod whole;
