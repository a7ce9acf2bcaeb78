//! What a consumer stores of a delivery, and the ids it is stored under.

use std::borrow::Cow;
use std::fmt;

use sha2::{Digest, Sha256};

/// Start of the ids that the inbox makes itself, of the digest of a body.
pub const DIGEST_PREFIX: &str = "sha256:";

/// Longest id the inbox can hold, in bytes.
const MAX_ID_BYTES: usize = 128;

/// The id a message is stored under: 1 to 128 bytes, each of 0x21–0x7E.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MessageId(String);

/// Why a text can't be a message id. `Display` reads as the rest of a sentence about the id.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum UnusableId {
    /// The property is not there.
    #[error("is absent")]
    Absent,
    /// The property is there, without a byte in it.
    #[error("is empty")]
    Empty,
    /// It would not fit its column.
    #[error("has {0} bytes, more than 128")]
    TooLong(usize),
    /// Spaces, control characters and whatever is not ASCII.
    #[error("has byte {0:#04x}, which is outside 0x21-0x7e")]
    BadByte(u8),
    /// Only the inbox makes these; another's could stand in the way of a body with that digest.
    #[error("starts with sha256: but is not the digest of its body")]
    Reserved,
}

impl MessageId {
    /// Takes a producer's id.
    ///
    /// # Errors
    /// [`UnusableId`] says what is wrong with it.
    pub fn parse(id: &[u8]) -> Result<Self, UnusableId> {
        Self::check(id)?;
        Ok(Self(id.iter().copied().map(char::from).collect()))
    }

    /// What [`MessageId::parse`] says of an id, without keeping it.
    ///
    /// # Errors
    /// [`UnusableId`] says what is wrong with it.
    pub fn check(id: &[u8]) -> Result<(), UnusableId> {
        if id.starts_with(DIGEST_PREFIX.as_bytes()) {
            return Err(UnusableId::Reserved);
        }
        if id.is_empty() {
            return Err(UnusableId::Empty);
        }
        if let Some(byte) = id.iter().find(|byte| !byte.is_ascii_graphic()) {
            return Err(UnusableId::BadByte(*byte));
        }
        if id.len() > MAX_ID_BYTES {
            return Err(UnusableId::TooLong(id.len()));
        }
        Ok(())
    }

    /// The id of a body that has no other: `sha256:` and 64 hexadecimal digits.
    #[must_use]
    pub fn of_body(body: &[u8]) -> Self {
        Self::of_digest(&digest(body))
    }

    pub(crate) fn of_digest(hex: &str) -> Self {
        Self(format!("{DIGEST_PREFIX}{hex}"))
    }

    /// The id as text, which is what the column holds.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for MessageId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Why a message is stored already parked: a person must look, no handler will.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Problem {
    /// The body is not what its type promises. The inbox never finds this out: it is the handler's.
    #[error("malformed: {0}")]
    Malformed(String),
    /// Stored under the digest of its body.
    #[error("message_id {0}; stored under the digest of its body")]
    BadMessageId(UnusableId),
    /// Stored under the digest of its body, because `id` is taken by a message with another body.
    #[error("message_id {id} is known with another body; stored under the digest of this one")]
    IdConflict {
        /// The id it came with.
        id: MessageId,
    },
    /// Only the beginning of the body is stored.
    #[error("truncated: {kept} of {bytes} bytes stored, the whole had sha256 {sha256}{}", also(.earlier))]
    Truncated {
        /// Bytes stored.
        kept: usize,
        /// Bytes of the whole body.
        bytes: usize,
        /// Digest of the whole body, 64 hexadecimal digits.
        sha256: String,
        /// What else was wrong with it.
        earlier: Option<Box<Problem>>,
    },
}

fn also(earlier: &Option<Box<Problem>>) -> String {
    earlier
        .as_ref()
        .map_or_else(String::new, |problem| format!("; {problem}"))
}

impl Problem {
    /// The class in `inbox_attempts` and in metrics.
    #[must_use]
    pub const fn class(&self) -> &'static str {
        match self {
            Self::Malformed(_) => "malformed",
            Self::BadMessageId(_) => "bad_message_id",
            Self::IdConflict { .. } => "id_conflict",
            Self::Truncated { .. } => "truncated",
        }
    }
}

/// A message as it arrived, whichever way; what [`crate::inbox::claim`] stores.
#[derive(Clone, Debug, PartialEq)]
pub struct Received {
    /// The producer's id, or the digest of the body when that is unusable.
    pub message_id: MessageId,
    /// AMQP property `type`.
    pub event_type: Option<String>,
    /// Header `aggregate-id`, as text.
    pub aggregate_id: Option<String>,
    /// The exchange it was published to.
    pub exchange: String,
    /// The routing key it was published with.
    pub routing_key: String,
    /// All headers, as a JSON object.
    pub headers: serde_json::Value,
    /// The body, the bytes as they came.
    pub payload: Vec<u8>,
    /// Set: it is stored already parked, with this as the reason.
    pub problem: Option<Problem>,
}

impl Received {
    /// Chooses the id a message is stored under, of what its producer sent.
    ///
    /// An unusable id is not an error: the message is stored under the digest of its body and parked.
    #[must_use]
    pub fn identify(id: Option<&[u8]>, body: &[u8]) -> (MessageId, Option<Problem>) {
        match id.ok_or(UnusableId::Absent).and_then(MessageId::parse) {
            Ok(id) => (id, None),
            Err(why) => {
                let own = MessageId::of_body(body);
                // Published again by hand under the id the inbox gave it: that id is right.
                let same = id.is_some_and(|id| id == own.as_str().as_bytes());
                (own, (!same).then_some(Problem::BadMessageId(why)))
            }
        }
    }

