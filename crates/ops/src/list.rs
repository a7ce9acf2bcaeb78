//! Lists, page by page. A page looks at a bounded number of rows, whatever the filter and however
//! large the table.

use sqlx::mysql::MySqlRow;
use sqlx::{MySql, QueryBuilder, Row as _};

use crate::console::{Connection, Console, unit};
use crate::error::Error;
use crate::filter::{Filter, Order, PageRequest};
use crate::row::{Cursor, Page, Row, row_of};
use crate::statement::{Index, push_filter, push_key};
use crate::table::{Key, Table};

impl Table {
    /// Rows that one page looks at, at most, when a filter is set. The outbox's lie in the order in
    /// which they are read; the inbox's are in the order of their ids, so each may be a page of its own
    /// (up to 210 µs, measured on a million rows in a small buffer pool).
    pub(crate) fn look_max(&self) -> u32 {
        match self {
            Self::Outbox { .. } => 5_000,
            Self::Inbox => 500,
        }
    }
}

impl Console {
    /// Rows that match a filter.
    ///
    /// # Errors
    /// A filter or cursor that can't work, and the database's.
    pub async fn list(&self, filter: &Filter, request: &PageRequest) -> Result<Page, Error> {
        let (console, filter) = (self.clone(), filter.clone().checked()?);
        let request = request.clone().checked()?;
        let window = Window::of(self.table(), &request)?;
        unit(async move {
            let mut connection = console.connection().await?;
            let index = console.index(&mut connection).await?;
            let reader = Reader {
                table: console.table(),
                index: &index,
                filter: &filter,
            };
            reader.page(&mut connection, window, request.limit).await
        })
        .await
    }
}

/// Where to read on, and in which direction.
#[derive(Clone, Debug)]
pub(crate) struct Window {
    pub(crate) after: Option<Cursor>,
    pub(crate) order: Order,
}

impl Window {
    fn of(table: &Table, request: &PageRequest) -> Result<Self, Error> {
        let after = match request.after.as_deref() {
            None => None,
            Some(text) => Some(
                Cursor::parse(table, text)
                    .ok_or_else(|| Error::invalid("after", "is not a place in this list"))?,
            ),
        };
        Ok(Self {
            after,
            order: request.order,
        })
    }
}

/// Reads rows of one state in the order of the index.
pub(crate) struct Reader<'a> {
    pub(crate) table: &'a Table,
    pub(crate) index: &'a Index,
    pub(crate) filter: &'a Filter,
}

