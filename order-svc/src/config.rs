//! The settings: parsed once, checked together, never read again from the environment.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use clap::{Args, Parser, Subcommand};
use svc_kit::boot::ConfigError;
use svc_kit::database::DatabaseUrl;
use svc_kit::settings::{AdminArgs, DatabaseArgs, duration};
use svc_kit::telemetry::LogArgs;

const LISTEN_PORT: u16 = 8763;
const ADMIN_PORT: u16 = 9763;

/// order-svc takes orders over HTTP; one transaction writes the order and its event.
#[derive(Debug, Parser)]
#[command(name = "order-svc", version, about)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Take orders over HTTP
    Run(Box<RunArgs>),
    /// Create or update the tables of this service and of its outbox
    Migrate(MigrateArgs),
}

/// The settings of `run`.
#[derive(Debug, Args)]
pub struct RunArgs {
    /// How to log.
    #[command(flatten)]
    pub log: LogArgs,
    #[command(flatten)]
    database: DatabaseArgs,
    #[command(flatten)]
    admin: AdminArgs<ADMIN_PORT>,
    /// Address of the orders API
    #[arg(long, env = "LISTEN_ADDR", value_name = "IP:PORT",
          default_value_t = SocketAddr::from((Ipv4Addr::LOCALHOST, LISTEN_PORT)))]
    listen_addr: SocketAddr,
    /// Connections to the database, at most
    #[arg(
        long,
        env = "ORDER_CONNECTIONS",
        value_name = "N",
        default_value_t = 32
    )]
    connections: u32,
    /// Time to finish what is in hand after SIGTERM
    #[arg(long, env = "ORDER_DRAIN_TIMEOUT", value_name = "DURATION", default_value = "25s",
          value_parser = duration)]
    drain_timeout: Duration,
}

/// The settings of `migrate`.
#[derive(Debug, Args)]
pub struct MigrateArgs {
    /// How to log.
    #[command(flatten)]
    pub log: LogArgs,
    /// Which database.
    #[command(flatten)]
    pub database: DatabaseArgs,
    /// Print the SQL instead of running it
    #[arg(long)]
    pub print: bool,
}

/// Everything `run` needs, checked.
#[derive(Debug, Clone)]
pub struct Config {
    /// Where the orders are.
    pub database: DatabaseUrl,
    /// Connections to it, at most.
    pub connections: u32,
    /// Address of the orders API.
    pub listen_addr: SocketAddr,
    /// Address of the admin listener.
    pub admin_addr: SocketAddr,
    /// Time to finish what is in hand.
    pub drain_timeout: Duration,
}

impl RunArgs {
    /// Checks what clap can't.
    ///
    /// # Errors
    /// The first setting that can't work.
    pub fn resolve(&self) -> Result<Config, ConfigError> {
        // Nothing is behind a token here, but a list that can't be parsed is a mistake all the same.
        self.admin.ops_tokens()?;
        if !(1..=1000).contains(&self.connections) {
            let problem = format!("{} is out of range", self.connections);
            let mend = "set it between 1 and 1000";
            return Err(ConfigError::new("ORDER_CONNECTIONS", problem, mend));
        }
        Ok(Config {
            database: self.database.resolve()?,
            connections: self.connections,
            listen_addr: self.listen_addr,
            admin_addr: self.admin.admin_addr,
            drain_timeout: self.drain_timeout,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resolve(args: &[&str]) -> Result<Config, ConfigError> {
        let mut all = vec!["order-svc", "run"];
        all.extend(args);
        match Cli::try_parse_from(all).unwrap().command {
            Command::Run(args) => args.resolve(),
            Command::Migrate(_) => panic!("run was asked for"),
        }
    }

    #[test]
    fn the_defaults_are_those_of_the_contract() {
        let config = resolve(&["--database-url", "mysql://o:p@db/orders"]).unwrap();
        assert_eq!(config.listen_addr.to_string(), "127.0.0.1:8763");
        assert_eq!(config.admin_addr.to_string(), "127.0.0.1:9763");
    }

    #[test]
    fn each_setting_that_cannot_work_is_named() {
        let url = ["--database-url", "mysql://o:p@db/orders"];
        let with = |args: &[&str]| resolve(&[&url, args].concat()).unwrap_err().field;
        assert_eq!(resolve(&[]).unwrap_err().field, "DATABASE_URL");
        assert_eq!(with(&["--connections", "0"]), "ORDER_CONNECTIONS");
        assert_eq!(with(&["--ops-tokens", "ann"]), "OPS_TOKENS");
    }
}
