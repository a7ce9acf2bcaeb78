//! Captured events are decoded as they were written. What damaged ones may do: `crates/fuzz-checks`.

mod corpus;

use mysql_async::Value;
use mysql_async::binlog::events::{EventData, TableMapEvent};
use mysql_async::binlog::value::BinlogValue;
use relay::source::binlog::row_decoder::{Columns, TableMap};
use relay::source::binlog::transaction::Change;

use corpus::{Corpus, FIXTURES};

fn ids(changes: &[Change]) -> usize {
    let ids = changes.iter().map(|change| match change {
        Change::Added { ids, .. } => ids.len(),
        Change::Doubt(_) => 0,
    });
    ids.sum()
}

fn doubts(changes: &[Change]) -> usize {
    let doubts = changes.iter();
    doubts
        .filter(|change| matches!(change, Change::Doubt(_)))
        .count()
}

#[test]
fn the_captured_events_are_decoded_as_they_were_written() {
    for (name, bytes) in FIXTURES {
        let changes = Corpus::read(bytes).changes();
        let (ids, doubts) = (ids(&changes), doubts(&changes));
        assert!(ids > 60 && doubts > 3, "{name}: {ids} ids, {doubts} doubts");
    }
}

/// The first column of each INSERT, as mysql_common decodes it, whatever else the table has.
#[test]
fn the_ids_are_those_that_a_decoder_of_all_columns_finds() {
    for (name, bytes) in FIXTURES {
        let corpus = Corpus::read(bytes);
        let mut map = None;
        let (mut rows, mut widest) = (0, 0);
        for bytes in corpus.events() {
            let event = corpus.event(bytes);
            match event.read_data() {
                Ok(Some(EventData::TableMapEvent(theirs))) => {
                    let theirs: TableMapEvent<'static> = theirs.into_owned();
                    let count = usize::try_from(theirs.columns_count()).unwrap();
                    let mut names = vec!["id".to_owned(), "status".to_owned()];
                    names.resize(count.max(2), "other".to_owned());
                    let columns = Columns::locate(&names).unwrap();
                    map = TableMap::parse(event.data(), columns)
                        .ok()
                        .map(|ours| (ours, theirs));
                    widest = widest.max(count);
                }
                Ok(Some(EventData::RowsEvent(data))) => {
                    let Some((ours, theirs)) = &map else { continue };
                    if !matches!(event.header().event_type_raw(), 23 | 30) {
                        continue;
                    }
                    let expected: Vec<u64> = data
                        .rows(theirs)
                        .map(|row| match row.unwrap().1.unwrap().take(0) {
                            Some(BinlogValue::Value(Value::UInt(id))) => id,
                            Some(BinlogValue::Value(Value::Int(id))) => id.cast_unsigned(),
                            other => panic!("{other:?}"),
                        })
                        .collect();
                    let found = ours.inserted(event.header().event_type_raw(), event.data());
                    assert_eq!(found.unwrap(), expected, "{name}");
                    rows += expected.len();
                }
                _ => {}
            }
        }
        assert!(
            rows > 60 && widest >= 16,
            "{name}: {rows} rows, {widest} columns"
        );
    }
}

#[test]
fn an_event_of_an_unknown_type_is_a_doubt_unless_the_server_lets_readers_ignore_it() {
    for (name, bytes) in FIXTURES {
        let corpus = Corpus::read(bytes);
        let with = |kind: u8, flags: u16| {
            let changed = corpus.with_event_before_each_end(kind, flags);
            doubts(&changed.changes())
        };
        let without = with(IGNORABLE, LOG_EVENT_IGNORABLE_F);
        assert!(without > 3, "{name}: the corpus has doubts of its own");
        for kind in HARMLESS {
            assert_eq!(
                with(kind, 0),
                without,
                "{name}: type {kind} changes no table"
            );
        }
        for kind in [PARTIAL_ROW_DATA, 43, 99, 200] {
            assert!(with(kind, 0) > without + 9, "{name}: type {kind}");
            assert_eq!(with(kind, LOG_EVENT_IGNORABLE_F), without, "{name}: {kind}");
        }
    }
}

const IGNORABLE: u8 = 28;
/// MariaDB 12.3 splits row events over 1 GiB into these (MDEV-32570).
const PARTIAL_ROW_DATA: u8 = 172;
/// INTVAR, USER_VAR, HEARTBEAT_V2, ANNOTATE_ROWS, BINLOG_CHECKPOINT, GTID_LIST, START_ENCRYPTION.
const HARMLESS: [u8; 7] = [5, 14, 41, 160, 161, 163, 164];
const LOG_EVENT_IGNORABLE_F: u16 = 0x80;
