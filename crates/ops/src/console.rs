//! What all doors lead to: one table, a small pool of connections, and who may do what.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use sqlx::MySqlPool;
use sqlx::pool::PoolConnection;
use svc_kit::database::{DatabaseUrl, Fault, at_login, classify};
use svc_kit::operators::Tokens;
use svc_kit::tasks;

use crate::error::Error;
use crate::statement::Index;
use crate::table::Table;

/// Connections of a console, at most: two people at work, and a bulk that is being put together.
const CONNECTIONS: u32 = 4;
/// A unit of work that takes longer is answered without its outcome.
const TIMEOUT: Duration = Duration::from_secs(15);
/// Tries of a write that meets a deadlock or a lock somebody holds.
const TRIES: u32 = 5;

/// The setting of a console that a service takes beside its tokens.
#[derive(Clone, Copy, Debug, clap::Args)]
pub struct ConsoleArgs {
    /// Let operators write a new message from a parked one (needs INSERT on the table)
    #[arg(long, env = "OPS_ALLOW_EDIT")]
    pub ops_allow_edit: bool,
}

/// What a console needs to know beside its table.
#[derive(Clone, Debug, Default)]
pub struct Settings {
    /// Who may look and who may act, over HTTP.
    pub tokens: Tokens,
    /// Edit-and-retry is on.
    pub allow_edit: bool,
    /// Longest time for which a worker claims a row by moving its `next_attempt_at` ahead; zero where
    /// nobody does so. A row that is due sooner may be in somebody's hands.
    pub lease: Duration,
}

/// The operators' core over one table. Cheap to clone.
///
/// Its methods run their work in tasks of their own: a caller that goes away leaves nothing half done.
#[derive(Clone, Debug)]
pub struct Console(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    table: Table,
    url: DatabaseUrl,
    settings: Settings,
    // Made at first use: a pool belongs to the runtime it is made on, which is the admin
    // listener's.
    pool: OnceLock<MySqlPool>,
    index: tokio::sync::OnceCell<Index>,
}

/// A connection of the console's.
pub(crate) type Connection = PoolConnection<sqlx::MySql>;

impl Console {
    /// Connects at first use.
    #[must_use]
    pub fn new(table: Table, url: DatabaseUrl, settings: Settings) -> Self {
        Self(Arc::new(Inner {
            table,
            url,
            settings,
            pool: OnceLock::new(),
            index: tokio::sync::OnceCell::new(),
        }))
    }

    /// Which table it is about.
    #[must_use]
    pub fn table(&self) -> &Table {
        &self.0.table
    }

    /// Who may look and who may act.
    #[must_use]
    pub fn tokens(&self) -> &Tokens {
        &self.0.settings.tokens
    }

    /// Is edit-and-retry on?
    #[must_use]
    pub fn allows_edit(&self) -> bool {
        self.0.settings.allow_edit
    }

    pub(crate) fn lease(&self) -> Duration {
        self.0.settings.lease
    }

    fn pool(&self) -> &MySqlPool {
        let connect = || self.0.url.pool(CONNECTIONS);
        self.0.pool.get_or_init(connect)
    }

    /// The index that lists are read by.
    pub(crate) async fn index(&self, connection: &mut Connection) -> Result<Index, sqlx::Error> {
        let found = self
            .0
            .index
            .get_or_try_init(|| Index::discover(connection, &self.0.table));
        found.await.cloned()
    }

    pub(crate) async fn connection(&self) -> Result<Connection, sqlx::Error> {
        self.pool().acquire().await.map_err(at_login)
    }
}

/// Runs a unit of work in a task of its own, within a time.
pub(crate) async fn unit<T: Send + 'static>(
    work: impl Future<Output = Result<T, Error>> + Send + 'static,
) -> Result<T, Error> {
    match tokio::time::timeout(TIMEOUT, tasks::unit(work)).await {
        Ok(Ok(outcome)) => outcome,
        Ok(Err(err)) => {
            tracing::error!(error = %err, "work of the console panicked");
            Err(Error::Panicked)
        }
        Err(_elapsed) => {
            tracing::warn!(timeout = ?TIMEOUT, "database did not answer the console in time");
            Err(Error::Silent)
        }
    }
}

/// Tries again what the database broke off because others were in the way.
pub(crate) async fn again<T, F: Future<Output = Result<T, Error>>>(
    mut work: impl FnMut() -> F,
) -> Result<T, Error> {
    for _ in 1..TRIES {
        match work().await {
            Err(Error::Database(err)) if matches!(classify(&err), Fault::Busy) => {
                tracing::debug!(error = %err, "rows are busy, trying again");
            }
            outcome => return outcome,
        }
    }
    work().await
}