    /// Keeps the first `max_bytes` of the body and parks the message, with the digest and the length
    /// of the whole in its [`Problem`]. Does nothing to a body that is no longer than that.
    pub fn truncate(&mut self, max_bytes: usize) {
        let bytes = self.payload.len();
        if bytes <= max_bytes {
            return;
        }
        let (sha256, bytes, earlier) = match self.problem.take() {
            // Cut once already: the digest and the length stay those of the whole.
            Some(Problem::Truncated {
                sha256,
                bytes,
                earlier,
                ..
            }) => (sha256, bytes, earlier),
            problem => (digest(&self.payload), bytes, problem.map(Box::new)),
        };
        self.payload.truncate(max_bytes);
        self.payload.shrink_to_fit();
        self.problem = Some(Problem::Truncated {
            kept: max_bytes,
            bytes,
            sha256,
            earlier,
        });
    }

    /// Keeps what a database may take of a message that it has refused for its values: the first
    /// `max_bytes` of the body, and headers only up to `max_headers` bytes of JSON. Parks it, also
    /// when nothing had to be cut.
    pub fn reduce(&mut self, max_bytes: usize, max_headers: usize) {
        self.truncate(max_bytes);
        if self.headers.to_string().len() > max_headers {
            self.headers = serde_json::Value::Object(serde_json::Map::new());
        }
        if !matches!(self.problem, Some(Problem::Truncated { .. })) {
            self.problem = Some(Problem::Truncated {
                kept: self.payload.len(),
                bytes: self.payload.len(),
                sha256: digest(&self.payload),
                earlier: self.problem.take().map(Box::new),
            });
        }
    }

    /// Digest of the whole body, also when only its beginning is left.
    pub(crate) fn whole_digest(&self) -> Cow<'_, str> {
        match &self.problem {
            Some(Problem::Truncated { sha256, .. }) => Cow::Borrowed(sha256),
            _ => Cow::Owned(digest(&self.payload)),
        }
    }
}

/// SHA-256 in lower-case hexadecimal, as `SHA2(…, 256)` of the server writes it.
pub(crate) fn digest(bytes: &[u8]) -> String {
    use fmt::Write as _;
    Sha256::digest(bytes)
        .iter()
        .fold(String::with_capacity(64), |mut hex, byte| {
            // Writing to a String can't fail.
            _ = write!(hex, "{byte:02x}");
            hex
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn received(payload: &[u8]) -> Received {
        let (message_id, problem) = Received::identify(Some(b"m-1"), payload);
        Received {
            message_id,
            event_type: None,
            aggregate_id: None,
            exchange: String::new(),
            routing_key: String::new(),
            headers: serde_json::json!({}),
            payload: payload.to_vec(),
            problem,
        }
    }

    /// SHA-256 of `0123456789`.
    const DIGEST: &str = "84d89877f0d4041efb6bf91a16f0248f2fd573e6af05c19f96bedb9f882f7882";

    #[test]
    fn a_truncated_message_keeps_its_beginning_and_the_digest_of_the_whole() {
        let mut message = received(b"0123456789");
        message.truncate(4);
        assert_eq!(message.payload, b"0123");
        let problem = message.problem.clone().unwrap();
        assert_eq!(problem.class(), "truncated");
        let text = format!("truncated: 4 of 10 bytes stored, the whole had sha256 {DIGEST}");
        assert_eq!(problem.to_string(), text);
        assert_eq!(message.whole_digest(), DIGEST);
    }

    #[test]
    fn a_reduced_message_is_parked_and_keeps_headers_that_are_small() {
        let mut message = received(b"0123456789");
        message.headers = serde_json::json!({"traceparent": "00-1"});
        message.reduce(4, 64);
        assert_eq!(message.payload, b"0123");
        assert_eq!(message.headers["traceparent"], "00-1");
        message.reduce(4, 8);
        assert_eq!(message.headers, serde_json::json!({}));
        assert_eq!(message.whole_digest(), DIGEST);

        let mut short = received(b"0123456789");
        short.reduce(1024, 64);
        let text = format!("truncated: 10 of 10 bytes stored, the whole had sha256 {DIGEST}");
        assert_eq!(short.problem.unwrap().to_string(), text);
    }

    #[test]
    fn a_message_that_is_cut_twice_still_tells_of_the_whole() {
        let mut message = received(b"0123456789");
        message.truncate(8);
        message.truncate(4);
        let text = format!("truncated: 4 of 10 bytes stored, the whole had sha256 {DIGEST}");
        assert_eq!(message.problem.unwrap().to_string(), text);
    }

    #[test]
    fn a_message_that_is_short_enough_is_left_alone() {
        let mut message = received(b"0123456789");
        message.truncate(10);
        assert_eq!(message, received(b"0123456789"));
    }

    #[test]
    fn what_else_was_wrong_is_not_forgotten_when_cutting() {
        let mut message = received(b"0123456789");
        message.problem = Some(Problem::BadMessageId(UnusableId::Empty));
        message.truncate(4);
        let problem = message.problem.unwrap();
        assert_eq!(problem.class(), "truncated");
        let end = "; message_id is empty; stored under the digest of its body";
        assert!(problem.to_string().ends_with(end), "{problem}");
    }
}
