//! Reading the outbox table: the one task that serves passes.

use std::time::{Duration, Instant};

use outbox::row::{OutboxStatus, Row};
use sqlx::mysql::MySqlConnection;
use sqlx::{AssertSqlSafe, Executor, Row as _};
use svc_kit::backoff::Backoff;
use svc_kit::database::{Fault, classify};
use tokio::sync::mpsc;

use crate::config::OutboxTable;
use crate::dispatch::Head;
use crate::in_list::{padded, padded_len, placeholders};
use crate::pause::{Pauses, Watch};
use crate::source::binlog::position::{Position, position_statement};
use crate::writeback::marker_task::{ends_session, wait_little_for_locks};

mod columns;
use columns::row_of;

/// Most rows in a page of a pass.
pub const PAGE: usize = 1000;
/// Rows in the first page. To tell a payload's length the server reads all of it, so a page of large
/// ones may take a minute: pages grow while they are small.
const PAGE_MIN: usize = 64;
/// Payload bytes of a page: the next one may have twice as many rows while there are far less.
const PAGE_BYTES: usize = 64 << 20;
/// Well under any `wait_timeout` that a server is given.
pub const PING_EVERY: Duration = Duration::from_secs(15);
/// No read of the relay may hang for ever on a stalled server.
const READ_TIMEOUT: Duration = Duration::from_secs(30);
/// Between two tries to read what somebody has locked.
const BUSY_MIN: Duration = Duration::from_millis(50);
const BUSY_MAX: Duration = Duration::from_secs(1);

/// What a pass wants next.
#[derive(Debug)]
pub enum Ask {
    /// The heads of the next rows.
    Page(PageAsk),
    /// The whole rows with these ids, as far as they are still pending.
    Rows(Vec<u64>),
}

/// A page of the pending rows with `after < id <= upto`.
#[derive(Clone, Debug)]
pub struct PageAsk {
    /// Where the page before ended.
    pub after: u64,
    /// `None` begins a pass: see [`Page::start`].
    pub upto: Option<u64>,
    /// Begin with a fence: everything committed before it is visible afterwards.
    pub fence: bool,
    /// Read the binlog position too: before the fence and after the page.
    pub positions: bool,
    /// Bring the small rows whole: see [`Page::small`].
    pub small: bool,
}

/// The answer to an [`Ask`].
#[derive(Debug)]
pub enum Answer {
    /// To [`Ask::Page`].
    Page(Page),
    /// To [`Ask::Rows`], with each row's attempts.
    Rows(Vec<(Row, u32)>),
    /// To none yet: somebody holds a lock on the table, which is waited for.
    Locked(String),
    /// To nothing: an operator has paused or resumed something.
    Pauses(Pauses),
}

/// A page of a pass.
#[derive(Debug)]
pub struct Page {
    /// The rows, by id.
    pub heads: Vec<Head>,
    /// Those of them that are small, whole and with their attempts, when they were asked for: then
    /// nothing is left to load. By id as well.
    pub small: Vec<(Row, u32)>,
    /// Highest id in the table when the pass began.
    ///
    /// A pass goes no further: a row above it was inserted after the pass began, and one below it,
    /// of the same key, may have become visible behind the pass.
    pub upto: u64,
    /// Where the binlog was before the fence of a pass that begins.
    pub start: Option<Position>,
    /// Where the binlog was after the page was read.
    pub end: Option<Position>,
    /// Why the binlog's position could not be read, when it was asked for. The page is good.
    pub unreadable: Option<String>,
    /// All pending rows up to here are in this page or in one before; at `upto` this page is the last.
    pub read_to: u64,
    /// When it was read.
    pub read_at: Instant,
}

/// The SQL for one table on one server.
#[derive(Clone, Debug)]
pub struct Queries {
    name: String,
    table: String,
    fence: String,
    /// `FORCE INDEX` on (status, id): a stale statistic must not make a pass scan the sent rows.
    index: String,
    position: &'static str,
}

