//! Claiming a message: one row of the inbox, inside the transaction that precedes the ack.
//!
//! The row is the proof that a message was seen. Acknowledge a delivery only after the transaction
//! that claimed it has committed: the broker then delivers twice rather than never, and the second
//! delivery finds the row.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};

use sqlx::{AssertSqlSafe, Connection as _, MySql, Row as _, Transaction};
use time::PrimitiveDateTime;

use crate::message::{DIGEST_PREFIX, MessageId, Problem, Received, digest};
use crate::row::InboxStatus;
use crate::statement;

mod size;
use size::{check_sizes, size};

/// What became of a delivery.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Claim {
    /// Never seen before, and stored: parked if it has a [`Problem`], else to be worked on.
    First,
    /// Seen before; only `deliveries` was raised.
    Duplicate,
    /// A known id with another body, never seen before: stored under the digest of its body, parked.
    Conflict,
}

/// Why nothing was claimed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The server would drop the connection over this one. Nothing was sent: [`Received::truncate`]
    /// it to `max_payload` and claim again, in the same transaction.
    #[error("message {index} of the batch has {bytes} bytes, the server takes {max_payload}")]
    TooLarge {
        /// Its place in the slice given to [`claim_all`].
        index: usize,
        /// Bytes of its body.
        bytes: usize,
        /// The longest body the server's `max_allowed_packet` leaves room for.
        max_payload: usize,
    },
    /// The database did not take it.
    #[error("the inbox row could not be written")]
    Database(#[from] sqlx::Error),
}

/// What became of deliveries that were claimed together.
#[derive(Debug)]
pub struct Claims {
    /// One for each, in their order.
    pub claims: Vec<Claim>,
    /// Why the entries of `inbox_attempts` for messages that were parked are missing, if they are.
    pub unrecorded: Option<sqlx::Error>,
}

/// Longest text of the text columns, in characters.
const MAX_TEXT: usize = 255;

/// Longest `last_error` and `inbox_attempts.error`, in characters.
const MAX_ERROR: usize = 1000;

/// Stores a message, or finds that it was stored before.
///
/// # Errors
/// As [`claim_all`].
pub async fn claim(tx: &mut Transaction<'_, MySql>, received: &Received) -> Result<Claim, Error> {
    let claims = claim_all(tx, std::slice::from_ref(received)).await?;
    Ok(claims
        .into_iter()
        .next()
        .expect("one claim for one message"))
}

/// Stores messages with as few statements as their size allows; one claim for each, in their order.
///
/// A message that occurs twice in the batch is claimed by its first occurrence. Rows are written in
/// the order of their ids, so that two batches with messages in common wait for each other rather
/// than deadlock.
///
/// A message that is parked gets an entry in `inbox_attempts` as well. One that this table refuses is
/// left out: the row itself says why it is parked.
///
/// # Errors
/// [`Error::TooLarge`] before anything reaches the database, else what the database said; the
/// caller's transaction is then to be rolled back.
pub async fn claim_all(
    tx: &mut Transaction<'_, MySql>,
    received: &[Received],
) -> Result<Vec<Claim>, Error> {
    Ok(claim_all_until(tx, received, None).await?.claims)
}

/// As [`claim_all`]; what is to be worked on is due to others at `due_at` only, by the database's
/// clock: whoever stores it works on it at once, and leaves it to them by doing nothing.
///
/// # Errors
/// As [`claim_all`].
pub async fn claim_all_until(
    tx: &mut Transaction<'_, MySql>,
    received: &[Received],
    due_at: Option<PrimitiveDateTime>,
) -> Result<Claims, Error> {
    check_sizes(tx, received).await?;
    let (outcomes, unrecorded) = store(tx, received, due_at).await?;

    let conflicts: Vec<Received> = received
        .iter()
        .zip(&outcomes)
        .filter(|(_, outcome)| **outcome == Outcome::OtherBody)
        .map(|(received, _)| under_digest(received))
        .collect();
    if !conflicts.is_empty() {
        uncount(tx, received, &outcomes).await?;
    }
    let (conflicts, conflicts_unrecorded) = store(tx, &conflicts, None).await?;
    let mut conflicts = conflicts.into_iter();

    let claims = outcomes
        .into_iter()
        .map(|outcome| match outcome {
            Outcome::New => Claim::First,
            Outcome::Known => Claim::Duplicate,
            Outcome::OtherBody => match conflicts.next() {
                Some(Outcome::New) => Claim::Conflict,
                // An id that is a digest has one body only, so there is no other body here.
                Some(Outcome::Known | Outcome::OtherBody) | None => Claim::Duplicate,
            },
        })
        .collect();
    Ok(Claims {
        claims,
        unrecorded: unrecorded.or(conflicts_unrecorded),
    })
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Outcome {
    New,
    Known,
    OtherBody,
}

/// What is known of a stored row after the statement that wrote or counted it.
struct Stored {
    /// Digest of the stored bytes; `None` while the row is the batch's own and bytes can be compared.
    digest: Option<String>,
    last_error: Option<String>,
}

/// Messages of one id in a batch: `head` is the first of them.
struct Group<'a> {
    head: &'a Received,
    deliveries: u32,
}

