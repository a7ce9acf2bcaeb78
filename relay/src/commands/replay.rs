//! `relay replay`: messages that were sent are sent again, for a consumer that lost them.
//!
//! The rows are not changed: they stay sent. Each message has the header `x-replay-id` and its old
//! message id, so an inbox that knows it drops it.

mod filter;
mod read;
mod record;
mod report;
mod rule;
mod send;
mod survey;

use std::time::Duration;

use clap::Args;
use svc_kit::amqp::{Amqp, AmqpArgs};
use svc_kit::boot::ConfigError;
use svc_kit::settings::duration;
use svc_kit::signals::Shutdown;
use time::PrimitiveDateTime;

use crate::commands::operator;
use crate::commands::times::time;
use crate::config::TableArgs;
use crate::outbox_table::OutboxTable;
use crate::source::table::queries::Queries;
use filter::{Filter, quoted};
pub use report::Report;
use rule::Rule;

/// `relay replay`.
#[derive(Args, Debug)]
pub struct ReplayArgs {
    /// Database, table, log format.
    #[command(flatten)]
    pub table: TableArgs,
    /// The broker; not contacted in a dry run.
    #[command(flatten)]
    pub amqp: AmqpArgs,
    /// Rows that were marked sent (sent_at) at this time or later: RFC 3339, 2026-01-31T12:00:00Z
    #[arg(long, value_name = "TIME", value_parser = time)]
    pub from: PrimitiveDateTime,
    /// Rows that were marked sent (sent_at) before this time
    #[arg(long, value_name = "TIME", value_parser = time)]
    pub to: PrimitiveDateTime,
    /// Only rows with this event_type
    #[arg(long = "type", value_name = "EVENT_TYPE")]
    pub event_type: Option<String>,
    /// Only rows with this aggregate_id
    #[arg(long, value_name = "AGGREGATE_ID")]
    pub key: Option<String>,
    /// Only rows with a higher id: where a replay that was stopped goes on
    #[arg(long, value_name = "ID", default_value_t = 0)]
    pub after: u64,
    /// Count the rows and show the first ones; send nothing
    #[arg(long)]
    pub dry_run: bool,
    /// Messages a second, at most
    #[arg(long, value_name = "N", default_value_t = 500,
          value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub rate: u32,
    /// Why, for the audit
    #[arg(long, value_name = "TEXT", required_unless_present = "dry_run")]
    pub reason: Option<String>,
    /// Who does it, for the audit; by default the user and the machine
    #[arg(long, value_name = "NAME")]
    pub by: Option<String>,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
    /// A label for the broker's connection list
    #[arg(long, env = "RELAY_NAME", default_value = "outbox")]
    pub name: String,
    /// Time for the broker to confirm a batch
    #[arg(long, env = "RELAY_CONFIRM_TIMEOUT", default_value = "30s", value_parser = duration)]
    pub confirm_timeout: Duration,
    /// How long the consumers remember a message: the shortest PAY_RETENTION; 0s: for ever
    #[arg(long, env = "RELAY_INBOX_RETENTION", default_value = "30d", value_parser = duration)]
    pub inbox_retention: Duration,
    /// Of that, the time a message may wait in the broker's queue before the inbox sees it
    #[arg(long, env = "RELAY_REPLAY_MARGIN", default_value = "7d", value_parser = duration)]
    pub replay_margin: Duration,
}

/// A checked `relay replay`.
#[derive(Debug)]
pub struct Replay {
    table: OutboxTable,
    /// `None` in a dry run.
    amqp: Option<Amqp>,
    filter: Filter,
    rate: u32,
    reason: Option<String>,
    actor: String,
    name: String,
    confirm_timeout: Duration,
    rule: Rule,
}

impl ReplayArgs {
    /// Checks what belongs together.
    ///
    /// # Errors
    /// The field, what is wrong with it and the fix.
    pub fn resolve(self) -> Result<Replay, ConfigError> {
        if self.from >= self.to {
            return Err(ConfigError::new(
                "--from",
                "it is not before --to",
                "give the earlier time first: rows with --from <= sent_at < --to are meant",
            ));
        }
        if self.confirm_timeout < Duration::from_millis(1) {
            return Err(ConfigError::new(
                "RELAY_CONFIRM_TIMEOUT",
                "it is under a millisecond",
                "give a duration such as 30s",
            ));
        }
        let reason = self.reason.as_deref().map(operator::reason).transpose()?;
        Ok(Replay {
            table: self.table.resolve()?,
            amqp: match self.dry_run {
                true => None,
                false => Some(self.amqp.resolve()?),
            },
            filter: Filter {
                from: self.from,
                to: self.to,
                event_type: self.event_type,
                key: self.key,
                after: self.after,
            },
            rate: self.rate,
            reason,
            actor: operator::actor(self.by.as_deref())?,
            name: self.name,
            confirm_timeout: self.confirm_timeout,
            rule: Rule::new(self.inbox_retention, self.replay_margin)?,
        })
    }
}

impl Replay {
    /// The whole command that goes on behind the row `after`, for a shell; the settings come from the
    /// environment as before.
    fn go_on(&self, after: u64) -> String {
        let mut command = self.filter.go_on(after);
        command.push_str(&format!(" --rate {}", self.rate));
        if let Some(reason) = &self.reason {
            command.push_str(&format!(" --reason {}", quoted(reason)));
        }
        command.push_str(&format!(" --by {}", quoted(&self.actor)));
        command
    }

    /// Counts, and unless it is a dry run or refused, sends.
    ///
    /// # Errors
    /// Before anything was sent: the database's and the broker's. What stops it later is in the
    /// report.
    pub async fn run(&self, stop: &Shutdown) -> anyhow::Result<Report> {
        self.table.check_own().await?;
        let mut connection = self.table.url.connect().await?;
        let queries = Queries::discover(&mut connection, &self.table).await?;
        let mut reader = read::Reader::new(connection, queries).await?;
        let found = survey::count(&mut reader, self, stop).await?;
        let mut report = Report::new(self, found);
        match &self.amqp {
            None => report.is_dry_run(),
            Some(amqp) if report.is_worth_sending() => {
                send::all(self, amqp, reader, &mut report, stop).await?;
            }
            Some(_) => {}
        }
        Ok(report)
    }
}
