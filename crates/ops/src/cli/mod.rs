//! The same verbs on the command line, on the database directly: `relay parked …`, `pay-svc parked …`.
//!
//! Exit codes: 0 done; 1 not done: another state, no such row, the database; 64 wrong usage.

mod args;
mod run;
mod screen;

use std::time::Duration;

use svc_kit::boot::ConfigError;
use svc_kit::database::DatabaseUrl;
use svc_kit::migrate::Set;
use svc_kit::telemetry::LogFormat;

pub use args::{BulkVerb, Verb};
pub use run::run;

use crate::table::Table;

/// Where a program's table is: its own arguments, which every verb takes.
pub trait Source: clap::Args + std::fmt::Debug {
    /// How to log.
    fn log_format(&self) -> LogFormat;

    /// The table, the database, and the longest lease on a row.
    ///
    /// # Errors
    /// A setting that can't work.
    fn resolve(&self) -> Result<(Table, DatabaseUrl, Duration), ConfigError>;

    /// The migrations of these tables: what they do not create is not touched.
    ///
    /// # Errors
    /// A setting that can't work.
    fn sets(&self) -> Result<Vec<Set>, ConfigError>;
}

/// The user who called sudo comes before the one that sudo made of him.
#[must_use]
pub fn whoever() -> String {
    let user = ["SUDO_USER", "USER", "LOGNAME"]
        .iter()
        .find_map(|name| std::env::var(name).ok().filter(|user| !user.is_empty()))
        .unwrap_or_else(|| format!("uid {}", rustix::process::getuid().as_raw()));
    let machine = rustix::system::uname();
    format!("{user}@{}", machine.nodename().to_string_lossy())
}
