//! From the queue to the inbox: what has arrived is stored in one transaction, then acknowledged.
//!
//! A consumer that is alive but does not consume must be impossible. So there is no state to
//! repair: the end of the stream, an error, a late answer, all end the session, and the next one
//! starts from a new connection. So does silence end it, on the same connection: when a queue is
//! deleted and declared again within milliseconds, RabbitMQ may keep a consumer that gets neither
//! messages nor a cancellation, and counts messages as delivered to it (seen on 3.10). A quiet
//! session holds no message, so a new one in its place costs nothing.

use std::pin::{Pin, pin};
use std::sync::Arc;
use std::time::Duration;

use futures::{FutureExt, Stream, StreamExt};
use lapin::message::Delivery;
use lapin::options::{BasicAckOptions, BasicCancelOptions, BasicConsumeOptions, BasicQosOptions};
use lapin::types::{FieldTable, ShortString};
use lapin::{Channel, Connection, ErrorKind, Event};
use outbox::message::decode_parts;
use svc_kit::admin::Readiness;
use svc_kit::amqp::{Amqp, Channels, Gate, is_worn_out};
use svc_kit::backoff::Backoff;
use tokio_util::sync::CancellationToken;

use self::window::Window;
use crate::store::{Handover, Store};
use crate::topology::{self, Found, QUEUE};

mod window;

/// Name of the readiness condition: is there a connection?
pub const BROKER: &str = "broker";
/// Name of the readiness condition: are messages being consumed?
pub const CONSUMER: &str = "consumer";

/// Shown in RabbitMQ's list of connections.
const CONNECTION_NAME: &str = "pay-svc";
/// A batch is stored before it grows past this, however few its messages are.
const BATCH_BYTES: usize = 16 * 1024 * 1024;
/// What is read at once of a message that alone is larger than the buffer.
const STEP_BYTES: usize = 8 * 1024 * 1024;
/// A message is on its way as long as so much comes between two looks: heartbeats are less.
const PROGRESS_BYTES: u64 = 64 * 1024;
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
    /// Messages the broker sends ahead of acknowledgements, at most.
    pub prefetch: u16,
    /// Bytes of messages that are held at once; one that is larger is held alone.
    pub buffer_bytes: usize,
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
    /// Where the two conditions are reported.
    pub readiness: Readiness,
    /// How to take.
    pub settings: Settings,
}

/// What one session leaves to the next.
struct Memory {
    backoff: Backoff,
    /// What was reported of the topology, so that it is reported once.
    reported: Found,
    /// What was found on the connection at hand.
    found: Option<Found>,
    /// How many messages the broker may send ahead.
    window: Window,
    /// Why a database that answers did not store. Until it stores again, one message at a time is
    /// tried.
    not_stored: Option<String>,
}

/// A connection, and what bounds the reading from it.
struct Link {
    connection: Arc<Connection>,
    gate: Gate,
}

/// Why a connection is of no use any more.
enum Lost {
    Drained,
    /// Another one is needed, and is to be had at once.
    WornOut,
    Broker(String),
}

/// Why a session ended.
#[derive(Debug)]
enum End {
    /// The process drains.
    Drained,
    /// There was nothing to do; nothing is in hand.
    Silence,
    /// The messages call for another prefetch; nothing is in hand.
    Resized,
    /// The connection has no channel left: another one is needed, nothing is in hand.
    WornOut,
    /// The queue would lose messages, and is not consumed; why.
    Unfit(String),
    /// The database is away; the deliveries went back to the queue.
    Database(String),
    /// The database answers, and did not store; the deliveries went back to the queue.
    NotStored(String),
    /// The connection, the channel or the consumer is gone or of no use.
    Broker(String),
}

