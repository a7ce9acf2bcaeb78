//! A database and a virtual host of the test's own, a relay process between them, and a consumer.
//! Every test binary of the relay takes this module in by its path.
#![allow(
    dead_code,
    reason = "each binary uses another part of it, so an expectation would fail in some"
)]

pub(crate) mod ops;
pub(crate) mod rows;
pub(crate) mod servers;
pub(crate) mod writers;

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use e2e::product::Process;
use e2e::{Db, Rabbit, TestDatabase, Vhost};
use futures::StreamExt;
use lapin::options::{BasicConsumeOptions, QueueBindOptions, QueueDeclareOptions};
use lapin::types::{AMQPValue, FieldTable, LongString};
use lapin::{Channel, Connection, ConnectionProperties};
use sqlx::{AssertSqlSafe, MySqlPool};

/// For what takes milliseconds, on a busy machine.
pub(crate) const SOON: Duration = Duration::from_secs(20);
/// For what takes the relay several of its intervals.
pub(crate) const LATER: Duration = Duration::from_secs(60);

pub(crate) const QUEUE: &str = "order-queue";
pub(crate) const EXCHANGE: &str = "order-exchange";

/// The test's own world.
pub(crate) struct Rig {
    pub(crate) db: &'static Db,
    pub(crate) rabbit: &'static Rabbit,
    pub(crate) database: TestDatabase,
    pub(crate) vhost: Vhost,
    pub(crate) pool: MySqlPool,
    pub(crate) env: HashMap<String, String>,
}

/// A delivery, as far as tests look at it.
#[derive(Clone, Debug)]
pub(crate) struct Delivery {
    pub(crate) message_id: String,
    pub(crate) key: String,
    pub(crate) payload: Vec<u8>,
    /// Header `x-replay-id`.
    pub(crate) replay_id: Option<String>,
    pub(crate) at: Instant,
}

/// Everything a queue has delivered, in order.
#[derive(Clone, Default)]
pub(crate) struct Deliveries(Arc<Mutex<Vec<Delivery>>>);

impl Deliveries {
    pub(crate) fn all(&self) -> Vec<Delivery> {
        self.0.lock().unwrap().clone()
    }

    pub(crate) fn count(&self) -> usize {
        self.0.lock().unwrap().len()
    }

    /// Message ids of all deliveries, in order.
    pub(crate) fn ids(&self) -> Vec<String> {
        let deliveries = self.0.lock().unwrap();
        deliveries.iter().map(|d| d.message_id.clone()).collect()
    }

    /// Deliveries of what had been delivered before.
    pub(crate) fn twice(&self) -> usize {
        let all = self.all();
        let ids: std::collections::HashSet<&str> =
            all.iter().map(|d| d.message_id.as_str()).collect();
        all.len() - ids.len()
    }

    /// Message ids in the order of their first delivery.
    pub(crate) fn first(&self) -> Vec<Delivery> {
        let mut seen = std::collections::HashSet::new();
        self.all()
            .into_iter()
            .filter(|delivery| seen.insert(delivery.message_id.clone()))
            .collect()
    }
}

impl Rig {
    /// Migrated tables, the exchange, and a bound quorum queue.
    pub(crate) async fn new(db: &'static Db) -> Self {
        let rig = Self::without_queue(db).await;
        rig.declare_queue(QUEUE, "order.*").await;
        rig
    }

    pub(crate) async fn without_queue(db: &'static Db) -> Self {
        Self::on(db, e2e::shared::rabbit().await).await
    }

    pub(crate) async fn on(db: &'static Db, rabbit: &'static Rabbit) -> Self {
        let database = db.create_database().await.unwrap();
        let vhost = rabbit.create_vhost().await.unwrap();
        let env = HashMap::from([
            ("DATABASE_URL".to_owned(), database.url.clone()),
            ("AMQP_URL".to_owned(), vhost.amqp_url.clone()),
            (
                "ADMIN_ADDR".to_owned(),
                format!("127.0.0.1:{}", e2e::port::free().unwrap()),
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

    pub(crate) fn set(&mut self, name: &str, value: &str) -> &mut Self {
        self.env.insert(name.to_owned(), value.to_owned());
        self
    }

    async fn migrate(&self) {
        let migrate = self.command(&["migrate"]);
        let status = migrate.wait_exit(SOON).await.unwrap();
        assert!(status.success(), "{}", migrate.log());
    }

    /// A relay command with the rig's environment.
    pub(crate) fn command(&self, args: &[&str]) -> Process {
        let env: Vec<(&str, &str)> = self
            .env
            .iter()
            .map(|(name, value)| (name.as_str(), value.as_str()))
            .collect();
        Process::spawn(env!("CARGO_BIN_EXE_relay").as_ref(), args, &env).unwrap()
    }

    /// `relay run`, not waited for.
    pub(crate) fn relay(&self) -> Process {
        self.command(&["run"])
    }

    /// `relay run` that has come to its working phase.
    pub(crate) async fn tailing(&self) -> Process {
        let relay = self.relay();
        self.wait_phase("tailing").await;
        relay
    }

    pub(crate) async fn wait_phase(&self, phase: &str) {
        let name = format!("outbox_relay_phase{{phase=\"{phase}\"}}");
        e2e::wait::until(&format!("phase {phase}"), LATER, async || {
            self.metric(&name).await == Some(1.0)
        })
        .await;
    }

    /// A sample of `/metrics` by its full name with labels; `None` when the relay does not answer.
    pub(crate) async fn metric(&self, name: &str) -> Option<f64> {
        let url = format!("http://{}/metrics", self.env["ADMIN_ADDR"]);
        let text = reqwest::get(url).await.ok()?.text().await.ok()?;
        let line = text
            .lines()
            .find(|line| line.strip_prefix(name).is_some_and(|l| l.starts_with(' ')))?;
        line.rsplit(' ').next()?.parse().ok()
    }

    pub(crate) async fn amqp(&self) -> Channel {
        let connection = Connection::connect(&self.vhost.amqp_url, ConnectionProperties::default())
            .await
            .unwrap();
        connection.create_channel().await.unwrap()
    }

    pub(crate) async fn declare_queue(&self, queue: &str, binding: &str) {
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
    pub(crate) async fn consume(&self, queue: &str) -> Deliveries {
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
    pub(crate) async fn insert(&self, count: usize) -> Vec<String> {
        let mut ids = Vec::with_capacity(count);
        for number in 0..count {
            ids.push(
                self.insert_one(&format!("k{number}"), "order.pay", b"{}")
                    .await,
            );
        }
        ids
    }

    pub(crate) async fn insert_one(&self, key: &str, routing_key: &str, payload: &[u8]) -> String {
        let mut tx = self.pool.begin().await.unwrap();
        let event = outbox::Event::new("order", key, "order.placed.v1", routing_key, payload);
        let id = outbox::event::write(&mut tx, &event).await.unwrap();
        tx.commit().await.unwrap();
        id.to_string()
    }

    pub(crate) async fn count(&self, condition: &str) -> i64 {
        let statement = format!("SELECT COUNT(*) FROM outbox WHERE {condition}");
        sqlx::query_scalar(AssertSqlSafe(statement))
            .fetch_one(&self.pool)
            .await
            .unwrap()
    }

    /// Waits until `count` rows are sent and none is pending.
    pub(crate) async fn wait_sent(&self, count: i64) {
        e2e::wait::until(&format!("{count} rows sent"), LATER, async || {
            self.count("status = 2").await == count && self.count("status = 1").await == 0
        })
        .await;
    }
}