impl Queries {
    /// Finds out what the server needs.
    ///
    /// # Errors
    /// The database's.
    pub async fn discover(
        connection: &mut MySqlConnection,
        table: &OutboxTable,
    ) -> Result<Self, sqlx::Error> {
        let version: String = sqlx::query_scalar("SELECT VERSION()")
            .fetch_one(&mut *connection)
            .await?;
        // To force one that the server is not to use is error 1176.
        let usable = match version.contains("MariaDB") {
            true => "a.IGNORED = 'NO'",
            false => "a.IS_VISIBLE = 'YES'",
        };
        let index: Option<String> = sqlx::query_scalar(AssertSqlSafe(format!(
            "SELECT CAST(a.INDEX_NAME AS CHAR) FROM information_schema.STATISTICS a \
             JOIN information_schema.STATISTICS b USING (TABLE_SCHEMA, TABLE_NAME, INDEX_NAME) \
             WHERE a.TABLE_SCHEMA = DATABASE() AND a.TABLE_NAME = ? \
             AND a.SEQ_IN_INDEX = 1 AND a.COLUMN_NAME = 'status' \
             AND b.SEQ_IN_INDEX = 2 AND b.COLUMN_NAME = 'id' AND {usable} LIMIT 1",
        )))
        .bind(&table.name)
        .fetch_optional(connection)
        .await?;
        Ok(Self {
            name: table.name.clone(),
            table: format!("`{}`", table.name),
            fence: format!("UPDATE `{}_fence` SET n = n + 1", table.name),
            index: index
                .map(|name| format!("FORCE INDEX (`{name}`)"))
                .unwrap_or_default(),
            position: position_statement(&version),
        })
    }

    /// The table's name.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// What makes a statement use that index, if there is one.
    pub fn force_index(self) -> String {
        self.index
    }

    /// Is there an index on (status, id)?
    pub fn has_index(&self) -> bool {
        !self.index.is_empty()
    }

    /// The binlog's end now.
    ///
    /// # Errors
    /// The database's; [`sqlx::Error::RowNotFound`] when the binlog is off.
    pub async fn position(
        &self,
        connection: &mut MySqlConnection,
    ) -> Result<Position, sqlx::Error> {
        let row = connection
            .fetch_one(sqlx::raw_sql(AssertSqlSafe(self.position)))
            .await?;
        Ok(Position::new(
            row.try_get::<String, _>(0)?,
            row.try_get::<u64, _>(1)?,
        ))
    }

    async fn answer(
        &self,
        connection: &mut MySqlConnection,
        ask: &Ask,
        way: &mut Way,
    ) -> Result<Answer, sqlx::Error> {
        match ask {
            Ask::Page(ask) => self.page(connection, ask, way).await.map(Answer::Page),
            Ask::Rows(ids) => {
                let rows = self.rows(connection, ids, OutboxStatus::Pending);
                rows.await.map(Answer::Rows)
            }
        }
    }

    async fn page(
        &self,
        connection: &mut MySqlConnection,
        ask: &PageAsk,
        way: &mut Way,
    ) -> Result<Page, sqlx::Error> {
        let begins = ask.upto.is_none();
        // It starts from the table's first id, where all is sent.
        way.dense &= !begins;
        let start = match begins && ask.positions {
            true => self.position_or_why(connection).await?,
            false => Ok(None),
        };
        let fenced = match begins && ask.fence {
            true => self.fence(connection).await?,
            false => Ok(()),
        };
        let upto = match ask.upto {
            Some(upto) => upto,
            None => self.highest_id(connection).await?,
        };
        let read_at = Instant::now();
        let window_end = way.end(ask.after, upto);
        let ids = (ask.after, window_end);
        let (heads, small) = self.heads(connection, ids, *way, ask.small).await?;
        let last_id = heads.last().map(|head| head.id.id);
        let is_full = heads.len() >= way.rows;
        let read_to = last_id.filter(|_| is_full).unwrap_or(window_end);
        let bytes = heads.iter().map(|head| head.bytes).sum();
        *way = way.after((heads.len(), bytes), read_to.saturating_sub(ask.after));
        let end = match ask.positions && start.is_ok() {
            true => self.position_or_why(connection).await?,
            false => Ok(None),
        };
        Ok(Page {
            heads,
            small,
            upto,
            read_to,
            unreadable: fenced
                .err()
                .or_else(|| start.as_ref().err().or(end.as_ref().err()).cloned()),
            start: start.unwrap_or(None),
            end: end.unwrap_or(None),
            read_at,
        })
    }

