//! Edit and retry: a new message with another id, and the original kept, discarded.

mod changes;

use std::collections::BTreeMap;

use outbox::{Event, MessageId, Received, WriteError};
use serde::{Deserialize, Serialize};
use sqlx::{MySql, QueryBuilder, Row as _, Transaction};
use uuid::Uuid;

use crate::act::{Outcome, begin};
use crate::audit::{self, By, Entry};
use crate::console::{Console, again, unit};
use crate::error::Error;
use crate::filter::State;
use crate::row::text;
use crate::statement::push_key;
use crate::table::{Key, Table};

/// What is to be different in the new message; what is not given stays.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "console", derive(utoipa::ToSchema))]
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
    pub headers: Option<BTreeMap<String, String>>,
    /// The body, as text.
    pub payload: Option<String>,
}

/// What came of an edit.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[cfg_attr(feature = "console", derive(utoipa::ToSchema))]
pub struct Edited {
    /// What became of the original: discarded, unless somebody else acted.
    pub original: Outcome,
    /// The new row's key, when it was written.
    pub key: Option<String>,
    /// The new message's id, when it was written.
    pub message_id: Option<String>,
}

/// The name of the header that leads from an edited message to its original.
pub const PARENT: &str = "parent";
/// A payload that is taken over unchanged is read whole.
const PAYLOAD_MAX: i64 = 16 << 20;
/// As of a message that is put in by hand, in bytes.
const INBOX_PAYLOAD_MAX: usize = 64 * 1024;
/// `inbox.event_type`, in characters.
const INBOX_TYPE_MAX: usize = 255;

type Headers = BTreeMap<String, String>;

impl Console {
    /// Writes a new message and discards the parked original; `by` must have a reason.
    ///
    /// # Errors
    /// Editing is off, a member that a new message could not have, no reason, and the database's.
    pub async fn edit(&self, key: &str, edit: &Edit, by: &By) -> Result<Edited, Error> {
        if !self.allows_edit() {
            return Err(Error::EditOff);
        }
        let (console, edit, by) = (self.clone(), edit.clone(), by.with_reason()?);
        let key = key.to_owned();
        unit(async move {
            again(|| {
                let (console, key) = (console.clone(), key.clone());
                let (edit, by) = (edit.clone(), by.clone());
                async move { transaction(&console, key, edit, &by).await }
            })
            .await
        })
        .await
    }
}

/// The original, as far as the new message takes it over.
struct Original {
    state: State,
    message_id: String,
    aggregate_type: String,
    aggregate_id: Option<String>,
    content_type: String,
    headers: Option<String>,
    is_truncated: bool,
    /// What is to be different, filled up with what stays.
    new: Edit,
    payload: Vec<u8>,
}

/// A message that was written.
struct Written {
    key: Key,
    message_id: String,
}

async fn transaction(
    console: &Console,
    text: String,
    edit: Edit,
    by: &By,
) -> Result<Edited, Error> {
    let not_written = |original| Edited {
        original,
        key: None,
        message_id: None,
    };
    let table = console.table();
    let Some(key) = table.key(&text) else {
        return Ok(not_written(Outcome::Missing { key: text }));
    };
    let mut connection = console.connection().await?;
    let mut tx = begin(&mut connection).await?;
    let given = edit.clone();
    let Some(original) = read(&mut tx, table, &key, edit).await? else {
        return Ok(not_written(Outcome::Missing { key: text }));
    };
    if original.state != State::Parked {
        drop(tx);
        return Ok(not_written(Outcome::Conflict {
            key: text,
            now: original.state,
            why: "only parked rows can be edited".to_owned(),
            last: audit::last(&mut connection, &table.target(&key)).await?,
        }));
    }
    let written = match table {
        Table::Outbox { name } => write_event(&mut tx, name, &original).await?,
        Table::Inbox => write_received(&mut tx, &original).await?,
    };
    discard(&mut tx, table, &key).await?;
    let Written {
        key: new,
        message_id,
    } = written;
    let changed = changes::changed(&given);
    let entries = [
        Entry {
            action: "edit",
            target: table.target(&key),
            before: Some("parked".to_owned()),
            after: Some(format!("discarded, goes on as {new}, message {message_id}")),
        },
        Entry {
            action: "edit",
            target: table.target(&new),
            before: Some(format!("{key}, message {}", original.message_id)),
            after: Some(format!("waiting; {changed}")),
        },
    ];
    audit::write(&mut tx, by, &entries).await?;
    tx.commit().await?;
    Ok(Edited {
        original: Outcome::Done {
            key: text,
            before: State::Parked,
            after: State::Discarded,
        },
        key: Some(new.to_string()),
        message_id: Some(message_id),
    })
}

