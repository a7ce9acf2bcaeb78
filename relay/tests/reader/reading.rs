//! What a reader makes of a stretch of binlog.

use std::time::Duration;

use futures::StreamExt;
use mysql_async::binlog::events::Event;
use outbox::row::Row;
use relay::config::OutboxTable;
use relay::source::binlog::library::Reader;
use relay::source::binlog::position::Position;
use relay::source::binlog::row_decoder::Columns;
use relay::source::binlog::transaction::{Committed, Doubt, Grouper};
use relay::source::table::Queries;
use svc_kit::database::DatabaseUrl;

use crate::rig::Rig;

/// A group, and where it ended.
#[derive(Debug, PartialEq)]
pub(crate) struct Told {
    pub(crate) rows: Vec<Row>,
    pub(crate) deferred: Vec<Row>,
    pub(crate) committed: Committed,
    pub(crate) doubt: Option<Doubt>,
    pub(crate) position: Position,
}

/// The table of a rig and its shape when it was made.
pub(crate) struct Outbox {
    pub(crate) table: OutboxTable,
    pub(crate) columns: Columns,
    names: (String, String),
}

impl Outbox {
    pub(crate) async fn of(rig: &Rig) -> Self {
        let names: Vec<String> = sqlx::query_scalar(
            "SELECT CAST(COLUMN_NAME AS CHAR) FROM information_schema.COLUMNS \
             WHERE TABLE_SCHEMA = DATABASE() AND TABLE_NAME = 'outbox' ORDER BY ORDINAL_POSITION",
        )
        .fetch_all(&rig.pool)
        .await
        .unwrap();
        let url = format!("{}?ssl-mode=DISABLED", rig.database.url);
        Self {
            table: OutboxTable {
                url: DatabaseUrl::parse(&url).unwrap(),
                name: "outbox".into(),
            },
            columns: Columns::locate(&names).unwrap(),
            names: (rig.database.name.clone(), "outbox".into()),
        }
    }

    /// Where the binlog ends now.
    pub(crate) async fn position(&self) -> Position {
        let mut connection = self.table.url.connect().await.unwrap();
        let queries = Queries::discover(&mut connection, &self.table).await;
        queries.unwrap().position(&mut connection).await.unwrap()
    }

    pub(crate) fn grouper(&self, reader: Reader, from: Position) -> Grouper {
        let names = (self.names.0.as_str(), self.names.1.as_str());
        let columns = self.columns.clone();
        Grouper::new(names, columns, reader.library(), 1 << 30, from)
    }

    /// Reads from one position to the other.
    pub(crate) async fn read(
        &self,
        reader: Reader,
        (from, until): (&Position, &Position),
        mut look: impl FnMut(&Event),
    ) -> Vec<Told> {
        let mut reading = reader.open(&self.table.url, from, None).await.unwrap();
        let mut grouper = self.grouper(reader, from.clone());
        let mut told = Vec::new();
        while grouper.position() < until {
            let next = tokio::time::timeout(Duration::from_secs(20), reading.events.next()).await;
            let event = next.expect("an event in time").unwrap().unwrap();
            look(&event);
            if let Some(group) = grouper.feed(&event) {
                told.push(Told {
                    rows: group.rows,
                    deferred: group.deferred,
                    committed: group.committed,
                    doubt: group.doubt,
                    position: grouper.position().clone(),
                });
            }
        }
        told
    }
}