impl Consumer {
    /// Consumes until `drain`, for ever anew.
    ///
    /// # Errors
    /// [`svc_kit::boot::ConfigError`] when the broker's first answer is that the settings are wrong.
    pub async fn run(self, drain: CancellationToken) -> anyhow::Result<()> {
        svc_kit::amqp::first_contact(&self.amqp, &drain, |why| {
            self.readiness.set(BROKER, false, why);
            self.readiness.set(CONSUMER, false, why);
        })
        .await?;
        let Settings {
            reconnect_min,
            reconnect_max,
            prefetch,
            buffer_bytes,
            ..
        } = self.settings;
        let mut memory = Memory {
            backoff: Backoff::new(reconnect_min, reconnect_max),
            reported: Found::default(),
            found: None,
            window: Window::new(prefetch, buffer_bytes),
            not_stored: None,
        };
        while !drain.is_cancelled() {
            let gate = Gate::default();
            let why = match self.amqp.connect_gated(CONNECTION_NAME, &gate).await {
                Ok(connection) => {
                    self.readiness.set(BROKER, true, "connected");
                    let events = pin!(connection.events_listener());
                    let connection = Arc::new(connection);
                    let link = Link { connection, gate };
                    let lost = self.use_connection(&link, &drain, &mut memory).await;
                    part(link).await;
                    match lost {
                        Lost::Drained => break,
                        Lost::WornOut => continue,
                        Lost::Broker(why) => explain_unreadable(why, events),
                    }
                }
                Err(err) => explain(&err),
            };
            memory.found = None;
            tracing::warn!(error = why, "consumer stopped, connecting again");
            self.readiness.set(BROKER, false, why.clone());
            self.readiness.set(CONSUMER, false, why);
            pause(&drain, &mut memory.backoff).await;
        }
        self.readiness.set(CONSUMER, false, "draining");
        Ok(())
    }

    /// Sessions on one connection, until it is of no use any more. While the database is away there
    /// is none: messages would only go round between the queue and this process.
    async fn use_connection(
        &self,
        link: &Link,
        drain: &CancellationToken,
        memory: &mut Memory,
    ) -> Lost {
        loop {
            tokio::select! {
                biased;
                () = drain.cancelled() => return Lost::Drained,
                () = self.store.database.up() => {}
            }
            if link.gate.is_closed() {
                return Lost::WornOut;
            }
            if !link.connection.status().connected() {
                return Lost::Broker("the connection was lost".to_owned());
            }
            match self.session(link, drain, memory).await {
                Ok(End::Drained) => return Lost::Drained,
                Ok(End::WornOut) => return Lost::WornOut,
                Ok(End::Silence | End::Resized) => {
                    memory.not_stored = None;
                    memory.backoff.reset();
                }
                Ok(End::Unfit(why)) => {
                    self.readiness.set(CONSUMER, false, why);
                    let again = tokio::time::sleep(self.settings.silence_max);
                    drain.run_until_cancelled(again).await;
                }
                Ok(End::NotStored(why)) => {
                    tracing::warn!(
                        error = why,
                        "database does not store, trying one message again"
                    );
                    self.readiness.set(CONSUMER, false, not_stored(&why));
                    memory.not_stored = Some(why);
                    pause(drain, &mut memory.backoff).await;
                }
                Ok(End::Database(why)) => {
                    tracing::warn!(error = why, "consumer cancelled until the database is back");
                    let detail = format!("waits for the database: {why}");
                    self.readiness.set(CONSUMER, false, detail);
                    pause(drain, &mut memory.backoff).await;
                }
                Ok(End::Broker(why)) => return Lost::Broker(why),
                Err(err) => return Lost::Broker(explain(&err)),
            }
        }
    }

    /// One channel, until something ends it.
    async fn session(
        &self,
        link: &Link,
        drain: &CancellationToken,
        memory: &mut Memory,
    ) -> Result<End, lapin::Error> {
        link.gate.allow(usize::MAX);
        let channel = match in_time(self.open(&link.connection, memory)).await {
            Some(opened) => match opened? {
                Ok(channel) => channel,
                Err(end) => return Ok(end),
            },
            None => return Ok(End::Broker("the broker did not answer".to_owned())),
        };
        loop {
            let prefetch = match memory.not_stored {
                None => memory.window.messages(),
                Some(_) => 1,
            };
            let consumer = match in_time(subscribe(&channel, prefetch)).await {
                Some(subscribed) => subscribed?,
                None => return Ok(End::Broker("the broker did not answer".to_owned())),
            };
            let mut intake = Intake {
                channel: &channel,
                consumer,
                gate: &link.gate,
                buffer_bytes: self.settings.buffer_bytes,
            };
            let end = self.consume(&mut intake, drain, memory).await?;
            if matches!(end, End::Resized) {
                continue;
            }
            let left = intake.leave().await;
            // Nothing is delivered any more: all that comes now is to be read.
            link.gate.allow(usize::MAX);
            return Ok(match end {
                _ if left => end,
                // What keeps this one from storing is worth more to readers than how it parted.
                End::Drained | End::Database(_) | End::NotStored(_) => {
                    tracing::debug!("the channel did not close in time");
                    link.gate.close();
                    end
                }
                _ => End::Broker("the channel did not close in time".to_owned()),
            });
        }
    }

