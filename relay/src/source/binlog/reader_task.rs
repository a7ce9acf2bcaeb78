//! The task that reads the binlog, and the session's handle to it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow};
use futures::StreamExt;
use mysql_async::binlog::EventType;
use mysql_async::binlog::events::Event;
use svc_kit::tasks::{TaskError, Tasks};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot, watch};

use super::Events;
use super::commit_clock::{Arrived, CommitClock, Committed};
use super::connection::{self, HEARTBEAT, NoAnswer};
use super::library::Reader;
use super::row_decoder::Columns;
use super::transaction::{Change, Decoder, Doubt, IDS_MAX};
use crate::engine::position::Position;
use crate::engine::{self, BinlogEnd};
use crate::leadership::server_clock::Clock;
use crate::leadership::server_identity::{self, OtherServer, ServerId, WAIT_TIMEOUT_S};
use crate::outbox_table::OutboxTable;

/// For connecting, reading the table's shape and the first event.
const OPEN_TIMEOUT: Duration = Duration::from_secs(20);
/// Without a heartbeat for this long the stream is dead: there is no read time-out below.
const SILENCE_MAX: Duration = HEARTBEAT.saturating_mul(3);
/// Changes between the task and the session.
const CHANGES_MAX: usize = 1024;
/// Ids in these changes.
const IDS_AHEAD_MAX: usize = 2 * IDS_MAX;
/// `HEARTBEAT_LOG_EVENT_V2` of MySQL, which mysql_common has no name for.
const HEARTBEAT_V2: u8 = 41;

/// Whose binlog is to be read, and how.
#[derive(Clone, Debug)]
pub struct BinlogOf {
    /// The outbox.
    pub table: OutboxTable,
    /// The library.
    pub reader: Reader,
    /// Where the lock is: the position of another server means nothing.
    pub server: ServerId,
}

/// A binlog stream that is open or being opened. Dropped, it is closed.
pub struct BinlogStream {
    opened: Option<oneshot::Receiver<()>>,
    changes: mpsc::Receiver<Message>,
    position: watch::Receiver<Position>,
    task: Tasks,
    commits: CommitClock,
    /// A position that was read, and the changes before it that have not been taken.
    ahead: Option<(Position, usize)>,
}

/// What a stream reports.
#[derive(Debug)]
pub enum BinlogNews {
    /// It is open.
    Opened,
    /// A transaction has added rows.
    Committed(Added),
    /// The ids of added rows are not known.
    Doubt(Doubt),
    /// [`BinlogStream::position`] may be further.
    Moved,
}

/// Why there is no stream any more.
#[derive(Debug)]
pub enum BinlogGone {
    /// The database's name leads to another server than the lock's.
    Elsewhere(String),
    /// Anything else.
    Ended(BinlogEnd),
}

/// Rows that a transaction has added.
#[derive(Debug)]
pub struct Added {
    ids: Vec<u64>,
    committed: Committed,
    arrived: Arrived,
}

/// What the task sends, with the share of [`IDS_AHEAD_MAX`] that it holds until it is taken.
struct Message {
    news: BinlogNews,
    _share: Option<OwnedSemaphorePermit>,
}

impl BinlogStream {
    /// Starts to open a stream at `from`.
    pub fn open(binlog: BinlogOf, from: Position) -> Self {
        let (opened_in, opened) = oneshot::channel();
        let (changes_in, changes) = mpsc::channel(CHANGES_MAX);
        let (position_in, position) = watch::channel(from.clone());
        let outlet = Outlet {
            opened: Some(opened_in),
            changes: changes_in,
            position: position_in,
            budget: Arc::new(Semaphore::new(IDS_AHEAD_MAX)),
        };
        let mut task = Tasks::new();
        task.spawn("binlog", run(binlog, from, outlet));
        Self {
            opened: Some(opened),
            changes,
            position,
            task,
            commits: CommitClock::default(),
            ahead: None,
        }
    }

