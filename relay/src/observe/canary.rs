//! The canary: now and then a row of the relay's own goes the way of every event, through binlog and
//! broker, into a queue of the relay's own, and back. So an outage shows without any traffic.
//!
//! Such a row is known by its message id. It has a key of its own and goes by AMQP's default exchange
//! straight to its queue, so no consumer sees it. It is deleted when the next one is written; those of
//! a session that is over, before another session begins.

use std::convert::Infallible;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use futures::StreamExt;
use lapin::options::{BasicConsumeOptions, BasicPublishOptions, QueueDeclareOptions};
use lapin::types::{FieldTable, ShortString};
use lapin::{BasicProperties, Channel, Consumer};
use sqlx::mysql::MySqlConnection;
use sqlx::{AssertSqlSafe, Connection as _};
use svc_kit::amqp::Channels;

use crate::config::Config;
use crate::engine::Mode;
use crate::observe::metrics::Metrics;
use crate::outbox_table::OutboxTable;
use outbox::statement::{padded, padded_len, placeholders};

/// Begins the message id of each, and no other's: those are UUIDs.
const PREFIX: &str = "relay-canary-";
/// Rows that are none, in SQL. The other way round it is a range of the message ids' index.
pub use ops::NO_CANARY as NOT_ONE;

/// To the broker or the database and back.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);
/// A session does not wait longer for those of the last one to be deleted.
const CLEAR_TIMEOUT: Duration = Duration::from_secs(2);
/// How often it is seen whether one that is not back yet is still to come.
const LOOK_EVERY: Duration = Duration::from_secs(10);
/// Between two looks at whether the binlog is read.
const BINLOG_EVERY: Duration = Duration::from_millis(500);
const RETRY_IN: Duration = Duration::from_secs(5);
/// There are two of them at the most, unless somebody writes some.
const CLEARED_AT_ONCE: usize = 64;

/// Whether a row is the relay's own and none of the operators' business.
pub fn is_one(message_id: &str) -> bool {
    message_id.starts_with(PREFIX)
}

/// The statement that counts the rows of a status but for canaries, up to `most`. It takes them off
/// afterwards, by the index of the message ids: each row would be looked at else.
pub fn count_others(from: &str, status: u8, most: u32) -> String {
    let table = from.split(' ').next().unwrap_or(from);
    format!(
        "SELECT GREATEST(0, CAST((SELECT COUNT(*) FROM \
         (SELECT 1 FROM {from} WHERE status = {status} LIMIT {most}) AS counted) AS SIGNED) - \
         (SELECT COUNT(*) FROM {table} WHERE message_id LIKE '{PREFIX}%' AND status + 0 = {status}))"
    )
}

/// Writes canaries, waits for them, and knows how late the next one is. Cheap to clone.
#[derive(Clone)]
pub struct Canary {
    interval: Duration,
    mode: Mode,
    table: OutboxTable,
    metrics: Metrics,
    due: Arc<Mutex<Option<Instant>>>,
}

impl Canary {
    /// None is due yet.
    pub fn new(config: &Config, metrics: &Metrics) -> Self {
        Self {
            interval: config.canary_interval,
            mode: config.engine.mode,
            table: config.table.clone(),
            metrics: metrics.clone(),
            due: Arc::default(),
        }
    }

    /// `RELAY_CANARY_INTERVAL` is set.
    pub fn is_on(&self) -> bool {
        !self.interval.is_zero()
    }

    /// This relay leads: one is due from now on, if none has been before.
    pub fn begin(&self) {
        if self.is_on() {
            self.set_due(|due| Some(due.unwrap_or_else(Instant::now)));
        }
    }

    /// Another relay leads, and its canary tells.
    pub fn end(&self) {
        self.set_due(|_| None);
    }

