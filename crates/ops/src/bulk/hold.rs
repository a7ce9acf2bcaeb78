//! Holding back the rows of a bulk that were not tried yet, and letting them go again. A bulk may have
//! 100,000 rows, so both go by windows of its own list, a transaction each, the next to go first.

use std::collections::HashMap;

use sqlx::{MySql, MySqlConnection, QueryBuilder, Row as _, Transaction};
use time::PrimitiveDateTime;

use super::BulkState;
use super::standing::{lock, touch};
use crate::act::begin;
use crate::statement::push_keys;
use crate::table::{Key, Table};

/// Rows of a bulk that are looked at in one transaction.
const WINDOW: u32 = 500;

/// What a window came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Window {
    /// Rows were changed; the next window begins at this row.
    Next {
        /// How many.
        rows: u64,
        /// `seq`.
        from: u32,
    },
    /// There are no rows from here on.
    Behind,
    /// The bulk is in another state by now.
    Changed,
}

/// Which rows of an outbox were surely not tried; in the inbox a claim shows in the row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Untried {
    /// Those that are due in 2 s or later: a relay takes a due row without a lock, and what is on its
    /// way would be sent and parked.
    Later,
    /// All: no relay is at work.
    All,
}

/// A row of a bulk.
struct Member {
    seq: u32,
    key: Key,
    due_at: Option<PrimitiveDateTime>,
    is_later: bool,
}

/// Parks those of a window that were not tried. A row that was claimed, failed or otherwise touched
/// since has another `next_attempt_at` than the bulk gave it, and is left alone.
pub(super) async fn hold_back(
    connection: &mut MySqlConnection,
    table: &Table,
    (id, from): (u64, u32),
    untried: Untried,
) -> Result<Window, sqlx::Error> {
    let mut tx = begin(connection).await?;
    match lock(&mut tx, table, id).await? {
        Some(bulk) if bulk.state.holds_back() && !bulk.held => {}
        _ => return Ok(Window::Changed),
    }
    let members = members(&mut tx, table, id, from).await?;
    let Some(last) = members.last().map(|member| member.seq) else {
        return Ok(Window::Behind);
    };
    let all = untried == Untried::All || *table == Table::Inbox;
    let untried: Vec<&Member> = members
        .iter()
        .filter(|member| member.due_at.is_some() && (all || member.is_later))
        .collect();
    let times = locked(&mut tx, table, &untried, 1).await?;
    let as_given = |member: &&Member| times.get(&member.key) == Some(&member.due_at);
    let held: Vec<&Member> = untried.into_iter().filter(as_given).collect();
    if !held.is_empty() {
        // Its age began when its time was to come.
        let age = match table {
            Table::Outbox { .. } => "",
            Table::Inbox => "received_at = LEAST(received_at, UTC_TIMESTAMP(6)), ",
        };
        let mut query = QueryBuilder::<MySql>::new(format!(
            "UPDATE `{}` SET {age}status = 3, next_attempt_at = NULL WHERE {} IN (",
            table.name(),
            table.key_column()
        ));
        push_keys(&mut query, &keys(&held));
        query.push(")");
        query.build().execute(&mut *tx).await?;
        let mut query = QueryBuilder::<MySql>::new(format!(
            "UPDATE `{}_bulk_rows` SET due_at = NULL WHERE bulk_id = ",
            table.name()
        ));
        query.push_bind(id);
        push_seqs(&mut query, "seq", &seqs(&held));
        query.build().execute(&mut *tx).await?;
    }
    touch(&mut tx, table, id).await?;
    tx.commit().await?;
    Ok(Window::Next {
        rows: held.len() as u64,
        from: last + 1,
    })
}

/// Gives those of a window that are held back new times.
pub(super) async fn let_go(
    connection: &mut MySqlConnection,
    table: &Table,
    (id, from): (u64, u32),
) -> Result<Window, sqlx::Error> {
    let mut tx = begin(connection).await?;
    match lock(&mut tx, table, id).await? {
        Some(bulk) if bulk.state == BulkState::Filling => {}
        _ => return Ok(Window::Changed),
    }
    let members = members(&mut tx, table, id, from).await?;
    let Some(last) = members.last().map(|member| member.seq) else {
        return Ok(Window::Behind);
    };
    let held: Vec<&Member> = members.iter().filter(|m| m.due_at.is_none()).collect();
    let parked = locked(&mut tx, table, &held, 3).await?;
    let gone: Vec<&Member> = held
        .into_iter()
        .filter(|member| parked.contains_key(&member.key))
        .collect();
    if !gone.is_empty() {
        schedule(&mut tx, table, (id, &seqs(&gone)), true).await?;
    }
    touch(&mut tx, table, id).await?;
    tx.commit().await?;
    Ok(Window::Next {
        rows: gone.len() as u64,
        from: last + 1,
    })
}

