//! A service of a test's own, on a database and a virtual host of its own.

use std::sync::Arc;
use std::time::Duration;

use clap::Parser as _;
use e2e::wait::until;
use e2e::{Db, Rabbit, TestDatabase, Vhost};
use pay_svc::config::{Cli, Command, Config};
use pay_svc::provider::Provider;
use reqwest::{Client, StatusCode};
use serde_json::Value;
use sqlx::MySqlPool;
use svc_kit::boot::Exit;
use svc_kit::database::DatabaseUrl;
use svc_kit::signals::Shutdown;
use svc_kit::tasks;
use svc_kit::telemetry::LogFormat;
use tokio::task::JoinHandle;
use uuid::Uuid;

use crate::messages::{Outgoing, Publisher};
use crate::provider::{Act, Scripted};

/// Longer than anything here takes on a busy machine.
pub(crate) const SOON: Duration = Duration::from_secs(30);

/// Tokens of Ann, an operator, and of Bob, a viewer.
pub(crate) const OPERATOR: &str = "0123456789abcdef";
pub(crate) const VIEWER: &str = "fedcba9876543210";

pub(crate) struct App {
    pub(crate) url: String,
    pub(crate) admin_url: String,
    pub(crate) client: Client,
    pub(crate) pool: MySqlPool,
    pub(crate) database: TestDatabase,
    pub(crate) shutdown: Shutdown,
    pub(crate) running: JoinHandle<anyhow::Result<Exit>>,
}

impl App {
    /// Migrates a new database, and serves it with a provider that captures everything.
    pub(crate) async fn start(db: &Db, vhost: &Vhost) -> Self {
        let database = database(db).await;
        let config = config(&database.url, &vhost.amqp_url);
        Self::serve(database, config, Scripted::always(Act::Capture)).await
    }

    /// Serves a database that is there.
    pub(crate) async fn serve(
        database: TestDatabase,
        config: Config,
        provider: Arc<dyn Provider>,
    ) -> Self {
        let service = pay_svc::build_with(config, provider).await.unwrap();
        let (addr, admin_addr) = (service.addr(), service.admin_addr());
        let shutdown = Shutdown::default();
        let running = tasks::unit(service.run(shutdown.clone()));
        Self {
            url: format!("http://{addr}"),
            admin_url: format!("http://{admin_addr}"),
            client: Client::builder().no_proxy().build().unwrap(),
            pool: database.pool().unwrap(),
            database,
            shutdown,
            running,
        }
    }

    pub(crate) async fn readiness(&self) -> (StatusCode, Value) {
        let url = format!("{}/readyz", self.admin_url);
        let answer = self.client.get(url).send().await.unwrap();
        (answer.status(), answer.json().await.unwrap())
    }

    pub(crate) async fn until_ready(&self) {
        until("readiness", SOON, async || {
            self.readiness().await.0 == StatusCode::OK
        })
        .await;
    }

    pub(crate) async fn metric(&self, line_start: &str) -> f64 {
        let url = format!("{}/metrics", self.admin_url);
        let text = self
            .client
            .get(url)
            .send()
            .await
            .unwrap()
            .text()
            .await
            .unwrap();
        text.lines()
            .find(|line| line.starts_with(line_start))
            .and_then(|line| line.rsplit(' ').next()?.parse().ok())
            .unwrap_or(0.0)
    }

    pub(crate) async fn until_paid(&self, orders: i64) {
        until("payments", SOON, async || {
            payments(&self.pool).await >= orders
        })
        .await;
        assert_eq!(payments(&self.pool).await, orders);
    }

    /// Publishes orders until one is paid: then the whole path works.
    pub(crate) async fn until_it_pays(&self, vhost: &Vhost) {
        let publisher = Publisher::connect(&vhost.amqp_url).await;
        let before = payments(&self.pool).await;
        publisher.publish(&Outgoing::order(Uuid::now_v7())).await;
        self.until_paid(before + 1).await;
        publisher.close().await;
    }

    pub(crate) async fn stop(self) -> Exit {
        self.shutdown.drain.cancel();
        self.running.await.unwrap().unwrap()
    }
}

/// A new database with the tables of this service.
pub(crate) async fn database(db: &Db) -> TestDatabase {
    svc_kit::boot::install_crypto();
    if std::env::var_os("RUST_LOG").is_some() {
        svc_kit::telemetry::init(LogFormat::Text);
    }
    let database = db.create_database().await.unwrap();
    let url = DatabaseUrl::parse(&database.url).unwrap();
    svc_kit::migrate::run(&url, &pay_svc::migrations())
        .await
        .unwrap();
    database
}

/// The default settings, with quick retries and any free ports.
pub(crate) fn config(database_url: &str, amqp_url: &str) -> Config {
    config_with(database_url, amqp_url, &[])
}

/// The same with further flags.
pub(crate) fn config_with(database_url: &str, amqp_url: &str, more: &[&str]) -> Config {
    let tokens = format!("ann:operator:{OPERATOR},bob:viewer:{VIEWER}");
    let args = [
        "pay-svc",
        "run",
        "--database-url",
        database_url,
        "--amqp-url",
        amqp_url,
        "--listen-addr",
        "127.0.0.1:0",
        "--admin-addr",
        "127.0.0.1:0",
        "--backoff-min",
        "50ms",
        "--backoff-max",
        "400ms",
        "--ops-tokens",
        &tokens,
    ];
    let args = args.iter().chain(more);
    let Command::Run(args) = Cli::try_parse_from(args).unwrap().command else {
        panic!("run was requested");
    };
    let mut config = args.resolve().unwrap();
    config.intake.silence_max = Duration::from_secs(2);
    config.intake.reconnect_min = Duration::from_millis(20);
    config.intake.reconnect_max = Duration::from_millis(500);
    config
}

pub(crate) async fn vhost(rabbit: &Rabbit) -> Vhost {
    rabbit.create_vhost().await.unwrap()
}

pub(crate) async fn payments(pool: &MySqlPool) -> i64 {
    sqlx::query_scalar("SELECT COUNT(*) FROM payments")
        .fetch_one(pool)
        .await
        .unwrap()
}

/// What is stored of a message.
#[derive(Debug, Clone, PartialEq, Eq, sqlx::FromRow)]
pub(crate) struct InboxRow {
    pub(crate) status: u8,
    pub(crate) attempts: u32,
    pub(crate) deliveries: u32,
    pub(crate) last_error: Option<String>,
}

pub(crate) async fn inbox_row(pool: &MySqlPool, message_id: &str) -> Option<InboxRow> {
    sqlx::query_as(
        "SELECT status, attempts, deliveries, last_error FROM inbox WHERE message_id = ?",
    )
    .bind(message_id.as_bytes())
    .fetch_optional(pool)
    .await
    .unwrap()
}

/// The classes of a message's failed tries, in their order.
pub(crate) async fn classes(pool: &MySqlPool, message_id: &str) -> Vec<String> {
    sqlx::query_scalar("SELECT class FROM inbox_attempts WHERE message_id = ? ORDER BY id")
        .bind(message_id.as_bytes())
        .fetch_all(pool)
        .await
        .unwrap()
}

pub(crate) async fn until_status(pool: &MySqlPool, message_id: &str, status: u8) -> InboxRow {
    until(
        &format!("{message_id} to have status {status}"),
        SOON,
        async || {
            inbox_row(pool, message_id)
                .await
                .filter(|row| row.status == status)
        },
    )
    .await
}
