//! The two servers every service talks to, as real servers.

mod amqp;
mod database;
mod migrate;

use svc_kit::database::DatabaseUrl;

/// A database of a test's own.
async fn empty_database(server: &e2e::Db) -> DatabaseUrl {
    DatabaseUrl::parse(&server.create_database().await.unwrap().url).unwrap()
}
