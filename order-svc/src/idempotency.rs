//! Idempotency keys: the same key and request get the same answer, and one order.

use std::collections::HashMap;

use outbox::statement::placeholders;
use sqlx::{AssertSqlSafe, MySql, Transaction};

use crate::statement;

/// The longest key, in bytes.
pub const KEY_MAX: usize = 128;

/// A client's `Idempotency-Key`: 1 to 128 bytes of 0x21–0x7E.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
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

/// A request's idempotency key, and the request it stands for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Key {
    /// The key.
    pub key: IdempotencyKey,
    /// Digest of the request.
    pub digest: [u8; 32],
}

/// What the table has under a key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Known {
    /// Digest of the request that was answered.
    pub digest: [u8; 32],
    /// The answer's body.
    pub response: String,
}

/// Takes these keys, each with the answer to its request, for the caller's transaction, and gives those
/// that are known already. No two may be the same, and they must be sorted. While another
/// transaction holds a key this waits until that one has ended, so of two at once one is first.
///
/// # Errors
/// The database's; a deadlock is possible when the first of several is rolled back.
pub async fn claim(
    tx: &mut Transaction<'_, MySql>,
    claims: &[(&Key, &str)],
) -> Result<HashMap<IdempotencyKey, Known>, sqlx::Error> {
    let mut known = HashMap::new();
    for range in statement::ranges(claims.len()) {
        let claims = &claims[range];
        let taken = insert(tx, claims).await?;
        if taken < claims.len() as u64 {
            known.extend(select(tx, claims).await?);
        }
    }
    Ok(known)
}

/// IGNORE leaves out known keys, after whoever holds them has committed; all else that it would let
/// pass, such as a text that is too long, is refused before. Gives the number of keys taken.
async fn insert(
    tx: &mut Transaction<'_, MySql>,
    claims: &[(&Key, &str)],
) -> Result<u64, sqlx::Error> {
    let sql = format!(
        "INSERT IGNORE INTO idempotency_keys (idempotency_key, request_sha256, response) VALUES {}",
        placeholders(claims.len(), "(?, ?, ?)")
    );
    let mut query = sqlx::query(AssertSqlSafe(sql));
    for (key, response) in claims {
        query = query
            .bind(key.key.as_bytes())
            .bind(key.digest.as_slice())
            .bind(*response);
    }
    Ok(query.execute(&mut **tx).await?.rows_affected())
}

/// Those of the keys that were not just taken: a response has its order's id in it, so one's own is
/// nobody else's.
async fn select(
    tx: &mut Transaction<'_, MySql>,
    claims: &[(&Key, &str)],
) -> Result<HashMap<IdempotencyKey, Known>, sqlx::Error> {
    let sql = format!(
        "SELECT idempotency_key, request_sha256, response FROM idempotency_keys \
         WHERE idempotency_key IN ({})",
        placeholders(claims.len(), "?")
    );
    let mut query = sqlx::query_as(AssertSqlSafe(sql));
    for (key, _) in claims {
        query = query.bind(key.key.as_bytes());
    }
    let mut rows: HashMap<Vec<u8>, (Vec<u8>, String)> = query
        .fetch_all(&mut **tx)
        .await?
        .into_iter()
        .map(|(key, digest, response)| (key, (digest, response)))
        .collect();
    let mut known = HashMap::new();
    for (key, own) in claims {
        let (digest, response) = rows
            .remove(key.key.as_bytes())
            .ok_or(sqlx::Error::RowNotFound)?;
        if response != *own {
            let digest = digest.try_into().unwrap_or_default();
            known.insert(key.key.clone(), Known { digest, response });
        }
    }
    Ok(known)
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
