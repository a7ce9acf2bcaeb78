//! The columns that are read, and what is made of them.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use outbox::row::{OutboxStatus, Row};
use sqlx::mysql::{MySqlConnection, MySqlRow};
use sqlx::{AssertSqlSafe, Row as _};
use time::PrimitiveDateTime;

use super::page_size::PageSize;
use super::queries::Queries;
use crate::engine::route::Route;
use crate::engine::{Head, LoadQuery, Read, Rows};
use crate::hash::{key_hash, tag_of};
use outbox::statement::{padded, padded_len, placeholders};

/// Payload and headers of a row that comes whole with its head: a page has two MiB of them at the most.
/// To read such a row once more, by its id, cost half as much as to send it.
const SMALL_BYTES: usize = 2048;

/// Columns of a head. A key that is an integer comes as text.
const HEAD: &str = "id, message_id, aggregate_type, CONCAT(aggregate_id), exchange, routing_key, \
    TIMESTAMPDIFF(MICROSECOND, UTC_TIMESTAMP(6), next_attempt_at), \
    OCTET_LENGTH(payload) + COALESCE(OCTET_LENGTH(headers), 0), \
    attempts > 0 OR sent_at IS NOT NULL OR last_error IS NOT NULL OR next_attempt_at IS NOT NULL, \
    attempts, status = 1";
/// How many they are.
const HEAD_COLUMNS: usize = 11;
/// Columns of a whole row, in the order of [`row_at`].
const WHOLE: &str = "id, message_id, aggregate_type, CONCAT(aggregate_id), event_type, exchange, \
    routing_key, content_type, headers, payload, created_at";

/// The columns of a head, and the others of small rows if `payloads`.
fn columns(payloads: bool) -> String {
    if !payloads {
        return HEAD.to_owned();
    }
    let is_small =
        format!("OCTET_LENGTH(payload) + COALESCE(OCTET_LENGTH(headers), 0) <= {SMALL_BYTES}");
    format!(
        "{HEAD}, event_type, content_type, IF({is_small}, headers, NULL), \
         IF({is_small}, payload, NULL), created_at"
    )
}

impl Queries {
    /// The query of a scan by the index; its parameters: the ids before and at its end, and the page's
    /// rows.
    pub fn heads_statement(&self) -> String {
        self.page_statement(&self.index, false)
    }

    fn page_statement(&self, index: &str, payloads: bool) -> String {
        // No due, age or key in the WHERE: with them in SQL the rows of one waiting key filled
        // every page for ever, and other keys starved behind them.
        format!(
            "SELECT {} FROM {} {index} WHERE status = 1 AND id > ? AND id <= ? ORDER BY id LIMIT ?",
            columns(payloads),
            self.table
        )
    }

    /// The pending rows with `after < id <= end`.
    pub(super) async fn pending(
        &self,
        connection: &mut MySqlConnection,
        (after, end): (u64, u64),
        size: PageSize,
        payloads: bool,
    ) -> Result<Vec<Read>, sqlx::Error> {
        let index = match size.dense {
            true => "FORCE INDEX (PRIMARY)",
            false => &self.index,
        };
        let rows = sqlx::query(AssertSqlSafe(self.page_statement(index, payloads)))
            .bind(after)
            .bind(end)
            .bind(size.rows as u64)
            .fetch_all(connection)
            .await?;
        read_all(&rows, payloads)
    }

