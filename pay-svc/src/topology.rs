//! The exchange, the queue and the binding this service needs on the broker.
//!
//! Each is looked for before it is declared, and what is there in another shape is left as it is:
//! the operator is told, in readiness, what differs and how to mend it.

use lapin::options::{ExchangeDeclareOptions, QueueBindOptions, QueueDeclareOptions};
use lapin::types::{AMQPValue, FieldTable, LongString, ShortString};
use lapin::{Connection, ErrorKind, ExchangeKind};

/// The topic exchange that orders are published to.
pub const EXCHANGE: &str = "order-exchange";
/// The queue this service consumes.
pub const QUEUE: &str = "order-queue";
/// What the queue is bound with.
pub const BINDING: &str = "order.*";

/// The largest delivery limit both RabbitMQ 3.10 and 4 understand. Without one, RabbitMQ 4 deletes
/// a message at its 21st delivery, closed connections included; -1 deletes on 3.10 at the first.
const DELIVERY_LIMIT: i32 = i32::MAX;

const NOT_FOUND: u16 = 404;
const ACCESS_REFUSED: u16 = 403;
const PRECONDITION_FAILED: u16 = 406;

/// Makes sure that all three are there. Returns what is there in another shape, in the operator's
/// words; consuming works all the same.
///
/// # Errors
/// The broker's, when something is missing and can't be made, or the connection is lost.
pub async fn ensure(connection: &Connection) -> Result<Vec<String>, lapin::Error> {
    let mut differences = Vec::new();
    if !is_refused(declare_exchange(connection, true).await, NOT_FOUND)? {
        // There: declaring it again only compares, and answers 406 when it differs.
        if let Some(text) = difference(declare_exchange(connection, false).await)? {
            differences.push(format!("the exchange {EXCHANGE} is left as it is: {text}"));
        }
    } else {
        declare_exchange(connection, false).await?;
    }
    if !is_refused(declare_queue(connection, true).await, NOT_FOUND)? {
        if let Some(text) = difference(declare_queue(connection, false).await)? {
            differences.push(format!(
                "the queue {QUEUE} is left as it is: {text}; {}",
                mend(&text)
            ));
        }
    } else {
        declare_queue(connection, false).await?;
    }
    if let Some(text) = difference(bind(connection).await)? {
        differences.push(format!("{QUEUE} could not be bound with {BINDING}: {text}"));
    }
    Ok(differences)
}

// A declaration that is refused takes its channel with it, so each has a channel of its own.

async fn declare_exchange(connection: &Connection, passive: bool) -> Result<(), lapin::Error> {
    let channel = connection.create_channel().await?;
    let options = ExchangeDeclareOptions {
        passive,
        durable: true,
        auto_delete: false,
        internal: false,
        nowait: false,
    };
    let arguments = FieldTable::default();
    channel
        .exchange_declare(short(EXCHANGE), ExchangeKind::Topic, options, arguments)
        .await?;
    close(&channel).await;
    Ok(())
}

async fn declare_queue(connection: &Connection, passive: bool) -> Result<(), lapin::Error> {
    let channel = connection.create_channel().await?;
    let options = QueueDeclareOptions {
        passive,
        durable: true,
        exclusive: false,
        auto_delete: false,
        nowait: false,
    };
    let mut arguments = FieldTable::default();
    let quorum = AMQPValue::LongString(LongString::from("quorum"));
    arguments.insert(short("x-queue-type"), quorum);
    arguments.insert(
        short("x-delivery-limit"),
        AMQPValue::LongInt(DELIVERY_LIMIT),
    );
    channel
        .queue_declare(short(QUEUE), options, arguments)
        .await?;
    close(&channel).await;
    Ok(())
}

async fn bind(connection: &Connection) -> Result<(), lapin::Error> {
    let channel = connection.create_channel().await?;
    let options = QueueBindOptions { nowait: false };
    let arguments = FieldTable::default();
    channel
        .queue_bind(
            short(QUEUE),
            short(EXCHANGE),
            short(BINDING),
            options,
            arguments,
        )
        .await?;
    close(&channel).await;
    Ok(())
}

async fn close(channel: &lapin::Channel) {
    if let Err(err) = channel.close(200, short("done")).await {
        tracing::debug!(error = %err, "channel was closed by the broker first");
    }
}

/// Was this refused with `wanted`? Any other error stays one.
fn is_refused(outcome: Result<(), lapin::Error>, wanted: u16) -> Result<bool, lapin::Error> {
    match outcome {
        Ok(()) => Ok(false),
        Err(err) if code(&err) == Some(wanted) => Ok(true),
        Err(err) => Err(err),
    }
}

/// The broker's text when what is there differs. A user without the right to declare may still
/// consume, so 403 only means that nothing could be compared.
fn difference(outcome: Result<(), lapin::Error>) -> Result<Option<String>, lapin::Error> {
    match outcome {
        Ok(()) => Ok(None),
        Err(err) => match code(&err) {
            Some(PRECONDITION_FAILED) => Ok(Some(text(&err))),
            Some(ACCESS_REFUSED) => {
                tracing::info!(error = %err, "topology could not be compared");
                Ok(None)
            }
            Some(_) | None => Err(err),
        },
    }
}

fn mend(broker_text: &str) -> String {
    if broker_text.contains("x-queue-type") {
        return format!(
            "only a quorum queue survives the loss of a broker: delete {QUEUE} when it is empty, \
             it is declared again at once"
        );
    }
    format!(
        "on RabbitMQ 4 a message is deleted at its 21st delivery unless you set: rabbitmqctl \
         set_policy --apply-to queues {QUEUE}-limit '^{QUEUE}$' \
         '{{\"delivery-limit\":{DELIVERY_LIMIT}}}'"
    )
}

/// The AMQP reply code of an error the broker sent.
fn code(err: &lapin::Error) -> Option<u16> {
    match err.kind() {
        ErrorKind::ProtocolError(err) => Some(err.get_id()),
        _ => None,
    }
}

fn text(err: &lapin::Error) -> String {
    match err.kind() {
        ErrorKind::ProtocolError(err) => err.get_message().to_string(),
        _ => err.to_string(),
    }
}

fn short(name: &'static str) -> ShortString {
    ShortString::from(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mend_fits_what_differs() {
        let limit = "inequivalent arg 'x-delivery-limit' for queue 'order-queue' in vhost '/'";
        assert!(mend(limit).contains(r#"'{"delivery-limit":2147483647}'"#));
        let kind = "inequivalent arg 'x-queue-type' for queue 'order-queue' in vhost '/'";
        assert!(mend(kind).contains("quorum"));
    }
}
