//! Coalesced commits: orders that come at once share a transaction.
//!
//! A request waits in a bounded queue. A committer that becomes free takes what is there, up to
//! [`Bounds`], and never waits for more: alone, an order is committed at once; under load, the longer
//! a commit takes, the more orders the next one carries. Each answer is sent after its own commit.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use sqlx::mysql::MySqlConnection;
use sqlx::{Connection as _, Executor as _};
use svc_kit::backoff::Backoff;
use svc_kit::database::{DatabaseUrl, Fault, classify};
use tokio::sync::{Mutex, mpsc, oneshot};
use tokio::time::Instant;

use crate::batch::{self, Bounds, Group, Placed, Wanted};
use crate::metrics::Metrics;
use crate::place::{self, PlaceError};

/// Deadlocks in a row after which the database counts as overloaded.
const BUSY_MAX: u32 = 6;
const BUSY_BACKOFF_MIN: Duration = Duration::from_millis(2);
const BUSY_BACKOFF_MAX: Duration = Duration::from_millis(100);

/// A key whose holder neither commits nor goes away holds up a batch for a second instead of the
/// server's fifty; its neighbours are then placed without it.
const SET_UP: &str = "SET SESSION innodb_lock_wait_timeout = 1";

/// How orders are gathered and committed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Settings {
    /// Transactions at once, each on a connection of its own.
    pub committers: usize,
    /// What one transaction takes.
    pub bounds: Bounds,
    /// Orders that wait for a committer, at most.
    pub queue: usize,
    /// How long a request waits for its order.
    pub timeout: Duration,
}

/// Why an order was not placed, as far as is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NotPlaced {
    /// The queue is full; nothing was begun.
    #[error("too many orders are waiting")]
    Overloaded,
    /// The database can't be used, or gave no answer in time. When its connection was lost at the
    /// commit, the order may have been placed.
    #[error("the database can't be used")]
    Unavailable,
    /// The database answers, and the table of idempotency keys can't be used.
    #[error("idempotency keys can't be taken")]
    NoKeys,
    /// The database refuses this order, or the event can't be a row.
    #[error("the order was refused")]
    Refused,
}

/// Where orders are handed in.
#[derive(Debug, Clone)]
pub struct Orders {
    queue: mpsc::Sender<Waiting>,
    timeout: Duration,
    metrics: Metrics,
}

/// An order, and whoever waits for it.
#[derive(Debug)]
struct Waiting {
    wanted: Wanted,
    answer: oneshot::Sender<Result<Placed, NotPlaced>>,
    deadline: Instant,
}

/// Takes orders from the queue and commits them. It ends when the last [`Orders`] is gone and the
/// queue is empty.
#[derive(Debug)]
pub struct Committer {
    queue: Arc<Mutex<mpsc::Receiver<Waiting>>>,
    bounds: Bounds,
    url: DatabaseUrl,
    /// `None` before the first batch and after a failure.
    connection: Option<MySqlConnection>,
    timeout: Duration,
    metrics: Metrics,
}

/// The queue's one end, and as many of the other as are set.
#[must_use]
pub fn open(settings: Settings, url: &DatabaseUrl, metrics: &Metrics) -> (Orders, Vec<Committer>) {
    let (queue, taken) = mpsc::channel(settings.queue);
    let taken = Arc::new(Mutex::new(taken));
    let committers = (0..settings.committers).map(|_| Committer {
        queue: Arc::clone(&taken),
        bounds: settings.bounds,
        url: url.clone(),
        connection: None,
        timeout: settings.timeout,
        metrics: metrics.clone(),
    });
    let orders = Orders {
        queue,
        timeout: settings.timeout,
        metrics: metrics.clone(),
    };
    (orders, committers.collect())
}

impl Orders {
    /// Hands an order in and waits for its outcome. It is placed or not, as a whole, whether or not
    /// anybody still waits.
    ///
    /// # Errors
    /// [`NotPlaced`].
    pub async fn place(&self, wanted: Wanted) -> Result<Placed, NotPlaced> {
        let (answer, outcome) = oneshot::channel();
        let deadline = Instant::now() + self.timeout;
        let waiting = Waiting {
            wanted,
            answer,
            deadline,
        };
        // Counted before it can be taken: the gauge never goes below zero.
        self.metrics.queued.inc();
        if self.queue.try_send(waiting).is_err() {
            self.metrics.queued.dec();
            return Err(NotPlaced::Overloaded);
        }
        match tokio::time::timeout_at(deadline, outcome).await {
            Ok(Ok(outcome)) => outcome,
            // The committer found it too late to begin, or is gone.
            Ok(Err(_)) => Err(NotPlaced::Unavailable),
            Err(_elapsed) => {
                tracing::warn!(timeout = ?self.timeout, "order was not placed in time");
                Err(NotPlaced::Unavailable)
            }
        }
    }
}

