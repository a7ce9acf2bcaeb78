//! A bulk retry is a schedule, not a job: each row gets its own `next_attempt_at`, the canary now and
//! the rest behind it at a rate. Relay and workers know nothing of it, and it survives every restart
//! because it is in the rows.
//!
//! Who records the failure of a row of a bulk turns the bulk to `stopped` in the same transaction
//! ([`stop`]), as a person turns it to `paused` or `cancelled`: one UPDATE of one row. Its rows follow,
//! by windows ([`Console::bulk_carry_out`], [`Keeper`]).

mod act;
mod carry;
mod fill;
mod hold;
mod keep;
mod standing;
mod start;

use std::time::Duration;

use serde::{Deserialize, Serialize};
use sqlx::mysql::MySqlRow;
use sqlx::{MySql, MySqlConnection, QueryBuilder, Row as _};

pub use act::{active, stop};
pub use keep::{Keeper, check, rest_before_start};

use crate::audit::Last;
use crate::console::{Console, unit};
use crate::error::Error;
use crate::filter::Filter;
use crate::row::{text, time};
use crate::statement::push_key;
use crate::table::{Key, Table};

/// Rows of a bulk, at most. Held keys of a relay are remembered by name up to 131,072.
pub const ROWS_MAX: u32 = 100_000;
const BULKS_SHOWN: u32 = 20;

/// What a bulk is to do.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "console", derive(utoipa::ToSchema))]
#[serde(default, deny_unknown_fields)]
pub struct Plan {
    /// Which rows: parked ones, or waiting ones that are not due yet.
    pub filter: Filter,
    /// Rows that go first, at once.
    #[cfg_attr(feature = "console", schema(minimum = 0, maximum = 100_000))]
    pub canary: u32,
    /// Seconds from the canary to the rest. The relay may take a sweep interval (10 s) to see a row.
    #[cfg_attr(feature = "console", schema(minimum = 0, maximum = 86_400))]
    pub canary_wait: u32,
    /// Rows of the rest per second; 0: all at once.
    #[cfg_attr(feature = "console", schema(minimum = 0.0, maximum = 100_000.0))]
    pub rate: f64,
    /// Rows, at most; 1 to 100,000.
    #[cfg_attr(feature = "console", schema(minimum = 1, maximum = 100_000))]
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
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[cfg_attr(feature = "console", derive(utoipa::ToSchema))]
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
    /// None of its rows is on its way any more.
    Done,
}

impl BulkState {
    /// The word in the column.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Filling => "filling",
            Self::Running => "running",
            Self::Paused => "paused",
            Self::Stopped => "stopped",
            Self::Cancelled => "cancelled",
            Self::Done => "done",
        }
    }

    fn parse(name: &str) -> Result<Self, sqlx::Error> {
        [
            Self::Filling,
            Self::Running,
            Self::Paused,
            Self::Stopped,
            Self::Cancelled,
            Self::Done,
        ]
        .into_iter()
        .find(|state| state.name() == name)
        .ok_or_else(|| sqlx::Error::Protocol(format!("a bulk has the state {name:?}")))
    }

    /// Its rows go as their time comes.
    const fn is_active(self) -> bool {
        matches!(self, Self::Filling | Self::Running)
    }

    /// Its rows that were not tried are parked.
    const fn holds_back(self) -> bool {
        matches!(self, Self::Paused | Self::Stopped | Self::Cancelled)
    }

    const fn is_over(self) -> bool {
        matches!(self, Self::Cancelled | Self::Done)
    }
}

/// A bulk and how far it is.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[cfg_attr(feature = "console", derive(utoipa::ToSchema))]
pub struct Bulk {
    /// Its number.
    pub id: u64,
    /// Where it stands.
    pub state: BulkState,
    /// Its rows are as its state requires: all in, with their times, or held back.
    pub followed: bool,
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
    /// How far it is; lists do not show it.
    pub progress: Option<Progress>,
}

/// Rows of a bulk by what became of them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[cfg_attr(feature = "console", derive(utoipa::ToSchema))]
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
    /// Give what is held back new times, with the same canary and rate, and put in what is not in yet.
    Resume,
    /// End it: what was not tried is parked.
    Cancel,
}