    /// The next news. Changes are taken only if `takes`, and [`BinlogNews::Moved`] comes only if `moves`.
    /// Cancel-safe.
    ///
    /// # Errors
    /// The stream can't be opened, or has ended. Seen only if `takes`, once it was open.
    pub async fn next(&mut self, takes: bool, moves: bool) -> Result<BinlogNews, BinlogGone> {
        if let Some(opened) = &mut self.opened {
            let is_open = opened.await.is_ok();
            self.opened = None;
            if is_open {
                return Ok(BinlogNews::Opened);
            }
            return Err(self.why_gone().await);
        }
        tokio::select! {
            biased;
            message = self.changes.recv(), if takes => match message {
                Some(message) => Ok(self.taken(message)),
                None => Err(self.why_gone().await),
            },
            Ok(()) = self.position.changed(), if moves => Ok(BinlogNews::Moved),
            else => std::future::pending().await,
        }
    }

    /// A change that is there already.
    pub fn try_next(&mut self) -> Option<BinlogNews> {
        let message = self.changes.try_recv().ok()?;
        Some(self.taken(message))
    }

    /// A position up to which every change has been taken by [`Self::next`] or [`Self::try_next`]; `None`
    /// while some have to be taken first.
    pub fn position(&mut self) -> Option<Position> {
        // The task publishes a position after it has put in what comes before.
        let now = self.position.borrow_and_update().clone();
        let waiting = self.changes.len();
        if waiting == 0 {
            self.ahead = None;
            return Some(now);
        }
        match self.ahead.take_if(|(_, left)| *left == 0) {
            Some((passed, _)) => {
                self.ahead = Some((now, waiting));
                Some(passed)
            }
            None => {
                self.ahead.get_or_insert((now, waiting));
                None
            }
        }
    }

    /// A transaction as the engine gets it. To be called in the order of the stream.
    pub fn transaction(&mut self, added: Added, clock: Option<Clock>) -> engine::Transaction {
        let Added {
            ids,
            committed,
            arrived,
        } = added;
        let committed = self.commits.instant_of(committed, arrived, clock);
        engine::Transaction { ids, committed }
    }

    fn taken(&mut self, message: Message) -> BinlogNews {
        if let Some((_, left)) = &mut self.ahead {
            *left = left.saturating_sub(1);
        }
        message.news
    }

    async fn why_gone(&mut self) -> BinlogGone {
        let ended = self.task.join_next().await;
        let err = match ended.map(|ended| ended.outcome) {
            Some(Err(TaskError::Failed(err))) => err,
            Some(Err(err)) => anyhow!(err),
            Some(Ok(())) | None => anyhow!("it was stopped"),
        };
        let why = format!("{err:#}");
        match is_elsewhere(&err) {
            true => BinlogGone::Elsewhere(why),
            false => BinlogGone::Ended(BinlogEnd {
                why,
                timed_out: is_timed_out(&err),
            }),
        }
    }
}

fn is_elsewhere(err: &anyhow::Error) -> bool {
    has::<OtherServer>(err)
}

fn is_timed_out(err: &anyhow::Error) -> bool {
    has::<NoAnswer>(err)
}

/// Is an error of this type among the causes? mysql_async keeps those of others in a box.
fn has<T: std::error::Error + 'static>(err: &anyhow::Error) -> bool {
    err.chain().any(|cause| {
        let boxed = match cause.downcast_ref::<mysql_async::Error>() {
            Some(mysql_async::Error::Other(err)) => err.is::<T>(),
            _ => false,
        };
        boxed || cause.is::<T>()
    })
}

/// Where the task sends what it has read.
struct Outlet {
    opened: Option<oneshot::Sender<()>>,
    /// The changes of the outbox, in commit order.
    changes: mpsc::Sender<Message>,
    /// Everything up to here has been read, and what concerned the outbox is in `changes` already.
    position: watch::Sender<Position>,
    /// Ids that may be in `changes`.
    budget: Arc<Semaphore>,
}