    /// The rows with these ids that are there, whatever their status.
    pub(super) async fn load(
        &self,
        connection: &mut MySqlConnection,
        query: &LoadQuery,
    ) -> Result<Rows, sqlx::Error> {
        let read_at = Instant::now();
        let payloads = query.bytes > 0;
        let statement = format!(
            "SELECT {} FROM {} FORCE INDEX (PRIMARY) WHERE id IN ({})",
            columns(payloads),
            self.table,
            placeholders(padded_len(query.ids.len()), "?"),
        );
        let mut select = sqlx::query(AssertSqlSafe(statement));
        for id in padded(&query.ids) {
            select = select.bind(id);
        }
        let rows = select.fetch_all(&mut *connection).await?;
        let mut rows = read_all(&rows, payloads)?;
        if payloads {
            let missing = within_budget(&mut rows, query);
            if !missing.is_empty() {
                let found = self.rows(connection, &missing, OutboxStatus::Pending);
                add_payloads(&mut rows, found.await?);
            }
        }
        Ok(Rows { rows, read_at })
    }

    /// The whole rows with these ids that have this status.
    pub(crate) async fn rows(
        &self,
        connection: &mut MySqlConnection,
        ids: &[u64],
        status: OutboxStatus,
    ) -> Result<Vec<Row>, sqlx::Error> {
        let statement = AssertSqlSafe(format!(
            "SELECT {WHOLE} FROM {} WHERE id IN ({}) AND status = {} ORDER BY id",
            self.table,
            placeholders(padded_len(ids.len()), "?"),
            status.code(),
        ));
        let mut query = sqlx::query(statement);
        for id in padded(ids) {
            query = query.bind(id);
        }
        let in_order = std::array::from_fn(|column| column);
        // Row by row: payloads as the server sent them are not kept beside their copies.
        let query = query.try_map(move |row| row_at(&row, in_order));
        query.fetch_all(connection).await
    }
}

/// Takes payloads away from rows beyond the query's bytes. Returns the ids of rows within them whose
/// payloads have not come yet.
fn within_budget(rows: &mut [Read], query: &LoadQuery) -> Vec<u64> {
    let places: HashMap<u64, usize> = rows
        .iter()
        .enumerate()
        .filter(|(_, row)| row.pending)
        .map(|(place, row)| (row.head.id, place))
        .collect();
    let mut missing = Vec::new();
    let (mut bytes, mut first, mut full) = (0_usize, true, false);
    for place in query.ids.iter().filter_map(|id| places.get(id)) {
        let row = &mut rows[*place];
        bytes = bytes.saturating_add(row.head.bytes);
        full |= bytes > query.bytes && !first;
        first = false;
        if full {
            row.row = None;
        } else if row.row.is_none() {
            missing.push(row.head.id);
        }
    }
    missing
}

/// A row that has become another message since its head was read stays without its payload.
fn add_payloads(rows: &mut [Read], found: Vec<Row>) {
    let mut found: HashMap<u64, Row> = found.into_iter().map(|row| (row.id, row)).collect();
    for read in rows.iter_mut().filter(|read| read.row.is_none()) {
        if let Some(row) = found.remove(&read.head.id)
            && tag_of(&row.message_id) == read.head.tag
        {
            read.row = Some(Box::new(row));
        }
    }
}

fn read_all(rows: &[MySqlRow], payloads: bool) -> Result<Vec<Read>, sqlx::Error> {
    let mut route = None;
    rows.iter()
        .map(|row| read(row, payloads, &mut route))
        .collect()
}

/// `last` is the route of the row before: mostly it is this one's too.
fn read(row: &MySqlRow, payloads: bool, last: &mut Option<Route>) -> Result<Read, sqlx::Error> {
    let bytes = |index: usize| row.try_get_unchecked::<&[u8], _>(index);
    let flag = |index: usize| Ok::<_, sqlx::Error>(row.try_get_unchecked::<i64, _>(index)? != 0);
    let wait: Option<i64> = row.try_get_unchecked(6)?;
    let wait = wait
        .and_then(|micros| u64::try_from(micros).ok())
        .filter(|micros| *micros > 0);
    let (exchange, routing_key) = (bytes(4)?, bytes(5)?);
    let same = last.take().filter(|last| last.is(exchange, routing_key));
    let route = last.insert(same.unwrap_or_else(|| Route::new(exchange, routing_key)));
    let head = Head {
        id: row.try_get(0)?,
        tag: tag_of(&String::from_utf8_lossy(bytes(1)?)),
        key: key_hash(bytes(2)?, bytes(3)?),
        route: route.clone(),
        wait: wait.map(Duration::from_micros),
        bytes: usize::try_from(row.try_get_unchecked::<i64, _>(7)?).unwrap_or(usize::MAX),
        has_history: flag(8)?,
        attempts: row.try_get(9)?,
    };
    let pending = flag(10)?;
    Ok(Read {
        head,
        pending,
        row: match payloads && pending {
            true => small_of(row)?.map(Box::new),
            false => None,
        },
    })
}