/// Locks the row and reads what is to be taken over.
async fn read(
    tx: &mut Transaction<'_, MySql>,
    table: &Table,
    key: &Key,
    edit: Edit,
) -> Result<Option<Original>, Error> {
    let own = match table {
        Table::Outbox { .. } => "aggregate_type, content_type",
        Table::Inbox => "'', ''",
    };
    // A payload that is replaced, or is too long to be taken over, is not read.
    let mut query = QueryBuilder::<MySql>::new(
        "SELECT status, message_id, CONCAT(aggregate_id), event_type, exchange, routing_key, headers, \
         COALESCE(last_error LIKE 'truncated: %', 0), OCTET_LENGTH(payload), \
         IF(OCTET_LENGTH(payload) <= ",
    );
    query.push_bind(match edit.payload {
        None => PAYLOAD_MAX,
        Some(_) => -1,
    });
    query.push(format!(
        ", payload, ''), {own} FROM `{}` WHERE {} = ",
        table.name(),
        table.key_column()
    ));
    push_key(&mut query, key);
    query.push(" FOR UPDATE");
    let Some(row) = query.build().fetch_optional(&mut **tx).await? else {
        return Ok(None);
    };
    let Some(state) = State::of(row.try_get(0)?) else {
        return Ok(None);
    };
    if edit.payload.is_none() && row.try_get_unchecked::<i64, _>(8)? > PAYLOAD_MAX {
        let problem = format!("has over {PAYLOAD_MAX} bytes, which can't be taken over");
        return Err(Error::invalid("payload", problem));
    }
    let payload = match &edit.payload {
        Some(payload) => payload.clone().into_bytes(),
        None => row.try_get_unchecked(9)?,
    };
    Ok(Some(Original {
        state,
        message_id: text(&row, 1)?.unwrap_or_default(),
        aggregate_id: text(&row, 2)?,
        headers: text(&row, 6)?,
        is_truncated: row.try_get_unchecked::<i64, _>(7)? != 0,
        aggregate_type: text(&row, 10)?.unwrap_or_default(),
        content_type: text(&row, 11)?.unwrap_or_default(),
        payload,
        new: Edit {
            event_type: edit.event_type.or(text(&row, 3)?),
            exchange: edit.exchange.or(text(&row, 4)?),
            routing_key: edit.routing_key.or(text(&row, 5)?),
            ..edit
        },
    }))
}

async fn write_event(
    tx: &mut Transaction<'_, MySql>,
    table: &str,
    original: &Original,
) -> Result<Written, Error> {
    let new = &original.new;
    let content_type = match &new.content_type {
        Some(given) => given.clone(),
        None => original.content_type.clone(),
    };
    if is_json(&content_type) {
        json(&original.payload)?;
    }
    let headers = match &new.headers {
        Some(headers) => headers.clone(),
        None => match original.headers.as_deref() {
            None => Headers::new(),
            Some(json) => serde_json::from_str(json).map_err(|_| {
                let problem = "of the original are not an object of texts; give others";
                Error::invalid("headers", problem)
            })?,
        },
    };
    let mut event = Event::new(
        original.aggregate_type.clone(),
        original.aggregate_id.clone().unwrap_or_default(),
        new.event_type.clone().unwrap_or_default(),
        new.routing_key.clone().unwrap_or_default(),
        original.payload.clone(),
    )
    .exchange(new.exchange.clone().unwrap_or_default())
    .content_type(content_type);
    for (name, value) in headers {
        event = event.header(name, value);
    }
    let event = event.header(PARENT, original.message_id.clone());
    let message_id =
        outbox::event::write_into(tx, table, &event)
            .await
            .map_err(|err| match err {
                WriteError::Invalid { field, problem } => Error::invalid(field, problem),
                WriteError::Database(err) => Error::Database(err),
            })?;
    let id: u64 = sqlx::query_scalar("SELECT CAST(LAST_INSERT_ID() AS UNSIGNED)")
        .fetch_one(&mut **tx)
        .await?;
    Ok(Written {
        key: Key::Id(id),
        message_id: message_id.to_string(),
    })
}