impl Waiting {
    fn answer(self, outcome: Result<Placed, NotPlaced>) {
        // A client that has gone away gets no answer.
        drop(self.answer.send(outcome));
    }
}

impl Committer {
    /// Commits what comes, to the end of the queue.
    ///
    /// # Errors
    /// None; the form is that of a task.
    pub async fn run(mut self) -> anyhow::Result<()> {
        while let Some(batch) = self.next_batch().await {
            self.serve(batch).await;
        }
        Ok(())
    }

    /// What is in the queue, at least one; `None` when nothing will be any more.
    async fn next_batch(&self) -> Option<Vec<Waiting>> {
        let mut queue = self.queue.lock().await;
        let mut next = queue.recv().await;
        let mut batch = Vec::new();
        let mut bytes = 0;
        while let Some(waiting) = next {
            bytes += waiting.wanted.bytes();
            batch.push(waiting);
            next = if self.bounds.have_room(batch.len(), bytes) {
                queue.try_recv().ok()
            } else {
                None
            };
        }
        drop(queue);
        self.metrics
            .queued
            .sub(i64::try_from(batch.len()).unwrap_or(i64::MAX));
        (!batch.is_empty()).then_some(batch)
    }

    async fn serve(&mut self, batch: Vec<Waiting>) {
        let mut groups = batch::group(in_time(batch), |waiting| waiting.wanted.key.as_ref());
        while groups.len() > 1 {
            let firsts: Vec<&Wanted> = groups.iter().map(|group| &group.first.wanted).collect();
            match self.commit(&firsts).await {
                Ok(placed) => {
                    let answered = groups.into_iter().zip(placed);
                    groups = answered
                        .filter_map(|(group, placed)| group.answer(placed))
                        .collect();
                    break;
                }
                Err(err @ PlaceError::Keys(_)) => {
                    let keyed: Vec<_>;
                    (keyed, groups) = groups
                        .into_iter()
                        .partition(|group| group.first.wanted.key.is_some());
                    fail(keyed, not_placed(&err));
                }
                Err(err) if err.may_be_one_orders() => {
                    tracing::info!(error = %err, orders = groups.len(), "placing orders one by one");
                    break;
                }
                Err(err) => return fail(groups, not_placed(&err)),
            }
        }
        self.serve_one_by_one(groups.into()).await;
    }

    /// One order a transaction: each fails for itself alone.
    async fn serve_one_by_one(&mut self, mut groups: VecDeque<Group<Waiting>>) {
        while let Some(group) = groups.pop_front() {
            if group.first.deadline <= Instant::now() {
                groups.extend(group.without_first());
                continue;
            }
            match self.commit(&[&group.first.wanted]).await {
                Ok(placed) => {
                    let placed = placed.into_iter().next();
                    groups.extend(placed.and_then(|placed| group.answer(placed)));
                }
                Err(err) => {
                    let reason = not_placed(&err);
                    if matches!(err, PlaceError::Keys(_)) {
                        fail([group], reason);
                        continue;
                    }
                    if !err.may_be_one_orders() {
                        groups.push_front(group);
                        return fail(groups, reason);
                    }
                    if err.is_lock_wait() {
                        fail([group], reason);
                        continue;
                    }
                    let Group { first, later } = group;
                    first.answer(Err(reason));
                    groups.extend(Group::of(later));
                }
            }
        }
    }

    /// Commits these orders together, again while the database only says that others are in the way.
    /// No two have one key.
    async fn commit(&mut self, wanted: &[&Wanted]) -> Result<Vec<Placed>, PlaceError> {
        let mut backoff = Backoff::new(BUSY_BACKOFF_MIN, BUSY_BACKOFF_MAX);
        let mut tries = 1;
        loop {
            let attempt = tokio::time::timeout(self.timeout, self.attempt(wanted)).await;
            // The connection of an attempt that was dropped is gone with it.
            let outcome = attempt.unwrap_or_else(|elapsed| Err(timed_out(elapsed)));
            match outcome {
                Ok(placed) => {
                    self.count(&placed);
                    return Ok(placed);
                }
                Err(err) if tries < BUSY_MAX && err.is_deadlock() => {
                    tracing::debug!(error = %err, "orders are busy, trying again");
                    tries += 1;
                    tokio::time::sleep(backoff.next()).await;
                }
                Err(err) => return Err(err),
            }
        }
    }