async fn store(
    tx: &mut Transaction<'_, MySql>,
    received: &[Received],
    due_at: Option<PrimitiveDateTime>,
) -> Result<(Vec<Outcome>, Option<sqlx::Error>), sqlx::Error> {
    let mut groups: BTreeMap<&MessageId, Group<'_>> = BTreeMap::new();
    for received in received {
        let group = groups.entry(&received.message_id);
        group
            .or_insert(Group {
                head: received,
                deliveries: 0,
            })
            .deliveries += 1;
    }
    let rows: Vec<&Group<'_>> = groups.values().collect();

    let mut known: HashMap<&MessageId, Stored> = HashMap::new();
    for range in statement::ranges(rows.iter().map(|group| size(group.head))) {
        let rows = &rows[range];
        // Each inserted row counts as one, each updated one as two.
        if insert(tx, rows, due_at).await? > rows.len() as u64 {
            known.extend(read_known(tx, rows).await?);
        }
    }
    let new = rows.iter().map(|group| group.head);
    let parked: Vec<(&MessageId, &Problem)> = new
        .filter(|new| !known.contains_key(&new.message_id))
        .filter_map(|new| Some((&new.message_id, new.problem.as_ref()?)))
        .collect();
    let unrecorded = record(tx, &parked).await?;

    let outcomes = received
        .iter()
        .map(|received| {
            let head = groups[&received.message_id].head;
            match known.get(&received.message_id) {
                None if std::ptr::eq(head, received) => Outcome::New,
                None if same_message(head, received) => Outcome::Known,
                Some(stored) if is_stored(stored, received) => Outcome::Known,
                None | Some(_) => Outcome::OtherBody,
            }
        })
        .collect();
    Ok((outcomes, unrecorded))
}

