//! One row, whole: payload, headers, every attempt, and its life.

use serde::Serialize;
use sqlx::mysql::MySqlRow;
use sqlx::{MySql, MySqlConnection, QueryBuilder, Row as _};

use crate::audit::{self, Action};
use crate::console::{Console, unit};
use crate::error::Error;
use crate::filter::State;
pub use crate::payload::{Form, Payload, SHOWN_MAX};
use crate::row::{Row, row_of, text, time};
use crate::statement::push_key;
use crate::table::{Key, Table};

/// Attempts and actions shown, the newest of each.
const HISTORY_MAX: u32 = 200;

/// Everything about a row.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[cfg_attr(feature = "console", derive(utoipa::ToSchema))]
pub struct Detail {
    /// As in lists.
    pub row: Row,
    /// The outbox's `content_type`; the inbox has none.
    pub content_type: Option<String>,
    /// A JSON object, as it is stored, up to 65,536 bytes of it.
    pub headers: Option<String>,
    /// The payload.
    pub payload: Payload,
    /// Every failed attempt, the oldest first; of more than 200 the newest.
    pub attempts: Vec<Attempt>,
    /// What people and services did to the row, the oldest first; of more than 200 the newest.
    pub actions: Vec<Action>,
    /// Bulks the row is part of, the oldest first.
    pub bulks: Vec<u64>,
    /// All of this, and what was done to its bulks, in the order of time.
    pub life: Vec<Moment>,
}

/// A failed attempt.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[cfg_attr(feature = "console", derive(utoipa::ToSchema))]
pub struct Attempt {
    /// When, UTC.
    pub at: Option<String>,
    /// Its number since the last retry by a person; 0: parked at its arrival.
    pub attempt: u32,
    /// The class.
    pub class: String,
    /// The text.
    pub error: String,
}

/// Something in a row's life.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[cfg_attr(feature = "console", derive(utoipa::ToSchema))]
pub struct Moment {
    /// When, UTC.
    pub at: Option<String>,
    /// `created`, `failed`, `sent` or `processed`, else an action of the audit.
    pub what: String,
    /// Who; a service by its name.
    pub by: String,
    /// Why, or what was said.
    pub text: String,
}

impl Console {
    /// Everything about one row; `None`: there is no such row.
    ///
    /// # Errors
    /// The database's.
    pub async fn detail(&self, key: &str) -> Result<Option<Detail>, Error> {
        let Some(key) = self.table().key(key) else {
            return Ok(None);
        };
        let console = self.clone();
        unit(async move {
            let mut connection = console.connection().await?;
            Ok(read(&mut connection, console.table(), &key).await?)
        })
        .await
    }
}

async fn read(
    connection: &mut MySqlConnection,
    table: &Table,
    key: &Key,
) -> Result<Option<Detail>, sqlx::Error> {
    let content_type = match table {
        Table::Outbox { .. } => "t.content_type",
        Table::Inbox => "NULL",
    };
    let mut query = QueryBuilder::<MySql>::new(format!(
        "SELECT {}, {content_type}, SUBSTRING(t.headers, 1, {SHOWN_MAX}), OCTET_LENGTH(t.payload), \
         SUBSTRING(t.payload, 1, {SHOWN_MAX}) FROM `{}` t WHERE t.{} = ",
        table.row_columns(),
        table.name(),
        table.key_column()
    ));
    push_key(&mut query, key);
    let found = query.build().fetch_optional(&mut *connection).await?;
    let Some(found) = found else { return Ok(None) };
    let row = row_of(table, &found)?;
    let attempts = attempts(connection, table, key).await?;
    let actions = audit::of_target(connection, &table.target(key), HISTORY_MAX).await?;
    let bulks = crate::bulk::of_row(connection, table, key).await?;
    let of_bulks = of_bulks(connection, table, &bulks).await?;
    let shown: Vec<u8> = found.try_get_unchecked(19)?;
    let bytes: i64 = found.try_get_unchecked(18)?;
    Ok(Some(Detail {
        life: life(table, &row, &attempts, (&actions, of_bulks)),
        content_type: text(&found, 16)?,
        headers: text(&found, 17)?,
        payload: Payload::new(&shown, bytes.unsigned_abs()),
        bulks,
        row,
        attempts,
        actions,
    }))
}

async fn attempts(
    connection: &mut MySqlConnection,
    table: &Table,
    key: &Key,
) -> Result<Vec<Attempt>, sqlx::Error> {
    let mut query = QueryBuilder::<MySql>::new(format!(
        "SELECT failed_at, attempt, class, error FROM `{}_attempts` WHERE {} = ",
        table.name(),
        table.attempt_column()
    ));
    push_key(&mut query, key);
    query.push(format!(" ORDER BY id DESC LIMIT {HISTORY_MAX}"));
    let rows = query.build().fetch_all(connection).await?;
    let attempt = |row: &MySqlRow| {
        Ok(Attempt {
            at: time(row, 0),
            attempt: row.try_get(1)?,
            class: text(row, 2)?.unwrap_or_default(),
            error: text(row, 3)?.unwrap_or_default(),
        })
    };
    let newest: Result<Vec<_>, sqlx::Error> = rows.iter().map(attempt).collect();
    Ok(newest?.into_iter().rev().collect())
}

/// What was done to the bulks of a row.
async fn of_bulks(
    connection: &mut MySqlConnection,
    table: &Table,
    bulks: &[u64],
) -> Result<Vec<Moment>, sqlx::Error> {
    let mut moments = Vec::new();
    for bulk in bulks {
        let actions = audit::of_target(connection, &table.bulk_target(*bulk), HISTORY_MAX).await?;
        moments.extend(actions.into_iter().map(|action| Moment {
            at: action.at,
            what: action.action,
            by: action.actor,
            text: match action.reason {
                Some(reason) => format!("bulk {bulk}: {reason}"),
                None => format!("bulk {bulk}"),
            },
        }));
    }
    Ok(moments)
}

fn life(
    table: &Table,
    row: &Row,
    attempts: &[Attempt],
    (actions, of_bulks): (&[Action], Vec<Moment>),
) -> Vec<Moment> {
    let (service, created, done) = match table {
        Table::Outbox { .. } => ("relay", "created", "sent"),
        Table::Inbox => ("pay-svc", "received", "processed"),
    };
    let mut life = vec![Moment {
        at: row.created_at.clone(),
        what: created.to_owned(),
        by: match table {
            Table::Outbox { .. } => String::new(),
            Table::Inbox => service.to_owned(),
        },
        text: String::new(),
    }];
    life.extend(attempts.iter().map(|attempt| Moment {
        at: attempt.at.clone(),
        what: "failed".to_owned(),
        by: service.to_owned(),
        text: match attempt.error.starts_with(&format!("{}: ", attempt.class)) {
            true => attempt.error.clone(),
            false => format!("{}: {}", attempt.class, attempt.error),
        },
    }));
    life.extend(actions.iter().map(|action| Moment {
        at: action.at.clone(),
        what: action.action.clone(),
        by: action.actor.clone(),
        text: action.reason.clone().unwrap_or_default(),
    }));
    life.extend(of_bulks);
    if row.done_at.is_some() && row.state == State::Done {
        life.push(Moment {
            at: row.done_at.clone(),
            what: done.to_owned(),
            by: service.to_owned(),
            text: String::new(),
        });
    }
    // Stable: what has the same time stays in the order of causes above.
    life.sort_by(|a, b| a.at.cmp(&b.at));
    life
}
