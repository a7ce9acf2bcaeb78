//! Putting a bulk together: in batches of primary keys, oldest rows first.

use std::time::Duration;

use sqlx::{MySql, QueryBuilder, Row as _, Transaction};
use svc_kit::tasks;
use time::PrimitiveDateTime;

use super::{BulkState, Plan, ROWS_MAX, hold};
use crate::act::{By, begin};
use crate::audit::{self, Entry};
use crate::console::{Console, again, unit};
use crate::error::Error;
use crate::filter::{Filter, Order, State};
use crate::list::{Reader, Window};
use crate::row::Cursor;
use crate::statement::push_keys;
use crate::table::{Key, Table};

/// Rows that get their time in one transaction.
const BATCH: u32 = 500;
const RATE_MAX: f64 = 100_000.0;
/// One row in a quarter of an hour.
const RATE_MIN: f64 = 0.001;
const CANARY_WAIT_MAX: u32 = 86_400;

impl Plan {
    /// Checks what belongs together.
    ///
    /// # Errors
    /// The member that can't work.
    pub fn checked(&self) -> Result<Self, Error> {
        let filter = self.filter.clone().checked()?;
        if !matches!(filter.state, State::Parked | State::Waiting) {
            let problem = "must be parked or waiting, to be retried";
            return Err(Error::invalid("state", problem));
        }
        if filter.message_id.is_some() {
            let problem = "names one row; retry that";
            return Err(Error::invalid("message_id", problem));
        }
        if !(1..=ROWS_MAX).contains(&self.max) {
            return Err(Error::invalid("max", format!("is not 1 to {ROWS_MAX}")));
        }
        if self.canary > ROWS_MAX {
            return Err(Error::invalid("canary", format!("is over {ROWS_MAX}")));
        }
        if self.canary_wait > CANARY_WAIT_MAX {
            let problem = format!("is over {CANARY_WAIT_MAX} s");
            return Err(Error::invalid("canary_wait", problem));
        }
        if self.rate != 0.0 && !(RATE_MIN..=RATE_MAX).contains(&self.rate) {
            let problem =
                format!("is not 0, for all at once, or {RATE_MIN} to {RATE_MAX} a second");
            return Err(Error::invalid("rate", problem));
        }
        Ok(Self {
            filter,
            ..self.clone()
        })
    }

    fn interval(&self) -> Duration {
        match self.rate {
            0.0 => Duration::ZERO,
            rate => Duration::from_secs_f64(1.0 / rate),
        }
    }

    fn told(&self) -> String {
        let Self {
            canary,
            canary_wait,
            rate,
            max,
            ..
        } = self;
        let rest = match rate {
            0.0 => "all at once".to_owned(),
            rate => format!("{rate} rows a second"),
        };
        match canary {
            0 => format!("at most {max} rows, {rest}"),
            _ => format!("at most {max} rows, {canary} first, after {canary_wait} s {rest}"),
        }
    }
}

impl Console {
    /// Begins a bulk, without rows; [`Console::bulk_fill`] puts them in.
    ///
    /// # Errors
    /// A plan that can't work, and the database's.
    pub async fn bulk_start(&self, plan: &Plan, by: &By) -> Result<u64, Error> {
        let (console, plan, by) = (self.clone(), plan.checked()?, by.checked()?);
        unit(async move {
            let table = console.table();
            let mut connection = console.connection().await?;
            let mut tx = begin(&mut connection).await?;
            let id = insert(&mut tx, table, &plan, &by).await?;
            let entry = Entry {
                action: "bulk_start",
                target: table.bulk_target(id),
                before: Some(plan.filter.told()),
                after: Some(plan.told()),
            };
            audit::write(&mut tx, &by, &[entry]).await?;
            tx.commit().await?;
            Ok(id)
        })
        .await
    }

    /// Puts the rows into a bulk that was begun; returns how many. Runs to its end in a task of its own,
    /// whether somebody waits for it or not; ends early when the bulk is paused, stopped or cancelled.
    ///
    /// # Errors
    /// The database's; what is in by then goes its way.
    pub async fn bulk_fill(&self, id: u64, plan: &Plan) -> Result<u64, Error> {
        let (console, plan) = (self.clone(), plan.checked()?);
        let filling = tasks::unit(async move {
            let filled = fill(&console, id, &plan).await;
            if let Err(err) = &filled {
                tracing::warn!(bulk = id, error = %err, "a bulk was not put together to its end");
            }
            filled
        });
        filling.await.unwrap_or(Err(Error::Panicked))
    }
}

