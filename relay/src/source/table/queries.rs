//! The SQL by which the outbox is read.

use std::time::Instant;

use sqlx::mysql::MySqlConnection;
use sqlx::{AssertSqlSafe, Executor, Row as _};
use svc_kit::database::{Fault, classify};

use super::page_size::PageSize;
use crate::database::ends_session;
use crate::engine::position::Position;
use crate::engine::{Page, PageQuery, Read};
use crate::outbox_table::OutboxTable;
use crate::source::binlog::position::position_statement;

/// The SQL for one table on one server.
#[derive(Clone, Debug)]
pub struct Queries {
    name: String,
    pub(super) table: String,
    fence: String,
    /// `FORCE INDEX` on (status, id): a stale statistic must not make a scan read the sent rows.
    pub(super) index: String,
    position: &'static str,
    is_mariadb: bool,
}

/// A snapshot of MariaDB shows commits in the order of the binlog only if it is taken while none is made:
/// by itself it copies the list of open transactions one by one, and may miss a commit and show the next.
const IN_ORDER: &str = "SET TRANSACTION ISOLATION LEVEL REPEATABLE READ; \
    START TRANSACTION WITH CONSISTENT SNAPSHOT, READ ONLY";

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
        let is_mariadb = version.contains("MariaDB");
        // To force one that the server is not to use is error 1176.
        let usable = match is_mariadb {
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
            is_mariadb,
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

    /// A page of pending rows, read as `size` says, which becomes that of the next page.
    pub(super) async fn page(
        &self,
        connection: &mut MySqlConnection,
        query: &PageQuery,
        size: &mut PageSize,
    ) -> Result<Page, sqlx::Error> {
        let begins = query.upto.is_none();
        // A scan starts from the table's first id, where all is sent.
        size.dense &= !begins;
        let start = match begins && query.positions {
            true => self.position_or_why(connection).await?,
            false => Ok(None),
        };
        let fenced = match begins && query.fence {
            true => self.fence(connection).await?,
            false => Ok(()),
        };
        let upto = match query.upto {
            Some(upto) => upto,
            None => self.highest_id(connection).await?,
        };
        let read_at = Instant::now();
        let window_end = size.end(query.after, upto);
        let window = (query.after, window_end);
        let rows = self.in_order(connection, window, *size, query.payloads);
        let rows = rows.await?;
        let last_id = rows.last().map(|row| row.head.id);
        let is_full = rows.len() >= size.rows;
        let read_to = last_id.filter(|_| is_full).unwrap_or(window_end);
        let bytes = rows.iter().map(|row| row.head.bytes).sum();
        *size = size.after((rows.len(), bytes), read_to.saturating_sub(query.after));
        let end = match query.positions && start.is_ok() {
            true => self.position_or_why(connection).await?,
            false => Ok(None),
        };
        Ok(Page {
            rows,
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

    /// The pending rows of a window: with a row also those of the commits before its own.
    async fn in_order(
        &self,
        connection: &mut MySqlConnection,
        window: (u64, u64),
        size: PageSize,
        payloads: bool,
    ) -> Result<Vec<Read>, sqlx::Error> {
        if !self.is_mariadb {
            return self.pending(connection, window, size, payloads).await;
        }
        connection.execute(sqlx::raw_sql(IN_ORDER)).await?;
        let rows = self.pending(connection, window, size, payloads).await;
        // Refused or not: what follows, such as the fence, commits by itself.
        connection.execute(sqlx::raw_sql("COMMIT")).await?;
        rows
    }

    /// Commits an own row, or says why that is not possible.
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

    /// A server that refuses to say, or has no binlog any more, can still be read: scans go on.
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
}
