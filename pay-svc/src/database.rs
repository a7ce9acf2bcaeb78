//! The one place that knows whether the database can be worked with.
//!
//! Whoever finds that it can't says so with [`Database::suspect`] and waits with [`Database::up`];
//! one task looks, with back-off, until it is back. So an outage is one line in the log and one
//! connection attempt at a time, whatever the number of workers.

use std::sync::Arc;
use std::time::Duration;

use sqlx::pool::PoolConnection;
use sqlx::{MySql, MySqlPool};
use svc_kit::admin::Readiness;
use svc_kit::backoff::Backoff;
use svc_kit::database::{DatabaseUrl, Fault, classify, is_answer, look};
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;

use crate::refusals::Refusals;

/// Name of the readiness condition.
pub const CONDITION: &str = "database";

/// The tables without which nothing works. What is amiss with another holds up its own rows alone.
const TABLES: [&str; 2] = ["inbox", "payments"];
/// How often a database that is up is looked at.
const PROBE_EVERY: Duration = Duration::from_secs(2);
/// Whoever locks a table beside the inbox, or a row, holds up a worker for two seconds, not for the
/// server's fifty or its day.
const SET_UP: &str = "SET SESSION lock_wait_timeout = 2, innodb_lock_wait_timeout = 2";
const BACKOFF_MIN: Duration = Duration::from_millis(100);
const BACKOFF_MAX: Duration = Duration::from_secs(3);

/// The pool, and what is known of the server behind it.
#[derive(Debug)]
pub struct Database {
    url: DatabaseUrl,
    pool: MySqlPool,
    readiness: Readiness,
    refusals: Refusals,
    up: watch::Sender<bool>,
    suspected: Notify,
}

impl Database {
    /// Connects lazily, with at most `connections` at once.
    #[must_use]
    pub fn new(url: DatabaseUrl, connections: u32, readiness: Readiness) -> Arc<Self> {
        let pool = url.pool_with(connections, SET_UP);
        let (up, _) = watch::channel(false);
        Arc::new(Self {
            url,
            pool,
            refusals: Refusals::new(readiness.clone()),
            readiness,
            up,
            suspected: Notify::new(),
        })
    }

    /// The connections.
    #[must_use]
    pub fn pool(&self) -> &MySqlPool {
        &self.pool
    }

    /// What is not recorded, while the rest works.
    #[must_use]
    pub fn refusals(&self) -> &Refusals {
        &self.refusals
    }

    /// Is the database up, as far as anybody knows?
    #[must_use]
    pub fn is_up(&self) -> bool {
        *self.up.borrow()
    }

    /// Waits until the database is up.
    pub async fn up(&self) {
        // The sender lives in `self`, so the channel can't be closed here.
        let _closed = self.up.subscribe().wait_for(|up| *up).await.is_err();
    }

    /// Waits until the database is known to be down.
    pub async fn down(&self) {
        let _closed = self.up.subscribe().wait_for(|up| !up).await.is_err();
    }

    /// Reports that a statement failed. Faults of its values, and locks, are not the database's.
    pub fn suspect(&self, err: &sqlx::Error) {
        match classify(err) {
            Fault::Busy | Fault::Data => {}
            // A server that answers may do all else: the look says whether it can be worked with.
            _ if is_answer(err) => self.suspected.notify_one(),
            _ => {
                self.mark_down(&err.to_string());
                self.suspected.notify_one();
            }
        }
    }

    /// Reports that a statement did not come back in time.
    pub fn suspect_silent(&self) {
        self.mark_down("no answer in time");
        self.suspected.notify_one();
    }

    /// Looks at the database until `stop`. Wrong configuration and tables of another program end it
    /// only before the database is up for the first time.
    ///
    /// # Errors
    /// [`svc_kit::boot::ConfigError`].
    pub async fn watch(self: Arc<Self>, stop: CancellationToken) -> anyhow::Result<()> {
        svc_kit::database::first_contact(&self.url, &stop).await?;
        let sets = crate::migrations();
        let waits = |why: &str| self.readiness.set(CONDITION, false, why);
        svc_kit::migrate::until_own(&self.url, &sets, &TABLES, &stop, waits).await?;
        let mut backoff = Backoff::new(BACKOFF_MIN, BACKOFF_MAX);
        while !stop.is_cancelled() {
            let pause = if self.look().await {
                backoff.reset();
                PROBE_EVERY
            } else {
                backoff.next()
            };
            tokio::select! {
                () = stop.cancelled() => {}
                () = self.suspected.notified() => {}
                () = tokio::time::sleep(pause) => {}
            }
        }
        Ok(())
    }

    /// Looks whether the server answers, takes writes and has the inbox.
    pub(crate) async fn look(&self) -> bool {
        match look(&self.pool, &["inbox"], "pay-svc").await {
            Ok(()) => {
                if !self.up.send_replace(true) {
                    tracing::info!(database = %self.url, "database is up");
                }
                self.readiness.set(CONDITION, true, "connected");
            }
            Err(why) => self.mark_down(&why),
        }
        self.is_up()
    }

    fn mark_down(&self, why: &str) {
        if self.up.send_replace(false) {
            tracing::warn!(database = %self.url, error = why, "database can't be worked with");
        }
        self.readiness.set(CONDITION, false, why);
    }
}

/// Keeps a connection to a read-only server from being used again: the next one resolves the name
/// anew and finds the server that took over.
pub(crate) fn retire_if_read_only(connection: &mut PoolConnection<MySql>, err: &sqlx::Error) {
    if matches!(classify(err), Fault::ReadOnly) {
        connection.close_on_drop();
    }
}
