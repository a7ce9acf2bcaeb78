//! The settings: parsed once, checked together, never read again from the environment.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};
use svc_kit::amqp::{Amqp, AmqpArgs};
use svc_kit::boot::ConfigError;
use svc_kit::database::DatabaseUrl;
use svc_kit::ops::Tokens;
use svc_kit::settings::{AdminArgs, DatabaseArgs, duration};
use svc_kit::telemetry::LogArgs;

use crate::consumer;
use crate::provider::SimulatedSettings;
use crate::schedule::Policy;
use crate::worker;

const LISTEN_PORT: u16 = 8762;
const ADMIN_PORT: u16 = 9762;
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
    /// Address of the payments API
    #[arg(long, env = "LISTEN_ADDR", value_name = "IP:PORT",
          default_value_t = SocketAddr::from((Ipv4Addr::LOCALHOST, LISTEN_PORT)))]
    listen_addr: SocketAddr,
    #[command(flatten)]
    intake: IntakeArgs,
    #[command(flatten)]
    work: WorkArgs,
    #[command(flatten)]
    provider: ProviderArgs,
    /// Time to finish what is in hand after SIGTERM
    #[arg(long, env = "PAY_DRAIN_TIMEOUT", value_name = "DURATION", default_value = "25s",
          value_parser = duration)]
    drain_timeout: Duration,
}

#[derive(Debug, Args)]
struct IntakeArgs {
    /// Messages the broker sends ahead of acknowledgements (default: twice PAY_BATCH_MAX)
    #[arg(long, env = "PAY_PREFETCH", value_name = "N")]
    prefetch: Option<u16>,
    /// Messages stored, claimed or settled in one transaction, at most
    #[arg(long, env = "PAY_BATCH_MAX", value_name = "N", default_value_t = 200)]
    batch_max: u16,
}

#[derive(Debug, Args)]
struct WorkArgs {
    /// Workers; up to PAY_WORKERS × PAY_BATCH_MAX charges are under way at once
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
}

#[derive(Debug, Args)]
struct ProviderArgs {
    /// Who takes the money
    #[arg(long, env = "PAY_PROVIDER", value_enum, default_value_t = ProviderKind::Simulated)]
    provider: ProviderKind,
    /// A charge without an answer by then has failed
    #[arg(long, env = "PAY_PROVIDER_TIMEOUT", value_name = "DURATION", default_value = "10s",
          value_parser = duration)]
    provider_timeout: Duration,
    /// Share of simulated charges that fail, 0.0 to 1.0
    #[arg(
        long,
        env = "PAY_SIMULATED_FAILURE_RATE",
        value_name = "SHARE",
        default_value_t = 0.0
    )]
    simulated_failure_rate: f64,
    /// How long a simulated charge takes
    #[arg(long, env = "PAY_SIMULATED_LATENCY", value_name = "DURATION", default_value = "0ms",
          value_parser = duration)]
    simulated_latency: Duration,
}

/// Who takes the money.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum ProviderKind {
    /// Nobody: for a demo or a first installation
    Simulated,
    /// A provider behind a URL; not in this version
    Http,
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
    /// Who may put messages in by hand.
    pub tokens: Tokens,
    /// How to consume.
    pub intake: consumer::Settings,
    /// How many workers.
    pub workers: u32,
    /// How to work.
    pub work: worker::Settings,
    /// How the provider behaves.
    pub provider: SimulatedSettings,
    /// Time to finish what is in hand.
    pub drain_timeout: Duration,
}

impl RunArgs {
    /// Checks what clap can't.
    ///
    /// # Errors
    /// The first setting that can't work.
    pub fn resolve(&self) -> Result<Config, ConfigError> {
        Ok(Config {
            database: self.database.resolve()?,
            connections: self.work.workers.saturating_add(SPARE_CONNECTIONS),
            amqp: self.amqp.resolve()?,
            listen_addr: self.listen_addr,
            admin_addr: self.admin.admin_addr,
            tokens: self.admin.ops_tokens()?,
            intake: self.intake.resolve()?,
            workers: within("PAY_WORKERS", self.work.workers, 1, 256)?,
            work: self.resolve_work()?,
            provider: self.provider.resolve()?,
            drain_timeout: self.drain_timeout,
        })
    }

