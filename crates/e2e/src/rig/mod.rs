//! The rig of the relay's tests: a database and a virtual host of the test's own, a relay process
//! between them, and a consumer. Whatever goes wrong in it fails the test, by a panic.
#![expect(
    clippy::unwrap_used,
    reason = "clippy exempts test functions alone, and this is nothing but their helpers"
)]

pub mod ops;
pub mod rows;
pub mod servers;
pub mod writers;

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use futures::StreamExt;
use lapin::options::{BasicConsumeOptions, QueueBindOptions, QueueDeclareOptions};
use lapin::types::{AMQPValue, FieldTable, LongString};
use lapin::{Channel, Connection, ConnectionProperties};
use sqlx::{AssertSqlSafe, MySqlPool};

use crate::product::Process;
use crate::{Db, Rabbit, TestDatabase, Vhost};

/// For what takes milliseconds, on a busy machine.
pub const SOON: Duration = Duration::from_secs(20);
/// For what takes the relay several of its intervals.
pub const LATER: Duration = Duration::from_secs(60);

/// The queue of [`Rig::new`].
pub const QUEUE: &str = "order-queue";
/// The exchange that the outbox names by default.
pub const EXCHANGE: &str = "order-exchange";

/// The test's own world.
#[expect(missing_docs, reason = "the names and the types say it")]
pub struct Rig {
    pub db: &'static Db,
    pub rabbit: &'static Rabbit,
    pub database: TestDatabase,
    pub vhost: Vhost,
    pub pool: MySqlPool,
    pub env: HashMap<String, String>,
}

/// A delivery, as far as tests look at it.
#[expect(missing_docs, reason = "the names and the types say it")]
#[derive(Clone, Debug)]
pub struct Delivery {
    pub message_id: String,
    pub key: String,
    pub payload: Vec<u8>,
    /// Header `x-replay-id`.
    pub replay_id: Option<String>,
    pub at: Instant,
}

/// Everything a queue has delivered, in order.
#[derive(Clone, Default)]
pub struct Deliveries(Arc<Mutex<Vec<Delivery>>>);

impl Deliveries {
    /// All deliveries, in order.
    pub fn all(&self) -> Vec<Delivery> {
        self.0.lock().unwrap().clone()
    }

    /// How many deliveries there were.
    pub fn count(&self) -> usize {
        self.0.lock().unwrap().len()
    }

    /// Message ids of all deliveries, in order.
    pub fn ids(&self) -> Vec<String> {
        let deliveries = self.0.lock().unwrap();
        deliveries.iter().map(|d| d.message_id.clone()).collect()
    }

    /// Deliveries of what had been delivered before.
    pub fn twice(&self) -> usize {
        let all = self.all();
        let ids: std::collections::HashSet<&str> =
            all.iter().map(|d| d.message_id.as_str()).collect();
        all.len() - ids.len()
    }

    /// Message ids in the order of their first delivery.
    pub fn first(&self) -> Vec<Delivery> {
        let mut seen = std::collections::HashSet::new();
        self.all()
            .into_iter()
            .filter(|delivery| seen.insert(delivery.message_id.clone()))
            .collect()
    }
}

impl Rig {
    /// Migrated tables, the exchange, and a bound quorum queue.
    pub async fn new(db: &'static Db) -> Self {
        let rig = Self::without_queue(db).await;
        rig.declare_queue(QUEUE, "order.*").await;
        rig
    }

    /// Migrated tables and an empty virtual host.
    pub async fn without_queue(db: &'static Db) -> Self {
        Self::on(db, crate::shared::rabbit().await).await
    }

    /// The same with a broker of the test's choice.
    pub async fn on(db: &'static Db, rabbit: &'static Rabbit) -> Self {
        let database = db.create_database().await.unwrap();
        let vhost = rabbit.create_vhost().await.unwrap();
        let env = HashMap::from([
            ("DATABASE_URL".to_owned(), database.url.clone()),
            ("AMQP_URL".to_owned(), vhost.amqp_url.clone()),
            (
                "ADMIN_ADDR".to_owned(),
                format!("127.0.0.1:{}", crate::port::free().unwrap()),
            ),
            ("RUST_LOG".to_owned(), "info,relay=debug".to_owned()),
        ]);
        let pool = database.pool().unwrap();
        let rig = Self {
            db,
            rabbit,
            database,
            vhost,
            pool,
            env,
        };
        rig.migrate().await;
        rig
    }

    /// Sets an environment variable of the relay.
    pub fn set(&mut self, name: &str, value: &str) -> &mut Self {
        self.env.insert(name.to_owned(), value.to_owned());
        self
    }

    async fn migrate(&self) {
        let migrate = self.command(&["migrate"]);
        let status = migrate.wait_exit(SOON).await.unwrap();
        assert!(status.success(), "{}", migrate.log());
    }

    /// A relay command with the rig's environment.
    pub fn command(&self, args: &[&str]) -> Process {
        let program = crate::product::binary("relay").unwrap();
        let env: Vec<(&str, &str)> = self
            .env
            .iter()
            .map(|(name, value)| (name.as_str(), value.as_str()))
            .collect();
        Process::spawn(&program, args, &env).unwrap()
    }

