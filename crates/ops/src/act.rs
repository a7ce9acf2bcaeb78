//! What is done to single rows: each under the condition of its state, with its audit in the same
//! transaction.

use std::collections::HashMap;

use outbox::row::rfc3339;
use serde::Serialize;
use sqlx::{Connection as _, MySql, MySqlConnection, QueryBuilder, Row as _, Transaction};
use time::PrimitiveDateTime;

use crate::audit::{self, By, Entry, Last};
use crate::console::{Console, again, unit};
use crate::error::Error;
use crate::filter::State;
use crate::statement::push_keys;
use crate::table::{Key, Table};

/// Rows of one call, at most.
pub const KEYS_MAX: usize = 500;
/// Rows that somebody else works on are waited for this long, in seconds.
const LOCK_WAIT_S: u32 = 5;

/// What became of one row.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[cfg_attr(feature = "console", derive(utoipa::ToSchema))]
#[serde(tag = "outcome", rename_all = "lowercase")]
pub enum Outcome {
    /// Done.
    Done {
        /// The row.
        key: String,
        /// What it was.
        before: State,
        /// What it is now.
        after: State,
    },
    /// Not done: the row is in a state in which this can't be done to it.
    Conflict {
        /// The row.
        key: String,
        /// What it is.
        now: State,
        /// What that means for what was requested.
        why: String,
        /// Who acted on it last, if anybody did.
        last: Option<Last>,
    },
    /// There is no such row.
    Missing {
        /// As it was requested.
        key: String,
    },
}

/// What can be done to a row of any state it fits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Act {
    /// Try a parked row again from the start, or a waiting one now instead of later.
    Retry,
    /// Decide against a parked row.
    Discard,
    /// Make a discarded row parked again.
    Restore,
}

impl Act {
    /// `operator_actions.action`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Retry => "retry",
            Self::Discard => "discard",
            Self::Restore => "restore",
        }
    }

    const fn after(self) -> State {
        match self {
            Self::Retry => State::Waiting,
            Self::Discard => State::Discarded,
            Self::Restore => State::Parked,
        }
    }

    /// Why it can't be done to a row like this, if it can't.
    fn refused(self, row: &Found) -> Option<&'static str> {
        match (self, row.state) {
            (Self::Retry | Self::Discard, State::Parked) | (Self::Restore, State::Discarded) => {
                None
            }
            (Self::Retry, State::Waiting) if row.is_later => None,
            (Self::Retry, State::Waiting) => Some("it is due, or being worked on"),
            (Self::Retry, _) => Some("only parked rows, and those that wait, can be retried"),
            (Self::Discard, _) => Some("only parked rows can be discarded"),
            (Self::Restore, _) => Some("only discarded rows can be restored"),
        }
    }
}

/// A row that is locked by this transaction.
struct Found {
    state: State,
    attempts: u32,
    /// It waits for a time that no lease can explain.
    is_later: bool,
    created: Option<PrimitiveDateTime>,
}

impl Console {
    /// Tries parked rows again from the start, and waiting ones now instead of later. One outcome for
    /// each key, in their order.
    ///
    /// # Errors
    /// Too many keys, a reason that is too long, and the database's.
    pub async fn retry(&self, keys: &[String], by: &By) -> Result<Vec<Outcome>, Error> {
        self.act(Act::Retry, keys, by.checked()?).await
    }

    /// Decides against parked rows; `by` must have a reason.
    ///
    /// # Errors
    /// As [`Console::retry`], and no reason.
    pub async fn discard(&self, keys: &[String], by: &By) -> Result<Vec<Outcome>, Error> {
        self.act(Act::Discard, keys, by.with_reason()?).await
    }

    /// Makes discarded rows parked again.
    ///
    /// # Errors
    /// As [`Console::retry`].
    pub async fn restore(&self, keys: &[String], by: &By) -> Result<Vec<Outcome>, Error> {
        self.act(Act::Restore, keys, by.checked()?).await
    }