async fn insert(
    tx: &mut Transaction<'_, MySql>,
    table: &Table,
    plan: &Plan,
    by: &By,
) -> Result<u64, sqlx::Error> {
    let micros = |wait: Duration| u64::try_from(wait.as_micros()).unwrap_or(u64::MAX);
    let filter = serde_json::to_string(&plan.filter).expect("a filter is always JSON");
    let mut query = QueryBuilder::<MySql>::new(format!(
        "INSERT INTO `{}_bulks` (actor, reason, filter, canary, canary_wait_us, interval_us) VALUES (",
        table.name()
    ));
    let canary_wait = match plan.canary {
        0 => Duration::ZERO,
        _ => Duration::from_secs(plan.canary_wait.into()),
    };
    let mut values = query.separated(", ");
    values
        .push_bind(&by.actor)
        .push_bind(&by.reason)
        .push_bind(filter)
        .push_bind(plan.canary)
        .push_bind(micros(canary_wait))
        .push_bind(micros(plan.interval()));
    query.push(")");
    Ok(query.build().execute(&mut **tx).await?.last_insert_id())
}

async fn fill(console: &Console, id: u64, plan: &Plan) -> Result<u64, Error> {
    let mut window = Window {
        after: None,
        order: Order::Oldest,
    };
    let mut filled = 0_u32;
    loop {
        let left = plan.max.saturating_sub(filled).min(BATCH);
        let found = match left {
            0 => Found::default(),
            _ => {
                let (console, filter) = (console.clone(), plan.filter.clone());
                let at = window.clone();
                unit(async move { look(&console, &filter, at, left).await }).await?
            }
        };
        let last = found.next.is_none();
        let keys: Vec<Key> = found.rows.into_iter().map(|place| place.key).collect();
        let batch = Batch {
            id,
            state: plan.filter.state,
            keys,
            first: filled,
            last,
        };
        let put = {
            let console = console.clone();
            unit(async move {
                again(|| {
                    let (console, batch) = (console.clone(), batch.clone());
                    async move { put_in(&console, &batch).await }
                })
                .await
            })
            .await?
        };
        let Some(rows) = put else { break };
        filled += rows;
        if last {
            break;
        }
        window.after = found.next;
    }
    Ok(u64::from(filled))
}

/// Rows that match, and where to look on.
#[derive(Debug, Default)]
struct Found {
    rows: Vec<Cursor>,
    next: Option<Cursor>,
}

async fn look(
    console: &Console,
    filter: &Filter,
    window: Window,
    limit: u32,
) -> Result<Found, Error> {
    let mut connection = console.connection().await?;
    let index = console.index(&mut connection).await?;
    let reader = Reader {
        table: console.table(),
        index: &index,
        filter,
    };
    let look_max = console.table().look_max();
    let end = reader.end(&mut connection, &window, look_max).await?;
    let rows = reader
        .places(&mut connection, &window, end.as_ref(), limit)
        .await?;
    let next = match rows.len() < limit as usize {
        true => end,
        false => rows.last().cloned(),
    };
    Ok(Found { rows, next })
}

/// Rows to be put in together.
#[derive(Clone, Debug)]
struct Batch {
    id: u64,
    /// The state they must still be in.
    state: State,
    keys: Vec<Key>,
    first: u32,
    last: bool,
}

/// One transaction; `None`: the bulk is not being filled any more.
async fn put_in(console: &Console, batch: &Batch) -> Result<Option<u32>, Error> {
    let table = console.table();
    let mut connection = console.connection().await?;
    let mut tx = begin(&mut connection).await?;
    if hold::lock(&mut tx, table, batch.id).await? != Some(BulkState::Filling) {
        return Ok(None);
    }
    let mut rows = 0;
    if !batch.keys.is_empty() {
        let keys = lock_rows(&mut tx, console, batch).await?;
        rows = u32::try_from(keys.len()).unwrap_or(BATCH);
        if rows > 0 {
            insert_rows(&mut tx, table, batch, &keys).await?;
            give_times(&mut tx, table, batch).await?;
        }
    }
    let state = match batch.last {
        true => BulkState::Running,
        false => BulkState::Filling,
    };
    hold::set_state(&mut tx, table, batch.id, (state, None)).await?;
    tx.commit().await?;
    Ok(Some(rows))
}

