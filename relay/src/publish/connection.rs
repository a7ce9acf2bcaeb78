//! The publishing connection to RabbitMQ and what it tells by itself.

use std::sync::Arc;

use anyhow::Context;
use futures::StreamExt;
use futures::stream::BoxStream;
use lapin::options::ExchangeDeclareOptions;
use lapin::protocol::{AMQPErrorKind, AMQPSoftError};
use lapin::types::{FieldTable, ShortString};
use lapin::{Connection, ErrorKind, Event, ExchangeKind};
use svc_kit::amqp::{Amqp, Channels};
use tokio::sync::{Mutex, mpsc};

/// What the connections tell.
#[derive(Debug, PartialEq, Eq)]
pub enum BrokerNews {
    /// `connection.blocked`, with the broker's reason: one of them takes no publishes for now.
    Blocked(String),
    /// All of them take publishes again.
    Unblocked,
    /// A connection is gone. One that another has taken the place of lives only as long as one of its
    /// channels is in use: with it goes what was being published there, so this gets that news too.
    Lost(String),
}

/// A connection, and what it tells.
pub struct Link {
    /// The connection itself.
    pub connection: Arc<Connection>,
    /// Everything since it was made: lapin drops what nobody listens to.
    pub events: BoxStream<'static, Event>,
}

/// Connects; publishing has a connection of its own, because a blocked one takes no writes at all.
///
/// # Errors
/// lapin's.
pub async fn connect(amqp: &Amqp, name: &str) -> Result<Link, lapin::Error> {
    let connection = amqp.connect(&client_name(name)).await?;
    Ok(Link::new(Arc::new(connection)))
}

impl Link {
    /// Channels of this connection, and of those that take its place; `news` gets what all of them tell.
    ///
    /// What the connection has reported since it was made is passed on too, until nobody listens.
    pub fn share(self, amqp: &Amqp, name: &str, news: mpsc::Sender<BrokerNews>) -> Channels {
        let connection = Arc::clone(&self.connection);
        let broker_events = Arc::new(BrokerEvents::new(news));
        let follow = move |link: Self| {
            drop(svc_kit::tasks::unit(listen(
                link,
                Arc::clone(&broker_events),
            )));
        };
        follow(self);
        Channels::new(amqp.clone(), client_name(name), connection, move |next| {
            follow(Self::new(next));
        })
    }

    fn new(connection: Arc<Connection>) -> Self {
        let events = connection.events_listener().boxed();
        Self { connection, events }
    }
}

fn client_name(name: &str) -> String {
    format!("relay {name}")
}

/// Makes sure that `exchange` is there: looks first, declares it only when it is absent, and never
/// fights over its arguments. Returns what an operator should know.
///
/// # Errors
/// Only a lost connection. A missing right is the routes' matter: their rows wait visibly.
pub async fn declare_exchange(
    connection: &Connection,
    exchange: &str,
) -> anyhow::Result<Result<(), String>> {
    let name = ShortString::try_new(exchange.to_owned())
        .map_err(|_| anyhow::anyhow!("the exchange's name is over 255 bytes"))?;
    match declare(connection, name.clone(), true).await {
        Ok(()) => return Ok(Ok(())),
        Err(err) if is_soft(&err, AMQPSoftError::NOTFOUND) => {}
        Err(err) if err.is_amqp_soft_error() => return Ok(Err(err.to_string())),
        Err(err) => return Err(err).context("looking for the exchange"),
    }
    match declare(connection, name, false).await {
        Ok(()) => {
            tracing::info!(exchange, "declared the exchange, which was absent");
            Ok(Ok(()))
        }
        Err(err) if err.is_amqp_soft_error() => Ok(Err(err.to_string())),
        Err(err) => Err(err).context("declaring the exchange"),
    }
}

