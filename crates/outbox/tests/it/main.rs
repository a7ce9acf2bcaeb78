//! Both tables on real servers: whatever is asserted here holds on MariaDB and on MySQL.

#![expect(clippy::unwrap_used, reason = "a helper of tests fails as a test does")]

mod event;
mod inbox;
mod large;
mod migrations;

use e2e::Flavor;
use sqlx::MySqlPool;
use svc_kit::database::DatabaseUrl;
use svc_kit::migrate::{self, Set};

/// A database of a test's own, with both tables, and sessions as the services have them.
struct Database {
    flavor: Flavor,
    pool: MySqlPool,
}

/// One on each server that can be had.
async fn databases() -> Vec<Database> {
    let mut databases = Vec::new();
    for server in e2e::shared::databases().await {
        databases.push(database(server).await);
    }
    databases
}

async fn database(server: &e2e::Db) -> Database {
    let url = empty_database(server).await;
    migrate::run(&url, &sets()).await.unwrap();
    Database {
        flavor: server.flavor(),
        pool: url.pool(8),
    }
}

async fn empty_database(server: &e2e::Db) -> DatabaseUrl {
    DatabaseUrl::parse(&server.create_database().await.unwrap().url).unwrap()
}

fn sets() -> [Set; 2] {
    [
        Set::new("outbox", outbox::migrations()),
        Set::new("payments", sqlx::migrate!("../../migrations/payments")),
    ]
}