async fn run(binlog: BinlogOf, from: Position, mut outlet: Outlet) -> anyhow::Result<()> {
    let opening = tokio::time::timeout(OPEN_TIMEOUT, open(binlog, from));
    let (mut events, mut decoder) = opening.await.map_err(|_| NoAnswer("not open in 20 s"))??;
    if let Some(opened) = outlet.opened.take() {
        opened.send(()).ok();
    }
    let mut idle_at = None;
    loop {
        let event = match next(&mut events, &mut idle_at).await {
            Err(err) if connection::is_too_large(&err) => {
                let doubt = Doubt::TooLarge("an event over 36 MiB");
                outlet.send(BinlogNews::Doubt(doubt), 0).await?;
                return Err(err);
            }
            event => event?,
        };
        let before = decoder.position().clone();
        let (news, ids) = match decoder.feed(&event) {
            None => (None, 0),
            Some(Change::Doubt(doubt)) => (Some(BinlogNews::Doubt(doubt)), 0),
            Some(Change::Added { ids, committed }) => {
                let count = ids.len();
                let arrived = Arrived {
                    at: Instant::now(),
                    idle_at,
                };
                let added = Added {
                    ids,
                    committed,
                    arrived,
                };
                (Some(BinlogNews::Committed(added)), count)
            }
        };
        drop(event);
        if let Some(news) = news {
            outlet.send(news, ids).await?;
        }
        if *decoder.position() != before {
            outlet.position.send_replace(decoder.position().clone());
        }
    }
}

async fn open(
    BinlogOf {
        table,
        reader,
        server,
    }: BinlogOf,
    from: Position,
) -> anyhow::Result<(Events, Decoder)> {
    let (mut connection, found) = server_identity::connect(&table.url, WAIT_TIMEOUT_S).await?;
    found.must_be(&server, "table's shape")?;
    let (schema, name, columns) = shape(&mut connection, &table.name).await?;
    drop(connection);
    let mut events = reader.open(&table.url, &from, Some(&server)).await?;
    let mut decoder = Decoder::new((schema.as_str(), name.as_str()), columns, from);
    // A missing right or a purged position shows with the first event, which comes at once: it only
    // repeats the file's name.
    let first = events.next().await;
    let first = first.context("the server ended the stream")?;
    decoder.feed(&first.context("reading the binlog")?);
    Ok((events, decoder))
}

/// The names as the binlog spells them, and where its row images have which column.
async fn shape(
    connection: &mut sqlx::MySqlConnection,
    table: &str,
) -> anyhow::Result<(String, String, Columns)> {
    let columns: Vec<(String, String, String)> = sqlx::query_as(
        "SELECT CAST(TABLE_SCHEMA AS CHAR), CAST(TABLE_NAME AS CHAR), CAST(COLUMN_NAME AS CHAR) \
         FROM information_schema.COLUMNS \
         WHERE TABLE_SCHEMA = DATABASE() AND TABLE_NAME = ? ORDER BY ORDINAL_POSITION",
    )
    .bind(table)
    .fetch_all(connection)
    .await?;
    let (schema, name, _) = columns
        .first()
        .ok_or_else(|| anyhow!("no table {table}"))?
        .clone();
    let names: Vec<String> = columns.into_iter().map(|(_, _, name)| name).collect();
    let columns = Columns::locate(&names).map_err(|problem| anyhow!(problem))?;
    Ok((schema, name, columns))
}

/// The next event. `idle_at` is when the server last had none.
async fn next(events: &mut Events, idle_at: &mut Option<Instant>) -> anyhow::Result<Event> {
    let began = Instant::now();
    let event = tokio::time::timeout(SILENCE_MAX, events.next())
        .await
        .map_err(|_| NoAnswer("no event and no heartbeat for 6 s"))?
        .context("the server ended the stream")?
        .context("reading the binlog")?;
    // A heartbeat that was waited for; others may have lain in a buffer for long.
    if is_heartbeat(&event) && began.elapsed() > HEARTBEAT / 2 {
        *idle_at = Some(Instant::now());
    }
    Ok(event)
}

/// The server sends one when it had nothing else to send for a while.
fn is_heartbeat(event: &Event) -> bool {
    let raw = event.header().event_type_raw();
    raw == EventType::HEARTBEAT_EVENT as u8 || raw == HEARTBEAT_V2
}

impl Outlet {
    /// Waits for room. Fails when the handle is gone.
    async fn send(&self, news: BinlogNews, ids: usize) -> anyhow::Result<()> {
        let share = match u32::try_from(ids)? {
            0 => None,
            ids => Some(Arc::clone(&self.budget).acquire_many_owned(ids).await?),
        };
        let message = Message {
            news,
            _share: share,
        };
        let sent = self.changes.send(message).await;
        sent.map_err(|_| anyhow!("the stream is closed"))
    }
}