/// Of the batch's rows those that nobody has acted on since they were read, in its order.
async fn lock_rows(
    tx: &mut Transaction<'_, MySql>,
    console: &Console,
    batch: &Batch,
) -> Result<Vec<Key>, sqlx::Error> {
    let table = console.table();
    let key = table.key_column();
    let mut query = QueryBuilder::<MySql>::new(format!(
        "SELECT {key} FROM `{}` FORCE INDEX (PRIMARY) WHERE {key} IN (",
        table.name()
    ));
    push_keys(&mut query, &batch.keys);
    query.push(format!(") AND status = {}", batch.state.code()));
    if batch.state == State::Waiting {
        query.push(" AND next_attempt_at > UTC_TIMESTAMP(6) + INTERVAL ");
        query.push_bind(i64::try_from(console.lease().as_micros()).unwrap_or(i64::MAX));
        query.push(" MICROSECOND");
    }
    query.push(" FOR UPDATE");
    let rows = query.build().fetch_all(&mut **tx).await?;
    let mut locked = std::collections::HashSet::with_capacity(rows.len());
    for row in &rows {
        locked.insert(match table {
            Table::Outbox { .. } => Key::Id(row.try_get(0)?),
            Table::Inbox => Key::Message(row.try_get_unchecked(0)?),
        });
    }
    let keys = batch.keys.iter().filter(|key| locked.contains(*key));
    Ok(keys.cloned().collect())
}

async fn insert_rows(
    tx: &mut Transaction<'_, MySql>,
    table: &Table,
    batch: &Batch,
    keys: &[Key],
) -> Result<(), sqlx::Error> {
    let name = table.name();
    let mut query = QueryBuilder::<MySql>::new(format!(
        "SELECT canary, canary_wait_us, interval_us, started_at FROM `{name}_bulks` WHERE id = "
    ));
    query.push_bind(batch.id);
    let row = query.build().fetch_one(&mut **tx).await?;
    let (canary, wait, interval): (u32, u64, u64) =
        (row.try_get(0)?, row.try_get(1)?, row.try_get(2)?);
    let started: PrimitiveDateTime = row.try_get_unchecked(3)?;
    let mut query = QueryBuilder::<MySql>::new(format!(
        "INSERT INTO `{name}_bulk_rows` (bulk_id, seq, row_key, due_at) "
    ));
    query.push_values((batch.first..).zip(keys), |mut row, (seq, key)| {
        let offset = match seq.checked_sub(canary) {
            None => 0,
            Some(rank) => wait.saturating_add(interval.saturating_mul(rank.into())),
        };
        let due = started + Duration::from_micros(offset);
        row.push_bind(batch.id).push_bind(seq);
        match key {
            Key::Id(id) => row.push_bind(*id),
            Key::Message(id) => row.push_bind(id.clone()),
        };
        row.push_bind(due);
    });
    query.build().execute(&mut **tx).await?;
    Ok(())
}

/// The rows are locked. An inbox row's age begins when its time comes: by its old one it would be
/// parked at the first sign of an outage.
async fn give_times(
    tx: &mut Transaction<'_, MySql>,
    table: &Table,
    batch: &Batch,
) -> Result<(), sqlx::Error> {
    let fresh = match (table, batch.state) {
        (Table::Outbox { .. }, State::Parked) => "t.attempts = 0, ",
        (Table::Inbox, State::Parked) => "t.attempts = 0, t.received_at = b.due_at, ",
        _ => "",
    };
    let mut query = QueryBuilder::<MySql>::new(format!(
        "UPDATE `{0}_bulk_rows` b STRAIGHT_JOIN `{0}` t ON t.{1} = b.row_key \
         SET {fresh}t.status = 1, t.next_attempt_at = b.due_at WHERE b.bulk_id = ",
        table.name(),
        table.key_column()
    ));
    query.push_bind(batch.id);
    query.push(" AND b.seq >= ").push_bind(batch.first);
    query.build().execute(&mut **tx).await?;
    Ok(())
}