    /// Commits one, or tells why it can't: without a fence nothing is known of what the tail brings.
    async fn fence(
        &self,
        connection: &mut MySqlConnection,
    ) -> Result<Result<(), String>, sqlx::Error> {
        let fence = sqlx::raw_sql(AssertSqlSafe(self.fence.as_str()));
        let why = match connection.execute(fence).await {
            Ok(done) if done.rows_affected() > 0 => return Ok(Ok(())),
            Ok(_) => "it has no row, run `relay migrate`".into(),
            Err(err) if ends_session(connection, &err).await => return Err(err),
            Err(err) => err.to_string(),
        };
        Ok(Err(format!("the fence table can't be written: {why}")))
    }

    /// A server that refuses to tell, or has no binlog any more, can still be read: passes go on.
    async fn position_or_why(
        &self,
        connection: &mut MySqlConnection,
    ) -> Result<Result<Option<Position>, String>, sqlx::Error> {
        match self.position(connection).await {
            Ok(position) => Ok(Ok(Some(position))),
            Err(sqlx::Error::RowNotFound) => Ok(Err("the binlog is off".into())),
            Err(err) if matches!(classify(&err), Fault::Misconfigured(_)) => {
                Ok(Err(err.to_string()))
            }
            Err(err) => Err(err),
        }
    }

    /// 0 in an empty table.
    pub(crate) async fn highest_id(
        &self,
        connection: &mut MySqlConnection,
    ) -> Result<u64, sqlx::Error> {
        let statement = AssertSqlSafe(format!("SELECT MAX(id) FROM {}", self.table));
        let id: Option<u64> = sqlx::query_scalar(statement).fetch_one(connection).await?;
        Ok(id.unwrap_or(0))
    }

    /// The whole rows with these ids that have this status, each with its attempts.
    pub(crate) async fn rows(
        &self,
        connection: &mut MySqlConnection,
        ids: &[u64],
        status: OutboxStatus,
    ) -> Result<Vec<(Row, u32)>, sqlx::Error> {
        let statement = AssertSqlSafe(format!(
            "SELECT id, message_id, aggregate_type, CONCAT(aggregate_id), event_type, exchange, \
             routing_key, content_type, headers, payload, created_at, attempts \
             FROM {} WHERE id IN ({}) AND status = {} ORDER BY id",
            self.table,
            placeholders(padded_len(ids.len()), "?"),
            status.code(),
        ));
        let mut query = sqlx::query(statement);
        for id in padded(ids) {
            query = query.bind(id);
        }
        query
            .fetch_all(connection)
            .await?
            .iter()
            .map(row_of)
            .collect()
    }
}

/// How the next page is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Way {
    /// Rows in it, at the most.
    rows: usize,
    /// Nearly all rows are pending: they are read in the table's own order. The index on (status, id)
    /// finds each of them by another search, which takes twice as long.
    dense: bool,
}

/// Of so many rows read in the table's own order, one may be no longer pending: its payload is read
/// before its status is looked at.
const OTHERS: u64 = 16;

impl Way {
    const FIRST: Self = Self {
        rows: PAGE_MIN,
        dense: false,
    };

    /// The last id that the page after this one may have.
    fn end(self, after: u64, upto: u64) -> u64 {
        match self.dense {
            true => upto.min(after.saturating_add(window(self.rows))),
            false => upto,
        }
    }

    /// After a page with so many rows and bytes of payload, out of so many ids.
    fn after(self, (found, bytes): (usize, usize), ids: u64) -> Self {
        let rows = if bytes > PAGE_BYTES {
            (self.rows / 2).max(1)
        } else if bytes < PAGE_BYTES / 2 {
            (self.rows * 2).min(PAGE)
        } else {
            self.rows
        };
        let dense = ids <= window(found);
        Self { rows, dense }
    }
}

/// Ids that so many pending rows may lie among.
fn window(rows: usize) -> u64 {
    let rows = rows as u64;
    rows + rows / OTHERS
}

