//! What a reader makes of a stretch of binlog.

use std::time::Duration;

use e2e::rig::Rig;
use futures::StreamExt;
use mysql_async::binlog::events::Event;
use relay::engine::position::Position;
use relay::outbox_table::OutboxTable;
use relay::source::binlog::library::Reader;
use relay::source::binlog::row_decoder::Columns;
use relay::source::binlog::transaction::{Change, Decoder};
use relay::source::table::queries::Queries;
use svc_kit::database::DatabaseUrl;

/// A change, and where it ended.
#[derive(Debug, PartialEq)]
pub(crate) struct Seen {
    pub(crate) change: Change,
    pub(crate) position: Position,
}

impl Seen {
    pub(crate) fn ids(&self) -> &[u64] {
        match &self.change {
            Change::Added { ids, .. } => ids,
            Change::Doubt(_) => &[],
        }
    }
}

/// The table of a rig and its shape when it was made.
pub(crate) struct Outbox {
    pub(crate) table: OutboxTable,
    columns: Columns,
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

    fn decoder(&self, from: Position) -> Decoder {
        let names = (self.names.0.as_str(), self.names.1.as_str());
        Decoder::new(names, self.columns, from)
    }

    /// Reads from one position to the other.
    pub(crate) async fn read(
        &self,
        reader: Reader,
        (from, until): (&Position, &Position),
        mut look: impl FnMut(&Event),
    ) -> Vec<Seen> {
        let mut events = reader.open(&self.table.url, from, None).await.unwrap();
        let mut decoder = self.decoder(from.clone());
        let mut seen = Vec::new();
        while decoder.position() < until {
            let next = tokio::time::timeout(Duration::from_secs(20), events.next()).await;
            let event = next.expect("an event in time").unwrap().unwrap();
            look(&event);
            if let Some(change) = decoder.feed(&event) {
                seen.push(Seen {
                    change,
                    position: decoder.position().clone(),
                });
            }
        }
        seen
    }
}