    /// One consumer, until something ends it.
    async fn consume(
        &self,
        intake: &mut Intake<'_>,
        drain: &CancellationToken,
        memory: &mut Memory,
    ) -> Result<End, lapin::Error> {
        let silence_max = match memory.not_stored {
            None => self.settings.silence_max,
            // Somebody else has stored what this one was refused.
            Some(_) => self.settings.silence_max.min(REFUSED_SILENCE),
        };
        // Cancelled, a consumer still gets what the broker has sent ahead.
        let mut resizing = false;
        loop {
            let delivery = tokio::select! {
                biased;
                // The drain first: what has been sent ahead goes back to the queue.
                () = drain.cancelled() => return Ok(End::Drained),
                () = self.store.database.down() => {
                    return Ok(End::Database("the database is down".to_owned()));
                }
                delivery = intake.next(silence_max) => delivery,
            };
            let first = match delivery {
                Some(Some(first)) => first?,
                Some(None) if resizing => return Ok(End::Resized),
                Some(None) => return Ok(End::Broker(cancelled())),
                None => return Ok(End::Silence),
            };
            let mut batch = self.gather(first, &mut intake.consumer);
            let (messages, bytes) = (batch.deliveries.len(), batch.bytes);
            let over = resizing && batch.ended.take_if(|ended| ended.is_none()).is_some();
            let storing = self.store_and_ack(intake.channel, batch);
            if let Err(why) = intake.gate.keep_alive(storing).await {
                return Ok(why);
            }
            if over {
                return Ok(End::Resized);
            }
            intake.gate.add(bytes);
            memory.backoff.reset();
            if memory.not_stored.is_some() {
                // It stores again: from now on as much at a time as ever.
                return Ok(End::Silence);
            }
            if !resizing && memory.window.observe(messages, bytes) {
                resizing = true;
                intake.cancel();
            }
        }
    }

    /// The channel to consume on, or why there is none.
    async fn open(
        &self,
        connection: &Arc<Connection>,
        memory: &mut Memory,
    ) -> Result<Result<Channel, End>, lapin::Error> {
        let (amqp, name) = (self.amqp.clone(), CONNECTION_NAME.to_owned());
        let channels = Channels::new(amqp, name, Arc::clone(connection), |_| {});
        let found = topology::ensure(&channels, memory.found.take()).await?;
        memory.found = Some(found.clone());
        if found != memory.reported {
            for difference in found.refused.iter().chain(&found.differences) {
                tracing::warn!(difference, "topology differs");
            }
            memory.reported.clone_from(&found);
        }
        if let Some(refused) = found.refused {
            return Ok(Err(End::Unfit(refused)));
        }
        // One of this connection: its reading is bounded.
        let channel = match connection.create_channel().await {
            Err(err) if is_worn_out(connection, &err) => return Ok(Err(End::WornOut)),
            opened => opened?,
        };
        let detail = match (&memory.not_stored, found.differences.as_slice()) {
            (Some(why), _) => not_stored(why),
            (None, []) => "consuming".to_owned(),
            (None, differences) => format!("consuming; {}", differences.join("; ")),
        };
        self.readiness
            .set(CONSUMER, memory.not_stored.is_none(), detail);
        Ok(Ok(channel))
    }

