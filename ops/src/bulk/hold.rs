//! Holding back the rows of a bulk that were not tried yet, and letting them go again.

use sqlx::{MySql, MySqlConnection, QueryBuilder, Row as _, Transaction};
use svc_kit::database::{Fault, classify};

use super::{BulkAct, BulkOutcome, BulkState};
use crate::act::{By, begin};
use crate::audit::{self, Entry};
use crate::console::{Console, again, unit};
use crate::error::Error;
use crate::row::text;
use crate::statement::push_keys;
use crate::table::{Key, Table};

/// `stopped_by` and the audit's `reason`, in characters.
const TEXT_MAX: usize = 1000;

impl BulkAct {
    /// `operator_actions.action`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Pause => "bulk_pause",
            Self::Resume => "bulk_resume",
            Self::Cancel => "bulk_cancel",
        }
    }

    const fn after(self) -> BulkState {
        match self {
            Self::Pause => BulkState::Paused,
            Self::Resume => BulkState::Running,
            Self::Cancel => BulkState::Cancelled,
        }
    }

    const fn fits(self, state: BulkState) -> bool {
        match self {
            Self::Pause => state.is_active(),
            Self::Resume => matches!(state, BulkState::Paused | BulkState::Stopped),
            Self::Cancel => !matches!(state, BulkState::Cancelled),
        }
    }
}

impl Console {
    /// Pauses, resumes or cancels a bulk.
    ///
    /// # Errors
    /// The database's.
    pub async fn bulk_act(&self, id: u64, act: BulkAct, by: &By) -> Result<BulkOutcome, Error> {
        let (console, by) = (self.clone(), by.checked()?);
        unit(async move {
            again(|| {
                let (console, by) = (console.clone(), by.clone());
                async move { transaction(&console, id, act, &by).await }
            })
            .await
        })
        .await
    }
}

async fn transaction(
    console: &Console,
    id: u64,
    act: BulkAct,
    by: &By,
) -> Result<BulkOutcome, Error> {
    let table = console.table();
    let mut connection = console.connection().await?;
    let mut tx = begin(&mut connection).await?;
    let Some(before) = lock(&mut tx, table, id).await? else {
        return Ok(BulkOutcome::Missing { id });
    };
    if !act.fits(before) {
        drop(tx);
        let last = audit::last(&mut connection, &table.bulk_target(id)).await?;
        let now = before;
        return Ok(BulkOutcome::Conflict { id, now, last });
    }
    let (rows, told) = match act {
        BulkAct::Pause | BulkAct::Cancel => (hold_back(&mut tx, table, id).await?, "held back"),
        BulkAct::Resume => (let_go(&mut tx, table, id).await?, "let go"),
    };
    set_state(&mut tx, table, id, (act.after(), None)).await?;
    let entry = Entry {
        action: act.name(),
        target: table.bulk_target(id),
        before: Some(before.name().to_owned()),
        after: Some(format!("{}, {rows} rows {told}", act.after().name())),
    };
    audit::write(&mut tx, by, &[entry]).await?;
    tx.commit().await?;
    Ok(BulkOutcome::Done {
        id,
        before,
        after: act.after(),
        rows,
    })
}

/// Whoever changes a bulk or its rows' times holds this lock.
pub(super) async fn lock(
    tx: &mut Transaction<'_, MySql>,
    table: &Table,
    id: u64,
) -> Result<Option<BulkState>, sqlx::Error> {
    let mut query = QueryBuilder::<MySql>::new(format!(
        "SELECT state FROM `{}_bulks` WHERE id = ",
        table.name()
    ));
    query.push_bind(id).push(" FOR UPDATE");
    let found = query.build().fetch_optional(&mut **tx).await?;
    let state = found.map(|row| BulkState::parse(&text(&row, 0)?.unwrap_or_default()));
    state.transpose()
}

pub(super) async fn set_state(
    tx: &mut Transaction<'_, MySql>,
    table: &Table,
    id: u64,
    (state, stopped_by): (BulkState, Option<&str>),
) -> Result<(), sqlx::Error> {
    let mut query = QueryBuilder::<MySql>::new(format!(
        "UPDATE `{}_bulks` SET changed_at = UTC_TIMESTAMP(6), state = ",
        table.name()
    ));
    query.push_bind(state.name());
    query.push(", stopped_by = ");
    query.push_bind(stopped_by.map(|text| text.chars().take(TEXT_MAX).collect::<String>()));
    query.push(" WHERE id = ").push_bind(id);
    query.build().execute(&mut **tx).await?;
    Ok(())
}

/// Parks the rows whose time has not come. A row that is due, claimed, failed or otherwise touched
/// since has another `next_attempt_at` than the bulk gave it, and is left alone.
async fn hold_back(
    tx: &mut Transaction<'_, MySql>,
    table: &Table,
    id: u64,
) -> Result<u64, sqlx::Error> {
    // The relay takes a due row without a lock. One that becomes due while this statement runs could be
    // sent and parked, so those of the next seconds are let go; pay-svc's claim shows in the row.
    let (age, on_its_way) = match table {
        Table::Outbox { .. } => ("", "INTERVAL 2 SECOND"),
        Table::Inbox => (
            "t.received_at = LEAST(t.received_at, UTC_TIMESTAMP(6)), ",
            "INTERVAL 0 SECOND",
        ),
    };
    let mut query = joined(table);
    query.push(format!(
        " SET {age}t.status = 3, t.next_attempt_at = NULL, b.due_at = NULL WHERE b.bulk_id = "
    ));
    query.push_bind(id);
    query.push(format!(
        " AND b.due_at > UTC_TIMESTAMP(6) + {on_its_way} AND t.status = 1 \
         AND t.next_attempt_at = b.due_at"
    ));
    both(query.build().execute(&mut **tx).await?.rows_affected())
}