    async fn attempt(&mut self, wanted: &[&Wanted]) -> Result<Vec<Placed>, PlaceError> {
        let idle = self.connection.take();
        let reused = idle.is_some();
        let mut connection = match idle {
            Some(connection) => connection,
            None => self.connect().await?,
        };
        let mut step = transact(&mut connection, wanted).await;
        if reused && matches!(&step, Step::NotBegun(err) if classify(err) == Fault::Unavailable) {
            // The server dropped it while it was idle, or was restarted; nothing was written.
            connection = self.connect().await?;
            step = transact(&mut connection, wanted).await;
        }
        match step {
            Step::Committed(placed) => {
                self.connection = Some(connection);
                Ok(placed)
            }
            Step::RolledBack(err) => {
                self.connection = Some(connection);
                Err(err)
            }
            Step::NotBegun(err) => Err(err.into()),
            Step::Broken(err) => Err(err),
        }
    }

    async fn connect(&self) -> Result<MySqlConnection, sqlx::Error> {
        let mut connection = self.url.connect().await?;
        connection.execute(SET_UP).await?;
        Ok(connection)
    }

    fn count(&self, placed: &[Placed]) {
        let new = placed
            .iter()
            .filter(|placed| matches!(placed, Placed::New(_)));
        let new = u32::try_from(new.count()).unwrap_or(u32::MAX);
        self.metrics.orders_placed.inc_by(new.into());
        self.metrics.batch_orders.observe(new.into());
    }
}

/// How a transaction ended.
enum Step {
    Committed(Vec<Placed>),
    /// BEGIN failed: nothing was written.
    NotBegun(sqlx::Error),
    /// Nothing was written, and the connection can be used again.
    RolledBack(PlaceError),
    /// The connection can't be used any more; if it was lost at the commit, the outcome is unknown.
    Broken(PlaceError),
}

async fn transact(connection: &mut MySqlConnection, wanted: &[&Wanted]) -> Step {
    let mut tx = match connection.begin().await {
        Ok(tx) => tx,
        Err(err) => return Step::NotBegun(err),
    };
    let err = match place::write(&mut tx, wanted).await {
        Ok(placed) => {
            return match tx.commit().await {
                Ok(()) => Step::Committed(placed),
                // A cluster that rolls back at the commit says so; of any other failure nobody knows.
                Err(err) if classify(&err) == Fault::Busy => Step::Broken(err.into()),
                Err(err) => Step::Broken(PlaceError::Unknown(err)),
            };
        }
        Err(err) => err,
    };
    // Not left to the destructor: that one says it with the next statement, and until then the keys
    // would stay locked.
    match tx.rollback().await {
        Ok(()) if !err.must_reconnect() => Step::RolledBack(err),
        Ok(()) | Err(_) => Step::Broken(err),
    }
}

impl Group<Waiting> {
    /// Answers the first and whoever its outcome answers too; gives the others.
    fn answer(self, placed: Placed) -> Option<Self> {
        let Self { first, later } = self;
        let mut open = Vec::new();
        for one in later {
            match batch::from_first(&first.wanted, &placed, &one.wanted) {
                Some(placed) => one.answer(Ok(placed)),
                None => open.push(one),
            }
        }
        first.answer(Ok(placed));
        Self::of(open)
    }
}

/// Without those whose clients have been informed that there is no answer: they may try again.
fn in_time(mut batch: Vec<Waiting>) -> Vec<Waiting> {
    let now = Instant::now();
    batch.retain(|waiting| waiting.deadline > now);
    batch
}

fn fail(groups: impl IntoIterator<Item = Group<Waiting>>, reason: NotPlaced) {
    for Group { first, later } in groups {
        for waiting in std::iter::once(first).chain(later) {
            waiting.answer(Err(reason));
        }
    }
}

fn timed_out(elapsed: tokio::time::error::Elapsed) -> PlaceError {
    let err = std::io::Error::new(std::io::ErrorKind::TimedOut, elapsed);
    PlaceError::Database(sqlx::Error::Io(err))
}

/// What the clients get, and the log.
fn not_placed(err: &PlaceError) -> NotPlaced {
    match err {
        PlaceError::Event(err) => {
            tracing::error!(error = %err, "event can't be written");
            NotPlaced::Refused
        }
        PlaceError::Database(source) if err.is_refusal() => {
            tracing::error!(error = %source, "database refused an order");
            NotPlaced::Refused
        }
        PlaceError::Database(err) => {
            tracing::warn!(error = %err, "database can't be used");
            NotPlaced::Unavailable
        }
        PlaceError::Keys(err) => {
            tracing::warn!(error = %err, "idempotency keys can't be taken, orders without one are placed");
            NotPlaced::NoKeys
        }
        PlaceError::Unknown(err) => {
            tracing::warn!(error = %err, "whether orders were committed is not known");
            NotPlaced::Unavailable
        }
    }
}
