//! What operators have paused: the whole relay, or routes. It is kept in a table beside the outbox, so
//! that it outlives every relay, and the table's reader looks there every second.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use anyhow::Context;
use sqlx::mysql::{MySqlConnection, MySqlRow};
use sqlx::{AssertSqlSafe, Row as _};
use svc_kit::database::{Fault, classify};
use tokio::time::Instant;

use crate::database::ends_session;
use crate::engine;
use crate::engine::route::Route;

/// How often a working relay looks: a pause takes effect within twice that.
pub const LOOK_EVERY: Duration = Duration::from_secs(1);
/// A refused look rests this many times as long as it took.
const REST_FACTOR: u32 = 9;
const LOOK_TIMEOUT: Duration = Duration::from_secs(30);
/// Routes that can be paused at once.
pub const ROUTES_MAX: usize = 1000;
/// The condition of `/readyz` that a pause of the whole relay clears.
pub const INTAKE: &str = "intake";

/// Who paused something, when and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pause {
    /// A person or a program, as it named itself.
    pub actor: String,
    /// In the person's words.
    pub reason: String,
    /// UTC, RFC 3339.
    pub since: String,
}

/// Everything that is paused.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Pauses {
    /// The whole relay.
    pub whole: Option<Pause>,
    /// Single routes.
    pub routes: BTreeMap<Route, Pause>,
    /// Why the above is what was known before, and not what the table says now.
    pub unreadable: Option<String>,
}

impl fmt::Display for Pause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            actor,
            reason,
            since,
        } = self;
        write!(f, "paused by {actor} since {since}: {reason}")
    }
}

impl Pauses {
    /// What the table says now.
    ///
    /// # Errors
    /// The database's; [`is_not_there`] tells those of a table that an older release has not made.
    pub async fn read(connection: &mut MySqlConnection, table: &str) -> Result<Self, sqlx::Error> {
        // The scope `relay` is the first in the order, so no number of routes hides it.
        let statement = format!(
            "SELECT scope, exchange, routing_key, actor, reason, \
             DATE_FORMAT(paused_at, '%Y-%m-%dT%H:%i:%sZ') FROM `{table}_pauses` \
             ORDER BY scope, exchange, routing_key LIMIT {}",
            ROUTES_MAX + 1
        );
        let rows = sqlx::query(AssertSqlSafe(statement))
            .fetch_all(connection)
            .await?;
        let mut pauses = Self::default();
        for row in &rows {
            pauses.add(row)?;
        }
        Ok(pauses)
    }

    fn add(&mut self, row: &MySqlRow) -> Result<(), sqlx::Error> {
        let bytes = |index: usize| row.try_get_unchecked::<Vec<u8>, _>(index);
        let text =
            |index: usize| bytes(index).map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
        let pause = Pause {
            actor: text(3)?,
            reason: text(4)?,
            since: text(5)?,
        };
        if text(0)? == "relay" {
            self.whole = Some(pause);
        } else {
            let route = Route::new(&bytes(1)?, &bytes(2)?);
            self.routes.insert(route, pause);
        }
        Ok(())
    }

    /// What the engine has to know of them.
    pub fn for_engine(&self) -> engine::Pauses {
        engine::Pauses {
            whole: self.whole.is_some(),
            routes: self.routes.keys().cloned().collect(),
        }
    }

    /// What was known, now that the table can't be read.
    #[must_use]
    pub fn kept(&self, err: &sqlx::Error) -> Self {
        Self {
            unreadable: Some(err.to_string()),
            ..self.clone()
        }
    }

    /// For readiness.
    pub fn detail(&self) -> String {
        let paused = self.paused();
        match &self.unreadable {
            None => paused,
            Some(why) => {
                format!("{paused}; what is paused can't be read, it stays as it was: {why}")
            }
        }
    }

    fn paused(&self) -> String {
        if let Some(pause) = &self.whole {
            return pause.to_string();
        }
        let mut routes = self.routes.iter();
        match (routes.next(), routes.len()) {
            (None, _) => "open".into(),
            (Some((route, pause)), 0) => format!("open; route {route} is {pause}"),
            (Some((route, pause)), more) => {
                format!("open; route {route} is {pause}; {more} more routes are paused")
            }
        }
    }
}

/// Looks now and then at what is paused.
pub struct Watch {
    known: Pauses,
    next: Instant,
}

impl Watch {
    /// `known` has just been read.
    pub fn new(known: Pauses) -> Self {
        let next = Instant::now() + LOOK_EVERY;
        Self { known, next }
    }

    /// When the next look is due.
    pub fn next(&self) -> Instant {
        self.next
    }

    /// Looks if it is due. Returns what is paused when that is something else than before.
    ///
    /// # Errors
    /// The database's, and no answer in time.
    pub async fn look(
        &mut self,
        connection: &mut MySqlConnection,
        table: &str,
    ) -> anyhow::Result<Option<Pauses>> {
        if Instant::now() < self.next {
            return Ok(None);
        }
        let began = Instant::now();
        let found = Pauses::read(connection, table);
        let found = tokio::time::timeout(LOOK_TIMEOUT, found)
            .await
            .context("no answer to what is paused")?;
        self.next = Instant::now() + LOOK_EVERY;
        let found = match found {
            Ok(found) => found,
            Err(err) if ends_session(connection, &err).await => {
                return Err(err).context("reading what is paused");
            }
            // What was paused before it could not be read any more stays so. A look that waits for
            // a lock keeps the reader from what it is for.
            Err(err) => {
                self.next = Instant::now() + LOOK_EVERY.max(began.elapsed() * REST_FACTOR);
                self.known.kept(&err)
            }
        };
        if found == self.known {
            return Ok(None);
        }
        if let Some(why) = &found.unreadable {
            tracing::warn!(
                error = why,
                "what is paused can't be read, it stays as it was"
            );
        }
        self.known.clone_from(&found);
        Ok(Some(found))
    }
}

/// There is no such table yet, or no right to read it: what an older release has set up. Nothing can
/// have been paused with it.
pub fn is_not_there(err: &sqlx::Error) -> bool {
    matches!(classify(err), Fault::MissingTable | Fault::Misconfigured(_))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pause() -> Pause {
        Pause {
            actor: "ann@desk".into(),
            reason: "upgrade".into(),
            since: "2026-01-02T03:04:05Z".into(),
        }
    }

    #[test]
    fn a_paused_route_is_reported_and_a_paused_relay_hides_it() {
        let mut pauses = Pauses::default();
        assert_eq!(pauses.detail(), "open");
        for key in ["a", "b"] {
            let route = Route::new(b"x", key.as_bytes());
            pauses.routes.insert(route, pause());
        }
        assert_eq!(
            pauses.detail(),
            "open; route \"x\" \"a\" is paused by ann@desk since 2026-01-02T03:04:05Z: upgrade; \
             1 more routes are paused"
        );
        pauses.whole = Some(pause());
        assert_eq!(
            pauses.detail(),
            "paused by ann@desk since 2026-01-02T03:04:05Z: upgrade"
        );
        assert_eq!(
            pauses.kept(&sqlx::Error::RowNotFound).detail(),
            "paused by ann@desk since 2026-01-02T03:04:05Z: upgrade; what is paused can't be read, \
             it stays as it was: no rows returned by a query that expected to return at least one row"
        );
    }
}
