//! What the reader `mysql_cdc` can't do, found out before it reads.

use std::time::Duration;

use futures::StreamExt;
use sqlx::mysql::MySqlConnection;
use svc_kit::database::Tls;

use super::check::{Condition, State};
use super::preflight::variable;
use crate::binlog::reader::Reader;
use crate::config::OutboxTable;
use crate::table::Queries;

const NAME: &str = "mysql_cdc";
const OTHER: &str = "or RELAY_READER=mysql_async";
/// For logging in and the first event.
const TRY_TIMEOUT: Duration = Duration::from_secs(10);

/// Each of its limits that is met here, and then whether it reads.
pub(super) async fn mysql_cdc(
    connection: &mut MySqlConnection,
    table: &OutboxTable,
) -> Vec<Condition> {
    let mut found: Vec<Condition> = [
        tls(table),
        compression(connection).await,
        columns(connection, table).await,
    ]
    .into_iter()
    .flatten()
    .collect();
    if found.iter().all(|limit| limit.state != State::Wrong) {
        found.push(reads(connection, table).await);
    }
    found
}

/// Where TLS is asked for, the settings are refused already.
fn tls(table: &OutboxTable) -> Option<Condition> {
    matches!(table.url.tls(), Tls::Preferred).then(|| {
        Condition::not(
            State::Warning,
            NAME,
            "it has no TLS: the binlog comes unencrypted, whatever other connections do",
            format!("ssl-mode=DISABLED in DATABASE_URL where that is meant, {OTHER}"),
        )
    })
}

/// MySQL alone has it. MariaDB's `log_bin_compress` is hidden from both readers.
async fn compression(connection: &mut MySqlConnection) -> Option<Condition> {
    let value = variable(connection, "binlog_transaction_compression").await;
    match value {
        Ok(Some(on)) if on == "1" || on == "ON" => Some(Condition::not(
            State::Wrong,
            NAME,
            "it can't look into compressed transactions (binlog_transaction_compression is ON)",
            format!("SET GLOBAL binlog_transaction_compression = OFF, {OTHER}"),
        )),
        Ok(_) => None,
        Err(err) => Some(unknown(&err)),
    }
}

/// It takes text for UTF-8 and fails at anything else; TEXT and BLOB are bytes to it.
async fn columns(connection: &mut MySqlConnection, table: &OutboxTable) -> Option<Condition> {
    let columns: Result<Vec<String>, _> = sqlx::query_scalar(
        "SELECT CONCAT(COLUMN_NAME, ' ', COLUMN_TYPE, ' ', COALESCE(CHARACTER_SET_NAME, '')) \
         FROM information_schema.COLUMNS WHERE TABLE_SCHEMA = DATABASE() AND TABLE_NAME = ? \
         AND (DATA_TYPE IN ('binary', 'varbinary') OR (DATA_TYPE IN ('char', 'varchar') \
         AND CHARACTER_SET_NAME NOT IN ('ascii', 'utf8', 'utf8mb3', 'utf8mb4'))) \
         ORDER BY ORDINAL_POSITION",
    )
    .bind(&table.name)
    .fetch_all(connection)
    .await;
    match columns {
        Ok(columns) if columns.is_empty() => None,
        Ok(columns) => Some(Condition::not(
            State::Wrong,
            NAME,
            format!(
                "it reads no text but UTF-8, and there is {}",
                columns.join(", ")
            ),
            format!(
                "ALTER TABLE {} MODIFY each to CHARACTER SET utf8mb4, or to BLOB, {OTHER}",
                table.name
            ),
        )),
        Err(err) => Some(unknown(&err)),
    }
}

fn unknown(err: &sqlx::Error) -> Condition {
    Condition::not(State::Wait, NAME, err.to_string(), "see the server's log")
}

async fn reads(connection: &mut MySqlConnection, table: &OutboxTable) -> Condition {
    let first = async {
        let queries = Queries::discover(connection, table).await?;
        let position = queries.position(connection).await?;
        let mut reading = Reader::MysqlCdc.open(&table.url, &position, None).await?;
        reading.events.next().await.transpose()
    };
    match tokio::time::timeout(TRY_TIMEOUT, first).await {
        Ok(Ok(Some(_))) => Condition::ok(NAME, "it reads the binlog"),
        Ok(Ok(None)) => Condition::not(State::Wait, NAME, "the stream ended", OTHER),
        // The kinds of login that it knows are two.
        Ok(Err(err)) if err.to_string().contains("is not supported") => Condition::not(
            State::Wrong,
            NAME,
            format!("{err:#}"),
            format!(
                "give {} caching_sha2_password or mysql_native_password, {OTHER}",
                table.url.user()
            ),
        ),
        Ok(Err(err)) => Condition::not(State::Wait, NAME, format!("{err:#}"), OTHER),
        Err(_) => Condition::not(State::Wait, NAME, "the server sends no event", OTHER),
    }
}
