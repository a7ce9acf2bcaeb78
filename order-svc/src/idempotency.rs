//! Idempotency keys: the same key and request get the same answer, and one order.

use sqlx::{MySql, Transaction};

/// The longest key, in bytes.
pub const KEY_MAX: usize = 128;

/// A client's `Idempotency-Key`: 1 to 128 bytes of 0x21–0x7E.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IdempotencyKey(String);

/// A header that is not a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("an Idempotency-Key is sent once and has 1 to 128 visible ASCII characters without spaces")]
pub struct BadKey;

impl IdempotencyKey {
    /// Checks the bytes of the header.
    ///
    /// # Errors
    /// [`BadKey`] when it is empty, too long, or has a byte outside 0x21–0x7E.
    pub fn parse(header: &[u8]) -> Result<Self, BadKey> {
        let fits = (1..=KEY_MAX).contains(&header.len());
        if !fits || !header.iter().all(u8::is_ascii_graphic) {
            return Err(BadKey);
        }
        String::from_utf8(header.to_vec())
            .map(Self)
            .map_err(|_| BadKey)
    }

    fn as_bytes(&self) -> &[u8] {
        self.0.as_bytes()
    }
}

/// What a key says about a request.
#[derive(Debug, PartialEq, Eq)]
pub enum Claim {
    /// The key is new; it commits or rolls back with the caller's transaction.
    First,
    /// The same request was answered before, with this body.
    Answered(String),
    /// The key belongs to another request.
    Reused,
}

/// Takes the key for a request that will be answered with `response`. While another transaction
/// holds the same key this waits until that one has ended, so of two at once one is first.
///
/// # Errors
/// The database's; a deadlock is possible when the first of several is rolled back.
pub async fn claim(
    tx: &mut Transaction<'_, MySql>,
    key: &IdempotencyKey,
    digest: &[u8; 32],
    response: &str,
) -> Result<Claim, sqlx::Error> {
    let inserted = sqlx::query(
        "INSERT INTO idempotency_keys (idempotency_key, request_sha256, response) VALUES (?, ?, ?)",
    )
    .bind(key.as_bytes())
    .bind(digest.as_slice())
    .bind(response)
    .execute(&mut **tx)
    .await;
    match inserted {
        Ok(_) => return Ok(Claim::First),
        Err(sqlx::Error::Database(err)) if err.is_unique_violation() => {}
        Err(err) => return Err(err),
    }
    let (known_digest, known_response): (Vec<u8>, String) = sqlx::query_as(
        "SELECT request_sha256, response FROM idempotency_keys WHERE idempotency_key = ?",
    )
    .bind(key.as_bytes())
    .fetch_one(&mut **tx)
    .await?;
    Ok(if known_digest == digest {
        Claim::Answered(known_response)
    } else {
        Claim::Reused
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_visible_ascii_of_at_most_128_bytes() {
        let longest = [b'k'; KEY_MAX];
        for good in [b"k".as_slice(), b"!~", &longest] {
            assert!(IdempotencyKey::parse(good).is_ok(), "{good:?}");
        }
        let too_long = [b'k'; KEY_MAX + 1];
        for bad in [b"".as_slice(), b"a b", b"\x7f", b"caf\xc3\xa9", &too_long] {
            assert_eq!(IdempotencyKey::parse(bad), Err(BadKey), "{bad:?}");
        }
    }
}
