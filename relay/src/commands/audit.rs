//! `relay audit`: outbox and inbox, joined by message id. Both are only read, page by page.

mod chosen;
mod inbox;
mod judge;
mod ledger;
mod outbox;
mod screen;
mod walk;

use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context as _;
use clap::Args;
use secrecy::{ExposeSecret as _, SecretString};
use svc_kit::boot::ConfigError;
use svc_kit::database::DatabaseUrl;
use svc_kit::settings::{duration, secret, secret_value};
use time::PrimitiveDateTime;

use crate::commands::times::time;
use crate::config::TableArgs;
use crate::engine::route::Route;
use crate::outbox_table::OutboxTable;
use chosen::Chosen;
use judge::Bounds;
pub use ledger::Ledger;

/// Rows read at once.
const PAGE: usize = 1000;
/// For a page.
const READ_TIMEOUT: Duration = Duration::from_secs(60);

const INBOX_URL: &str = "RELAY_AUDIT_INBOX_URL";

/// `relay audit`.
#[derive(Args, Debug)]
pub struct AuditArgs {
    /// Database, table, log format.
    #[command(flatten)]
    pub table: TableArgs,
    /// The database of the inbox, on this server or another; an account that may SELECT suffices
    #[arg(long = "inbox", env = "RELAY_AUDIT_INBOX_URL", hide_env_values = true,
          value_name = "URL", value_parser = secret_value)]
    pub inbox: Option<SecretString>,
    /// File that holds the URL of the inbox's database
    #[arg(
        long,
        env = "RELAY_AUDIT_INBOX_URL_FILE",
        hide_env_values = true,
        value_name = "PATH"
    )]
    pub inbox_file: Option<PathBuf>,
    /// Only rows written (created_at), and inbox rows received, at this time or later:
    /// 2026-01-31T12:00:00Z
    #[arg(long, value_name = "TIME", value_parser = time)]
    pub since: Option<PrimitiveDateTime>,
    /// Only messages of this event type
    #[arg(long = "type", value_name = "TYPE")]
    pub event_type: Option<String>,
    /// Only messages of this route
    #[arg(long, num_args = 2, value_names = ["EXCHANGE", "ROUTING_KEY"])]
    pub route: Option<Vec<String>>,
    /// A row that waits for longer than this counts as late as well
    #[arg(long, value_name = "DURATION", default_value = "5m", value_parser = duration)]
    pub late: Duration,
    /// A sent row is missing only when it was sent longer ago than this; until then it waits
    #[arg(long, value_name = "DURATION", default_value = "30s", value_parser = duration)]
    pub grace: Duration,
    /// What does not balance is looked at again after this
    #[arg(long, value_name = "DURATION", default_value = "2s", value_parser = duration)]
    pub recheck_after: Duration,
    /// Rows listed of each kind; the others are counted
    #[arg(long, value_name = "N", default_value_t = 20)]
    pub limit: usize,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// A checked `relay audit`.
#[derive(Debug)]
pub struct Audit {
    table: OutboxTable,
    inbox: DatabaseUrl,
    chosen: Chosen,
    bounds: Bounds,
    recheck_after: Duration,
    limit: usize,
}

impl AuditArgs {
    /// Checks the settings.
    ///
    /// # Errors
    /// The field, what is wrong with it and the fix.
    pub fn resolve(&self) -> Result<Audit, ConfigError> {
        let inbox = secret(INBOX_URL, self.inbox.as_ref(), self.inbox_file.as_deref())?;
        let inbox = inbox.ok_or_else(|| {
            let fix = "give --inbox or set it to mysql://user:password@host:3306/payments";
            ConfigError::new(INBOX_URL, "is not set", fix)
        })?;
        let inbox = DatabaseUrl::parse(inbox.expose_secret()).map_err(|wrong| ConfigError {
            field: INBOX_URL.into(),
            ..wrong
        })?;
        Ok(Audit {
            table: self.table.resolve()?,
            inbox,
            chosen: Chosen {
                since: self.since,
                event_type: self.event_type.clone(),
                route: self.route.as_deref().and_then(|route| match route {
                    [exchange, routing_key] => {
                        Some(Route::new(exchange.as_bytes(), routing_key.as_bytes()))
                    }
                    _ => None,
                }),
            },
            bounds: Bounds {
                late: self.late,
                grace: self.grace,
            },
            recheck_after: self.recheck_after,
            limit: self.limit,
        })
    }
}

impl Audit {
    /// Reads both tables.
    ///
    /// # Errors
    /// One of the databases could not be queried.
    pub async fn run(&self) -> anyhow::Result<Ledger> {
        self.table.check_own().await?;
        let outbox = self.table.url.connect().await;
        let outbox = outbox.with_context(|| format!("the outbox at {}", self.table.url))?;
        let inbox = self.inbox.connect().await;
        let inbox = inbox.with_context(|| format!("the inbox at {}", self.inbox))?;
        let outbox = outbox::Outbox::new(outbox, &self.table.name);
        walk::walk(self, outbox, inbox::Inbox::new(inbox)).await
    }
}
