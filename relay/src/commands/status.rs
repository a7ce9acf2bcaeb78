//! `relay status`: one screen of what the database knows and, where a relay's admin listener answers,
//! of what that relay does. It says what could not be queried.

pub mod database;
pub mod live;
mod screen;

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};

use clap::Args;
use serde::Serialize;
use svc_kit::boot::ConfigError;

use crate::commands::status::database::Database;
use crate::commands::status::live::Live;
use crate::config::TableArgs;
use crate::outbox_table::OutboxTable;

/// `relay status`.
#[derive(Args, Debug)]
pub struct StatusArgs {
    /// Database, table, log format.
    #[command(flatten)]
    pub table: TableArgs,
    /// The admin listener of the relay that reports phase, broker and lag
    #[arg(long, env = "ADMIN_ADDR", value_name = "IP:PORT",
          default_value_t = SocketAddr::from((Ipv4Addr::LOCALHOST, 9764)))]
    pub admin_addr: SocketAddr,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// Everything that is known.
#[derive(Debug, Serialize)]
pub struct Status {
    /// Database and table, without a password.
    pub outbox: String,
    /// What the database says.
    pub database: Answer<Database>,
    /// What the relay behind the admin listener says.
    pub relay: Answer<Live>,
}

/// The answer of the database, or of the relay.
#[derive(Debug, Serialize)]
#[serde(untagged)]
pub enum Answer<T> {
    /// It answered.
    Answered(Box<T>),
    /// It did not answer, and why.
    CouldNotAsk {
        /// What was queried.
        address: String,
        /// Why there is no answer.
        error: String,
    },
}

impl<T> Answer<T> {
    fn of(address: impl ToString, answer: anyhow::Result<T>) -> Self {
        match answer {
            Ok(answer) => Self::Answered(Box::new(answer)),
            Err(err) => Self::CouldNotAsk {
                address: address.to_string(),
                error: format!("{err:#}"),
            },
        }
    }

    /// The answer, if there is one.
    pub fn answer(&self) -> Option<&T> {
        match self {
            Self::Answered(answer) => Some(answer),
            Self::CouldNotAsk { .. } => None,
        }
    }
}

impl StatusArgs {
    /// Checks the settings.
    ///
    /// # Errors
    /// The field, what is wrong with it and the fix.
    pub fn resolve(&self) -> Result<(OutboxTable, SocketAddr), ConfigError> {
        Ok((self.table.resolve()?, reachable(self.admin_addr)))
    }
}

/// A listener on all addresses is queried on the loopback.
fn reachable(listens: SocketAddr) -> SocketAddr {
    let mut requests = listens;
    if requests.ip().is_unspecified() {
        requests.set_ip(match listens {
            SocketAddr::V4(_) => Ipv4Addr::LOCALHOST.into(),
            SocketAddr::V6(_) => Ipv6Addr::LOCALHOST.into(),
        });
    }
    requests
}

/// Queries both.
pub async fn query(table: &OutboxTable, admin: SocketAddr) -> Status {
    let (database, relay) = futures::join!(database::query(table), live::query(admin));
    Status {
        outbox: format!("{}.{}", table.url.database(), table.name),
        database: Answer::of(&table.url, database),
        relay: Answer::of(admin, relay),
    }
}
