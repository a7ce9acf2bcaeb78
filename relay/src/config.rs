//! The relay's settings: parsed once, from flags and environment.

use std::time::Duration;

use ::ops::{Console, ConsoleArgs, Settings, Table};
use clap::builder::PossibleValue;
use clap::{Args, ValueEnum};
use svc_kit::amqp::{Amqp, AmqpArgs};
use svc_kit::boot::ConfigError;
use svc_kit::database::DatabaseUrl;
use svc_kit::migrate::Set;
use svc_kit::settings::{AdminArgs, DatabaseArgs, duration};
use svc_kit::telemetry::LogFormat;

use crate::engine::{self, Mode, Order};
use crate::outbox_table::OutboxTable;
use crate::source::binlog::library::Reader;

impl ValueEnum for Order {
    fn value_variants<'a>() -> &'a [Self] {
        &[Self::Key, Self::None]
    }

    fn to_possible_value(&self) -> Option<PossibleValue> {
        Some(match self {
            Self::Key => PossibleValue::new("key")
                .help("Per aggregate: a message waits for the earlier ones of its key"),
            Self::None => PossibleValue::new("none").help("Nobody's: a message waits for nothing"),
        })
    }
}

impl ValueEnum for Mode {
    fn value_variants<'a>() -> &'a [Self] {
        &[Self::Cdc, Self::Poll]
    }

    fn to_possible_value(&self) -> Option<PossibleValue> {
        Some(match self {
            Self::Cdc => PossibleValue::new("cdc")
                .help("By the binlog, within a millisecond; the sweep is the safety net"),
            Self::Poll => PossibleValue::new("poll").help(
                "By reading the table every `RELAY_POLL_INTERVAL`; needs no replication right",
            ),
        })
    }
}

/// What the relay's marks put into the binlog.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum RowImage {
    /// The whole row before and after, as readers of the binlog expect it.
    Full,
    /// The key and what changes alone: online schema changes and CDC lose the other columns.
    Minimal,
}

/// The database and table all commands work on.
#[derive(Args, Debug)]
pub struct TableArgs {
    /// The database of the outbox.
    #[command(flatten)]
    pub database: DatabaseArgs,
    /// The outbox table; its companions are TABLE_fence, TABLE_attempts and TABLE_pauses
    #[arg(long, env = "RELAY_OUTBOX_TABLE", default_value = "outbox")]
    pub outbox_table: String,
    /// Log lines as text or JSON
    #[arg(long, env = "LOG_FORMAT", default_value = "text")]
    pub log_format: LogFormat,
}

