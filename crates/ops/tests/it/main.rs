//! The operators' core on real servers: both tables, MariaDB or MySQL (`TEST_DB=mysql`).
#![expect(clippy::unwrap_used, reason = "a helper of tests fails as a test does")]

mod acts;
mod api;
mod bulk;
mod lists;
mod scale;

use ops::{By, Console, Settings, Table};
use secrecy::SecretString;
use sqlx::{AssertSqlSafe, MySqlPool};
use svc_kit::database::DatabaseUrl;
use svc_kit::migrate::{self, Set};
use svc_kit::operators::Tokens;

const OPERATOR: &str = "0123456789abcdef";
const VIEWER: &str = "fedcba9876543210";

/// A console on tables of a test's own.
struct World {
    console: Console,
    pool: MySqlPool,
}

/// Both tables, each with a console.
async fn worlds() -> Vec<World> {
    let outbox = Table::Outbox {
        name: "outbox".to_owned(),
    };
    vec![world(outbox).await, world(Table::Inbox).await]
}

async fn world(table: Table) -> World {
    let server = e2e::shared::either().await;
    let url = DatabaseUrl::parse(&server.create_database().await.unwrap().url).unwrap();
    let sets = [
        Set::new("outbox", outbox::migrations()),
        Set::new("payments", sqlx::migrate!("../../migrations/payments")),
    ];
    migrate::run(&url, &sets).await.unwrap();
    let tokens = format!("ann:operator:{OPERATOR},bob:viewer:{VIEWER}");
    let settings = Settings {
        tokens: Tokens::parse(&SecretString::from(tokens)).unwrap(),
        allow_edit: true,
        lease: match table {
            Table::Outbox { .. } => std::time::Duration::ZERO,
            Table::Inbox => std::time::Duration::from_secs(20),
        },
    };
    World {
        console: Console::new(table, url.clone(), settings),
        pool: url.pool(8),
    }
}

fn by(actor: &str) -> By {
    By {
        actor: actor.to_owned(),
        reason: Some(format!("{actor} says so")),
    }
}

impl World {
    /// Inserts `count` parked rows `m0`, `m1`, … of one class, a second apart, the last of them a
    /// second old; returns their keys.
    async fn park(&self, prefix: &str, count: usize, class: &str) -> Vec<String> {
        let mut keys = Vec::new();
        for number in 0..count {
            let id = format!("{prefix}{number}");
            let age = count - number;
            let insert = match self.console.table() {
                Table::Outbox { .. } => format!(
                    "INSERT INTO outbox (message_id, aggregate_type, aggregate_id, event_type, \
                     routing_key, payload, status, attempts, last_error, created_at) VALUES \
                     ('{id}', 'order', 'k{number}', 'order.placed.v1', 'order.pay', '{{\"n\":1}}', 3, 5, \
                     '{class}: it is {id}', UTC_TIMESTAMP(6) - INTERVAL {age} SECOND)"
                ),
                Table::Inbox => format!(
                    "INSERT INTO inbox (message_id, aggregate_id, event_type, exchange, \
                     routing_key, payload, status, attempts, last_error, received_at) VALUES \
                     ('{id}', 'k{number}', 'order.placed.v1', 'order-exchange', 'order.pay', \
                     '{{\"n\":1}}', 3, 5, '{class}: it is {id}', \
                     UTC_TIMESTAMP(6) - INTERVAL {age} SECOND)"
                ),
            };
            let done = sqlx::query(AssertSqlSafe(insert))
                .execute(&self.pool)
                .await
                .unwrap();
            keys.push(match self.console.table() {
                Table::Outbox { .. } => done.last_insert_id().to_string(),
                Table::Inbox => id,
            });
        }
        keys
    }

    async fn sql(&self, statement: &str) {
        let statement = statement
            .replace("TABLE", self.console.table().name())
            .replace("KEY", self.console.table().key_column());
        sqlx::query(AssertSqlSafe(statement))
            .execute(&self.pool)
            .await
            .unwrap();
    }

    async fn count(&self, condition: &str) -> i64 {
        let table = self.console.table().name();
        let statement = format!("SELECT COUNT(*) FROM `{table}` WHERE {condition}");
        sqlx::query_scalar(AssertSqlSafe(statement))
            .fetch_one(&self.pool)
            .await
            .unwrap()
    }
}