    /// Writes a note on a row, of any state, into the audit; `by` must have a reason, which is the
    /// note.
    ///
    /// # Errors
    /// As [`Console::discard`].
    pub async fn note(&self, key: &str, by: &By) -> Result<Outcome, Error> {
        let (console, text, by) = (self.clone(), key.to_owned(), by.with_reason()?);
        unit(async move {
            let missing = Outcome::Missing { key: text.clone() };
            let Some(key) = console.table().key(&text) else {
                return Ok(missing);
            };
            let mut connection = console.connection().await?;
            let mut tx = connection.begin().await?;
            let found = lock(&mut tx, &console, std::slice::from_ref(&key)).await?;
            let Some(found) = found.get(&key) else {
                return Ok(missing);
            };
            let entry = Entry {
                action: "note",
                target: console.table().target(&key),
                before: None,
                after: None,
            };
            audit::write(&mut tx, &by, &[entry]).await?;
            tx.commit().await?;
            Ok(Outcome::Done {
                key: text,
                before: found.state,
                after: found.state,
            })
        })
        .await
    }

    async fn act(&self, act: Act, keys: &[String], by: By) -> Result<Vec<Outcome>, Error> {
        if !(1..=KEYS_MAX).contains(&keys.len()) {
            return Err(Error::invalid("keys", format!("are not 1 to {KEYS_MAX}")));
        }
        let (console, keys) = (self.clone(), keys.to_vec());
        unit(async move {
            again(|| {
                let (console, keys, by) = (console.clone(), keys.clone(), by.clone());
                async move { transaction(&console, act, &keys, &by).await }
            })
            .await
        })
        .await
    }
}

async fn transaction(
    console: &Console,
    act: Act,
    requested: &[String],
    by: &By,
) -> Result<Vec<Outcome>, Error> {
    let table = console.table();
    let mut connection = console.connection().await?;
    let keys: Vec<(String, Option<Key>)> = requested
        .iter()
        .map(|text| (text.clone(), table.key(text)))
        .collect();
    let mut known: Vec<Key> = keys.iter().filter_map(|(_, key)| key.clone()).collect();
    // In the order of the primary key, so that two operators wait for each other and do not deadlock.
    known.sort_unstable();
    known.dedup();
    let mut tx = begin(&mut connection).await?;
    let found = lock(&mut tx, console, &known).await?;
    let fit = |key: &&Key| {
        found
            .get(*key)
            .is_some_and(|row| act.refused(row).is_none())
    };
    let changed: Vec<Key> = known.iter().filter(fit).cloned().collect();
    if !changed.is_empty() {
        update(&mut tx, table, act, &changed).await?;
        let entries: Vec<Entry> = changed
            .iter()
            .map(|key| entry(table, act, key, &found[key]))
            .collect();
        audit::write(&mut tx, by, &entries).await?;
    }
    tx.commit().await?;
    let mut outcomes = Vec::with_capacity(keys.len());
    for (text, key) in keys {
        let row = key.as_ref().and_then(|key| Some((key, found.get(key)?)));
        outcomes.push(match row {
            None => Outcome::Missing { key: text },
            Some((key, row)) => match act.refused(row) {
                None => Outcome::Done {
                    key: text,
                    before: row.state,
                    after: act.after(),
                },
                Some(why) => Outcome::Conflict {
                    key: text,
                    now: row.state,
                    why: why.to_owned(),
                    last: audit::last(&mut connection, &table.target(key)).await?,
                },
            },
        });
    }
    Ok(outcomes)
}

pub(crate) async fn begin(
    connection: &mut MySqlConnection,
) -> Result<Transaction<'_, MySql>, sqlx::Error> {
    let set = format!("SET SESSION innodb_lock_wait_timeout = {LOCK_WAIT_S}");
    sqlx::query(sqlx::AssertSqlSafe(set))
        .execute(&mut *connection)
        .await?;
    connection.begin().await
}

