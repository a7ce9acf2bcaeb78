//! Marking rows as sent.

use sqlx::AssertSqlSafe;
use sqlx::mysql::MySqlConnection;

use crate::publish::confirms::Confirmed;
use outbox::statement::{padded, padded_len, placeholders};

/// Which of the rows nobody has locked.
pub(super) async fn unlocked(
    connection: &mut MySqlConnection,
    table: &str,
    marks: &[Confirmed],
) -> Result<Vec<u64>, sqlx::Error> {
    let list = placeholders(padded_len(marks.len()), "?");
    let statement = format!(
        "SELECT id FROM `{table}` FORCE INDEX (PRIMARY) \
         WHERE id IN ({list}) AND message_id IN ({list}) FOR UPDATE SKIP LOCKED"
    );
    let (ids, message_ids) = lists(marks);
    let mut query = sqlx::query_scalar(AssertSqlSafe(statement));
    for id in padded(&ids) {
        query = query.bind(id);
    }
    for message_id in padded(&message_ids) {
        query = query.bind(message_id);
    }
    query.fetch_all(connection).await
}

/// Marks all that it finds pending. Returns how many they were.
///
/// Conditional on the message ids: after a TRUNCATE, a restore or a failover the same id may be another
/// message. As two lists and not as pairs, which is 20 times slower on MariaDB.
pub(super) async fn mark(
    connection: &mut MySqlConnection,
    table: &str,
    marks: &[Confirmed],
) -> Result<u64, sqlx::Error> {
    let list = placeholders(padded_len(marks.len()), "?");
    let statement = format!(
        "UPDATE `{table}` FORCE INDEX (PRIMARY) SET status = 2, sent_at = UTC_TIMESTAMP(6) \
         WHERE id IN ({list}) AND message_id IN ({list}) AND status = 1"
    );
    let (ids, message_ids) = lists(marks);
    let mut query = sqlx::query(AssertSqlSafe(statement));
    for id in padded(&ids) {
        query = query.bind(id);
    }
    for message_id in padded(&message_ids) {
        query = query.bind(message_id);
    }
    Ok(query.execute(connection).await?.rows_affected())
}

fn lists(marks: &[Confirmed]) -> (Vec<u64>, Vec<&str>) {
    let ids = marks.iter().map(Confirmed::id).collect();
    (ids, marks.iter().map(Confirmed::message_id).collect())
}
