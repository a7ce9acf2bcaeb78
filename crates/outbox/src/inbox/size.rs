//! How much of a statement a message takes.

use sqlx::{MySql, Transaction};

use super::{Error, MAX_ERROR, MAX_TEXT};
use crate::message::Received;
use crate::statement;

/// A character has up to four.
const ERROR_BYTES: usize = 4 * MAX_ERROR;

/// Refuses what the server would answer by dropping the connection, and the transaction with it.
pub(super) async fn check_sizes(
    tx: &mut Transaction<'_, MySql>,
    received: &[Received],
) -> Result<(), Error> {
    if received
        .iter()
        .all(|received| size(received) <= statement::SHARED_BYTES)
    {
        return Ok(());
    }
    let limit: u64 = sqlx::query_scalar("SELECT CAST(@@max_allowed_packet AS UNSIGNED)")
        .fetch_one(&mut **tx)
        .await?;
    let limit = usize::try_from(limit).unwrap_or(usize::MAX);
    for (index, received) in received.iter().enumerate() {
        let (bytes, size) = (received.payload.len(), size_truncated(received));
        if size > limit {
            let max_payload = limit.saturating_sub(size - bytes);
            return Err(Error::TooLarge {
                index,
                bytes,
                max_payload,
            });
        }
    }
    Ok(())
}

/// At least what the row takes in a statement, in bytes.
pub(super) fn size(received: &Received) -> usize {
    /// Lengths of values, numbers, and the statement itself.
    const REST: usize = 1024;
    let texts = [
        received.message_id.as_str(),
        received.event_type.as_deref().unwrap_or_default(),
        received.aggregate_id.as_deref().unwrap_or_default(),
        &received.exchange,
        &received.routing_key,
    ];
    let texts: usize = texts.iter().map(|text| text.len().min(4 * MAX_TEXT)).sum();
    let error = received.problem.as_ref().map_or(0, |_| ERROR_BYTES);
    let headers = received.headers.to_string().len();
    received.payload.len() + headers + texts + error + REST
}

/// The same of a message that is going to be cut: then it has an error.
fn size_truncated(received: &Received) -> usize {
    let error = if received.problem.is_none() {
        ERROR_BYTES
    } else {
        0
    };
    size(received) + error
}
