//! Marking rows as sent.

use sqlx::mysql::MySqlConnection;
use sqlx::{AssertSqlSafe, Connection as _};

use crate::effects::Mark;
use crate::in_list::{padded, padded_len, placeholders};

/// What an UPDATE has marked.
pub(super) struct Marked {
    pub(super) rows: u64,
    /// What it did not find.
    pub(super) left: Vec<Mark>,
}

/// Marks all that it finds pending.
pub(super) async fn mark(
    connection: &mut MySqlConnection,
    table: &str,
    marks: &[Mark],
) -> Result<Marked, sqlx::Error> {
    let rows = update(connection, table, marks).await?;
    if rows == marks.len() as u64 {
        return Ok(Marked {
            rows,
            left: Vec::new(),
        });
    }
    let sent = ids(connection, table, marks, "AND status = 2").await?;
    let left = marks.iter().filter(|mark| !sent.contains(&mark.id.id));
    Ok(Marked {
        rows,
        left: left.cloned().collect(),
    })
}

/// Marks what an UPDATE did not find but a lock does. With a primary key of several columns, or in a
/// partitioned table, an UPDATE at READ COMMITTED passes over a row that the binlog has brought a
/// moment before it is visible; a locking read waits for it.
pub(super) async fn mark_left(
    connection: &mut MySqlConnection,
    table: &str,
    left: &[Mark],
) -> Result<u64, sqlx::Error> {
    let mut tx = connection.begin().await?;
    let found = ids(&mut tx, table, left, "AND status = 1 FOR UPDATE").await?;
    let found = left.iter().filter(|mark| found.contains(&mark.id.id));
    let found: Vec<Mark> = found.cloned().collect();
    let rows = match found.is_empty() {
        true => 0,
        false => update(&mut tx, table, &found).await?,
    };
    tx.commit().await?;
    Ok(rows)
}

/// Which of the rows nobody has locked.
pub(super) async fn unlocked(
    connection: &mut MySqlConnection,
    table: &str,
    marks: &[Mark],
) -> Result<Vec<u64>, sqlx::Error> {
    ids(connection, table, marks, "FOR UPDATE SKIP LOCKED").await
}

/// Conditional on the message ids: after a TRUNCATE, a restore or a failover the same id may be
/// another message. As two lists and not as pairs, which is 20 times slower on MariaDB. By the primary
/// key, since a scan would pass over a row that the tail has brought a moment before it is visible.
async fn update(
    connection: &mut MySqlConnection,
    table: &str,
    marks: &[Mark],
) -> Result<u64, sqlx::Error> {
    let list = placeholders(padded_len(marks.len()), "?");
    let statement = format!(
        "UPDATE `{table}` FORCE INDEX (PRIMARY) SET status = 2, sent_at = UTC_TIMESTAMP(6) \
         WHERE id IN ({list}) AND message_id IN ({list}) AND status = 1"
    );
    let mut query = sqlx::query(AssertSqlSafe(statement));
    for mark in padded(marks) {
        query = query.bind(mark.id.id);
    }
    for mark in padded(marks) {
        query = query.bind(mark.message_id);
    }
    Ok(query.execute(connection).await?.rows_affected())
}

async fn ids(
    connection: &mut MySqlConnection,
    table: &str,
    marks: &[Mark],
    further: &str,
) -> Result<Vec<u64>, sqlx::Error> {
    let list = placeholders(padded_len(marks.len()), "?");
    let statement = format!(
        "SELECT id FROM `{table}` FORCE INDEX (PRIMARY) \
         WHERE id IN ({list}) AND message_id IN ({list}) {further}"
    );
    let mut query = sqlx::query_scalar(AssertSqlSafe(statement));
    for mark in padded(marks) {
        query = query.bind(mark.id.id);
    }
    for mark in padded(marks) {
        query = query.bind(mark.message_id);
    }
    query.fetch_all(connection).await
}