/// Returns the affected rows.
async fn insert(
    tx: &mut Transaction<'_, MySql>,
    rows: &[&Group<'_>],
    due_at: Option<PrimitiveDateTime>,
) -> Result<u64, sqlx::Error> {
    let sql = format!(
        "INSERT INTO `inbox` (`message_id`, `event_type`, `aggregate_id`, `exchange`, `routing_key`, \
         `headers`, `payload`, `status`, `next_attempt_at`, `last_error`, `deliveries`) VALUES {} \
         ON DUPLICATE KEY UPDATE `deliveries` = LEAST(`deliveries` + VALUES(`deliveries`), 4294967295)",
        statement::placeholders(rows.len(), "(?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)")
    );
    let mut query = sqlx::query(AssertSqlSafe(sql));
    for Group { head, deliveries } in rows {
        let (status, due_at) = match head.problem {
            None => (InboxStatus::Received, due_at),
            Some(_) => (InboxStatus::Parked, None),
        };
        query = query
            .bind(head.message_id.as_str().as_bytes())
            .bind(head.event_type.as_deref().map(|text| cut(text, MAX_TEXT)))
            .bind(head.aggregate_id.as_deref().map(|text| cut(text, MAX_TEXT)))
            .bind(cut(&head.exchange, MAX_TEXT))
            .bind(cut(&head.routing_key, MAX_TEXT))
            .bind(head.headers.to_string())
            .bind(&head.payload)
            .bind(status.code())
            .bind(due_at)
            .bind(head.problem.as_ref().map(error_text))
            .bind(*deliveries);
    }
    Ok(query.execute(&mut **tx).await?.rows_affected())
}

/// Of rows just written, those that were there before, by their `deliveries`: a row of this batch
/// has what the batch gave it, and nobody else can have counted it since.
async fn read_known<'a>(
    tx: &mut Transaction<'_, MySql>,
    rows: &[&Group<'a>],
) -> Result<Vec<(&'a MessageId, Stored)>, sqlx::Error> {
    let sql = format!(
        "SELECT `message_id`, `deliveries`, SHA2(`payload`, 256), `last_error` FROM `inbox` \
         WHERE `message_id` IN ({})",
        statement::placeholders(rows.len(), "?")
    );
    let mut query = sqlx::query(AssertSqlSafe(sql));
    for group in rows {
        query = query.bind(group.head.message_id.as_str().as_bytes());
    }
    let by_id: HashMap<&[u8], &Group<'a>> = rows
        .iter()
        .map(|group| (group.head.message_id.as_str().as_bytes(), *group))
        .collect();
    let mut known = Vec::new();
    for row in query.fetch_all(&mut **tx).await? {
        let id: Vec<u8> = row.try_get(0)?;
        let deliveries: u32 = row.try_get(1)?;
        let Some(group) = by_id.get(id.as_slice()) else {
            continue;
        };
        if deliveries > group.deliveries {
            let stored = Stored {
                digest: Some(row.try_get(2)?),
                last_error: row.try_get(3)?,
            };
            known.push((&group.head.message_id, stored));
        }
    }
    Ok(known)
}

/// Records why new rows were parked, if the table takes it; else gives the reason why it does not. It
/// must not keep the messages from being stored, so it is written behind a savepoint: when that is
/// gone, so is the transaction, and the failure is the transaction's.
async fn record(
    tx: &mut Transaction<'_, MySql>,
    parked: &[(&MessageId, &Problem)],
) -> Result<Option<sqlx::Error>, sqlx::Error> {
    if parked.is_empty() {
        return Ok(None);
    }
    let mut nested = tx.begin().await?;
    match insert_attempts(&mut nested, parked).await {
        Ok(()) => nested.commit().await.map(|()| None),
        Err(err) => match nested.rollback().await {
            Ok(()) => Ok(Some(err)),
            Err(_gone) => Err(err),
        },
    }
}

/// The attempt's number is 0: none was made.
async fn insert_attempts(
    tx: &mut Transaction<'_, MySql>,
    parked: &[(&MessageId, &Problem)],
) -> Result<(), sqlx::Error> {
    for range in statement::ranges(parked.iter().map(|_| MAX_ERROR)) {
        let sql = format!(
            "INSERT INTO `inbox_attempts` (`message_id`, `attempt`, `class`, `error`) VALUES {}",
            statement::placeholders(range.len(), "(?, 0, ?, ?)")
        );
        let mut query = sqlx::query(AssertSqlSafe(sql));
        for (id, problem) in &parked[range] {
            query = query
                .bind(id.as_str().as_bytes())
                .bind(problem.class())
                .bind(error_text(problem));
        }
        query.execute(&mut **tx).await?;
    }
    Ok(())
}

/// Takes deliveries that turned out to be of another message off the row whose id they came with.
async fn uncount(
    tx: &mut Transaction<'_, MySql>,
    received: &[Received],
    outcomes: &[Outcome],
) -> Result<(), sqlx::Error> {
    let mut others: BTreeMap<&MessageId, u32> = BTreeMap::new();
    for (received, outcome) in received.iter().zip(outcomes) {
        if *outcome == Outcome::OtherBody {
            *others.entry(&received.message_id).or_default() += 1;
        }
    }
    for (id, count) in others {
        sqlx::query("UPDATE `inbox` SET `deliveries` = `deliveries` - ? WHERE `message_id` = ?")
            .bind(count)
            .bind(id.as_str().as_bytes())
            .execute(&mut **tx)
            .await?;
    }
    Ok(())
}

/// Are two messages of one id, both in hand, the same?
fn same_message(a: &Received, b: &Received) -> bool {
    a.payload == b.payload && truncation(a) == truncation(b)
}

/// Is a message the one that is stored under its id?
fn is_stored(stored: &Stored, received: &Received) -> bool {
    if received.message_id.as_str().starts_with(DIGEST_PREFIX) {
        return true;
    }
    let same_bytes = stored.digest.as_deref() == Some(digest(&received.payload).as_str());
    // Equal beginnings do not make equal messages: the text has the digest of the whole.
    let same_whole = truncation(received).is_none_or(|text| stored.last_error == Some(text));
    same_bytes && same_whole
}

fn truncation(received: &Received) -> Option<String> {
    match &received.problem {
        Some(problem @ Problem::Truncated { .. }) => Some(error_text(problem)),
        _ => None,
    }
}

/// The same message, to be stored under the digest of its whole body.
fn under_digest(received: &Received) -> Received {
    let conflict = Problem::IdConflict {
        id: received.message_id.clone(),
    };
    Received {
        message_id: MessageId::of_digest(&received.whole_digest()),
        problem: Some(match received.problem.clone() {
            Some(Problem::Truncated {
                kept,
                bytes,
                sha256,
                ..
            }) => Problem::Truncated {
                kept,
                bytes,
                sha256,
                earlier: Some(Box::new(conflict)),
            },
            _ => conflict,
        }),
        ..received.clone()
    }
}

fn error_text(problem: &Problem) -> String {
    cut(&problem.to_string(), MAX_ERROR).into_owned()
}

/// The first `max` characters.
fn cut(text: &str, max: usize) -> Cow<'_, str> {
    match text.char_indices().nth(max) {
        Some((end, _)) => Cow::Borrowed(&text[..end]),
        None => Cow::Borrowed(text),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_are_cut_between_characters() {
        assert_eq!(cut("åäö", 2), "åä");
        assert_eq!(cut("åäö", 3), "åäö");
        assert_eq!(cut("", 0), "");
    }
}
