//! What the relay's own writes put into the binlog, as another reader sees it.

use e2e::Flavor;
use e2e::rig::rows::assert_calm;
use e2e::rig::{QUEUE, Rig, SOON};
use futures::StreamExt as _;
use mysql_async::Value;
use mysql_async::binlog::events::{EventData, RowsEventData, TableMapEvent};
use mysql_async::binlog::value::BinlogValue;
use relay::engine::position::Position;
use relay::outbox_table::OutboxTable;
use relay::source::binlog::library::Reader;
use relay::source::table::queries::Queries;
use svc_kit::database::DatabaseUrl;

const COLUMNS: usize = 16;
const PAYLOAD: usize = 9;
const STATUS: usize = 10;

/// UPDATE events of the outbox by the status that they set, and how many of them have all columns.
#[derive(Debug, Default, PartialEq)]
struct Seen {
    whole: Vec<u64>,
    partial: usize,
    bytes: usize,
}

/// Reads the UPDATEs of the outbox between two positions.
async fn updates(outbox: &OutboxTable, from: &Position, to: &Position) -> Seen {
    assert_eq!(from.file, to.file);
    let mut events = Reader::MysqlAsync
        .open(&outbox.url, from, None)
        .await
        .unwrap();
    let mut seen = Seen::default();
    let mut map: Option<TableMapEvent<'static>> = None;
    let mut at = from.offset;
    while at < to.offset {
        let event = tokio::time::timeout(SOON, events.next()).await;
        let event = event.unwrap().unwrap().unwrap();
        at = at.max(u64::from(event.header().log_pos()));
        match event.read_data().unwrap() {
            Some(EventData::TableMapEvent(found)) => {
                let ours = found.database_name() == outbox.url.database()
                    && found.table_name() == outbox.name;
                map = ours.then(|| found.into_owned());
            }
            Some(EventData::RowsEvent(
                data @ (RowsEventData::UpdateRowsEvent(_) | RowsEventData::UpdateRowsEventV1(_)),
            )) => {
                let Some(map) = &map else { continue };
                seen.bytes += usize::try_from(event.header().event_size()).unwrap();
                let before = data.columns_before_image().unwrap();
                let after = data.columns_after_image().unwrap();
                let are_whole = before.count_ones() == COLUMNS && after.count_ones() == COLUMNS;
                if !are_whole {
                    seen.partial += 1;
                    continue;
                }
                for images in data.rows(map) {
                    let (before, after) = images.unwrap();
                    let (mut before, mut after) = (before.unwrap(), after.unwrap());
                    assert_eq!(before.take(PAYLOAD), after.take(PAYLOAD));
                    let Some(BinlogValue::Value(Value::Int(status))) = after.take(STATUS) else {
                        panic!("no status");
                    };
                    seen.whole.push(status.cast_unsigned());
                }
            }
            _ => {}
        }
    }
    seen
}

e2e::on_each_server!(other_readers_of_the_binlog_see_whole_rows_unless_minimal_marks_are_chosen);
async fn other_readers_of_the_binlog_see_whole_rows_unless_minimal_marks_are_chosen(
    flavor: Flavor,
) {
    let db = e2e::shared::database(flavor).await;
    for image in [None, Some("full"), Some("minimal")] {
        let mut rig = Rig::new(db).await;
        if let Some(image) = image {
            rig.set("RELAY_BINLOG_ROW_IMAGE", image);
        }
        rig.set("RELAY_MAX_ATTEMPTS", "1");
        let relay = rig.tailing().await;
        let deliveries = rig.consume(QUEUE).await;
        let url = format!("{}?ssl-mode=DISABLED", rig.database.url);
        let outbox = OutboxTable {
            url: DatabaseUrl::parse(&url).unwrap(),
            name: "outbox".into(),
        };
        let mut connection = outbox.url.connect().await.unwrap();
        let queries = Queries::discover(&mut connection, &outbox).await.unwrap();
        let from = queries.position(&mut connection).await.unwrap();
        rig.insert(20).await;
        rig.sql(
            "INSERT INTO outbox (message_id, aggregate_type, aggregate_id, event_type, \
             routing_key, headers, payload) VALUES (UUID(), 'order', 'bad', \
             'order.placed.v1', 'order.pay', 'no JSON', '{}')",
        )
        .await;
        rig.insert_one("nobody", "nowhere", b"{}").await;
        rig.wait_count("status = 2", 20).await;
        rig.wait_count("status = 3", 1).await;
        rig.wait_reason("routing_key = 'nowhere'", "NO_ROUTE").await;
        // Marks follow their deliveries, so nothing else comes.
        assert_eq!(deliveries.count(), 20);
        let to = queries.position(&mut connection).await.unwrap();
        let seen = updates(&outbox, &from, &to).await;
        eprintln!("{:?} {image:?}: {seen:?}", db.flavor());
        let mut whole = vec![1, 3];
        if image == Some("minimal") {
            assert!(seen.partial > 0, "{seen:?}");
        } else {
            whole.extend([2; 20]);
            assert_eq!(seen.partial, 0, "{seen:?}");
        }
        let mut statuses = seen.whole;
        whole.sort_unstable();
        statuses.sort_unstable();
        assert_eq!(statuses, whole);
        assert_calm(&relay);
    }
}
