//! A service of a test's own, on a database of its own.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use e2e::wait::until;
use e2e::{Db, TestDatabase};
use order_svc::batch::Bounds;
use order_svc::commit::Settings;
use order_svc::config::Config;
use order_svc::http::Times;
use reqwest::{Client, Response, StatusCode};
use serde_json::{Value, json};
use sqlx::{Executor as _, MySqlConnection, MySqlPool};
use svc_kit::boot::Exit;
use svc_kit::database::DatabaseUrl;
use svc_kit::signals::Shutdown;
use svc_kit::tasks;
use tokio::task::JoinHandle;

/// Longer than anything here takes on a busy machine.
pub(crate) const SOON: Duration = Duration::from_secs(20);

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
    /// Migrates a new database on `db`, and serves it.
    pub(crate) async fn start(db: &Db) -> Self {
        let database = db.create_database().await.unwrap();
        migrate(&database).await;
        Self::serve(database).await
    }

    /// Serves a database that is there.
    pub(crate) async fn serve(database: TestDatabase) -> Self {
        let config = config(&database.url);
        Self::serve_as(database, config).await
    }

    /// Migrates a new database on `db`, and serves it with `change` of the settings.
    pub(crate) async fn start_as(db: &Db, change: impl FnOnce(&mut Config)) -> Self {
        let database = db.create_database().await.unwrap();
        migrate(&database).await;
        let mut config = config(&database.url);
        change(&mut config);
        Self::serve_as(database, config).await
    }

    pub(crate) async fn serve_as(database: TestDatabase, config: Config) -> Self {
        let service = order_svc::build(config).await.unwrap();
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

    pub(crate) async fn post(&self, path: &str, body: &Value) -> Response {
        let request = self.client.post(format!("{}{path}", self.url)).json(body);
        request.send().await.unwrap()
    }

    pub(crate) async fn get(&self, path: &str) -> Response {
        self.client
            .get(format!("{}{path}", self.url))
            .send()
            .await
            .unwrap()
    }

    pub(crate) async fn ready(&self) -> (StatusCode, Value) {
        let answer = self
            .client
            .get(format!("{}/readyz", self.admin_url))
            .send()
            .await
            .unwrap();
        (answer.status(), answer.json().await.unwrap())
    }

    pub(crate) async fn metric(&self, line_start: &str) -> Option<f64> {
        let answer = self
            .client
            .get(format!("{}/metrics", self.admin_url))
            .send()
            .await
            .unwrap();
        let text = answer.text().await.unwrap();
        let line = text.lines().find(|line| line.starts_with(line_start))?;
        line.rsplit(' ').next()?.parse().ok()
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.url.trim_start_matches("http://").parse().unwrap()
    }

    /// Sends an order in a task, so that it is on its way while the test goes on.
    pub(crate) fn send(&self, key: Option<&str>, body: &Value) -> JoinHandle<Response> {
        let mut request = self.client.post(format!("{}/orders", self.url)).json(body);
        if let Some(key) = key {
            request = request.header("Idempotency-Key", key);
        }
        tasks::unit(async move { request.send().await.unwrap() })
    }

    /// Makes every INSERT into orders wait until the connection is closed or unlocks its tables.
    pub(crate) async fn hold_up(&self) -> MySqlConnection {
        let mut blocker = self.database.connect().await.unwrap();
        blocker.execute("LOCK TABLES orders READ").await.unwrap();
        blocker
    }

    /// Waits until so many statements that begin with `start` are in progress.
    pub(crate) async fn until_running(&self, count: i64, start: &'static str) {
        until(start, SOON, async || {
            let sql = "SELECT COUNT(*) FROM information_schema.processlist \
                       WHERE db = ? AND info LIKE CONCAT(?, '%')";
            let running = sqlx::query_scalar(sql)
                .bind(&self.database.name)
                .bind(start);
            running.fetch_one(&self.pool).await.ok() == Some(count)
        })
        .await;
    }

    /// Waits until so many orders wait for a committer.
    pub(crate) async fn until_queued(&self, count: f64) {
        until("orders to wait", SOON, async || {
            self.metric("orders_queued ").await == Some(count)
        })
        .await;
    }

    /// Orders without an event and events without an order.
    pub(crate) async fn unpaired(&self) -> i64 {
        let sql = "SELECT (SELECT COUNT(*) FROM orders o LEFT JOIN outbox e \
                   ON e.message_id = o.order_id WHERE e.id IS NULL) + \
                   (SELECT COUNT(*) FROM outbox e LEFT JOIN orders o \
                   ON o.order_id = e.aggregate_id WHERE o.order_id IS NULL)";
        sqlx::query_scalar(sql).fetch_one(&self.pool).await.unwrap()
    }

    /// Rows of a table of this service.
    pub(crate) async fn count(&self, table: &'static str) -> i64 {
        let sql = match table {
            "orders" => "SELECT COUNT(*) FROM orders",
            "outbox" => "SELECT COUNT(*) FROM outbox",
            "idempotency_keys" => "SELECT COUNT(*) FROM idempotency_keys",
            other => panic!("no table {other}"),
        };
        sqlx::query_scalar(sql).fetch_one(&self.pool).await.unwrap()
    }

    pub(crate) async fn stop(self) -> Exit {
        self.shutdown.drain.cancel();
        self.running.await.unwrap().unwrap()
    }
}

pub(crate) fn order() -> Value {
    json!({"customer_id": "c-17", "amount_minor": 1999, "currency": "EUR"})
}

pub(crate) fn config(url: &str) -> Config {
    svc_kit::boot::install_crypto();
    let any = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    Config {
        database: DatabaseUrl::parse(url).unwrap(),
        connections: 16,
        commit: Settings {
            committers: 4,
            bounds: Bounds {
                orders: 128,
                bytes: 512 * 1024,
            },
            queue: 1024,
            timeout: Duration::from_secs(15),
        },
        times: Times {
            request: Duration::from_secs(15),
            body: Duration::from_secs(10),
        },
        key_retention: Duration::from_hours(24),
        listen_addr: any,
        admin_addr: any,
        drain_timeout: Duration::from_secs(20),
    }
}

pub(crate) async fn migrate(database: &TestDatabase) {
    svc_kit::boot::install_crypto();
    let url = DatabaseUrl::parse(&database.url).unwrap();
    svc_kit::migrate::run(&url, &order_svc::migrations())
        .await
        .unwrap();
}

pub(crate) async fn problem_code(answer: Response) -> (StatusCode, String) {
    let status = answer.status();
    assert_eq!(answer.headers()["content-type"], "application/problem+json");
    let body: Value = answer.json().await.unwrap();
    assert_eq!(body["status"], status.as_u16());
    (status, body["code"].as_str().unwrap().to_owned())
}
