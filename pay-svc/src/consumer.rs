//! From the queue to the inbox: what has arrived is stored in one transaction, then acknowledged.
//!
//! A consumer that is alive but does not consume must be impossible. So there is no state to
//! repair: the end of the stream, an error, a late answer, all end the session, and the next one
//! starts from a new connection. So does silence end it, on the same connection: when a queue is
//! deleted and declared again within milliseconds, RabbitMQ may keep a consumer that gets neither
//! messages nor a cancellation, and counts messages as delivered to it (seen on 3.10). A quiet
//! session holds no message, so a new one in its place costs nothing.

use std::pin::Pin;
use std::time::Duration;

use futures::{FutureExt, Stream, StreamExt};
use lapin::message::Delivery;
use lapin::options::{BasicAckOptions, BasicCancelOptions, BasicConsumeOptions, BasicQosOptions};
use lapin::types::{FieldTable, ShortString};
use lapin::{Channel, Connection, ErrorKind, Event};
use outbox::message::decode_parts;
use svc_kit::admin::Readiness;
use svc_kit::amqp::Amqp;
use svc_kit::backoff::Backoff;
use tokio_util::sync::CancellationToken;

use crate::store::{Handover, Store};
use crate::topology::{self, QUEUE};

/// Name of the readiness condition: is there a connection?
pub const BROKER: &str = "broker";
/// Name of the readiness condition: are messages being consumed?
pub const CONSUMER: &str = "consumer";

/// Shown in RabbitMQ's list of connections.
const CONNECTION_NAME: &str = "pay-svc";
/// A batch is stored before it grows past this, however few its messages are.
const BATCH_BYTES: usize = 16 * 1024 * 1024;
/// The broker's answer to anything is late after this.
const REPLY_TIMEOUT: Duration = Duration::from_secs(20);
/// A consumer that tries one message at a time and gets none goes back to many after this.
const REFUSED_SILENCE: Duration = Duration::from_secs(5);
/// Parting needs no answer for long.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);

/// How the consumer takes.
#[derive(Debug, Clone, Copy)]
pub struct Settings {
    /// Messages stored in one transaction, at most.
    pub batch_max: usize,
    /// Messages the broker sends ahead of acknowledgements.
    pub prefetch: u16,
    /// Without a delivery for this long the consumer is made anew.
    pub silence_max: Duration,
    /// Shortest wait before a new connection.
    pub reconnect_min: Duration,
    /// Longest wait before a new connection.
    pub reconnect_max: Duration,
}

/// Takes messages from the queue.
pub struct Consumer {
    /// The broker.
    pub amqp: Amqp,
    /// Where messages go.
    pub store: Store,
    /// Who works on it.
    pub handover: Option<Handover>,
    /// Where the two conditions are told.
    pub readiness: Readiness,
    /// How to take.
    pub settings: Settings,
}

/// What one session leaves to the next.
struct Memory {
    backoff: Backoff,
    /// What was told of the topology, so that it is told once.
    differences: Vec<String>,
    /// Why a database that answers did not store. Until it stores again, one message at a time is
    /// tried.
    refused: Option<String>,
}

/// Why a session ended.
#[derive(Debug)]
enum End {
    /// It was asked to.
    Drained,
    /// There was nothing to do; nothing is in hand.
    Silence,
    /// The database is away; the deliveries went back to the queue.
    Database(String),
    /// The database answers, and did not store; the deliveries went back to the queue.
    Refused(String),
    /// The connection, the channel or the consumer is gone or of no use.
    Broker(String),
}

impl Consumer {
    /// Consumes until `drain`, for ever anew.
    ///
    /// # Errors
    /// [`svc_kit::boot::ConfigError`] when the broker's first answer is that the settings are wrong.
    pub async fn run(self, drain: CancellationToken) -> anyhow::Result<()> {
        svc_kit::amqp::first_contact(&self.amqp, &drain).await?;
        let Settings {
            reconnect_min,
            reconnect_max,
            ..
        } = self.settings;
        let mut memory = Memory {
            backoff: Backoff::new(reconnect_min, reconnect_max),
            differences: Vec::new(),
            refused: None,
        };
        while !drain.is_cancelled() {
            let lost = match self.amqp.connect(CONNECTION_NAME).await {
                Ok(connection) => {
                    self.readiness.set(BROKER, true, "connected");
                    let told = std::pin::pin!(connection.events_listener());
                    let lost = self.use_connection(&connection, &drain, &mut memory).await;
                    let lost = lost.map(|why| explain_unreadable(why, told));
                    part(connection).await;
                    lost
                }
                Err(err) => Some(explain(&err)),
            };
            let Some(why) = lost else { break };
            tracing::warn!(error = why, "consumer stopped, connecting again");
            self.readiness.set(BROKER, false, why.clone());
            self.readiness.set(CONSUMER, false, why);
            pause(&drain, &mut memory.backoff).await;
        }
        self.readiness.set(CONSUMER, false, "draining");
        Ok(())
    }