/// `None` for a row whose payload did not come with its head.
fn small_of(row: &MySqlRow) -> Result<Option<Row>, sqlx::Error> {
    const AT: [usize; 11] = {
        const H: usize = HEAD_COLUMNS;
        [0, 1, 2, 3, H, 4, 5, H + 1, H + 2, H + 3, H + 4]
    };
    let payload: Option<&[u8]> = row.try_get_unchecked(AT[9])?;
    payload.map(|_| row_at(row, AT)).transpose()
}

/// The row whose columns of [`WHOLE`] are at these places.
fn row_at(row: &MySqlRow, at: [usize; 11]) -> Result<Row, sqlx::Error> {
    let bytes = |column: usize| row.try_get_unchecked::<Vec<u8>, _>(at[column]);
    let message_id = row.try_get_unchecked::<&[u8], _>(at[1])?;
    Ok(Row {
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
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(id: u64, message_id: &str) -> Row {
        Row {
            id,
            message_id: message_id.to_owned(),
            aggregate_type: Vec::new(),
            aggregate_id: Vec::new(),
            event_type: Vec::new(),
            exchange: Vec::new(),
            routing_key: Vec::new(),
            content_type: Vec::new(),
            headers: None,
            payload: b"x".to_vec(),
            created_at: None,
        }
    }

    fn read(id: u64, bytes: usize) -> Read {
        Read {
            head: Head {
                id,
                tag: tag_of("m"),
                key: 0,
                route: Route::new(b"", b""),
                wait: None,
                bytes,
                attempts: 0,
                has_history: false,
            },
            pending: true,
            row: (bytes <= SMALL_BYTES).then(|| Box::new(row(id, "m"))),
        }
    }

    fn whole(rows: &[Read]) -> Vec<u64> {
        let whole = rows.iter().filter(|read| read.row.is_some());
        whole.map(|read| read.head.id).collect()
    }

    #[test]
    fn payloads_come_in_the_order_of_the_query_and_within_its_bytes() {
        let sizes = [(1, 100), (2, 5_000), (3, 100), (4, 9_000)];
        let load = |ids: &[u64], bytes: usize| {
            let mut rows: Vec<Read> = sizes.iter().map(|(id, size)| read(*id, *size)).collect();
            let ids = ids.to_vec();
            let missing = within_budget(&mut rows, &LoadQuery { ids, bytes });
            (missing, whole(&rows))
        };
        assert_eq!(load(&[1, 2], 10_000), (vec![2], vec![1, 3]));
        assert_eq!(load(&[2, 1], 5_100), (vec![2], vec![1, 3]));
        assert_eq!(load(&[2, 1], 5_099), (vec![2], vec![3]));
        assert_eq!(
            load(&[4, 1, 3], 1),
            (vec![4], vec![]),
            "the first one always"
        );
        assert_eq!(load(&[4, 2, 9], 99_999), (vec![4, 2], vec![1, 3]));
    }

    #[test]
    fn a_row_that_is_another_message_by_now_stays_without_its_payload() {
        let mut rows = vec![read(1, 5_000), read(2, 5_000), read(3, 5_000)];
        add_payloads(&mut rows, vec![row(1, "m"), row(2, "another")]);
        assert_eq!(whole(&rows), [1]);
    }
}