/// `relay run` and `relay check`.
#[derive(Args, Debug)]
pub struct RunArgs {
    /// Database, table, log format.
    #[command(flatten)]
    pub table: TableArgs,
    /// The broker.
    #[command(flatten)]
    pub amqp: AmqpArgs,
    /// The admin listener.
    #[command(flatten)]
    pub admin: AdminArgs<9764>,
    /// The operators' console.
    #[command(flatten)]
    pub console: ConsoleArgs,
    /// A label for logs and the broker's connection list
    #[arg(long, env = "RELAY_NAME", default_value = "outbox")]
    pub name: String,
    /// cdc tails the binlog; poll reads the table only and needs no replication right
    #[arg(long, env = "RELAY_MODE", default_value = "cdc")]
    pub mode: Mode,
    /// The library that reads the binlog: mysql_async, or mysql_cdc if it was built in
    #[arg(long, env = "RELAY_READER", default_value = "mysql_async")]
    pub reader: Reader,
    /// Time between two reads of the table in poll mode
    #[arg(long, env = "RELAY_POLL_INTERVAL", default_value = "200ms", value_parser = duration)]
    pub poll_interval: Duration,
    /// Keep the order per aggregate (key), or no order (none)
    #[arg(long, env = "RELAY_ORDER", default_value = "key")]
    pub order: Order,
    /// Topic exchange to declare when it is absent; empty declares none
    #[arg(long, env = "RELAY_DECLARE_EXCHANGE", default_value = "order-exchange")]
    pub declare_exchange: String,
    /// Messages in one batch of a lane
    #[arg(long, env = "RELAY_BATCH_MAX", default_value_t = 2048,
          value_parser = clap::value_parser!(u32).range(1..=65_535))]
    pub batch_max: u32,
    /// Bytes in one batch, as a number; a single larger message goes alone
    #[arg(long, env = "RELAY_BATCH_BYTES", default_value_t = 4 << 20,
          value_parser = clap::value_parser!(u64).range(1..=1 << 30))]
    pub batch_bytes: u64,
    /// Channels that publish side by side, each a batch; together two full ones of messages, four of bytes
    #[arg(long, env = "RELAY_LANES", default_value_t = 16,
          value_parser = clap::value_parser!(u16).range(1..=64))]
    pub lanes: u16,
    /// Time for the broker to confirm a batch
    #[arg(long, env = "RELAY_CONFIRM_TIMEOUT", default_value = "30s", value_parser = duration)]
    pub confirm_timeout: Duration,
    /// Time between two sweeps of rows that are still pending
    #[arg(long, env = "RELAY_SWEEP_INTERVAL", default_value = "10s", value_parser = duration)]
    pub sweep_interval: Duration,
    /// Bytes of messages in memory, as a number, between binlog or table and broker
    #[arg(long, env = "RELAY_BUFFER_BYTES", default_value_t = 32 << 20,
          value_parser = clap::value_parser!(u64).range(65_536..=1 << 34))]
    pub buffer_bytes: u64,
    /// Failures by a message's own fault after which it is parked
    #[arg(long, env = "RELAY_MAX_ATTEMPTS", default_value_t = 5,
          value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub max_attempts: u32,
    /// Wait after the first failure
    #[arg(long, env = "RELAY_BACKOFF_MIN", default_value = "1s", value_parser = duration)]
    pub backoff_min: Duration,
    /// Longest wait between two attempts
    #[arg(long, env = "RELAY_BACKOFF_MAX", default_value = "5m", value_parser = duration)]
    pub backoff_max: Duration,
    /// Sent rows older than this are deleted; 0s keeps them
    #[arg(long, env = "RELAY_RETENTION", default_value = "7d", value_parser = duration)]
    pub retention: Duration,
    /// Time between two rows of the relay's own that go through binlog and broker and back, 1s to 1h;
    /// 0s writes none
    #[arg(long, env = "RELAY_CANARY_INTERVAL", default_value = "0s", value_parser = duration)]
    pub canary_interval: Duration,
    /// What a mark puts into the binlog: the full row images, or minimal ones, with which online schema
    /// changes (gh-ost) and CDC readers lose columns
    #[arg(long, env = "RELAY_BINLOG_ROW_IMAGE", default_value = "full")]
    pub binlog_row_image: RowImage,
    /// Time for what is on its way to be confirmed and marked after SIGTERM
    #[arg(long, env = "RELAY_DRAIN_TIMEOUT", default_value = "25s", value_parser = duration)]
    pub drain_timeout: Duration,
}

/// Checked settings of `relay run`.
#[derive(Clone, Debug)]
pub struct Config {
    /// The outbox.
    pub table: OutboxTable,
    /// The broker.
    pub amqp: Amqp,
    /// `RELAY_NAME`.
    pub name: String,
    /// `RELAY_READER`.
    pub reader: Reader,
    /// What the engine is given.
    pub engine: engine::Settings,
    /// `RELAY_DECLARE_EXCHANGE`; `None` when empty.
    pub declare_exchange: Option<String>,
    /// `RELAY_CONFIRM_TIMEOUT`.
    pub confirm_timeout: Duration,
    /// `RELAY_RETENTION`; zero keeps sent rows.
    pub retention: Duration,
    /// `RELAY_CANARY_INTERVAL`; zero writes none.
    pub canary_interval: Duration,
    /// `RELAY_BINLOG_ROW_IMAGE`.
    pub row_image: RowImage,
    /// `RELAY_DRAIN_TIMEOUT`.
    pub drain_timeout: Duration,
}

/// The index of pending rows: about 238,000 of them.
const INDEX_BYTES: usize = 40 << 20;

/// More would load the database, and less tell of an outage too late.
const CANARY_INTERVALS: std::ops::RangeInclusive<Duration> =
    Duration::from_secs(1)..=Duration::from_hours(1);

impl TableArgs {
    /// The table's name, if it needs no quoting beyond backticks.
    ///
    /// # Errors
    /// The field, what is wrong with it and the fix.
    pub fn checked_name(&self) -> Result<&str, ConfigError> {
        let name = self.outbox_table.as_str();
        // Every outbox of a database shares this one.
        let shared = name.eq_ignore_ascii_case("operator_actions");
        let fits = !shared
            && (1..=48).contains(&name.len())
            && name
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
        if fits {
            return Ok(name);
        }
        Err(ConfigError::new(
            "RELAY_OUTBOX_TABLE",
            format!("{name:?} is not a table name the relay can use"),
            "use 1 to 48 letters, digits and underscores, and not operator_actions; the database is in \
             DATABASE_URL",
        ))
    }