    /// `relay run`, not waited for.
    pub fn relay(&self) -> Process {
        self.command(&["run"])
    }

    /// `relay run` that has come to its working phase.
    pub async fn tailing(&self) -> Process {
        let relay = self.relay();
        self.wait_phase("tailing").await;
        relay
    }

    /// Waits until the relay shows this phase.
    pub async fn wait_phase(&self, phase: &str) {
        let name = format!("outbox_relay_phase{{phase=\"{phase}\"}}");
        crate::wait::until(&format!("phase {phase}"), LATER, async || {
            self.metric(&name).await == Some(1.0)
        })
        .await;
    }

    /// A sample of `/metrics` by its full name with labels; `None` when the relay does not answer.
    pub async fn metric(&self, name: &str) -> Option<f64> {
        let url = format!("http://{}/metrics", self.env["ADMIN_ADDR"]);
        let text = reqwest::get(url).await.ok()?.text().await.ok()?;
        let line = text
            .lines()
            .find(|line| line.strip_prefix(name).is_some_and(|l| l.starts_with(' ')))?;
        line.rsplit(' ').next()?.parse().ok()
    }

    /// A channel of a new connection to the virtual host.
    pub async fn amqp(&self) -> Channel {
        let connection = Connection::connect(&self.vhost.amqp_url, ConnectionProperties::default())
            .await
            .unwrap();
        connection.create_channel().await.unwrap()
    }

    /// A quorum queue, bound to [`EXCHANGE`].
    pub async fn declare_queue(&self, queue: &str, binding: &str) {
        let channel = self.amqp().await;
        let mut arguments = FieldTable::default();
        arguments.insert(
            "x-queue-type".into(),
            AMQPValue::LongString(LongString::from("quorum")),
        );
        let durable = QueueDeclareOptions {
            durable: true,
            ..QueueDeclareOptions::default()
        };
        channel
            .queue_declare(queue.into(), durable, arguments)
            .await
            .unwrap();
        self.rabbit
            .management()
            .unwrap()
            .declare_exchange(&self.vhost.name, EXCHANGE, "topic")
            .await
            .unwrap();
        channel
            .queue_bind(
                queue.into(),
                EXCHANGE.into(),
                binding.into(),
                QueueBindOptions::default(),
                FieldTable::default(),
            )
            .await
            .unwrap();
    }

    /// Consumes a queue from now on.
    pub async fn consume(&self, queue: &str) -> Deliveries {
        let channel = self.amqp().await;
        let options = BasicConsumeOptions {
            no_ack: true,
            ..BasicConsumeOptions::default()
        };
        let mut consumer = channel
            .basic_consume(queue.into(), "test".into(), options, FieldTable::default())
            .await
            .unwrap();
        let deliveries = Deliveries::default();
        let kept = deliveries.clone();
        drop(svc_kit::tasks::unit(async move {
            let _channel = channel;
            while let Some(Ok(delivery)) = consumer.next().await {
                let properties = &delivery.properties;
                let id = properties
                    .message_id()
                    .as_ref()
                    .map(|id| id.as_str().to_owned());
                let header = |name: &str| {
                    let headers = properties.headers().as_ref()?.inner();
                    Some(match headers.get(name)? {
                        AMQPValue::LongString(text) => text.to_string(),
                        other => format!("{other:?}"),
                    })
                };
                let (key, replay_id) = (header("aggregate-id"), header("x-replay-id"));
                kept.0.lock().unwrap().push(Delivery {
                    message_id: id.unwrap_or_default(),
                    key: key.unwrap_or_default(),
                    payload: delivery.data,
                    replay_id,
                    at: Instant::now(),
                });
            }
        }));
        deliveries
    }

    /// Inserts `count` rows in one transaction each, keys `k0`, `k1`, …; returns their message ids.
    pub async fn insert(&self, count: usize) -> Vec<String> {
        let mut ids = Vec::with_capacity(count);
        for number in 0..count {
            ids.push(
                self.insert_one(&format!("k{number}"), "order.pay", b"{}")
                    .await,
            );
        }
        ids
    }

    /// Inserts a row in a transaction of its own; returns its message id.
    pub async fn insert_one(&self, key: &str, routing_key: &str, payload: &[u8]) -> String {
        let mut tx = self.pool.begin().await.unwrap();
        let event = outbox::Event::new("order", key, "order.placed.v1", routing_key, payload);
        let id = outbox::event::write(&mut tx, &event).await.unwrap();
        tx.commit().await.unwrap();
        id.to_string()
    }

    /// How many rows of the outbox meet the condition.
    pub async fn count(&self, condition: &str) -> i64 {
        let statement = format!("SELECT COUNT(*) FROM outbox WHERE {condition}");
        sqlx::query_scalar(AssertSqlSafe(statement))
            .fetch_one(&self.pool)
            .await
            .unwrap()
    }

    /// Waits until `count` rows are sent and none is pending.
    pub async fn wait_sent(&self, count: i64) {
        crate::wait::until(&format!("{count} rows sent"), LATER, async || {
            self.count("status = 2").await == count && self.count("status = 1").await == 0
        })
        .await;
    }
}