/// Gives the rows that are held back new times: the first of them as a canary, the rest behind it.
async fn let_go(
    tx: &mut Transaction<'_, MySql>,
    table: &Table,
    id: u64,
) -> Result<u64, sqlx::Error> {
    let name = table.name();
    let mut query = QueryBuilder::<MySql>::new(format!(
        "SELECT (SELECT MIN(b.seq) FROM `{name}_bulk_rows` b WHERE b.bulk_id = k.id \
         AND b.due_at IS NULL), k.canary, k.canary_wait_us, k.interval_us \
         FROM `{name}_bulks` k WHERE k.id = "
    ));
    query.push_bind(id);
    let row = query.build().fetch_one(&mut **tx).await?;
    let Some(first) = row.try_get::<Option<u32>, _>(0)? else {
        return Ok(0);
    };
    let (canary, wait, interval): (u32, u64, u64) =
        (row.try_get(1)?, row.try_get(2)?, row.try_get(3)?);
    let rest = u64::from(first) + u64::from(canary);
    // Constant within a statement, so all assignments give the same.
    let due = format!(
        "UTC_TIMESTAMP(6) + INTERVAL IF(b.seq < {rest}, 0, {wait} + (b.seq - {rest}) * {interval}) \
         MICROSECOND"
    );
    let age = match table {
        Table::Outbox { .. } => String::new(),
        Table::Inbox => format!("t.received_at = {due}, "),
    };
    let mut query = joined(table);
    query.push(format!(
        " SET {age}t.status = 1, t.attempts = 0, t.next_attempt_at = {due}, b.due_at = {due} \
         WHERE b.due_at IS NULL AND t.status = 3 AND b.bulk_id = "
    ));
    query.push_bind(id);
    both(query.build().execute(&mut **tx).await?.rows_affected())
}

/// The bulk's own list of primary keys leads, one row of the table follows each.
fn joined(table: &Table) -> QueryBuilder<MySql> {
    QueryBuilder::new(format!(
        "UPDATE `{0}_bulk_rows` b STRAIGHT_JOIN `{0}` t ON t.{1} = b.row_key",
        table.name(),
        table.key_column()
    ))
}

/// Each row of the table is changed together with its row of the bulk.
#[expect(
    clippy::unnecessary_wraps,
    reason = "the last word of functions that return the same"
)]
fn both(changed: u64) -> Result<u64, sqlx::Error> {
    Ok(changed / 2)
}

/// The bulk that one of these rows is on its way in, locked: to be asked by whoever is about to record
/// their failure, before it changes the rows. One read of an index when there is none.
///
/// A database that knows no bulks yet, or an account that may not see them, has none.
///
/// # Errors
/// The database's.
pub async fn active(
    tx: &mut Transaction<'_, MySql>,
    table: &Table,
    keys: &[Key],
) -> Result<Vec<u64>, sqlx::Error> {
    match find_active(tx, table, keys).await {
        Err(err)
            if matches!(
                classify(&err),
                Fault::MissingTable | Fault::Misconfigured(_)
            ) =>
        {
            // Once: a canary that fails would not hold back the rest.
            static TOLD: std::sync::Once = std::sync::Once::new();
            TOLD.call_once(|| {
                tracing::warn!(
                    error = %err,
                    "bulk retries can't be seen: migrate, and grant the rights that README lists"
                );
            });
            Ok(Vec::new())
        }
        found => found,
    }
}

async fn find_active(
    tx: &mut MySqlConnection,
    table: &Table,
    keys: &[Key],
) -> Result<Vec<u64>, sqlx::Error> {
    let mut query = QueryBuilder::<MySql>::new(format!(
        "SELECT DISTINCT bulk_id FROM `{}_bulk_rows` WHERE row_key IN (",
        table.name()
    ));
    push_keys(&mut query, keys);
    query.push(") ORDER BY bulk_id");
    let ids: Vec<u64> = query.build_query_scalar().fetch_all(&mut *tx).await?;
    let mut active = Vec::new();
    for id in ids {
        let mut query = QueryBuilder::<MySql>::new(format!(
            "SELECT id FROM `{}_bulks` WHERE state IN ('filling', 'running') AND id = ",
            table.name()
        ));
        query.push_bind(id).push(" FOR UPDATE");
        active.extend(
            query
                .build_query_scalar::<u64>()
                .fetch_optional(&mut *tx)
                .await?,
        );
    }
    Ok(active)
}

/// Holds back what was not tried of a bulk, because a row of it has failed. `actor` is the service, and
/// the bulk came from [`active`] in this transaction.
///
/// # Errors
/// The database's.
pub async fn stop(
    tx: &mut Transaction<'_, MySql>,
    table: &Table,
    bulk: u64,
    (actor, why): (&str, &str),
) -> Result<(), sqlx::Error> {
    let rows = hold_back(tx, table, bulk).await?;
    set_state(tx, table, bulk, (BulkState::Stopped, Some(why))).await?;
    let by = By {
        actor: actor.to_owned(),
        reason: Some(why.chars().take(TEXT_MAX).collect()),
    };
    let entry = Entry {
        action: "bulk_stop",
        target: table.bulk_target(bulk),
        before: Some("running".to_owned()),
        after: Some(format!("stopped, {rows} rows held back")),
    };
    audit::write(tx, &by, &[entry]).await?;
    tracing::warn!(
        bulk,
        rows,
        actor,
        "a row of a bulk failed, the rest is held back"
    );
    Ok(())
}