    /// What has already arrived, behind `first`. Never waits for more.
    fn gather(&self, first: Delivery, consumer: &mut lapin::Consumer) -> Batch {
        let mut batch = Batch {
            bytes: first.data.len(),
            deliveries: vec![first],
            ended: None,
        };
        let bytes_max = BATCH_BYTES.min(self.settings.buffer_bytes / 4);
        while batch.deliveries.len() < self.settings.batch_max && batch.bytes < bytes_max {
            match consumer.next().now_or_never() {
                None => break,
                Some(Some(Ok(delivery))) => {
                    batch.bytes += delivery.data.len();
                    batch.deliveries.push(delivery);
                }
                Some(Some(Err(err))) => {
                    batch.ended = Some(Some(explain(&err)));
                    break;
                }
                Some(None) => {
                    batch.ended = Some(None);
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
                true => End::NotStored(why),
                false => End::Database(why),
            });
        }
        // Stored all the same: when a queue is deleted, what was sent ahead exists only here.
        if let Some(why) = batch.ended {
            return Err(End::Broker(why.unwrap_or_else(cancelled)));
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
    /// The stream ended behind them, with an error or without.
    ended: Option<Option<String>>,
}

fn cancelled() -> String {
    "the consumer was cancelled".to_owned()
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

/// A consumer, and what bounds the reading from its connection.
struct Intake<'a> {
    channel: &'a Channel,
    consumer: lapin::Consumer,
    gate: &'a Gate,
    buffer_bytes: usize,
}

impl Intake<'_> {
    /// The next delivery; `None` after a silence, `Some(None)` when there will be none.
    ///
    /// While none is whole, all that has been read is the beginning of one: more may be read.
    async fn next(&mut self, silence_max: Duration) -> Option<Option<lapin::Result<Delivery>>> {
        if let Some(ready) = self.consumer.next().now_or_never() {
            return Some(ready);
        }
        self.gate.allow(self.buffer_bytes);
        let mut read = self.gate.read();
        loop {
            tokio::select! {
                biased;
                delivery = self.consumer.next() => return Some(delivery),
                () = self.gate.stalled() => self.gate.allow(STEP_BYTES),
                () = tokio::time::sleep(silence_max) => {
                    let before = std::mem::replace(&mut read, self.gate.read());
                    if read - before < PROGRESS_BYTES {
                        return None;
                    }
                }
            }
        }
    }

    /// Requests no more messages. The answer comes behind those that are on their way, as the end of the
    /// deliveries, and is not waited for here: it is read only when they have been taken.
    fn cancel(&self) {
        let (channel, tag) = (self.channel.clone(), self.consumer.tag());
        svc_kit::tasks::unit(async move {
            let cancelled = channel
                .basic_cancel(tag, BasicCancelOptions { nowait: false })
                .await;
            if let Err(err) = cancelled {
                tracing::debug!(error = %err, "the consumer was gone already");
            }
        });
    }

    /// Gives back what is not acknowledged and lets go of the channel; whether it is gone. What is on its
    /// way is read, and dropped, before the broker's answer.
    async fn leave(mut self) -> bool {
        let (channel, tag) = (self.channel.clone(), self.consumer.tag());
        let parting = async move {
            channel
                .basic_cancel(tag, BasicCancelOptions { nowait: false })
                .await?;
            channel.close(200, ShortString::from("done")).await
        };
        let dropping = async {
            while let Some(Some(_)) = self.next(CLOSE_TIMEOUT).await {}
            std::future::pending::<()>().await;
        };
        tokio::select! {
            parted = tokio::time::timeout(CLOSE_TIMEOUT, parting) => match parted {
                Ok(Ok(())) => true,
                Ok(Err(err)) => {
                    tracing::debug!(error = %err, "channel was gone already");
                    true
                }
                Err(_elapsed) => false,
            },
            () = dropping => false,
        }
    }
}

async fn subscribe(channel: &Channel, prefetch: u16) -> Result<lapin::Consumer, lapin::Error> {
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
    Ok(consumer)
}

/// What is left unread is not read any more: the broker's answer may be behind more than can be held.
async fn part(link: Link) {
    let parting = link.connection.close(200, ShortString::from("done"));
    match tokio::time::timeout(CLOSE_TIMEOUT, parting).await {
        Ok(Ok(())) => {}
        Ok(Err(err)) => tracing::debug!(error = %err, "connection was gone already"),
        Err(_elapsed) => tracing::debug!("connection did not close in time"),
    }
    link.gate.close();
}

/// lapin reads AMQP's short strings as UTF-8 and gives up the connection on one that is not, before
/// this process sees the message. The broker then delivers it again, for ever: nothing here can store
/// or refuse it, so the text says what it is.
fn explain_unreadable(why: String, mut events: Pin<&mut impl Stream<Item = Event>>) -> String {
    let mut past = std::iter::from_fn(|| events.next().now_or_never().flatten());
    let unreadable = past.any(|event| {
        matches!(event, Event::Error(err) if matches!(err.kind(), ErrorKind::ParsingError(_)))
    });
    if unreadable {
        format!(
            "a message in {QUEUE} can't be read, one of its properties is not UTF-8: take it out, \
             see UnreadableMessage in docs/RUNBOOK.md ({why})"
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