/// Gives rows of a bulk, which are locked, their times: the canary when it was started or resumed,
/// the rest behind it. `fresh` rows, which were parked, start anew; an inbox row's age then begins when
/// its time comes: by its old one it would be parked at the first sign of an outage.
pub(super) async fn schedule(
    tx: &mut Transaction<'_, MySql>,
    table: &Table,
    (id, seqs): (u64, &[u32]),
    fresh: bool,
) -> Result<(), sqlx::Error> {
    let name = table.name();
    let mut query = QueryBuilder::<MySql>::new(format!(
        "UPDATE `{name}_bulk_rows` b JOIN `{name}_bulks` k ON k.id = b.bulk_id \
         SET b.due_at = k.base_at + INTERVAL IF(b.seq < k.base_seq + k.canary, 0, \
         k.canary_wait_us + (b.seq - k.base_seq - k.canary) * k.interval_us) MICROSECOND \
         WHERE b.bulk_id = "
    ));
    query.push_bind(id);
    push_seqs(&mut query, "b.seq", seqs);
    query.build().execute(&mut **tx).await?;
    let anew = match (table, fresh) {
        (_, false) => "",
        (Table::Outbox { .. }, true) => "t.attempts = 0, ",
        (Table::Inbox, true) => "t.attempts = 0, t.received_at = b.due_at, ",
    };
    // The bulk's own list leads, one row of the table follows each.
    let mut query = QueryBuilder::<MySql>::new(format!(
        "UPDATE `{name}_bulk_rows` b STRAIGHT_JOIN `{name}` t ON t.{} = b.row_key \
         SET {anew}t.status = 1, t.next_attempt_at = b.due_at WHERE b.bulk_id = ",
        table.key_column()
    ));
    query.push_bind(id);
    push_seqs(&mut query, "b.seq", seqs);
    query.build().execute(&mut **tx).await?;
    Ok(())
}

/// `seq` has no gaps, so an empty window is the end.
async fn members(
    tx: &mut Transaction<'_, MySql>,
    table: &Table,
    id: u64,
    from: u32,
) -> Result<Vec<Member>, sqlx::Error> {
    let mut query = QueryBuilder::<MySql>::new(format!(
        "SELECT seq, row_key, due_at, \
         COALESCE(due_at > UTC_TIMESTAMP(6) + INTERVAL 2 SECOND, 0) \
         FROM `{}_bulk_rows` WHERE bulk_id = ",
        table.name()
    ));
    query.push_bind(id).push(" AND seq >= ").push_bind(from);
    query.push(" AND seq < ").push_bind(from + WINDOW);
    query.push(" ORDER BY seq");
    let rows = query.build().fetch_all(&mut **tx).await?;
    let member = |row: &sqlx::mysql::MySqlRow| {
        Ok(Member {
            seq: row.try_get(0)?,
            key: table.key_of(row, 1)?,
            due_at: row.try_get_unchecked(2)?,
            is_later: row.try_get_unchecked::<i64, _>(3)? != 0,
        })
    };
    rows.iter().map(member).collect()
}

/// Locks those of the rows that have `status`, in the order of the primary key as everybody does, and
/// shows their `next_attempt_at`.
async fn locked(
    tx: &mut Transaction<'_, MySql>,
    table: &Table,
    members: &[&Member],
    status: u8,
) -> Result<HashMap<Key, Option<PrimitiveDateTime>>, sqlx::Error> {
    if members.is_empty() {
        return Ok(HashMap::new());
    }
    let key = table.key_column();
    let mut query = QueryBuilder::<MySql>::new(format!(
        "SELECT {key}, next_attempt_at FROM `{}` FORCE INDEX (PRIMARY) WHERE {key} IN (",
        table.name()
    ));
    push_keys(&mut query, &keys(members));
    query.push(format!(") AND status = {status} ORDER BY {key} FOR UPDATE"));
    let rows = query.build().fetch_all(&mut **tx).await?;
    let locked = rows
        .iter()
        .map(|row| Ok((table.key_of(row, 0)?, row.try_get_unchecked(1)?)));
    locked.collect()
}

fn keys(members: &[&Member]) -> Vec<Key> {
    members.iter().map(|member| member.key.clone()).collect()
}

fn seqs(members: &[&Member]) -> Vec<u32> {
    members.iter().map(|member| member.seq).collect()
}

/// ` AND seq IN (…)`.
fn push_seqs(query: &mut QueryBuilder<MySql>, column: &str, seqs: &[u32]) {
    query.push(format!(" AND {column} IN ("));
    let keys: Vec<Key> = seqs.iter().map(|seq| Key::Id((*seq).into())).collect();
    push_keys(query, &keys);
    query.push(")");
}
