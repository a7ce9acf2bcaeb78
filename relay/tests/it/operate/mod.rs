//! What operators do with a relay and see of it, on real servers.

mod audit;
mod commands;
mod parked;
mod pause;
mod readiness;
mod replay;
mod rounds;
mod shutdown;
mod status;
mod systemd;
