//! One batch to the broker and all its answers back.

use std::time::Duration;

use futures::FutureExt;
use lapin::message::BasicReturnMessage;
use lapin::options::BasicPublishOptions;
use lapin::protocol::AMQPErrorKind;
use lapin::{Channel, Confirmation, ErrorKind, PublisherConfirm};
use outbox::message::{Message, encode, encoded_properties_len};
use outbox::row::Row;
use svc_kit::amqp::all_in_order;

use super::confirms::{Answer, Outcome, Published, Returned, Verdict, settle};

/// Every message is to reach a queue: without this flag RabbitMQ acks one that reaches none.
const MANDATORY: BasicPublishOptions = BasicPublishOptions {
    mandatory: true,
    immediate: false,
};

/// Publishes that lapin has at once: with all of a batch, a backlog took 12 MiB more.
const AT_ONCE: usize = 512;

/// Publishes `rows`, whose payloads are gone then, and awaits every confirm.
///
/// The publishes go side by side: awaiting each one hands over to lapin's io task once a message,
/// which halves the rate. They begin in order, so the order on the wire is the batch's.
///
/// `may_go` is called before every 512 of them: a process that was stopped in between may no longer be
/// the one that publishes.
pub async fn publish(
    channel: &Channel,
    rows: &mut [Row],
    frame_max: usize,
    timeout: Duration,
    may_go: impl Fn() -> bool,
) -> Outcome {
    let mut refused: Vec<Option<String>> = Vec::with_capacity(rows.len());
    let exchange = async {
        let mut confirms = Vec::with_capacity(rows.len());
        for some in rows.chunks_mut(AT_ONCE) {
            // Encoded before the first of them goes: the broker gets them in one go, and not at the
            // pace at which they are made.
            let messages: Vec<_> = some.iter().map(|row| message_of(row, frame_max)).collect();
            if !may_go() {
                return Err(match refused.is_empty() {
                    true => Outcome::LeaseOver,
                    false => Outcome::Lost("the lease ended within a batch".into()),
                });
            }
            refused.extend(messages.iter().map(|m| m.as_ref().err().cloned()));
            let sends = some.iter().zip(messages).filter_map(|(row, message)| {
                let message = message.ok()?;
                Some(channel.basic_publish(
                    message.exchange,
                    message.routing_key,
                    MANDATORY,
                    &row.payload,
                    message.properties,
                ))
            });
            let mut failure = None;
            for publish in all_in_order(sends).await {
                match publish {
                    Ok(confirm) => confirms.push(confirm),
                    Err(err) => failure = Some(worse(failure, err)),
                }
            }
            // lapin has copied them into its frames: the broker's answer is awaited without them.
            for row in some {
                row.payload = Vec::new();
            }
            if failure.is_some() {
                return Ok((await_all(confirms, timeout).await, failure));
            }
        }
        Ok((await_all(confirms, timeout).await, None))
    };
    // A blocked connection takes no writes at all: the publish itself hangs.
    match tokio::time::timeout(timeout.saturating_mul(2), exchange).await {
        Ok(Ok((answers, failure))) => conclude(rows, refused, answers, failure),
        Ok(Err(outcome)) => outcome,
        Err(_) => Outcome::TimedOut {
            answered: vec![false; rows.len()],
        },
    }
}

fn message_of(row: &Row, frame_max: usize) -> Result<Message, String> {
    let message = encode(row).map_err(|invalid| invalid.to_string())?;
    let length = encoded_properties_len(&message.properties);
    if frame_max > 0 && length > frame_max {
        return Err(format!(
            "headers take {length} bytes, more than frame_max {frame_max}"
        ));
    }
    Ok(message)
}

type Reply = Option<lapin::Result<Confirmation>>;

