//! The columns a pass reads, and what is made of them.

use std::time::Duration;

use outbox::row::Row;
use sqlx::mysql::{MySqlConnection, MySqlRow};
use sqlx::{AssertSqlSafe, Row as _};
use time::PrimitiveDateTime;

use super::{Queries, Way};
use crate::dispatch::Head;
use crate::queue::{RowId, key_hash};
use crate::route::Route;

/// Payload and headers of a row that comes along with its head: a page has two MiB of them at the
/// most. To read such a row once more, by its id, cost half as much as to send it.
const SMALL_BYTES: usize = 2048;
/// Columns of [`Queries::heads_statement`].
const HEAD_COLUMNS: usize = 9;

impl Queries {
    /// The query of a pass by the index; its parameters: the ids before and at its end, and the page's
    /// rows.
    pub fn heads_statement(&self) -> String {
        self.page_statement(&self.index, "")
    }

    fn page_statement(&self, index: &str, further: &str) -> String {
        // No due, age or key in the WHERE: with them in SQL the rows of one waiting key filled
        // every page for ever, and other keys starved behind them.
        // A key that is an integer comes as text, as the tail makes it one.
        format!(
            "SELECT id, message_id, aggregate_type, CONCAT(aggregate_id), exchange, routing_key, \
             TIMESTAMPDIFF(MICROSECOND, UTC_TIMESTAMP(6), next_attempt_at), \
             OCTET_LENGTH(payload) + COALESCE(OCTET_LENGTH(headers), 0), \
             attempts > 0 OR sent_at IS NOT NULL OR last_error IS NOT NULL \
             OR next_attempt_at IS NOT NULL{further} \
             FROM {} {index} WHERE status = 1 AND id > ? AND id <= ? ORDER BY id LIMIT ?",
            self.table
        )
    }

    /// The heads between two ids, and the small rows among them if they are wanted.
    pub(super) async fn heads(
        &self,
        connection: &mut MySqlConnection,
        (after, end): (u64, u64),
        way: Way,
        small: bool,
    ) -> Result<(Vec<Head>, Vec<(Row, u32)>), sqlx::Error> {
        let small_columns = || {
            let is_small = format!(
                "OCTET_LENGTH(payload) + COALESCE(OCTET_LENGTH(headers), 0) <= {SMALL_BYTES}"
            );
            format!(
                ", event_type, content_type, IF({is_small}, headers, NULL), \
                 IF({is_small}, payload, NULL), created_at, attempts"
            )
        };
        let further = small.then(small_columns).unwrap_or_default();
        let index = match way.dense {
            true => "FORCE INDEX (PRIMARY)",
            false => &self.index,
        };
        let rows = sqlx::query(AssertSqlSafe(self.page_statement(index, &further)))
            .bind(after)
            .bind(end)
            .bind(way.rows as u64)
            .fetch_all(connection)
            .await?;
        let mut routes = None;
        let heads = rows.iter().map(|row| head_of(row, &mut routes));
        let heads = heads.collect::<Result<_, _>>()?;
        let whole = match small {
            true => rows.iter().filter_map(small_of).collect::<Result<_, _>>()?,
            false => Vec::new(),
        };
        Ok((heads, whole))
    }
}

/// `last` is the route of the row before: mostly it is this one's too.
fn head_of(row: &MySqlRow, last: &mut Option<Route>) -> Result<Head, sqlx::Error> {
    let bytes = |index: usize| row.try_get_unchecked::<&[u8], _>(index);
    let wait: Option<i64> = row.try_get_unchecked(6)?;
    let wait = wait
        .and_then(|micros| u64::try_from(micros).ok())
        .filter(|micros| *micros > 0);
    let (exchange, routing_key) = (bytes(4)?, bytes(5)?);
    let same = last.take().filter(|last| last.is(exchange, routing_key));
    let route = last.insert(same.unwrap_or_else(|| Route::new(exchange, routing_key)));
    let route = route.clone();
    Ok(Head {
        id: RowId::new(row.try_get(0)?, &String::from_utf8_lossy(bytes(1)?)),
        key: key_hash(bytes(2)?, bytes(3)?),
        route,
        wait: wait.map(Duration::from_micros),
        bytes: usize::try_from(row.try_get_unchecked::<i64, _>(7)?).unwrap_or(usize::MAX),
        relived: row.try_get_unchecked::<i64, _>(8)? != 0,
    })
}

/// `None` for a row whose payload did not come along.
fn small_of(row: &MySqlRow) -> Option<Result<(Row, u32), sqlx::Error>> {
    const AT: [usize; 12] = {
        const H: usize = HEAD_COLUMNS;
        [0, 1, 2, 3, H, 4, 5, H + 1, H + 2, H + 3, H + 4, H + 5]
    };
    match row.try_get_unchecked::<Option<&[u8]>, _>(AT[9]) {
        Ok(None) => None,
        Ok(Some(_)) => Some(row_at(row, AT)),
        Err(err) => Some(Err(err)),
    }
}

/// A row and its attempts, in the order of the columns of [`Queries::rows`].
pub(super) fn row_of(row: &MySqlRow) -> Result<(Row, u32), sqlx::Error> {
    row_at(row, std::array::from_fn(|column| column))
}

fn row_at(row: &MySqlRow, at: [usize; 12]) -> Result<(Row, u32), sqlx::Error> {
    let bytes = |column: usize| row.try_get_unchecked::<Vec<u8>, _>(at[column]);
    let message_id = row.try_get_unchecked::<&[u8], _>(at[1])?;
    let read = Row {
        id: row.try_get(at[0])?,
        message_id: String::from_utf8_lossy(message_id).into_owned(),
        aggregate_type: bytes(2)?,
        aggregate_id: bytes(3)?,
        event_type: bytes(4)?,
        exchange: bytes(5)?,
        routing_key: bytes(6)?,
        content_type: bytes(7)?,
        headers: row.try_get_unchecked::<Option<Vec<u8>>, _>(at[8])?,
        payload: bytes(9)?,
        // sqlx reads a zero date as NULL; a day that is in no calendar is this row's fault alone.
        created_at: row
            .try_get_unchecked::<Option<PrimitiveDateTime>, _>(at[10])
            .unwrap_or(None),
    };
    Ok((read, row.try_get(at[11])?))
}
