//! The two servers every service talks to, as real servers.

#![expect(clippy::unwrap_used, reason = "a helper of tests fails as a test does")]

mod amqp;
mod database;
mod faults;
mod migrate;

use svc_kit::database::DatabaseUrl;

/// A database of a test's own.
async fn empty_database(server: &e2e::Db) -> DatabaseUrl {
    DatabaseUrl::parse(&server.create_database().await.unwrap().url).unwrap()
}
