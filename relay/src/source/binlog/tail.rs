//! The open end of the binlog stream.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow};
use futures::StreamExt;
use svc_kit::tasks::Tasks;
use tokio::sync::{Semaphore, mpsc, watch};
use tokio::task::JoinHandle;

use crate::config::OutboxTable;
use crate::leadership::server_identity::{self, OtherServer, ServerId, WAIT_TIMEOUT_S};
use crate::source::binlog::library::Reader;
use crate::source::binlog::position::Position;
use crate::source::binlog::reader_task::{self, Arrival, GROUPS_MAX, Outlet};
use crate::source::binlog::row_decoder::Columns;
use crate::source::binlog::transaction::Grouper;

/// For connecting, reading the table's shape and the first event.
const OPEN_TIMEOUT: Duration = Duration::from_secs(20);

/// An open binlog stream.
pub struct Tail {
    pub(crate) groups: mpsc::Receiver<Arrival>,
    pub(crate) position: watch::Receiver<Position>,
    task: Tasks,
    /// While it waits for a position: groups that were read before it and are not taken yet.
    pub(crate) ahead: Option<usize>,
    pub(crate) opened: Instant,
}

/// The binlog stream, or what there is instead.
pub enum TailState {
    /// None: before the catch-up is over, and in poll mode.
    Closed,
    /// Being connected.
    Opening(JoinHandle<anyhow::Result<Tail>>),
    /// Delivering.
    Open(Tail),
}

impl TailState {
    pub(crate) fn is_closed(&self) -> bool {
        matches!(self, Self::Closed)
    }

    pub(crate) fn is_open(&self) -> bool {
        matches!(self, Self::Open(_))
    }

    /// The three things to listen to, apart, so that one `select!` can.
    pub(crate) fn ears(&mut self) -> (Opening<'_>, Groups<'_>, Moves<'_>) {
        match self {
            Self::Closed => (Opening(None), Groups(None), Moves(None)),
            Self::Opening(task) => (Opening(Some(task)), Groups(None), Moves(None)),
            Self::Open(Tail {
                groups,
                task,
                position,
                ..
            }) => (
                Opening(None),
                Groups(Some((groups, task))),
                Moves(Some(position)),
            ),
        }
    }

    pub(crate) fn try_arrival(&mut self) -> Option<Arrival> {
        match self {
            Self::Open(tail) => tail.groups.try_recv().ok(),
            Self::Closed | Self::Opening(_) => None,
        }
    }
}

/// A stream being opened.
pub(crate) struct Opening<'a>(Option<&'a mut JoinHandle<anyhow::Result<Tail>>>);
/// Groups of an open stream.
pub(crate) struct Groups<'a>(Option<(&'a mut mpsc::Receiver<Arrival>, &'a mut Tasks)>);
/// Positions of an open stream.
pub(crate) struct Moves<'a>(Option<&'a mut watch::Receiver<Position>>);

impl Opening<'_> {
    /// The stream, or why there is none.
    pub(crate) async fn done(self) -> anyhow::Result<Tail> {
        match self.0 {
            Some(task) => task.await.context("opening the binlog stream")?,
            None => std::future::pending().await,
        }
    }
}

impl Groups<'_> {
    /// The next group, or why there will be none. Cancel-safe.
    pub(crate) async fn next(self) -> Result<Arrival, String> {
        let Some((groups, task)) = self.0 else {
            return std::future::pending().await;
        };
        if let Some(arrival) = groups.recv().await {
            return Ok(arrival);
        }
        let why = task.join_next().await.and_then(|ended| ended.outcome.err());
        Err(why.map_or_else(|| "it was stopped".to_owned(), |err| err.to_string()))
    }
}

impl Moves<'_> {
    /// The stream has read on.
    pub(crate) async fn next(self) {
        if let Some(position) = self.0
            && position.changed().await.is_ok()
        {
            return;
        }
        std::future::pending::<()>().await;
    }
}