/// What came of it.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[cfg_attr(feature = "console", derive(utoipa::ToSchema))]
#[serde(tag = "outcome", rename_all = "lowercase")]
pub enum BulkOutcome {
    /// Done.
    Done {
        /// The bulk.
        id: u64,
        /// What it was.
        before: BulkState,
        /// What it is now; its rows follow.
        after: BulkState,
        /// Rows that were changed, when they have followed already.
        #[serde(skip_serializing_if = "Option::is_none")]
        rows: Option<u64>,
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
    /// Not done: its rows are still being held back; once they are, it can be resumed.
    Early {
        /// The bulk.
        id: u64,
        /// What it is.
        now: BulkState,
    },
    /// There is no such bulk.
    Missing {
        /// The number requested.
        id: u64,
    },
}

impl Bulk {
    /// How far its rows have followed, while they do.
    pub(crate) fn following(&self) -> Option<String> {
        let Progress {
            rows,
            waiting,
            held,
            ..
        } = self.progress.as_ref()?;
        match self.state {
            _ if self.followed => None,
            state if state.holds_back() => {
                Some(format!("holding back: {held} of {}", held + waiting))
            }
            _ if *held > 0 => Some(format!("letting go: {} of {rows}", rows - held)),
            _ => Some(format!("putting rows in: {rows} so far")),
        }
    }
}

impl Progress {
    /// For the audit: `rows 100, waiting 90, done 10`.
    fn summary(&self) -> String {
        let mut text = format!("rows {}", self.rows);
        for (name, count) in [
            ("waiting", self.waiting),
            ("trying", self.trying),
            ("done", self.done),
            ("failed", self.failed),
            ("held", self.held),
            ("discarded", self.discarded),
            ("gone", self.gone),
        ] {
            if count > 0 {
                text.push_str(&format!(", {name} {count}"));
            }
        }
        text
    }
}

impl Console {
    /// The newest bulks, without progress.
    ///
    /// # Errors
    /// The database's.
    pub async fn bulks(&self) -> Result<Vec<Bulk>, Error> {
        let console = self.clone();
        unit(async move {
            let mut connection = console.connection().await?;
            let mut query = select(console.table());
            query.push(format!(" ORDER BY id DESC LIMIT {BULKS_SHOWN}"));
            let rows = query.build().fetch_all(&mut *connection).await?;
            let bulks: Result<_, sqlx::Error> = rows.iter().map(bulk_of).collect();
            Ok(bulks?)
        })
        .await
    }

    /// One bulk and how far it is.
    ///
    /// # Errors
    /// The database's.
    pub async fn bulk(&self, id: u64) -> Result<Option<Bulk>, Error> {
        let console = self.clone();
        unit(async move {
            let mut connection = console.connection().await?;
            let mut query = select(console.table());
            query.push(" WHERE id = ").push_bind(id);
            let found = query.build().fetch_optional(&mut *connection).await?;
            let Some(found) = found else { return Ok(None) };
            let mut bulk = bulk_of(&found)?;
            bulk.progress = Some(progress(&mut connection, console.table(), id).await?);
            Ok(Some(bulk))
        })
        .await
    }
}

fn select(table: &Table) -> QueryBuilder<MySql> {
    QueryBuilder::new(format!(
        "SELECT id, state, actor, reason, filter, canary, canary_wait_us, interval_us, stopped_by, \
         started_at, changed_at, held FROM `{}_bulks`",
        table.name()
    ))
}

fn bulk_of(row: &MySqlRow) -> Result<Bulk, sqlx::Error> {
    let filter = text(row, 4)?.unwrap_or_default();
    let interval: u64 = row.try_get(7)?;
    let state = BulkState::parse(&text(row, 1)?.unwrap_or_default())?;
    let held = row.try_get::<u8, _>(11)? != 0;
    Ok(Bulk {
        id: row.try_get(0)?,
        state,
        followed: state != BulkState::Filling && (held || !state.holds_back()),
        actor: text(row, 2)?.unwrap_or_default(),
        reason: text(row, 3)?,
        filter: serde_json::from_str::<Filter>(&filter).map_or(filter, |filter| filter.summary()),
        canary: row.try_get(5)?,
        canary_wait: Duration::from_micros(row.try_get(6)?).as_secs_f64(),
        rate: match interval {
            0 => 0.0,
            micros => 1.0 / Duration::from_micros(micros).as_secs_f64(),
        },
        stopped_by: text(row, 8)?,
        started_at: time(row, 9),
        changed_at: time(row, 10),
        progress: None,
    })
}

/// Counted anew each time: the rows are the only state.
async fn progress(
    connection: &mut MySqlConnection,
    table: &Table,
    id: u64,
) -> Result<Progress, sqlx::Error> {
    const WAITS: &str =
        "t.status = 1 AND b.due_at > UTC_TIMESTAMP(6) AND t.next_attempt_at = b.due_at";
    let mut query = QueryBuilder::<MySql>::new(format!(
        "SELECT COUNT(*), COUNT(IF({WAITS}, 1, NULL)), COUNT(IF(t.status = 1, 1, NULL)), \
         COUNT(IF(t.status = 2, 1, NULL)), \
         COUNT(IF(t.status = 3 AND b.due_at IS NOT NULL, 1, NULL)), \
         COUNT(IF(t.status = 3 AND b.due_at IS NULL, 1, NULL)), \
         COUNT(IF(t.status = 4, 1, NULL)), COUNT(IF(t.status IS NULL, 1, NULL)), \
         MAX(IF({WAITS}, b.due_at, NULL)) \
         FROM `{0}_bulk_rows` b LEFT JOIN `{0}` t ON t.{1} = b.row_key WHERE b.bulk_id = ",
        table.name(),
        table.key_column()
    ));
    query.push_bind(id);
    let row = query.build().fetch_one(connection).await?;
    let count = |index: usize| row.try_get::<i64, _>(index).map(i64::unsigned_abs);
    let waiting = count(1)?;
    Ok(Progress {
        rows: count(0)?,
        waiting,
        trying: count(2)?.saturating_sub(waiting),
        done: count(3)?,
        failed: count(4)?,
        held: count(5)?,
        discarded: count(6)?,
        gone: count(7)?,
        last_due_at: time(&row, 8),
    })
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