async fn lock(
    tx: &mut Transaction<'_, MySql>,
    console: &Console,
    keys: &[Key],
) -> Result<HashMap<Key, Found>, sqlx::Error> {
    if keys.is_empty() {
        return Ok(HashMap::new());
    }
    let table = console.table();
    let (key, created) = (table.key_column(), table.created_column());
    let mut query = QueryBuilder::<MySql>::new(format!(
        "SELECT {key}, status, attempts, {created}, \
         COALESCE(next_attempt_at > UTC_TIMESTAMP(6) + INTERVAL "
    ));
    query.push_bind(i64::try_from(console.lease().as_micros()).unwrap_or(i64::MAX));
    query.push(format!(
        " MICROSECOND, 0) FROM `{}` FORCE INDEX (PRIMARY) WHERE {key} IN (",
        table.name()
    ));
    push_keys(&mut query, keys);
    query.push(") FOR UPDATE");
    let rows = query.build().fetch_all(&mut **tx).await?;
    let mut found = HashMap::with_capacity(rows.len());
    for row in &rows {
        let key = table.key_of(row, 0)?;
        let status: u8 = row.try_get(1)?;
        let Some(state) = State::of(status) else {
            continue;
        };
        found.insert(
            key,
            Found {
                state,
                attempts: row.try_get(2)?,
                created: row.try_get_unchecked(3).unwrap_or(None),
                is_later: row.try_get_unchecked::<i64, _>(4)? != 0,
            },
        );
    }
    Ok(found)
}

/// The rows are locked, and in a state in which this can be done to them.
async fn update(
    tx: &mut Transaction<'_, MySql>,
    table: &Table,
    act: Act,
    keys: &[Key],
) -> Result<(), sqlx::Error> {
    let set = match act {
        // Due now, and not NULL: a relay that finds it by its sweep then knows why the binlog did
        // not bring it. MySQL and MariaDB assign from left to right, so `status` comes last.
        Act::Retry => fresh_start(table),
        Act::Discard => match table {
            Table::Outbox { .. } => "status = 4".to_owned(),
            // pay-svc keeps what was discarded as long as what was processed: from this moment on.
            Table::Inbox => "status = 4, processed_at = UTC_TIMESTAMP(6)".to_owned(),
        },
        Act::Restore => match table {
            Table::Outbox { .. } => "status = 3, next_attempt_at = NULL".to_owned(),
            Table::Inbox => "status = 3, next_attempt_at = NULL, processed_at = NULL".to_owned(),
        },
    };
    let mut query = QueryBuilder::<MySql>::new(format!(
        "UPDATE `{}` SET {set} WHERE {} IN (",
        table.name(),
        table.key_column()
    ));
    push_keys(&mut query, keys);
    query.push(")");
    query.build().execute(&mut **tx).await?;
    Ok(())
}

/// A parked row starts anew: with all its attempts and, in the inbox, with its age at zero, or a row
/// that was parked for its age would be parked again at once. A waiting one keeps what it has spent.
fn fresh_start(table: &Table) -> String {
    let age = match table {
        Table::Outbox { .. } => "",
        Table::Inbox => "received_at = IF(status = 3, UTC_TIMESTAMP(6), received_at), ",
    };
    format!(
        "attempts = IF(status = 3, 0, attempts), {age}next_attempt_at = UTC_TIMESTAMP(6), status = 1"
    )
}

fn entry(table: &Table, act: Act, key: &Key, row: &Found) -> Entry {
    let mut before = format!("{}, attempts {}", row.state.name(), row.attempts);
    if let (Table::Inbox, Act::Retry, Some(created)) = (table, act, row.created) {
        before.push_str(&format!(", received {}", rfc3339(created)));
    }
    Entry {
        action: act.name(),
        target: table.target(key),
        before: Some(before),
        after: Some(act.after().name().to_owned()),
    }
}