/// Serves the asks of a session, one after the other, until `asks` is closed, and tells when something
/// else is paused than before.
///
/// # Errors
/// The first database error but for a lock: the session then starts again.
pub async fn serve(
    mut connection: MySqlConnection,
    queries: Queries,
    watch: Watch,
    mut asks: mpsc::Receiver<Ask>,
    answers: mpsc::Sender<Answer>,
) -> anyhow::Result<()> {
    wait_little_for_locks(&mut connection).await?;
    let mut reader = Reader {
        connection,
        queries,
        watch,
        answers,
        way: Way::FIRST,
    };
    loop {
        let asked = tokio::time::timeout_at(reader.watch.next(), asks.recv()).await;
        reader.look().await?;
        let Ok(asked) = asked else { continue };
        let Some(ask) = asked else { break };
        let answer = reader.read(&ask).await?;
        if reader.answers.send(answer).await.is_err() {
            break;
        }
    }
    Ok(())
}

struct Reader {
    connection: MySqlConnection,
    queries: Queries,
    watch: Watch,
    answers: mpsc::Sender<Answer>,
    way: Way,
}

impl Reader {
    /// This also keeps an idle connection from being ended by the server, or in between.
    async fn look(&mut self) -> anyhow::Result<()> {
        let looked = self.watch.look(&mut self.connection, &self.queries.name);
        if let Some(found) = looked.await? {
            self.tell(Answer::Pauses(found)).await;
        }
        Ok(())
    }

    /// A locked table is waited for, as the marker does: a new session would send again what is
    /// confirmed and waits for its mark.
    async fn read(&mut self, ask: &Ask) -> anyhow::Result<Answer> {
        let mut backoff = Backoff::new(BUSY_MIN, BUSY_MAX);
        let mut told = String::new();
        loop {
            let reading = self
                .queries
                .answer(&mut self.connection, ask, &mut self.way);
            let err = match tokio::time::timeout(READ_TIMEOUT, reading).await? {
                Err(err) if classify(&err) == Fault::Busy => err.to_string(),
                answer => return Ok(answer?),
            };
            if err != told {
                tracing::warn!(
                    error = err,
                    "the table can't be read now and will be tried again"
                );
                told.clone_from(&err);
                self.tell(Answer::Locked(err)).await;
            }
            tokio::time::sleep(backoff.next()).await;
            self.look().await?;
        }
    }

    /// Where nobody listens any more, the session is at its end.
    async fn tell(&self, answer: Answer) {
        drop(self.answers.send(answer).await);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn next(rows: usize, bytes: usize) -> usize {
        let way = Way { rows, dense: false };
        way.after((rows, bytes), 1).rows
    }

    #[test]
    fn pages_follow_the_size_of_their_payloads() {
        assert_eq!(next(PAGE_MIN, 20_000), 2 * PAGE_MIN);
        assert_eq!(next(PAGE, 300_000), PAGE);
        assert_eq!(next(PAGE_MIN, PAGE_BYTES), PAGE_MIN);
        assert_eq!(next(PAGE_MIN, 8 * PAGE_BYTES), PAGE_MIN / 2);
        assert_eq!(next(1, 8 * PAGE_BYTES), 1);
    }

    #[test]
    fn a_page_goes_along_the_table_only_while_nearly_all_of_its_rows_are_pending() {
        let page = PAGE as u64;
        let indexed = Way {
            rows: PAGE,
            dense: false,
        };
        assert_eq!(indexed.end(7, 1_000_000), 1_000_000);
        // Everything before its first row has been sent.
        assert!(!indexed.after((PAGE, 0), 500_000).dense);
        let dense = indexed.after((PAGE, 0), page + page / 16);
        assert!(dense.dense);
        assert_eq!(dense.end(7, 1_000_000), 7 + page + page / 16);
        assert_eq!(dense.end(7, 8), 8);
        assert!(!dense.after((PAGE - 1, 0), page + page / 16).dense);
        assert!(!dense.after((0, 0), page).dense);
        assert!(indexed.after((1, 0), 1).dense);
    }
}
