//! The tasks around the engine, each by itself, on real servers.

mod binlog;
mod table;
mod writeback;

use e2e::rig::Rig;
use relay::leadership::server_identity::{self, ServerId, WAIT_TIMEOUT_S};
use relay::outbox_table::OutboxTable;
use relay::source::table::queries::Queries;
use sqlx::MySqlConnection;
use svc_kit::database::DatabaseUrl;

/// The outbox of a rig, and a connection to it.
struct Outbox {
    table: OutboxTable,
    connection: MySqlConnection,
    server: ServerId,
    queries: Queries,
}

impl Outbox {
    async fn of(rig: &Rig) -> Self {
        let url = format!("{}?ssl-mode=DISABLED", rig.database.url);
        let table = OutboxTable {
            url: DatabaseUrl::parse(&url).unwrap(),
            name: "outbox".into(),
        };
        let (mut connection, server) = server_identity::connect(&table.url, WAIT_TIMEOUT_S)
            .await
            .unwrap();
        let queries = Queries::discover(&mut connection, &table).await.unwrap();
        Self {
            table,
            connection,
            server,
            queries,
        }
    }
}

/// The ids of all rows, in order.
async fn ids(rig: &Rig) -> Vec<u64> {
    sqlx::query_scalar("SELECT id FROM outbox ORDER BY id")
        .fetch_all(&rig.pool)
        .await
        .unwrap()
}
