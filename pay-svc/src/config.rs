//! The settings: parsed once, checked together, never read again from the environment.

mod provider;

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use clap::{Args, Parser, Subcommand};
use svc_kit::amqp::{Amqp, AmqpArgs};
use svc_kit::boot::ConfigError;
use svc_kit::database::DatabaseUrl;
use svc_kit::migrate::{MigrateArgs, Set};
use svc_kit::operators::Tokens;
use svc_kit::settings::{AdminArgs, DatabaseArgs, duration, within};
use svc_kit::telemetry::{LogArgs, LogFormat};

use self::provider::ProviderArgs;
pub use self::provider::ProviderSettings;
use crate::consumer;
use crate::ignore::IgnoredTypes;
use crate::retention;
use crate::schedule::Policy;
use crate::worker;

const LISTEN_PORT: u16 = 8762;
const ADMIN_PORT: u16 = 9762;
const IDLE_RENEWAL_MIN: Duration = Duration::from_millis(100);
/// Less would be read in pieces of a few messages.
const BUFFER_MIN: u64 = 1024 * 1024;
const BUFFER_MAX: u64 = 16 * 1024 * 1024 * 1024;
/// Connections beside those of the workers: intake, requests, probe, gauges.
const SPARE_CONNECTIONS: u32 = 6;

/// pay-svc takes each message into an inbox, drops duplicates, pays, retries on a schedule and
/// parks what keeps failing.
#[derive(Debug, Parser)]
#[command(name = "pay-svc", version, about)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Consume, pay, and answer over HTTP
    Run(Box<RunArgs>),
    /// Create or update the tables of this service
    Migrate(MigrateArgs),
    /// Look at messages that need a person, retry, discard or edit them, one by one or in bulk
    ///
    /// Exit code 0: done; 1: not done (another state, no such message), or the database could not be
    /// queried; 64: wrong usage.
    #[command(subcommand)]
    Parked(ops::cli::Verb<ParkedArgs>),
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
    amqp: AmqpArgs,
    #[command(flatten)]
    admin: AdminArgs<ADMIN_PORT>,
    #[command(flatten)]
    console: ops::ConsoleArgs,
    /// Address of the payments API
    #[arg(long, env = "LISTEN_ADDR", value_name = "IP:PORT",
          default_value_t = SocketAddr::from((Ipv4Addr::LOCALHOST, LISTEN_PORT)))]
    listen_addr: SocketAddr,
    #[command(flatten)]
    intake: IntakeArgs,
    #[command(flatten)]
    work: WorkArgs,
    #[command(flatten)]
    retention: RetentionArgs,
    #[command(flatten)]
    provider: ProviderArgs,
    /// Time to finish what is in hand after SIGTERM
    #[arg(long, env = "PAY_DRAIN_TIMEOUT", value_name = "DURATION", default_value = "25s",
          value_parser = duration)]
    drain_timeout: Duration,
}

#[derive(Debug, Args)]
struct IntakeArgs {
    /// Messages the broker sends ahead of acknowledgements, at most: large ones are fewer, see
    /// PAY_BUFFER_BYTES (default: twice PAY_BATCH_MAX)
    #[arg(long, env = "PAY_PREFETCH", value_name = "N")]
    prefetch: Option<u16>,
    /// Bytes of messages held at once; one that is larger is held alone
    #[arg(long, env = "PAY_BUFFER_BYTES", value_name = "BYTES", default_value_t = 64 * 1024 * 1024)]
    buffer_bytes: u64,
    /// Without a delivery for so long the consumer is made anew: one that was lost unnoticed is found
    #[arg(long, env = "PAY_IDLE_RENEWAL", value_name = "DURATION", default_value = "15s",
          value_parser = duration)]
    idle_renewal: Duration,
    /// Messages stored, claimed or settled in one transaction, at most
    #[arg(long, env = "PAY_BATCH_MAX", value_name = "N", default_value_t = 500)]
    batch_max: u16,
}

