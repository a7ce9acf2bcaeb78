//! Channels on a connection that is replaced before it has none left.

use std::sync::Arc;

use lapin::protocol::AMQPErrorKind;
use lapin::{Channel, Connection, ErrorKind};
use tokio::sync::Mutex;

use super::Amqp;

/// What is done with a connection that has taken another's place.
type Listen = Box<dyn Fn(Arc<Connection>) + Send + Sync>;

/// Gives out channels for as long as the broker is there.
///
/// lapin never uses the number of a channel again that the broker has closed (its auto-recovery would,
/// for a connection that is lost), and each refusal closes one. So a connection wears out, after some
/// 2,000 refusals or as many as `channel_max` says. Another one takes its place then. The old one lives as
/// long as one of its channels does, and nobody notices.
pub struct Channels {
    amqp: Amqp,
    name: String,
    listen: Listen,
    current: Mutex<Arc<Connection>>,
}

impl Channels {
    /// Channels of `connection`, and of those of the same `name` that follow it; `listen` is called with
    /// each of these.
    pub fn new(
        amqp: Amqp,
        name: String,
        connection: Arc<Connection>,
        listen: impl Fn(Arc<Connection>) + Send + Sync + 'static,
    ) -> Self {
        Self {
            amqp,
            name,
            listen: Box::new(listen),
            current: Mutex::new(connection),
        }
    }

    /// A new channel.
    ///
    /// # Errors
    /// lapin's, when the connection is lost or another one can't be had.
    pub async fn open(&self) -> Result<Channel, lapin::Error> {
        let mut current = self.current.lock().await;
        let err = match current.create_channel().await {
            Ok(channel) => return Ok(channel),
            Err(err) => err,
        };
        if !is_worn_out(&current, &err) {
            return Err(err);
        }
        tracing::debug!(error = %err, "a connection has no channel left, another one takes its place");
        let next = Arc::new(self.amqp.connect(&self.name).await?);
        (self.listen)(Arc::clone(&next));
        *current = next;
        current.create_channel().await
    }

    /// The connection that new channels are made on.
    pub async fn connection(&self) -> Arc<Connection> {
        Arc::clone(&*self.current.lock().await)
    }
}

/// Whether no channel was made because the connection has none left: a number that is free was refused
/// with the error that its last channel was closed with, or none is free.
#[must_use]
pub fn is_worn_out(connection: &Connection, err: &lapin::Error) -> bool {
    let number = match err.kind() {
        ErrorKind::ChannelsLimitReached => true,
        ErrorKind::ProtocolError(amqp) => matches!(amqp.kind(), AMQPErrorKind::Soft(_)),
        _ => false,
    };
    number && connection.status().connected()
}
