//! The exchange, the queue and the binding this service needs on the broker.
//!
//! Each is looked for before it is declared, and what is there in another shape is left as it is:
//! readiness says what differs and how to fix it. A queue that would lose messages
//! because it is consumed, or never give out some of them, is not consumed.

use lapin::options::{ExchangeDeclareOptions, QueueBindOptions};
use lapin::types::{FieldTable, ShortString};
use lapin::{ErrorKind, ExchangeKind};
use svc_kit::amqp::Channels;

use self::shape::{Meaning, Property, Shape};

mod shape;

/// The topic exchange that orders are published to.
pub const EXCHANGE: &str = "order-exchange";
/// The queue this service consumes.
pub const QUEUE: &str = "order-queue";
/// What the queue is bound with.
pub const BINDING: &str = "order.*";

const NOT_FOUND: u16 = 404;
const ACCESS_REFUSED: u16 = 403;
const RESOURCE_LOCKED: u16 = 405;
const PRECONDITION_FAILED: u16 = 406;

/// Properties of a queue that can differ, about: each one costs a channel to find out.
const DIFFERENCES_MAX: usize = 16;

/// What is there.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Found {
    /// In another shape, in the operator's words; consuming works all the same.
    pub differences: Vec<String>,
    /// Why the queue must not be consumed, and the fix.
    pub refused: Option<String>,
    /// The right to bind is missing: it is not tried again.
    may_not_bind: bool,
}

/// Makes sure that all three are there. With what was found before, on this connection, they are not
/// compared again: each difference is an error in the broker's log.
///
/// # Errors
/// The broker's, when something is missing and can't be made, or the connection is lost.
pub async fn ensure(channels: &Channels, known: Option<Found>) -> Result<Found, lapin::Error> {
    let compare = known.as_ref().is_none_or(|found| found.refused.is_some());
    let mut found = known.unwrap_or_default();
    if compare {
        found = Found::default();
    }
    if is_refused(declare_exchange(channels, true).await, NOT_FOUND)? {
        declare_exchange(channels, false).await?;
    } else if compare {
        // There: declaring it again only compares, and answers 406 when it differs.
        if let Compared::Differs(text) = compared(declare_exchange(channels, false).await)? {
            let difference = format!("the exchange {EXCHANGE} is left as it is: {text}");
            found.differences.push(difference);
        }
    }
    let mut shape = Shape::wanted();
    shape.options.passive = true;
    match declare_queue(channels, &shape).await {
        Err(err) if code(&err) == Some(NOT_FOUND) => {
            declare_queue(channels, &Shape::wanted()).await?;
        }
        Err(err) if code(&err) == Some(RESOURCE_LOCKED) => {
            found.refused = Some(format!(
                "the queue {QUEUE} is exclusive to another connection and is deleted with it, so its \
                 messages are lost to all others: close that connection, and pay-svc declares the queue"
            ));
        }
        Ok(()) if compare => compare_queue(channels, &mut found).await?,
        outcome => outcome?,
    }
    if found.refused.is_none() && !found.may_not_bind {
        match compared(bind(channels).await)? {
            Compared::Same => {}
            Compared::Forbidden => found.may_not_bind = true,
            Compared::Differs(text) => {
                let difference = format!("{QUEUE} could not be bound with {BINDING}: {text}");
                found.differences.push(difference);
            }
        }
    }
    Ok(found)
}

async fn compare_queue(channels: &Channels, found: &mut Found) -> Result<(), lapin::Error> {
    let mut shape = Shape::wanted();
    let mut properties: Vec<Property> = Vec::new();
    while properties.len() < DIFFERENCES_MAX {
        let Compared::Differs(text) = compared(declare_queue(channels, &shape).await)? else {
            break;
        };
        let property = Property::parse(&text)
            .filter(|new| properties.iter().all(|known| known.name != new.name));
        let Some(property) = property else {
            let difference = format!("the queue {QUEUE} is left as it is: {text}");
            found.differences.push(difference);
            break;
        };
        shape.adopt(&property);
        properties.push(property);
    }
    for meaning in shape::meanings(&properties) {
        match meaning {
            Meaning::Refused(why) => found.refused = Some(why),
            // The broker's word for it, to be found in its log by.
            Meaning::Differs(text) => {
                found
                    .differences
                    .push(format!("PRECONDITION_FAILED: {text}"));
            }
        }
    }
    Ok(())
}

// A declaration that is refused takes its channel with it, so each has a channel of its own.

async fn declare_exchange(channels: &Channels, passive: bool) -> Result<(), lapin::Error> {
    let channel = channels.open().await?;
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

async fn declare_queue(channels: &Channels, shape: &Shape) -> Result<(), lapin::Error> {
    let channel = channels.open().await?;
    channel
        .queue_declare(short(QUEUE), shape.options, shape.arguments())
        .await?;
    close(&channel).await;
    Ok(())
}

async fn bind(channels: &Channels) -> Result<(), lapin::Error> {
    let channel = channels.open().await?;
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

/// How what is there compares with what was declared.
enum Compared {
    Same,
    /// The broker's text.
    Differs(String),
    /// A user without the right to declare may still consume.
    Forbidden,
}

fn compared(outcome: Result<(), lapin::Error>) -> Result<Compared, lapin::Error> {
    match outcome {
        Ok(()) => Ok(Compared::Same),
        Err(err) => match code(&err) {
            Some(PRECONDITION_FAILED) => Ok(Compared::Differs(text(&err))),
            Some(ACCESS_REFUSED) => {
                tracing::info!(error = %err, "topology could not be compared");
                Ok(Compared::Forbidden)
            }
            Some(_) | None => Err(err),
        },
    }
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