#[derive(Debug, Args)]
struct WorkArgs {
    /// Workers; up to PAY_WORKERS × PAY_BATCH_MAX simulated charges are under way at once
    #[arg(long, env = "PAY_WORKERS", value_name = "N", default_value_t = 4)]
    workers: u32,
    /// Failed attempts after which a message is parked
    #[arg(long, env = "PAY_MAX_ATTEMPTS", value_name = "N", default_value_t = 10)]
    max_attempts: u32,
    /// Shortest wait before a failed message is tried again
    #[arg(long, env = "PAY_BACKOFF_MIN", value_name = "DURATION", default_value = "1s",
          value_parser = duration)]
    backoff_min: Duration,
    /// Longest wait before a failed message is tried again
    #[arg(long, env = "PAY_BACKOFF_MAX", value_name = "DURATION", default_value = "5m",
          value_parser = duration)]
    backoff_max: Duration,
    /// Age after which a message is parked although only the provider was unavailable
    #[arg(long, env = "PAY_MAX_AGE", value_name = "DURATION", default_value = "24h",
          value_parser = duration)]
    max_age: Duration,
    /// Event types that are none of this service's business, e.g. stock.*,order.cancelled.*; their
    /// messages are counted and processed as ignored
    #[arg(
        long,
        env = "PAY_IGNORE_TYPES",
        value_name = "LIST",
        default_value = ""
    )]
    ignore_types: String,
}

#[derive(Debug, Args)]
struct RetentionArgs {
    /// Processed and discarded messages are deleted after it; 0s keeps them. At least
    /// PAY_REPLAY_WINDOW + 7d in the broker's queue + PAY_MAX_AGE
    #[arg(long, env = "PAY_RETENTION", value_name = "DURATION", default_value = "30d",
          value_parser = duration)]
    retention: Duration,
    /// How long a sent outbox row can be replayed: the relay's RELAY_RETENTION
    #[arg(long, env = "PAY_REPLAY_WINDOW", value_name = "DURATION", default_value = "7d",
          value_parser = duration)]
    replay_window: Duration,
}

/// Where the inbox is, for the verbs of `parked`.
#[derive(Debug, Args)]
pub struct ParkedArgs {
    #[command(flatten)]
    log: LogArgs,
    #[command(flatten)]
    database: DatabaseArgs,
    /// As of `run`: a message that is due so soon may be claimed by a worker
    #[arg(long, env = "PAY_PROVIDER_TIMEOUT", value_name = "DURATION", default_value = "10s",
          value_parser = duration)]
    provider_timeout: Duration,
}

impl ops::cli::Source for ParkedArgs {
    fn log_format(&self) -> LogFormat {
        self.log.log_format
    }

    fn resolve(&self) -> Result<(ops::Table, DatabaseUrl, Duration), ConfigError> {
        let lease = self.provider_timeout + worker::SETTLE_TIME;
        Ok((ops::Table::Inbox, self.database.resolve()?, lease))
    }

    fn sets(&self) -> Result<Vec<Set>, ConfigError> {
        Ok(crate::migrations())
    }
}

/// A killed instance's messages should be taken over within this.
const TAKE_OVER_MAX: Duration = Duration::from_secs(30);

/// Everything `run` needs, checked.
#[derive(Debug, Clone)]
pub struct Config {
    /// Where the inbox is.
    pub database: DatabaseUrl,
    /// Connections to it, at most.
    pub connections: u32,
    /// Where the queue is.
    pub amqp: Amqp,
    /// Address of the payments API.
    pub listen_addr: SocketAddr,
    /// Address of the admin listener.
    pub admin_addr: SocketAddr,
    /// Who may put messages in by hand, and use the console.
    pub tokens: Tokens,
    /// The console may edit and retry.
    pub allow_edit: bool,
    /// How to consume.
    pub intake: consumer::Settings,
    /// How many workers.
    pub workers: u32,
    /// How to work.
    pub work: worker::Settings,
    /// How long processed and discarded messages stay; `None` keeps them.
    pub retention: Option<Duration>,
    /// Who takes the money.
    pub provider: ProviderSettings,
    /// Time to finish what is in hand.
    pub drain_timeout: Duration,
}