async fn write_received(
    tx: &mut Transaction<'_, MySql>,
    original: &Original,
) -> Result<Written, Error> {
    let new = &original.new;
    if new.content_type.is_some() {
        return Err(Error::invalid("content_type", "is not kept by the inbox"));
    }
    let event_type = new.event_type.clone().unwrap_or_default();
    if !(1..=INBOX_TYPE_MAX).contains(&event_type.chars().count()) {
        let problem = format!("must have 1 to {INBOX_TYPE_MAX} characters");
        return Err(Error::invalid("type", problem));
    }
    if new.payload.is_none() && original.is_truncated {
        let problem = "of the original is only a beginning; give the whole";
        return Err(Error::invalid("payload", problem));
    }
    if original.payload.len() > INBOX_PAYLOAD_MAX {
        let problem = format!("has more than {INBOX_PAYLOAD_MAX} bytes");
        return Err(Error::invalid("payload", problem));
    }
    json(&original.payload)?;
    let mut headers: serde_json::Map<String, serde_json::Value> = match &new.headers {
        Some(headers) => headers
            .iter()
            .map(|(name, value)| (name.clone(), value.clone().into()))
            .collect(),
        None => original
            .headers
            .as_deref()
            .and_then(|json| serde_json::from_str(json).ok())
            .unwrap_or_default(),
    };
    headers.insert(PARENT.to_owned(), original.message_id.clone().into());
    let message_id = Uuid::now_v7().to_string();
    let received = Received {
        message_id: MessageId::parse(message_id.as_bytes())
            .map_err(|err| Error::invalid("message_id", err.to_string()))?,
        event_type: Some(event_type),
        aggregate_id: original.aggregate_id.clone(),
        exchange: new.exchange.clone().unwrap_or_default(),
        routing_key: new.routing_key.clone().unwrap_or_default(),
        headers: serde_json::Value::Object(headers),
        payload: original.payload.clone(),
        problem: None,
    };
    match outbox::inbox::claim(tx, &received).await {
        Ok(_) => Ok(Written {
            key: Key::Message(message_id.clone().into_bytes()),
            message_id,
        }),
        Err(outbox::inbox::Error::TooLarge { max_payload, .. }) => {
            let problem = format!("has more than {max_payload} bytes");
            Err(Error::invalid("payload", problem))
        }
        Err(outbox::inbox::Error::Database(err)) => Err(Error::Database(err)),
    }
}

async fn discard(
    tx: &mut Transaction<'_, MySql>,
    table: &Table,
    key: &Key,
) -> Result<(), sqlx::Error> {
    let since = match table {
        Table::Outbox { .. } => "",
        Table::Inbox => ", processed_at = UTC_TIMESTAMP(6)",
    };
    let mut query = QueryBuilder::<MySql>::new(format!(
        "UPDATE `{}` SET status = 4{since} WHERE status = 3 AND {} = ",
        table.name(),
        table.key_column()
    ));
    push_key(&mut query, key);
    query.build().execute(&mut **tx).await?;
    Ok(())
}

fn is_json(content_type: &str) -> bool {
    let essence = content_type.split(';').next().unwrap_or_default();
    let essence = essence.trim().to_ascii_lowercase();
    essence == "application/json" || essence.ends_with("+json")
}

fn json(payload: &[u8]) -> Result<(), Error> {
    serde_json::from_slice::<serde::de::IgnoredAny>(payload)
        .map(|_| ())
        .map_err(|err| Error::invalid("payload", format!("is not JSON: {err}")))
}