    /// Sessions on one connection, until it is of no use any more. While the database is away there
    /// is none: messages would only go round between the queue and this process. `None` is the drain.
    async fn use_connection(
        &self,
        connection: &Connection,
        drain: &CancellationToken,
        memory: &mut Memory,
    ) -> Option<String> {
        loop {
            tokio::select! {
                biased;
                () = drain.cancelled() => return None,
                () = self.store.database.up() => {}
            }
            if !connection.status().connected() {
                return Some("the connection was lost".to_owned());
            }
            match self.session(connection, drain, memory).await {
                Ok(End::Drained) => return None,
                Ok(End::Silence) => {
                    memory.refused = None;
                    memory.backoff.reset();
                }
                Ok(End::Refused(why)) => {
                    tracing::warn!(
                        error = why,
                        "database does not store, trying one message again"
                    );
                    self.readiness.set(CONSUMER, false, not_stored(&why));
                    memory.refused = Some(why);
                    pause(drain, &mut memory.backoff).await;
                }
                Ok(End::Database(why)) => {
                    tracing::warn!(error = why, "consumer cancelled until the database is back");
                    let detail = format!("waits for the database: {why}");
                    self.readiness.set(CONSUMER, false, detail);
                    pause(drain, &mut memory.backoff).await;
                }
                Ok(End::Broker(why)) => return Some(why),
                Err(err) => return Some(explain(&err)),
            }
        }
    }

    /// One channel, one consumer, until something ends it.
    async fn session(
        &self,
        connection: &Connection,
        drain: &CancellationToken,
        memory: &mut Memory,
    ) -> Result<End, lapin::Error> {
        let (channel, mut consumer) = match in_time(self.subscribe(connection, memory)).await {
            Some(subscribed) => subscribed?,
            None => return Ok(End::Broker("the broker did not answer".to_owned())),
        };
        let silence_max = match memory.refused {
            None => self.settings.silence_max,
            // Somebody else has stored what this one was refused.
            Some(_) => self.settings.silence_max.min(REFUSED_SILENCE),
        };
        let end = loop {
            let delivery = tokio::select! {
                biased;
                // The drain first: what has been sent ahead goes back to the queue.
                () = drain.cancelled() => break End::Drained,
                () = self.store.database.down() => {
                    break End::Database("the database is down".to_owned());
                }
                delivery = tokio::time::timeout(silence_max, consumer.next()) => delivery,
            };
            let first = match delivery {
                Ok(Some(Ok(first))) => first,
                Ok(Some(Err(err))) => return Err(err),
                Ok(None) => break End::Broker("the consumer was cancelled".to_owned()),
                Err(_elapsed) => break End::Silence,
            };
            let batch = self.gather(first, &mut consumer);
            if let Err(why) = self.store_and_ack(&channel, batch).await {
                break why;
            }
            memory.backoff.reset();
            if memory.refused.is_some() {
                // It stores again: from now on as much at a time as ever.
                break End::Silence;
            }
        };
        leave(&channel, consumer.tag()).await;
        Ok(end)
    }

    async fn subscribe(
        &self,
        connection: &Connection,
        memory: &mut Memory,
    ) -> Result<(Channel, lapin::Consumer), lapin::Error> {
        let differences = topology::ensure(connection).await?;
        if differences != memory.differences {
            for difference in &differences {
                tracing::warn!(difference, "topology differs");
            }
            memory.differences.clone_from(&differences);
        }
        let channel = connection.create_channel().await?;
        let prefetch = match memory.refused {
            None => self.settings.prefetch,
            Some(_) => 1,
        };
        let qos = BasicQosOptions { global: false };
        channel.basic_qos(prefetch, qos).await?;
        let options = BasicConsumeOptions {
            no_local: false,
            no_ack: false,
            exclusive: false,
            nowait: false,
        };
        // An empty tag: the broker makes one up.
        let (queue, tag) = (ShortString::from(QUEUE), ShortString::from(""));
        let consumer = channel
            .basic_consume(queue, tag, options, FieldTable::default())
            .await?;
        tracing::debug!(queue = QUEUE, prefetch, "consuming");
        let detail = match (&memory.refused, differences.as_slice()) {
            (Some(why), _) => not_stored(why),
            (None, []) => "consuming".to_owned(),
            (None, differences) => format!("consuming; {}", differences.join("; ")),
        };
        self.readiness
            .set(CONSUMER, memory.refused.is_none(), detail);
        Ok((channel, consumer))
    }