async fn declare(connection: &Connection, name: ShortString, passive: bool) -> lapin::Result<()> {
    // An error closes the channel, so each attempt has its own.
    let channel = connection.create_channel().await?;
    let options = ExchangeDeclareOptions {
        passive,
        durable: true,
        auto_delete: false,
        internal: false,
        nowait: false,
    };
    channel
        .exchange_declare(name, ExchangeKind::Topic, options, FieldTable::default())
        .await?;
    channel.close(200, "done".into()).await
}

fn is_soft(err: &lapin::Error, wanted: AMQPSoftError) -> bool {
    let ErrorKind::ProtocolError(amqp) = err.kind() else {
        return false;
    };
    matches!(amqp.kind(), AMQPErrorKind::Soft(soft) if *soft == wanted)
}

/// Passes on what several connections report, as if they were one.
struct BrokerEvents {
    news: mpsc::Sender<BrokerNews>,
    /// Connections that are blocked. Held while the news is sent, so that the last is the last.
    blocked: Mutex<usize>,
}

impl BrokerEvents {
    fn new(news: mpsc::Sender<BrokerNews>) -> Self {
        Self {
            news,
            blocked: Mutex::new(0),
        }
    }

    /// Passes on the news of a connection, `blocked` before or not. Does anybody listen?
    async fn report(&self, blocked: &mut bool, reported: BrokerNews) -> bool {
        let mut count = self.blocked.lock().await;
        match &reported {
            BrokerNews::Blocked(_) if !*blocked => (*blocked, *count) = (true, *count + 1),
            BrokerNews::Unblocked if *blocked => (*blocked, *count) = (false, *count - 1),
            _ => {}
        }
        // Another one is blocked still.
        if reported == BrokerNews::Unblocked && *count > 0 {
            return true;
        }
        self.news.send(reported).await.is_ok()
    }
}

/// Passes on what the connection has reported since it was made, and goes on until nobody listens. What
/// came before the listener is seen in the connection's state. It does not keep the connection alive.
async fn listen(link: Link, broker_events: Arc<BrokerEvents>) {
    let Link {
        connection,
        mut events,
    } = link;
    let status = connection.status().clone();
    drop(connection);
    let mut blocked = false;
    let before = if !status.connected() {
        Some(BrokerNews::Lost("lost before it was used".into()))
    } else if status.blocked() {
        Some(BrokerNews::Blocked("since it was connected".into()))
    } else {
        None
    };
    if let Some(before) = before
        && !broker_events.report(&mut blocked, before).await
    {
        return;
    }
    while let Some(event) = events.next().await {
        let reported = match event {
            Event::ConnectionBlocked(reason) => BrokerNews::Blocked(reason),
            Event::ConnectionUnblocked => BrokerNews::Unblocked,
            Event::Error(err) if !status.connected() => BrokerNews::Lost(err.to_string()),
            _ => continue,
        };
        if !broker_events.report(&mut blocked, reported).await {
            return;
        }
    }
    // A connection that is gone holds up nobody.
    if blocked {
        broker_events
            .report(&mut blocked, BrokerNews::Unblocked)
            .await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn publishes_are_taken_again_when_the_last_of_several_connections_is_unblocked() {
        let (news, mut reported) = mpsc::channel(16);
        let broker_events = BrokerEvents::new(news);
        let (mut old, mut new) = (false, false);
        let block = || BrokerNews::Blocked("memory".into());
        assert!(broker_events.report(&mut old, block()).await);
        assert!(broker_events.report(&mut old, block()).await);
        assert!(broker_events.report(&mut new, block()).await);
        assert!(broker_events.report(&mut old, BrokerNews::Unblocked).await);
        for _ in 0..3 {
            assert_eq!(reported.try_recv().unwrap(), block());
        }
        assert!(reported.try_recv().is_err(), "one is blocked still");
        assert!(broker_events.report(&mut new, BrokerNews::Unblocked).await);
        assert_eq!(reported.try_recv().unwrap(), BrokerNews::Unblocked);
        drop(reported);
        assert!(!broker_events.report(&mut new, block()).await);
    }
}