    /// Checks the table's name and the URL.
    ///
    /// # Errors
    /// The field, what is wrong with it and the fix.
    pub fn resolve(&self) -> Result<OutboxTable, ConfigError> {
        let name = self.checked_name()?.to_owned();
        Ok(OutboxTable {
            url: self.database.resolve()?,
            name,
        })
    }
}

impl ::ops::cli::Source for TableArgs {
    fn log_format(&self) -> LogFormat {
        self.log_format
    }

    fn resolve(&self) -> Result<(Table, DatabaseUrl, Duration), ConfigError> {
        let OutboxTable { url, name } = Self::resolve(self)?;
        Ok((Table::Outbox { name }, url, Duration::ZERO))
    }

    fn sets(&self) -> Result<Vec<Set>, ConfigError> {
        Ok(vec![OutboxTable::set(self.checked_name()?)])
    }
}

impl RunArgs {
    /// The operators' console.
    ///
    /// # Errors
    /// The field, what is wrong with it and the fix.
    pub fn console(&self) -> Result<Console, ConfigError> {
        let OutboxTable { url, name } = self.table.resolve()?;
        let settings = Settings {
            tokens: self.admin.ops_tokens()?,
            allow_edit: self.console.ops_allow_edit,
            // The relay claims no rows: what it has in hand it marks under the row's state.
            lease: Duration::ZERO,
        };
        Ok(Console::new(Table::Outbox { name }, url, settings))
    }

    fn engine(&self) -> engine::Settings {
        engine::Settings {
            order: self.order,
            mode: self.mode,
            publishers: usize::from(self.lanes),
            batch_rows: size(u64::from(self.batch_max)),
            batch_bytes: size(self.batch_bytes),
            buffer_bytes: size(self.buffer_bytes),
            index_bytes: INDEX_BYTES,
            backoff_min: self.backoff_min,
            backoff_max: self.backoff_max,
            attempts_max: self.max_attempts,
            sweep_interval: self.sweep_interval,
            poll_interval: self.poll_interval,
        }
    }

    /// Checks what belongs together.
    ///
    /// # Errors
    /// The field, what is wrong with it and the fix.
    pub fn resolve(self) -> Result<Config, ConfigError> {
        for (field, value) in [
            ("RELAY_POLL_INTERVAL", self.poll_interval),
            ("RELAY_CONFIRM_TIMEOUT", self.confirm_timeout),
            ("RELAY_SWEEP_INTERVAL", self.sweep_interval),
            ("RELAY_BACKOFF_MIN", self.backoff_min),
        ] {
            if value < Duration::from_millis(1) {
                return Err(ConfigError {
                    field: field.into(),
                    problem: "it is under a millisecond".into(),
                    fix: "give a duration such as 200ms or 10s".into(),
                });
            }
        }
        if self.backoff_max < self.backoff_min {
            return Err(ConfigError {
                field: "RELAY_BACKOFF_MAX".into(),
                problem: "it is shorter than RELAY_BACKOFF_MIN".into(),
                fix: "make it at least as long".into(),
            });
        }
        let canary = self.canary_interval;
        if !canary.is_zero() && !CANARY_INTERVALS.contains(&canary) {
            return Err(ConfigError::new(
                "RELAY_CANARY_INTERVAL",
                "it is under a second or over an hour",
                "give a duration such as 30s, or 0s for no canary",
            ));
        }
        let engine = self.engine();
        let table = self.table.resolve()?;
        self.reader.check(&table.url)?;
        Ok(Config {
            table,
            amqp: self.amqp.resolve()?,
            name: self.name,
            reader: self.reader,
            engine,
            declare_exchange: Some(self.declare_exchange).filter(|name| !name.is_empty()),
            confirm_timeout: self.confirm_timeout,
            retention: self.retention,
            canary_interval: self.canary_interval,
            row_image: self.binlog_row_image,
            drain_timeout: self.drain_timeout,
        })
    }
}

fn size(value: u64) -> usize {
    usize::try_from(value).unwrap_or(usize::MAX)
}
