//! Rows by the class of their last failure.

use serde::Serialize;
use sqlx::Row as _;

use crate::console::{Console, unit};
use crate::error::Error;
use crate::filter::{Filter, Order};
use crate::list::{Reader, Window};
use crate::row::{seconds, text};
use crate::statement::push_filter;
use crate::table::Table;

impl Table {
    /// Rows, the oldest first, that are looked at: see [`Table::look_max`].
    fn grouped_max(&self) -> u32 {
        match self {
            Self::Outbox { .. } => 20_000,
            Self::Inbox => 500,
        }
    }
}

/// Classes shown.
const GROUPS_MAX: u32 = 100;

/// Rows of one class.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[cfg_attr(feature = "console", derive(utoipa::ToSchema))]
pub struct Group {
    /// Class of the last failure; `null`: the rows have none.
    pub class: Option<String>,
    /// How many.
    pub rows: u64,
    /// Age of the oldest.
    pub oldest_age_seconds: f64,
}

/// Rows by class, the most frequent first.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[cfg_attr(feature = "console", derive(utoipa::ToSchema))]
pub struct Groups {
    /// The groups.
    pub groups: Vec<Group>,
    /// There are further rows: only the oldest were looked at, and counts are of these.
    pub or_more: bool,
    /// How many rows were looked at when there are more.
    pub looked_at: Option<u32>,
}

impl Console {
    /// Rows that match a filter, by class.
    ///
    /// # Errors
    /// A filter that can't work, and the database's.
    pub async fn groups(&self, filter: &Filter) -> Result<Groups, Error> {
        let (console, filter) = (self.clone(), filter.clone().checked()?);
        unit(async move {
            let mut connection = console.connection().await?;
            let index = console.index(&mut connection).await?;
            let table = console.table();
            let reader = Reader {
                table,
                index: &index,
                filter: &filter,
            };
            let window = Window {
                after: None,
                order: Order::Oldest,
            };
            let end = reader
                .end(&mut connection, &window, table.grouped_max())
                .await?;
            let created = table.created_column();
            let columns = format!(
                "{} AS class, COUNT(*), \
                 TIMESTAMPDIFF(MICROSECOND, MIN(t.{created}), UTC_TIMESTAMP(6))",
                Table::CLASS
            );
            let mut query = reader.select(&columns, &window);
            if let Some(end) = &end {
                reader.push_until(&mut query, window.order, end);
            }
            push_filter(&mut query, table, &filter);
            query.push(format!(
                " GROUP BY class ORDER BY COUNT(*) DESC, class LIMIT {GROUPS_MAX}"
            ));
            let rows = query.build().fetch_all(&mut *connection).await?;
            let group = |row: &sqlx::mysql::MySqlRow| {
                Ok(Group {
                    class: text(row, 0)?,
                    rows: row.try_get::<i64, _>(1)?.unsigned_abs(),
                    oldest_age_seconds: seconds(row.try_get(2)?),
                })
            };
            Ok(Groups {
                groups: rows.iter().map(group).collect::<Result<_, sqlx::Error>>()?,
                or_more: end.is_some(),
                looked_at: end.map(|_| table.grouped_max()),
            })
        })
        .await
    }
}
