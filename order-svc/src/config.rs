//! The settings: parsed once, checked together, never read again from the environment.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use clap::{Args, Parser, Subcommand};
use svc_kit::boot::ConfigError;
use svc_kit::database::DatabaseUrl;
use svc_kit::migrate::MigrateArgs;
use svc_kit::settings::{AdminArgs, DatabaseArgs, duration, within};
use svc_kit::telemetry::LogArgs;

use crate::batch::Bounds;
use crate::commit;
use crate::http::Times;

const LISTEN_PORT: u16 = 8763;
const ADMIN_PORT: u16 = 9763;

/// Below it, neither a commit on a busy disk nor a client far away would be waited for.
const TIMEOUT_MIN: Duration = Duration::from_millis(100);
/// Shorter is a slip of the pen, such as 24s for 24h.
const KEY_RETENTION_MIN: Duration = Duration::from_hours(1);

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
    /// Connections for reading orders, at most
    #[arg(
        long,
        env = "ORDER_CONNECTIONS",
        value_name = "N",
        default_value_t = 32
    )]
    connections: u32,
    #[command(flatten)]
    commit: CommitArgs,
    /// Time for the answer to a request; after it, 503
    #[arg(long, env = "ORDER_REQUEST_TIMEOUT", value_name = "DURATION", default_value = "15s",
          value_parser = duration)]
    request_timeout: Duration,
    /// Time for a client to send the body of its request; after it, 408
    #[arg(long, env = "ORDER_BODY_TIMEOUT", value_name = "DURATION", default_value = "10s",
          value_parser = duration)]
    body_timeout: Duration,
    /// Idempotency keys are deleted after it; 0s keeps them
    #[arg(long, env = "ORDER_KEY_RETENTION", value_name = "DURATION", default_value = "24h",
          value_parser = duration)]
    key_retention: Duration,
    /// Time to finish what is in hand after SIGTERM
    #[arg(long, env = "ORDER_DRAIN_TIMEOUT", value_name = "DURATION", default_value = "25s",
          value_parser = duration)]
    drain_timeout: Duration,
}

/// How orders are gathered and committed.
#[derive(Debug, Args)]
struct CommitArgs {
    /// Transactions that place orders at once, each on a connection of its own
    #[arg(long, env = "ORDER_COMMITTERS", value_name = "N", default_value_t = 4)]
    committers: usize,
    /// Orders that share a transaction, at most
    #[arg(long, env = "ORDER_BATCH_MAX", value_name = "N", default_value_t = 128)]
    batch_max: usize,
    /// Bytes of orders that share a transaction; the one that reaches it is the last
    #[arg(
        long,
        env = "ORDER_BATCH_BYTES",
        value_name = "BYTES",
        default_value_t = 512 * 1024
    )]
    batch_bytes: usize,
    /// Orders that wait to be committed, at most; further ones are answered 503 at once
    #[arg(
        long,
        env = "ORDER_QUEUE_MAX",
        value_name = "N",
        default_value_t = 1024
    )]
    queue_max: usize,
}

/// Everything `run` needs, checked.
#[derive(Debug, Clone)]
pub struct Config {
    /// Where the orders are.
    pub database: DatabaseUrl,
    /// Connections to read orders with, at most.
    pub connections: u32,
    /// How orders are gathered and committed.
    pub commit: commit::Settings,
    /// How long clients may take, and wait.
    pub times: Times,
    /// Idempotency keys are deleted after it; zero keeps them.
    pub key_retention: Duration,
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
        within("ORDER_CONNECTIONS", self.connections, 1..=1000)?;
        long_enough("ORDER_REQUEST_TIMEOUT", self.request_timeout)?;
        long_enough("ORDER_BODY_TIMEOUT", self.body_timeout)?;
        if !self.key_retention.is_zero() && self.key_retention < KEY_RETENTION_MIN {
            let problem = format!(
                "after {:?} a client that tries again would place a second order",
                self.key_retention
            );
            let fix = "set it to 1h or more, or to 0s to keep the keys";
            return Err(ConfigError::new("ORDER_KEY_RETENTION", problem, fix));
        }
        Ok(Config {
            database: self.database.resolve()?,
            connections: self.connections,
            commit: self.commit.resolve(self.request_timeout)?,
            times: Times {
                request: self.request_timeout,
                body: self.body_timeout,
            },
            key_retention: self.key_retention,
            listen_addr: self.listen_addr,
            admin_addr: self.admin.admin_addr,
            drain_timeout: self.drain_timeout,
        })
    }
}

impl CommitArgs {
    fn resolve(&self, timeout: Duration) -> Result<commit::Settings, ConfigError> {
        within("ORDER_COMMITTERS", self.committers, 1..=100)?;
        within("ORDER_BATCH_MAX", self.batch_max, 1..=1000)?;
        within("ORDER_BATCH_BYTES", self.batch_bytes, 1..=16 * 1024 * 1024)?;
        within("ORDER_QUEUE_MAX", self.queue_max, 1..=100_000)?;
        Ok(commit::Settings {
            committers: self.committers,
            bounds: Bounds {
                orders: self.batch_max,
                bytes: self.batch_bytes,
            },
            queue: self.queue_max,
            timeout,
        })
    }
}

fn long_enough(field: &str, timeout: Duration) -> Result<(), ConfigError> {
    if timeout >= TIMEOUT_MIN {
        return Ok(());
    }
    let problem = format!("{timeout:?} is too short");
    Err(ConfigError::new(field, problem, "set it to 100ms or more"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resolve(args: &[&str]) -> Result<Config, ConfigError> {
        let mut all = vec!["order-svc", "run"];
        all.extend(args);
        match Cli::try_parse_from(all).unwrap().command {
            Command::Run(args) => args.resolve(),
            Command::Migrate(_) => panic!("run was requested"),
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
        assert_eq!(with(&["--committers", "0"]), "ORDER_COMMITTERS");
        assert_eq!(with(&["--batch-max", "1001"]), "ORDER_BATCH_MAX");
        assert_eq!(with(&["--batch-bytes", "0"]), "ORDER_BATCH_BYTES");
        assert_eq!(with(&["--queue-max", "0"]), "ORDER_QUEUE_MAX");
        let too_short = ["--request-timeout", "99ms"];
        assert_eq!(with(&too_short), "ORDER_REQUEST_TIMEOUT");
        assert_eq!(with(&["--body-timeout", "0s"]), "ORDER_BODY_TIMEOUT");
        assert_eq!(with(&["--ops-tokens", "ann"]), "OPS_TOKENS");
    }
}
