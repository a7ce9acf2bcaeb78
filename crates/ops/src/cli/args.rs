//! What each verb takes.

use std::path::PathBuf;

use clap::{Args, Subcommand};

use crate::audit::{ActionFilter, By};
use crate::filter::{Filter, PageRequest};

/// A verb of `parked`.
#[derive(Debug, Subcommand)]
pub enum Verb<S: Args> {
    /// List rows, a page at a time
    List(Box<With<S, ListArgs>>),
    /// Count rows by the class of their last failure
    Groups(Box<With<S, Filter>>),
    /// Show one row: payload, headers, every attempt, its life
    Show(Box<With<S, KeyArgs>>),
    /// Try parked rows again from the start, or waiting ones now: by their keys, or all that match
    Retry(Box<With<S, RetryArgs>>),
    /// Decide against parked rows
    Discard(Box<With<S, ReasonedArgs>>),
    /// Make discarded rows parked again
    Restore(Box<With<S, KeysArgs>>),
    /// Write a note on a row into the audit
    Note(Box<With<S, NoteArgs>>),
    /// Write a new message from a parked row, and discard the original
    Edit(Box<With<S, EditArgs>>),
    /// Retry many rows on a schedule, a few of them first
    #[command(subcommand)]
    Bulk(BulkVerb<S>),
    /// Show the audit, the newest first
    Actions(Box<With<S, ActionsArgs>>),
}

/// A verb of `parked bulk`.
#[derive(Debug, Subcommand)]
pub enum BulkVerb<S: Args> {
    /// Begin one: the canary goes now, the rest behind it at a rate
    Start(Box<With<S, StartArgs>>),
    /// Show how far one is, or the newest ones
    Show(Box<With<S, BulkShowArgs>>),
    /// Hold back what was not tried yet
    Pause(Box<With<S, BulkArgs>>),
    /// Give what is held back new times, canary first
    Resume(Box<With<S, BulkArgs>>),
    /// End one; what was not tried is parked
    Cancel(Box<With<S, BulkArgs>>),
}

/// What a verb takes beside where the table is.
#[derive(Debug, Args)]
pub struct With<S: Args, V: Args> {
    #[command(flatten)]
    pub(super) source: S,
    #[command(flatten)]
    pub(super) verb: V,
    /// Print JSON
    #[arg(long)]
    pub(super) json: bool,
}

#[derive(Debug, Args)]
pub struct ListArgs {
    #[command(flatten)]
    pub(super) filter: Filter,
    #[command(flatten)]
    pub(super) page: PageRequest,
}

#[derive(Debug, Args)]
pub struct KeyArgs {
    /// The row's key: the outbox's id, the inbox's message id
    #[arg(value_name = "KEY")]
    pub(super) key: String,
}

#[derive(Debug, Args)]
pub(super) struct ByArgs {
    /// Who does it, for the audit; by default the user and the machine
    #[arg(long, value_name = "NAME")]
    by: Option<String>,
}

#[derive(Debug, Args)]
pub struct KeysArgs {
    /// Keys of rows
    #[arg(value_name = "KEY", required = true)]
    pub(super) keys: Vec<String>,
    /// Why, for the audit
    #[arg(long, value_name = "TEXT")]
    pub(super) reason: Option<String>,
    #[command(flatten)]
    pub(super) by: ByArgs,
}

#[derive(Debug, Args)]
pub struct ReasonedArgs {
    /// Keys of rows
    #[arg(value_name = "KEY", required = true)]
    pub(super) keys: Vec<String>,
    /// Why, for the audit
    #[arg(long, value_name = "TEXT")]
    pub(super) reason: String,
    #[command(flatten)]
    pub(super) by: ByArgs,
}

#[derive(Debug, Args)]
pub struct RetryArgs {
    /// Keys of rows
    #[arg(
        value_name = "KEY",
        required_unless_present = "all",
        conflicts_with = "all"
    )]
    pub(super) keys: Vec<String>,
    /// All rows that match the filter, at once, as a bulk; at most 100,000
    #[arg(long)]
    pub(super) all: bool,
    #[command(flatten)]
    pub(super) filter: Filter,
    /// Why, for the audit
    #[arg(long, value_name = "TEXT")]
    pub(super) reason: Option<String>,
    #[command(flatten)]
    pub(super) by: ByArgs,
}