impl RunArgs {
    /// Checks what clap can't.
    ///
    /// # Errors
    /// The first setting that can't work.
    pub fn resolve(&self) -> Result<Config, ConfigError> {
        let workers = within("PAY_WORKERS", self.work.workers, 1..=256)?;
        let charges_max = self.provider.concurrency()?;
        // Every claimed row is charged at once, so that its lease is no longer than one charge.
        let workers = charges_max.map_or(workers, |max| workers.min(max));
        let claim_max = charges_max.map_or(u32::MAX, |max| max / workers);
        Ok(Config {
            database: self.database.resolve()?,
            connections: workers.saturating_add(SPARE_CONNECTIONS),
            amqp: self.amqp.resolve()?,
            listen_addr: self.listen_addr,
            admin_addr: self.admin.admin_addr,
            tokens: self.admin.ops_tokens()?,
            allow_edit: self.console.ops_allow_edit,
            intake: self.intake.resolve()?,
            workers,
            work: self.resolve_work(claim_max)?,
            retention: retention::check(
                self.retention.retention,
                self.retention.replay_window,
                self.work.max_age,
            )?,
            provider: self.provider.resolve()?,
            drain_timeout: self.drain_timeout,
        })
    }

    fn resolve_work(&self, claim_max: u32) -> Result<worker::Settings, ConfigError> {
        let WorkArgs {
            max_attempts,
            backoff_min,
            backoff_max,
            max_age,
            ref ignore_types,
            ..
        } = self.work;
        if backoff_min.is_zero() || backoff_min > backoff_max {
            let problem = format!("{backoff_min:?} is not between 1ms and PAY_BACKOFF_MAX");
            return Err(ConfigError::new(
                "PAY_BACKOFF_MIN",
                problem,
                "set it to e.g. 1s",
            ));
        }
        if max_age.is_zero() {
            let problem = "0s would park every message at the provider's first hiccup";
            return Err(ConfigError::new(
                "PAY_MAX_AGE",
                problem,
                "set it to e.g. 24h",
            ));
        }
        let ignored = IgnoredTypes::parse(ignore_types).map_err(|problem| {
            let fix = "name types as stock.*,order.cancelled.v1, or leave it empty";
            ConfigError::new("PAY_IGNORE_TYPES", problem, fix)
        })?;
        Ok(worker::Settings {
            claim_max: usize::try_from(claim_max.min(self.intake.batch_max.into()))
                .unwrap_or(usize::MAX),
            provider_timeout: self.provider.timeout()?,
            ignored,
            policy: Policy {
                attempts_max: within("PAY_MAX_ATTEMPTS", max_attempts, 1..=1_000_000)?,
                backoff_min,
                backoff_max,
                age_max: max_age,
            },
        })
    }
}

impl Config {
    /// What works, but should be known: one line each, for the log.
    #[must_use]
    pub fn cautions(&self) -> Vec<String> {
        let lease = self.work.provider_timeout + worker::SETTLE_TIME;
        let late = (lease > TAKE_OVER_MAX).then(|| {
            format!(
                "PAY_PROVIDER_TIMEOUT ({:?}) makes others take over a dead instance's messages only \
                 after {lease:?}, later than {TAKE_OVER_MAX:?}",
                self.work.provider_timeout
            )
        });
        late.into_iter().chain(self.provider.caution()).collect()
    }
}

impl IntakeArgs {
    fn resolve(&self) -> Result<consumer::Settings, ConfigError> {
        let batch_max = within("PAY_BATCH_MAX", u32::from(self.batch_max), 1..=5000)?;
        let prefetch = self
            .prefetch
            .unwrap_or_else(|| self.batch_max.saturating_mul(2));
        if prefetch == 0 {
            let problem = "0 lets the broker send the whole queue at once";
            return Err(ConfigError::new(
                "PAY_PREFETCH",
                problem,
                "set it to at least 1",
            ));
        }
        let buffer_bytes = within(
            "PAY_BUFFER_BYTES",
            self.buffer_bytes,
            BUFFER_MIN..=BUFFER_MAX,
        )?;
        if self.idle_renewal < IDLE_RENEWAL_MIN {
            return Err(ConfigError::new(
                "PAY_IDLE_RENEWAL",
                format!("{:?} is less than {IDLE_RENEWAL_MIN:?}", self.idle_renewal),
                "set it to e.g. 15s",
            ));
        }
        Ok(consumer::Settings {
            buffer_bytes: usize::try_from(buffer_bytes).unwrap_or(usize::MAX),
            batch_max: usize::try_from(batch_max).unwrap_or(usize::MAX),
            prefetch,
            silence_max: self.idle_renewal,
            reconnect_min: Duration::from_millis(100),
            reconnect_max: Duration::from_secs(5),
        })
    }
}

#[cfg(test)]
mod tests;