impl Tail {
    /// Has everything up to `wanted` been taken? The position alone does not say it: groups that
    /// were read before may still be between the stream and the machine.
    pub(crate) fn has_passed(&mut self, wanted: &Position) -> bool {
        if self.ahead.is_none() && *self.position.borrow_and_update() >= *wanted {
            self.ahead = Some(self.groups.len());
        }
        self.ahead == Some(0)
    }
}

/// Whose binlog is to be read, and how.
pub(crate) struct BinlogOf {
    pub(crate) table: OutboxTable,
    pub(crate) reader: Reader,
    pub(crate) server: ServerId,
}

/// Connects, learns the table's shape and starts to read from `from`.
///
/// # Errors
/// The server refuses, the position is gone, or there is no answer within [`OPEN_TIMEOUT`].
pub(crate) async fn open(
    binlog: BinlogOf,
    from: Position,
    bytes_max: usize,
) -> anyhow::Result<Tail> {
    let opening = connect_and_start(binlog, from, bytes_max);
    tokio::time::timeout(OPEN_TIMEOUT, opening)
        .await
        .context("no answer in time")?
}

async fn connect_and_start(
    BinlogOf {
        table,
        reader,
        server,
    }: BinlogOf,
    from: Position,
    bytes_max: usize,
) -> anyhow::Result<Tail> {
    let (mut connection, found) = server_identity::connect(&table.url, WAIT_TIMEOUT_S).await?;
    found.must_be(&server, "table's shape")?;
    let (schema, name, columns) = shape(&mut connection, &table.name).await?;
    drop(connection);
    let mut reading = reader.open(&table.url, &from, Some(&server)).await?;
    let (groups_in, groups) = mpsc::channel(GROUPS_MAX);
    let (position_in, position) = watch::channel(from.clone());
    let outlet = Outlet {
        groups: groups_in,
        position: position_in,
        budget: Arc::new(Semaphore::new(bytes_max.min(Semaphore::MAX_PERMITS))),
    };
    let names = (schema.as_str(), name.as_str());
    let mut grouper = Grouper::new(names, columns, reading.library, bytes_max, from);
    // A missing right or a purged position shows with the first event, which comes at once: it only
    // repeats the file's name.
    let first = reading.events.next().await;
    let first = first.context("the server ended the stream")?;
    grouper.feed(&first.context("reading the binlog")?);
    let mut task = Tasks::new();
    task.spawn("binlog", reader_task::run(reading.events, grouper, outlet));
    Ok(Tail {
        groups,
        position,
        task,
        ahead: None,
        opened: Instant::now(),
    })
}

/// Did the database's name lead to another server than the session's?
pub(crate) fn is_elsewhere(err: &anyhow::Error) -> bool {
    err.chain().any(|cause| {
        let boxed = match cause.downcast_ref::<mysql_async::Error>() {
            Some(mysql_async::Error::Other(err)) => err.is::<OtherServer>(),
            _ => false,
        };
        boxed || cause.is::<OtherServer>()
    })
}

/// The names as the binlog spells them, and where its row images have which column.
async fn shape(
    connection: &mut sqlx::MySqlConnection,
    table: &str,
) -> anyhow::Result<(String, String, Columns)> {
    let columns: Vec<(String, String, String, String)> = sqlx::query_as(
        "SELECT CAST(TABLE_SCHEMA AS CHAR), CAST(TABLE_NAME AS CHAR), CAST(COLUMN_NAME AS CHAR), \
         CAST(COLUMN_TYPE AS CHAR) FROM information_schema.COLUMNS \
         WHERE TABLE_SCHEMA = DATABASE() AND TABLE_NAME = ? ORDER BY ORDINAL_POSITION",
    )
    .bind(table)
    .fetch_all(connection)
    .await?;
    let (schema, name, ..) = columns
        .first()
        .ok_or_else(|| anyhow!("no table {table}"))?
        .clone();
    let (names, types): (Vec<_>, Vec<_>) = columns
        .into_iter()
        .map(|(_, _, name, column_type)| (name, column_type))
        .unzip();
    let columns = Columns::locate(&names).map_err(|problem| anyhow!(problem))?;
    Ok((schema, name, columns.with_types(&types)))
}