#[derive(Debug, Args)]
pub struct NoteArgs {
    /// The row's key
    #[arg(value_name = "KEY")]
    pub(super) key: String,
    /// The note
    #[arg(value_name = "TEXT")]
    pub(super) note: String,
    #[command(flatten)]
    pub(super) by: ByArgs,
}

#[derive(Debug, Args)]
pub struct EditArgs {
    /// The row's key
    #[arg(value_name = "KEY")]
    pub(super) key: String,
    /// The new message's type
    #[arg(long = "type", value_name = "TYPE")]
    pub(super) event_type: Option<String>,
    /// The new message's exchange
    #[arg(long)]
    pub(super) exchange: Option<String>,
    /// The new message's routing key
    #[arg(long)]
    pub(super) routing_key: Option<String>,
    /// The new message's content type (outbox only)
    #[arg(long)]
    pub(super) content_type: Option<String>,
    /// A header; with at least one, the original's are left behind
    #[arg(long = "header", value_name = "NAME=VALUE", value_parser = header)]
    pub(super) headers: Vec<(String, String)>,
    /// File with the new payload, UTF-8; - reads standard input
    #[arg(long, value_name = "PATH")]
    pub(super) payload: Option<PathBuf>,
    /// Why, for the audit
    #[arg(long, value_name = "TEXT")]
    pub(super) reason: String,
    /// Editing is off unless this is set
    #[arg(long, env = "OPS_ALLOW_EDIT")]
    pub(super) allow_edit: bool,
    #[command(flatten)]
    pub(super) by: ByArgs,
}

#[derive(Debug, Args)]
pub struct StartArgs {
    #[command(flatten)]
    pub(super) filter: Filter,
    /// Rows that go first, at once
    #[arg(long, value_name = "N", default_value_t = 10)]
    pub(super) canary: u32,
    /// Seconds from the canary to the rest; the relay may take a sweep interval to see a row
    #[arg(long, value_name = "SECONDS", default_value_t = 60)]
    pub(super) canary_wait: u32,
    /// Rows of the rest per second; 0: all at once
    #[arg(long, value_name = "N", default_value_t = 100.0)]
    pub(super) rate: f64,
    /// Rows, at most
    #[arg(long, value_name = "N", default_value_t = crate::bulk::ROWS_MAX)]
    pub(super) max: u32,
    /// Why, for the audit
    #[arg(long, value_name = "TEXT")]
    pub(super) reason: Option<String>,
    #[command(flatten)]
    pub(super) by: ByArgs,
}

#[derive(Debug, Args)]
pub struct BulkShowArgs {
    /// Its number; without one, the newest are listed
    #[arg(value_name = "BULK")]
    pub(super) id: Option<u64>,
}

#[derive(Debug, Args)]
pub struct BulkArgs {
    /// Its number
    #[arg(value_name = "BULK")]
    pub(super) id: u64,
    /// Why, for the audit
    #[arg(long, value_name = "TEXT")]
    pub(super) reason: Option<String>,
    #[command(flatten)]
    pub(super) by: ByArgs,
}

#[derive(Debug, Args)]
pub struct ActionsArgs {
    #[command(flatten)]
    pub(super) filter: ActionFilter,
    /// Print CSV (RFC 4180)
    #[arg(long, conflicts_with = "json")]
    pub(super) csv: bool,
}

impl ByArgs {
    pub(super) fn by(&self, reason: Option<&str>) -> By {
        let actor = match &self.by {
            Some(by) => by.clone(),
            None => super::whoever().chars().take(64).collect(),
        };
        By {
            actor,
            reason: reason.map(str::to_owned),
        }
    }
}

fn header(text: &str) -> Result<(String, String), String> {
    let (name, value) = text.split_once('=').ok_or("it is not NAME=VALUE")?;
    Ok((name.to_owned(), value.to_owned()))
}
