//! The exchange and the queue of the contract, and what arrives there.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use anyhow::{Context as _, ensure};
use e2e::{Rabbit, Vhost};
use futures::StreamExt as _;
use lapin::{
    Channel, Connection, ConnectionProperties, Consumer, ExchangeKind,
    message::Delivery,
    options::{
        BasicCancelOptions, BasicConsumeOptions, ExchangeDeclareOptions, QueueBindOptions,
        QueueDeclareOptions, QueuePurgeOptions,
    },
    types::{AMQPValue, FieldTable, LongString},
};
use uuid::Uuid;

pub(crate) const EXCHANGE: &str = "order-exchange";
pub(crate) const QUEUE: &str = "order-queue";
const CONSUMER: &str = "bench";
const PATIENCE: Duration = Duration::from_secs(120);

/// `x-queue-type`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Classic,
    Quorum,
}

/// How often each message arrived.
#[derive(Debug, Default)]
pub(crate) struct Arrived(pub(crate) HashMap<Uuid, u32>);

impl Arrived {
    pub(crate) fn add(&mut self, delivery: &Delivery) -> anyhow::Result<Uuid> {
        let id = delivery.properties.message_id().as_ref();
        let id = id.context("a message without a message_id")?;
        let id = Uuid::parse_str(id.as_str()).context("a message_id that is no UUID")?;
        *self.0.entry(id).or_default() += 1;
        Ok(id)
    }

    /// Deliveries beyond the first of a message.
    pub(crate) fn duplicates(&self) -> u64 {
        self.0.values().map(|&times| u64::from(times) - 1).sum()
    }
}

/// A queue bound to the exchange, in a virtual host of its own.
pub(crate) struct Queue {
    pub(crate) vhost: Vhost,
    pub(crate) kind: Kind,
    channel: Channel,
    // Closes the channel when dropped.
    _connection: Connection,
}

impl Queue {
    pub(crate) async fn declare(vhost: Vhost, kind: Kind) -> anyhow::Result<Self> {
        let connection =
            Connection::connect(&vhost.amqp_url, ConnectionProperties::default()).await?;
        let channel = connection.create_channel().await?;
        let durable = ExchangeDeclareOptions {
            durable: true,
            ..ExchangeDeclareOptions::default()
        };
        let none = FieldTable::default;
        channel
            .exchange_declare(EXCHANGE.into(), ExchangeKind::Topic, durable, none())
            .await?;
        let queue = Self {
            vhost,
            kind,
            channel,
            _connection: connection,
        };
        queue.request(false).await?;
        let key = "order.*".into();
        queue
            .channel
            .queue_bind(
                QUEUE.into(),
                EXCHANGE.into(),
                key,
                QueueBindOptions::default(),
                none(),
            )
            .await?;
        Ok(queue)
    }

    async fn request(&self, passive: bool) -> anyhow::Result<u32> {
        let kind = match self.kind {
            Kind::Classic => "classic",
            Kind::Quorum => "quorum",
        };
        let mut arguments = FieldTable::default();
        arguments.insert(
            "x-queue-type".into(),
            AMQPValue::LongString(LongString::from(kind)),
        );
        let options = QueueDeclareOptions {
            passive,
            durable: true,
            ..QueueDeclareOptions::default()
        };
        let declared = self
            .channel
            .queue_declare(QUEUE.into(), options, arguments)
            .await?;
        Ok(declared.message_count())
    }

    /// Messages that wait in it.
    pub(crate) async fn count(&self) -> anyhow::Result<u64> {
        Ok(u64::from(self.request(true).await?))
    }

    /// Waits until so many messages are in it; gives the moment.
    pub(crate) async fn wait_for(&self, count: u64) -> anyhow::Result<Instant> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let there = self.count().await?;
            if there >= count {
                return Ok(Instant::now());
            }
            ensure!(
                Instant::now() < deadline,
                "waited {PATIENCE:?} for {count} messages, there are {there}"
            );
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Throws away what is in it.
    pub(crate) async fn purge(&self) -> anyhow::Result<()> {
        self.channel
            .queue_purge(QUEUE.into(), QueuePurgeOptions::default())
            .await?;
        Ok(())
    }

    /// Removes its virtual host and everything in it.
    pub(crate) async fn remove(self, rabbit: &Rabbit) -> anyhow::Result<()> {
        let path = format!("vhosts/{}", self.vhost.name);
        drop(self);
        rabbit.management()?.delete(&path).await?;
        Ok(())
    }

    /// A consumer that acknowledges nothing: a message is gone when it is delivered.
    pub(crate) async fn consume(&self) -> anyhow::Result<Consumer> {
        let options = BasicConsumeOptions {
            no_ack: true,
            ..BasicConsumeOptions::default()
        };
        let none = FieldTable::default();
        let consumer = self
            .channel
            .basic_consume(QUEUE.into(), CONSUMER.into(), options, none)
            .await?;
        Ok(consumer)
    }

    /// Ends [`Queue::consume`].
    pub(crate) async fn cancel(&self) -> anyhow::Result<()> {
        let options = BasicCancelOptions::default();
        self.channel.basic_cancel(CONSUMER.into(), options).await?;
        Ok(())
    }

    /// Takes out everything that is in it now.
    pub(crate) async fn take_all(&self) -> anyhow::Result<Arrived> {
        let waiting = self.count().await?;
        let mut arrived = Arrived::default();
        let mut consumer = self.consume().await?;
        for _ in 0..waiting {
            let next = tokio::time::timeout(PATIENCE, consumer.next()).await;
            let next = next.context("the queue does not give what it holds")?;
            arrived.add(&next.context("the consumer ended")??)?;
        }
        self.cancel().await?;
        Ok(arrived)
    }
}