    /// When the next one is, or was, due.
    pub fn due(&self) -> Option<Instant> {
        *self.due.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn set_due(&self, next: impl FnOnce(Option<Instant>) -> Option<Instant>) {
        let mut due = self.due.lock().unwrap_or_else(PoisonError::into_inner);
        *due = next(*due);
    }

    /// One after the other, until the session ends.
    ///
    /// # Errors
    /// Never: the orders must not suffer from what only watches.
    pub async fn run(self, channels: Arc<Channels>) -> anyhow::Result<()> {
        loop {
            let Err(err) = self.keep_sending(&channels).await;
            let error = format!("{err:#}");
            tracing::warn!(error, retry_in = ?RETRY_IN, "the canary can not be sent");
            tokio::time::sleep(RETRY_IN).await;
        }
    }

    async fn keep_sending(&self, channels: &Channels) -> anyhow::Result<Infallible> {
        let mut nest = Nest::build(channels.open()).await?;
        loop {
            self.until_due().await;
            let message_id = format!("{PREFIX}{:016x}", rand::random::<u64>());
            let began = Instant::now();
            in_time(self.write(&message_id, &nest.queue)).await?;
            self.come_back(&mut nest, &message_id).await?;
            let took = began.elapsed();
            self.metrics.canary.set(took.as_secs_f64());
            // One that a pass has found says nothing about the binlog: the next one follows at once.
            if self.is_read() {
                self.set_due(|_| Some(began + self.interval));
            }
        }
    }

    async fn until_due(&self) {
        loop {
            let now = Instant::now();
            match self.due() {
                Some(due) if due > now => tokio::time::sleep_until(due.into()).await,
                Some(_) if self.is_read() => return,
                _ => tokio::time::sleep(BINLOG_EVERY).await,
            }
        }
    }

    /// The binlog is read, where it is to be.
    fn is_read(&self) -> bool {
        self.mode == Mode::Poll || self.metrics.binlog_connected.get() == 1
    }

    /// In transactions of their own: the deletion of an old one may be refused.
    async fn write(&self, message_id: &str, queue: &str) -> anyhow::Result<()> {
        let mut connection = self.table.url.connect().await?;
        clear(&mut connection, &self.table.name, Some(queue)).await?;
        let insert = format!(
            "INSERT INTO `{}` (message_id, aggregate_type, aggregate_id, event_type, exchange, \
             routing_key, payload) VALUES (?, 'relay', 'canary', 'relay.canary', '', ?, '{{}}')",
            self.table.name
        );
        sqlx::query(AssertSqlSafe(insert))
            .bind(message_id)
            .bind(queue)
            .execute(&mut connection)
            .await?;
        connection.close().await.context("closing the connection")
    }

    async fn come_back(&self, nest: &mut Nest, message_id: &str) -> anyhow::Result<()> {
        let mut gone = false;
        loop {
            match tokio::time::timeout(LOOK_EVERY, nest.next()).await {
                Ok(back) => {
                    if back? == message_id {
                        return Ok(());
                    }
                }
                Err(_) if in_time(self.is_pending(message_id)).await? => {}
                // It may have been on its way when its row was looked at.
                Err(_) if !gone => gone = true,
                Err(_) => bail!("its row is not pending any more, and it did not come back"),
            }
        }
    }

    async fn is_pending(&self, message_id: &str) -> anyhow::Result<bool> {
        let mut connection = self.table.url.connect().await?;
        let look = format!(
            "SELECT 1 FROM `{}` WHERE message_id = ? AND status = 1",
            self.table.name
        );
        let found: Option<i64> = sqlx::query_scalar(AssertSqlSafe(look))
            .bind(message_id)
            .fetch_optional(&mut connection)
            .await?;
        connection.close().await?;
        Ok(found.is_some())
    }
}

async fn in_time<T>(answer: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
    let answer = tokio::time::timeout(ANSWER_TIMEOUT, answer).await;
    answer.context("no answer in time")?
}

/// Deletes what an earlier session, or a relay with a canary, has left: its queue is gone, so it would
/// wait for ever. For as long as nothing is published.
pub async fn clear_all(table: &OutboxTable) {
    let clearing = async {
        let mut connection = table.url.connect().await?;
        clear(&mut connection, &table.name, None).await?;
        connection.close().await
    };
    match tokio::time::timeout(CLEAR_TIMEOUT, clearing).await {
        Ok(Ok(())) => {}
        Ok(Err(err)) => tracing::debug!(error = %err, "could not look for old canaries"),
        Err(_) => tracing::debug!("looking for old canaries took over {CLEAR_TIMEOUT:?}"),
    }
}

/// Deletes all of them but the pending ones of `queue`: these may be with the broker.
async fn clear(
    connection: &mut MySqlConnection,
    table: &str,
    queue: Option<&str>,
) -> Result<(), sqlx::Error> {
    let look = format!(
        "SELECT id, status = 1, routing_key FROM `{table}` \
         WHERE message_id LIKE '{PREFIX}%' LIMIT {CLEARED_AT_ONCE}"
    );
    let found: Vec<(u64, bool, String)> = sqlx::query_as(AssertSqlSafe(look))
        .fetch_all(&mut *connection)
        .await?;
    let old = found
        .into_iter()
        .filter(|(_, pending, of)| !pending || Some(of.as_str()) != queue);
    let old: Vec<u64> = old.map(|(id, _, _)| id).collect();
    if old.is_empty() {
        return Ok(());
    }
    let delete = format!(
        "DELETE FROM `{table}` WHERE id IN ({})",
        placeholders(padded_len(old.len()), "?")
    );
    let mut query = sqlx::query(AssertSqlSafe(delete));
    for id in padded(&old) {
        query = query.bind(id);
    }
    query.execute(connection).await.map(drop)
}

/// The relay's own queue, which lives no longer than its connection. Its name is new each time: that
/// of a relay that is gone may stay for as long as the broker waits for heartbeats.
pub struct Nest {
    queue: String,
    consumer: Consumer,
    /// Closed when it is dropped, and the queue with it.
    _channel: Channel,
}

impl Nest {
    /// Declares it and tries it: a row for a queue that can't be reached would make the broker close
    /// the channel of the lane that publishes it.
    ///
    /// # Errors
    /// The broker's, and which rights it takes.
    pub async fn build(
        channel: impl Future<Output = lapin::Result<Channel>>,
    ) -> anyhow::Result<Self> {
        in_time(Self::declare(channel)).await.context(
            "a queue of the relay's own: its account needs the rights to configure and read \
             relay-canary.* and to write to amq.default",
        )
    }