    fn resolve_work(&self) -> Result<worker::Settings, ConfigError> {
        let WorkArgs {
            max_attempts,
            backoff_min,
            backoff_max,
            max_age,
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
        let timeout = self.provider.provider_timeout;
        if timeout.is_zero() || timeout > Duration::from_secs(300) {
            let problem = format!("{timeout:?} is not between 1ms and 5m");
            return Err(ConfigError::new(
                "PAY_PROVIDER_TIMEOUT",
                problem,
                "set it to e.g. 10s",
            ));
        }
        Ok(worker::Settings {
            claim_max: usize::from(self.intake.batch_max),
            provider_timeout: timeout,
            policy: Policy {
                attempts_max: within("PAY_MAX_ATTEMPTS", max_attempts, 1, 1_000_000)?,
                backoff_min,
                backoff_max,
                age_max: max_age,
            },
        })
    }
}

impl IntakeArgs {
    fn resolve(&self) -> Result<consumer::Settings, ConfigError> {
        let batch_max = within("PAY_BATCH_MAX", u32::from(self.batch_max), 1, 5000)?;
        let prefetch = self
            .prefetch
            .unwrap_or_else(|| self.batch_max.saturating_mul(2));
        if prefetch == 0 {
            let problem = "0 asks the broker to send the whole queue at once";
            return Err(ConfigError::new(
                "PAY_PREFETCH",
                problem,
                "set it to at least 1",
            ));
        }
        Ok(consumer::Settings {
            batch_max: usize::try_from(batch_max).unwrap_or(usize::MAX),
            prefetch,
            silence_max: Duration::from_secs(15),
            reconnect_min: Duration::from_millis(100),
            reconnect_max: Duration::from_secs(5),
        })
    }
}

impl ProviderArgs {
    fn resolve(&self) -> Result<SimulatedSettings, ConfigError> {
        match self.provider {
            ProviderKind::Simulated => {}
            ProviderKind::Http => {
                let problem = "http is not available in this version";
                return Err(ConfigError::new(
                    "PAY_PROVIDER",
                    problem,
                    "set it to simulated",
                ));
            }
        }
        let rate = self.simulated_failure_rate;
        if !(0.0..=1.0).contains(&rate) {
            let problem = format!("{rate} is not a share");
            let mend = "set it between 0.0 and 1.0";
            return Err(ConfigError::new(
                "PAY_SIMULATED_FAILURE_RATE",
                problem,
                mend,
            ));
        }
        Ok(SimulatedSettings {
            failure_rate: rate,
            latency: self.simulated_latency,
        })
    }
}

fn within(field: &str, value: u32, min: u32, max: u32) -> Result<u32, ConfigError> {
    if (min..=max).contains(&value) {
        return Ok(value);
    }
    let problem = format!("{value} is out of range");
    Err(ConfigError::new(
        field,
        problem,
        format!("set it between {min} and {max}"),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resolve(args: &[&str]) -> Result<Config, ConfigError> {
        let url = "mysql://pay:secret@db/payments";
        let mut all = vec!["pay-svc", "run", "--database-url", url];
        all.extend(["--amqp-url", "amqp://pay:secret@mq/%2F"]);
        all.extend(args);
        match Cli::try_parse_from(all).unwrap().command {
            Command::Run(args) => args.resolve(),
            Command::Migrate(_) => panic!("run was asked for"),
        }
    }

    #[test]
    fn the_defaults_are_those_of_the_contract() {
        let config = resolve(&[]).unwrap();
        assert_eq!(config.listen_addr.to_string(), "127.0.0.1:8762");
        assert_eq!(config.admin_addr.to_string(), "127.0.0.1:9762");
        assert_eq!(
            usize::from(config.intake.prefetch),
            2 * config.intake.batch_max
        );
        assert_eq!(config.work.policy.attempts_max, 10);
        assert_eq!(config.work.policy.age_max, Duration::from_secs(24 * 3600));
        assert_eq!(config.work.provider_timeout, Duration::from_secs(10));
    }

    #[test]
    fn each_setting_that_cannot_work_is_named_with_its_mend() {
        for (args, field) in [
            (["--provider", "http"], "PAY_PROVIDER"),
            (
                ["--simulated-failure-rate", "1.5"],
                "PAY_SIMULATED_FAILURE_RATE",
            ),
            (
                ["--simulated-failure-rate", "NaN"],
                "PAY_SIMULATED_FAILURE_RATE",
            ),
            (["--prefetch", "0"], "PAY_PREFETCH"),
            (["--batch-max", "0"], "PAY_BATCH_MAX"),
            (["--workers", "0"], "PAY_WORKERS"),
            (["--max-attempts", "0"], "PAY_MAX_ATTEMPTS"),
            (["--backoff-min", "10m"], "PAY_BACKOFF_MIN"),
            (["--backoff-min", "0s"], "PAY_BACKOFF_MIN"),
            (["--provider-timeout", "0s"], "PAY_PROVIDER_TIMEOUT"),
            (["--ops-tokens", "ann"], "OPS_TOKENS"),
        ] {
            let err = resolve(&args).unwrap_err();
            assert_eq!(err.field, field, "{args:?}");
            assert!(!err.mend.is_empty() && !err.problem.is_empty());
        }
    }
}
