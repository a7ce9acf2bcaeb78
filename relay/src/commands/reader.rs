//! What the reader `mysql_cdc` can't do, found out before it reads.

use std::time::Duration;

use futures::StreamExt;
use sqlx::mysql::MySqlConnection;
use svc_kit::database::Tls;

use super::condition::{Condition, State};
use crate::outbox_table::OutboxTable;
use crate::source::binlog::library::Reader;
use crate::source::table::queries::Queries;

const NAME: &str = "mysql_cdc";
const OTHER: &str = "or RELAY_READER=mysql_async";
/// For logging in and the first event.
const TRY_TIMEOUT: Duration = Duration::from_secs(10);

/// Whether it is without the TLS that was meant, and whether it reads.
pub(super) async fn mysql_cdc(
    connection: &mut MySqlConnection,
    table: &OutboxTable,
) -> Vec<Condition> {
    let mut found: Vec<Condition> = tls(table).into_iter().collect();
    found.push(reads(connection, table).await);
    found
}

/// Where TLS is requested, the settings are refused already.
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

async fn reads(connection: &mut MySqlConnection, table: &OutboxTable) -> Condition {
    let first = async {
        let queries = Queries::discover(connection, table).await?;
        let position = queries.position(connection).await?;
        let mut events = Reader::MysqlCdc.open(&table.url, &position, None).await?;
        events.next().await.transpose()
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