    async fn declare(
        channel: impl Future<Output = lapin::Result<Channel>>,
    ) -> anyhow::Result<Self> {
        let queue = format!("relay-canary.{}", uuid::Uuid::now_v7());
        let name = ShortString::try_new(queue.clone())?;
        let channel = channel.await?;
        let own = QueueDeclareOptions {
            passive: false,
            durable: false,
            exclusive: true,
            auto_delete: true,
            nowait: false,
        };
        channel
            .queue_declare(name.clone(), own, FieldTable::default())
            .await?;
        // A message that is lost after it was delivered is no news: nothing is to be acknowledged.
        let options = BasicConsumeOptions {
            no_local: false,
            no_ack: true,
            exclusive: true,
            nowait: false,
        };
        let tag = ShortString::from("canary");
        let consumer = channel
            .basic_consume(name.clone(), tag, options, FieldTable::default())
            .await?;
        let mandatory = BasicPublishOptions {
            mandatory: true,
            immediate: false,
        };
        let first = BasicProperties::default().with_message_id(name.clone());
        let default_exchange = ShortString::default();
        channel
            .basic_publish(default_exchange, name, mandatory, b"", first)
            .await?;
        let mut nest = Self {
            queue,
            consumer,
            _channel: channel,
        };
        while nest.next().await? != nest.queue {}
        Ok(nest)
    }

    /// The message id of what comes next.
    async fn next(&mut self) -> anyhow::Result<String> {
        let Some(delivery) = self.consumer.next().await else {
            bail!("its queue, or the channel of it, is gone");
        };
        let id = delivery?.properties.message_id().clone();
        Ok(id.map(|id| id.as_str().to_owned()).unwrap_or_default())
    }
}