impl Reader<'_> {
    pub(crate) async fn page(
        &self,
        connection: &mut Connection,
        window: Window,
        limit: u32,
    ) -> Result<Page, Error> {
        if self.filter.message_id.is_some() {
            let rows = self.by_message_id(connection).await?;
            return Ok(Page {
                rows,
                next: None,
                looked_at: None,
            });
        }
        // Without a filter every row that is looked at is shown.
        let end = match self.filter.is_state_only() {
            true => None,
            false => self.end(connection, &window, self.table.look_max()).await?,
        };
        let mut rows = self
            .rows(connection, &window, end.as_ref(), limit + 1)
            .await?;
        let full = rows.len() > limit as usize;
        rows.truncate(limit as usize);
        let (next, looked_at) = match (full, end) {
            (true, _) => (rows.last().map(|row| row.cursor.text()), None),
            (false, Some(end)) => (Some(end.text()), Some(self.table.look_max())),
            (false, None) => (None, None),
        };
        Ok(Page {
            rows,
            next,
            looked_at,
        })
    }

    async fn by_message_id(&self, connection: &mut Connection) -> Result<Vec<Row>, Error> {
        let mut query = QueryBuilder::<MySql>::new(format!(
            "SELECT {} FROM `{}` t WHERE t.status = {} AND t.message_id = ",
            self.table.row_columns(),
            self.table.name(),
            self.filter.state.code()
        ));
        let id = self.filter.message_id.clone().unwrap_or_default();
        match self.table {
            // The column is ASCII; no row has another id, and to request it would be an error.
            Table::Outbox { .. } if !id.is_ascii() => return Ok(Vec::new()),
            Table::Outbox { .. } => query.push_bind(id),
            Table::Inbox => query.push_bind(id.into_bytes()),
        };
        push_filter(&mut query, self.table, self.filter);
        let found = query.build().fetch_all(&mut **connection).await?;
        let rows: Result<_, _> = found.iter().map(|row| row_of(self.table, row)).collect();
        Ok(rows?)
    }

    /// The place `count` rows of the state further on; `None`: there are not as many. Reads the index
    /// alone.
    pub(crate) async fn end(
        &self,
        connection: &mut Connection,
        window: &Window,
        count: u32,
    ) -> Result<Option<Cursor>, sqlx::Error> {
        let columns = match self.table {
            Table::Outbox { .. } => "t.id",
            Table::Inbox => "t.message_id, TIMESTAMPDIFF(MICROSECOND, '1970-01-01', t.received_at)",
        };
        let mut query = self.select(columns, window);
        self.push_order(&mut query, window);
        query.push(format!(" LIMIT 1 OFFSET {}", count.saturating_sub(1)));
        let found = query.build().fetch_optional(&mut **connection).await?;
        found.map(|row| self.place_of(&row)).transpose()
    }

    fn place_of(&self, row: &MySqlRow) -> Result<Cursor, sqlx::Error> {
        Ok(match self.table {
            Table::Outbox { .. } => Cursor {
                micros: 0,
                key: Key::Id(row.try_get(0)?),
            },
            Table::Inbox => Cursor {
                key: Key::Message(row.try_get_unchecked(0)?),
                // A zero date is in no calendar.
                micros: row.try_get::<Option<i64>, _>(1)?.unwrap_or(0),
            },
        })
    }

    /// As [`Reader::rows`], but only where they are.
    pub(crate) async fn places(
        &self,
        connection: &mut Connection,
        window: &Window,
        end: Option<&Cursor>,
        limit: u32,
    ) -> Result<Vec<Cursor>, sqlx::Error> {
        let mut query = self.select(self.place_columns(), window);
        if let Some(end) = end {
            self.push_until(&mut query, window.order, end);
        }
        push_filter(&mut query, self.table, self.filter);
        self.push_order(&mut query, window);
        query.push(format!(" LIMIT {limit}"));
        let found = query.build().fetch_all(&mut **connection).await?;
        found.iter().map(|row| self.place_of(row)).collect()
    }

    fn place_columns(&self) -> &'static str {
        match self.table {
            Table::Outbox { .. } => "t.id",
            Table::Inbox => "t.message_id, TIMESTAMPDIFF(MICROSECOND, '1970-01-01', t.received_at)",
        }
    }

    async fn rows(
        &self,
        connection: &mut Connection,
        window: &Window,
        end: Option<&Cursor>,
        limit: u32,
    ) -> Result<Vec<Row>, sqlx::Error> {
        let mut query = self.select(&self.table.row_columns(), window);
        if let Some(end) = end {
            self.push_until(&mut query, window.order, end);
        }
        push_filter(&mut query, self.table, self.filter);
        self.push_order(&mut query, window);
        query.push(format!(" LIMIT {limit}"));
        let found = query.build().fetch_all(&mut **connection).await?;
        found.iter().map(|row| row_of(self.table, row)).collect()
    }

    /// `SELECT … WHERE status = … AND (behind the window's beginning)`.
    pub(crate) fn select(&self, columns: &str, window: &Window) -> QueryBuilder<MySql> {
        let mut query = QueryBuilder::new(format!(
            "SELECT {columns} FROM `{}` t {} WHERE t.status = {}",
            self.table.name(),
            self.index.force(),
            self.filter.state.code()
        ));
        if let Some(after) = &window.after {
            let behind = match window.order {
                Order::Oldest => '>',
                Order::Newest => '<',
            };
            self.push_bound(&mut query, behind, after, false);
        }
        query
    }

    /// ` AND (up to and including this place)`.
    pub(crate) fn push_until(&self, query: &mut QueryBuilder<MySql>, order: Order, end: &Cursor) {
        let before = match order {
            Order::Oldest => '<',
            Order::Newest => '>',
        };
        self.push_bound(query, before, end, true);
    }

    fn push_bound(
        &self,
        query: &mut QueryBuilder<MySql>,
        sign: char,
        place: &Cursor,
        inclusive: bool,
    ) {
        let or_equal = if inclusive { "=" } else { "" };
        match self.table {
            Table::Outbox { .. } => {
                query.push(format!(" AND t.id {sign}{or_equal} "));
                push_key(query, &place.key);
            }
            // The first comparison is the index range; a row constructor would not be one.
            Table::Inbox => {
                query.push(format!(" AND t.received_at {sign}= "));
                query.push_bind(place.at());
                query.push(format!(" AND (t.received_at {sign} "));
                query.push_bind(place.at());
                query.push(format!(" OR t.message_id {sign}{or_equal} "));
                push_key(query, &place.key);
                query.push(")");
            }
        }
    }

    fn push_order(&self, query: &mut QueryBuilder<MySql>, window: &Window) {
        let direction = match window.order {
            Order::Oldest => "ASC",
            Order::Newest => "DESC",
        };
        let columns = self.table.order_columns().iter();
        let columns: Vec<String> = columns.map(|c| format!("t.{c} {direction}")).collect();
        query.push(format!(" ORDER BY {}", columns.join(", ")));
    }
}
