//! Putting rows into a bulk: in batches of primary keys, oldest rows first. A fill that was cut short
//! begins again at the filter's first row: what is in already is not put in twice.

use std::collections::HashSet;

use sqlx::{MySql, QueryBuilder, Row as _, Transaction};

use super::standing::{lock, set, touch};
use super::{BulkState, hold};
use crate::act::begin;
use crate::console::Console;
use crate::error::Error;
use crate::filter::{Filter, Order, State};
use crate::list::{Reader, Window};
use crate::row::{Cursor, text};
use crate::statement::push_keys;
use crate::table::{Key, Table};

/// Rows that get their time in one transaction.
const BATCH: u32 = 500;

/// What a batch came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Batch {
    /// Rows were put in; the next batch begins behind this place.
    Next { rows: u64, after: Cursor },
    /// The last rows were put in.
    Last { rows: u64 },
    /// The bulk is in another state by now.
    Changed,
}

/// Puts the next rows that match into a bulk.
pub(super) async fn batch(
    console: &Console,
    id: u64,
    after: Option<Cursor>,
) -> Result<Batch, Error> {
    let table = console.table();
    let mut connection = console.connection().await?;
    let mut query = QueryBuilder::<MySql>::new(format!(
        "SELECT filter FROM `{}_bulks` WHERE id = ",
        table.name()
    ));
    query.push_bind(id);
    let row = query.build().fetch_one(&mut *connection).await?;
    let filter = text(&row, 0)?.unwrap_or_default();
    let filter: Filter = serde_json::from_str(&filter).map_err(|err| {
        let text = format!("the filter of bulk {id} can't be read: {err}");
        sqlx::Error::Protocol(text)
    })?;
    let index = console.index(&mut connection).await?;
    let reader = Reader {
        table,
        index: &index,
        filter: &filter,
    };
    let order = Order::Oldest;
    let window = Window { after, order };
    let end = reader
        .end(&mut connection, &window, table.look_max())
        .await?;
    let places = reader
        .places(&mut connection, &window, end.as_ref(), BATCH)
        .await?;
    let next = match places.len() < BATCH as usize {
        true => end,
        false => places.last().cloned(),
    };
    let keys: Vec<Key> = places.into_iter().map(|place| place.key).collect();

    let mut tx = begin(&mut connection).await?;
    match lock(&mut tx, table, id).await? {
        Some(bulk) if bulk.state == BulkState::Filling => {}
        _ => return Ok(Batch::Changed),
    }
    let (first, max) = room(&mut tx, table, id).await?;
    let mut put = lock_rows(&mut tx, console, filter.state, &keys).await?;
    let members = members(&mut tx, table, id, &put).await?;
    put.retain(|key| !members.contains(key));
    put.truncate(max.saturating_sub(first) as usize);
    let count = u32::try_from(put.len()).unwrap_or(BATCH);
    if count > 0 {
        insert(&mut tx, table, (id, first), &put).await?;
        let seqs: Vec<u32> = (first..first + count).collect();
        let fresh = filter.state == State::Parked;
        hold::schedule(&mut tx, table, (id, &seqs), fresh).await?;
    }
    let rows = count.into();
    let outcome = match next {
        Some(after) if first + count < max => {
            touch(&mut tx, table, id).await?;
            Batch::Next { rows, after }
        }
        _ => {
            set(&mut tx, table, id, ", state = 'running', filled = 1").await?;
            Batch::Last { rows }
        }
    };
    tx.commit().await?;
    Ok(outcome)
}

/// The number of the next row, and how many there may be.
async fn room(
    tx: &mut Transaction<'_, MySql>,
    table: &Table,
    id: u64,
) -> Result<(u32, u32), sqlx::Error> {
    let mut query = QueryBuilder::<MySql>::new(format!(
        "SELECT (SELECT MAX(b.seq) FROM `{0}_bulk_rows` b WHERE b.bulk_id = k.id), k.rows_max \
         FROM `{0}_bulks` k WHERE k.id = ",
        table.name()
    ));
    query.push_bind(id);
    let row = query.build().fetch_one(&mut **tx).await?;
    let last: Option<u32> = row.try_get(0)?;
    Ok((last.map_or(0, |last| last + 1), row.try_get(1)?))
}

/// Of the rows those that nobody has acted on since they were read, in their order.
async fn lock_rows(
    tx: &mut Transaction<'_, MySql>,
    console: &Console,
    state: State,
    keys: &[Key],
) -> Result<Vec<Key>, sqlx::Error> {
    let table = console.table();
    let key = table.key_column();
    let mut query = QueryBuilder::<MySql>::new(format!(
        "SELECT {key} FROM `{}` FORCE INDEX (PRIMARY) WHERE {key} IN (",
        table.name()
    ));
    push_keys(&mut query, keys);
    query.push(format!(") AND status = {}", state.code()));
    if state == State::Waiting {
        query.push(" AND next_attempt_at > UTC_TIMESTAMP(6) + INTERVAL ");
        query.push_bind(i64::try_from(console.lease().as_micros()).unwrap_or(i64::MAX));
        query.push(" MICROSECOND");
    }
    query.push(format!(" ORDER BY {key} FOR UPDATE"));
    let locked = read_keys(tx, table, query).await?;
    Ok(keys
        .iter()
        .filter(|key| locked.contains(*key))
        .cloned()
        .collect())
}

/// Those of the rows that are in the bulk.
async fn members(
    tx: &mut Transaction<'_, MySql>,
    table: &Table,
    id: u64,
    keys: &[Key],
) -> Result<HashSet<Key>, sqlx::Error> {
    let mut query = QueryBuilder::<MySql>::new(format!(
        "SELECT row_key FROM `{}_bulk_rows` WHERE row_key IN (",
        table.name()
    ));
    push_keys(&mut query, keys);
    query.push(") AND bulk_id = ").push_bind(id);
    read_keys(tx, table, query).await
}

async fn read_keys(
    tx: &mut Transaction<'_, MySql>,
    table: &Table,
    mut query: QueryBuilder<MySql>,
) -> Result<HashSet<Key>, sqlx::Error> {
    let rows = query.build().fetch_all(&mut **tx).await?;
    rows.iter().map(|row| table.key_of(row, 0)).collect()
}

async fn insert(
    tx: &mut Transaction<'_, MySql>,
    table: &Table,
    (id, first): (u64, u32),
    keys: &[Key],
) -> Result<(), sqlx::Error> {
    let mut query = QueryBuilder::<MySql>::new(format!(
        "INSERT INTO `{}_bulk_rows` (bulk_id, seq, row_key) ",
        table.name()
    ));
    query.push_values((first..).zip(keys), |mut row, (seq, key)| {
        row.push_bind(id).push_bind(seq);
        match key {
            Key::Id(id) => row.push_bind(*id),
            Key::Message(id) => row.push_bind(id.clone()),
        };
    });
    query.build().execute(&mut **tx).await?;
    Ok(())
}