    /// What has already arrived, behind `first`. Never waits for more.
    fn gather(&self, first: Delivery, consumer: &mut lapin::Consumer) -> Batch {
        let mut batch = Batch {
            bytes: first.data.len(),
            deliveries: vec![first],
            ended: None,
        };
        while batch.deliveries.len() < self.settings.batch_max && batch.bytes < BATCH_BYTES {
            match consumer.next().now_or_never() {
                None => break,
                Some(Some(Ok(delivery))) => {
                    batch.bytes += delivery.data.len();
                    batch.deliveries.push(delivery);
                }
                Some(Some(Err(err))) => {
                    batch.ended = Some(explain(&err));
                    break;
                }
                Some(None) => {
                    batch.ended = Some("the consumer was cancelled".to_owned());
                    break;
                }
            }
        }
        batch
    }

    /// The acknowledgement comes after the commit, never before: a crash between the two delivers
    /// again, and the inbox knows the message.
    async fn store_and_ack(&self, channel: &Channel, batch: Batch) -> Result<(), End> {
        let Some(last) = batch
            .deliveries
            .last()
            .map(|delivery| delivery.delivery_tag)
        else {
            return Ok(());
        };
        let (messages, bytes) = (batch.deliveries.len(), batch.bytes);
        tracing::debug!(messages, bytes, "batch arrived");
        let received = batch
            .deliveries
            .into_iter()
            .map(|delivery| {
                let (exchange, key) = (delivery.exchange.as_str(), delivery.routing_key.as_str());
                decode_parts(&delivery.properties, exchange, key, delivery.data)
            })
            .collect();
        let stored = self.store.take_in(received, self.handover.as_ref()).await;
        if let Err(err) = stored {
            let is_refused = err.is_answer();
            let why = format!("{:#}", anyhow::Error::from(err));
            return Err(match is_refused {
                true => End::Refused(why),
                false => End::Database(why),
            });
        }
        // Stored all the same: when a queue is deleted, what was sent ahead exists only here.
        if let Some(why) = batch.ended {
            return Err(End::Broker(why));
        }
        match in_time(channel.basic_ack(last, BasicAckOptions { multiple: true })).await {
            Some(Ok(())) => Ok(()),
            Some(Err(err)) => Err(End::Broker(explain(&err))),
            None => Err(End::Broker(
                "an acknowledgement could not be sent".to_owned(),
            )),
        }
    }
}

/// Deliveries of one consumer, in the order of their tags.
struct Batch {
    deliveries: Vec<Delivery>,
    bytes: usize,
    /// Why the stream ended behind them, if it did.
    ended: Option<String>,
}

fn not_stored(why: &str) -> String {
    format!("nothing is taken until the database stores again: {why}")
}

async fn pause(drain: &CancellationToken, backoff: &mut Backoff) {
    tokio::select! {
        () = drain.cancelled() => {}
        () = tokio::time::sleep(backoff.next()) => {}
    }
}

/// Gives back what is not acknowledged and lets go of the channel.
async fn leave(channel: &Channel, tag: ShortString) {
    let parting = async {
        channel
            .basic_cancel(tag, BasicCancelOptions { nowait: false })
            .await?;
        channel.close(200, ShortString::from("done")).await
    };
    match tokio::time::timeout(CLOSE_TIMEOUT, parting).await {
        Ok(Ok(())) => {}
        Ok(Err(err)) => tracing::debug!(error = %err, "channel was gone already"),
        Err(_elapsed) => tracing::debug!("channel did not close in time"),
    }
}

async fn part(connection: Connection) {
    let parting = connection.close(200, ShortString::from("done"));
    match tokio::time::timeout(CLOSE_TIMEOUT, parting).await {
        Ok(Ok(())) => {}
        Ok(Err(err)) => tracing::debug!(error = %err, "connection was gone already"),
        Err(_elapsed) => tracing::debug!("connection did not close in time"),
    }
}

/// lapin reads AMQP's short strings as UTF-8 and gives up the connection on one that is not, before
/// this process sees the message. The broker then delivers it again, for ever: nothing here can store
/// or refuse it, so a person must be told what it is.
fn explain_unreadable(why: String, mut told: Pin<&mut impl Stream<Item = Event>>) -> String {
    let mut events = std::iter::from_fn(|| told.next().now_or_never().flatten());
    let unreadable = events.any(|event| {
        matches!(event, Event::Error(err) if matches!(err.kind(), ErrorKind::ParsingError(_)))
    });
    if unreadable {
        format!(
            "a message in {QUEUE} can't be read, one of its properties is not UTF-8: take it out, \
             see UnreadableMessage in RUNBOOK.md ({why})"
        )
    } else {
        why
    }
}

async fn in_time<T>(work: impl Future<Output = T>) -> Option<T> {
    tokio::time::timeout(REPLY_TIMEOUT, work).await.ok()
}

fn explain(err: &lapin::Error) -> String {
    err.to_string()
}