/// `None` for a confirm that did not come in time. One timer for all of them: one for each cost more
/// than waiting for its confirm. And from the last to the first: answers come in order, more or less,
/// and a publisher that waits for the first one wakes up for each.
async fn await_all(confirms: Vec<PublisherConfirm>, timeout: Duration) -> Vec<Reply> {
    let mut replies: Vec<Reply> = Vec::with_capacity(confirms.len());
    let mut confirms = confirms.into_iter().rev();
    let backwards = async {
        for confirm in &mut confirms {
            replies.push(Some(confirm.await));
        }
    };
    if tokio::time::timeout(timeout, backwards).await.is_err() {
        // The one that was waited for, and then those of the rest that have answered.
        replies.push(None);
        replies.extend(confirms.map(FutureExt::now_or_never));
    }
    replies.reverse();
    replies
}

fn conclude(
    rows: &[Row],
    refused: Vec<Option<String>>,
    replies: Vec<Reply>,
    mut failure: Option<lapin::Error>,
) -> Outcome {
    let mut answers = Vec::with_capacity(replies.len());
    let mut returned = Vec::new();
    for reply in replies {
        match reply {
            None => answers.push(None),
            Some(Ok(confirmation)) => {
                let answer = answer_of(&confirmation);
                returned.extend(confirmation.take_message().map(|back| returned_of(&back)));
                match answer {
                    Ok(answer) => answers.push(Some(answer)),
                    Err(problem) => return Outcome::Lost(problem),
                }
            }
            Some(Err(err)) => failure = Some(worse(failure, err)),
        }
    }
    if let Some(err) = failure {
        return closed(&err);
    }
    if answers.contains(&None) {
        let mut answers = answers.into_iter();
        let answered = refused.iter().map(|refused| {
            refused.is_some() || answers.next().is_some_and(|answer| answer.is_some())
        });
        return Outcome::TimedOut {
            answered: answered.collect(),
        };
    }
    let sent = rows
        .iter()
        .zip(&refused)
        .filter(|(_, refused)| refused.is_none());
    let published: Vec<Published<'_>> = sent
        .zip(answers.into_iter().flatten())
        .map(|((row, _), answer)| Published {
            id: row.id,
            message_id: &row.message_id,
            answer,
        })
        .collect();
    match settle(&published, returned) {
        Ok(verdicts) => {
            let mut verdicts = verdicts.into_iter();
            let all = refused.into_iter().map(|refused| match refused {
                None => verdicts.next().unwrap_or(Verdict::Nacked),
                Some(problem) => Verdict::Invalid(problem),
            });
            Outcome::Settled(all.collect())
        }
        Err(unattributed) => Outcome::Lost(format!(
            "a returned message that was not published: {}",
            unattributed.0.message_id
        )),
    }
}

fn answer_of(confirmation: &Confirmation) -> Result<Answer, String> {
    match confirmation {
        Confirmation::Ack(_) => Ok(Answer::Ack),
        Confirmation::Nack(_) => Ok(Answer::Nack),
        Confirmation::NotRequested => Err("the channel is not in confirm mode".into()),
    }
}

fn returned_of(back: &BasicReturnMessage) -> Returned {
    let id = back.delivery.properties.message_id().as_ref();
    Returned {
        message_id: id.map(|id| id.as_str().to_owned()).unwrap_or_default(),
        text: format!("{} {}", back.reply_code, back.reply_text),
    }
}

/// The broker's own words are worth more than the state errors that follow from them.
fn worse(known: Option<lapin::Error>, err: lapin::Error) -> lapin::Error {
    known.filter(lapin::Error::is_amqp_error).unwrap_or(err)
}

/// Distinguishes a closed channel from a lost connection.
///
/// Protocol errors (501–506, 540, 541) close the connection because of what was sent; 320 and the
/// rest of the hard ones because of something else.
pub fn closed(err: &lapin::Error) -> Outcome {
    let ErrorKind::ProtocolError(amqp) = err.kind() else {
        return Outcome::Lost(err.to_string());
    };
    let code = amqp.get_id();
    let by_content = match amqp.kind() {
        AMQPErrorKind::Soft(_) => true,
        AMQPErrorKind::Hard(_) => matches!(code, 501..=506 | 540 | 541),
    };
    let text = format!("{code} {}", amqp.get_message());
    if by_content {
        Outcome::Closed { code, text }
    } else {
        Outcome::Lost(text)
    }
}
