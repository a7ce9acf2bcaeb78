//! Events by hand, one after the other. `relay/tests/it/decoder` has those of real servers.

use mysql_async::binlog::BinlogVersion;
use mysql_async::binlog::events::FormatDescriptionEvent;

use super::*;

const QUERY: u8 = 2;
const ROTATE: u8 = 4;
const LOAD_QUERIES: [u8; 2] = [17, 18];
const XID: u8 = 16;
const TABLE_MAP: u8 = 19;
const INCIDENT: u8 = 26;
const INSERT: u8 = 30;
const UPDATE: u8 = 31;
const DELETE: u8 = 32;
const GTID: u8 = 34;
const XA_PREPARE: u8 = 38;
const PAYLOAD: u8 = 40;

const OUTBOX: u8 = 7;
const OTHER: u8 = 8;
/// Of every event.
const SECONDS: u32 = 1000;

struct Stream {
    decoder: Decoder,
    log_pos: u32,
    flags: u16,
}

/// A stream in which the table maps of both tables have come.
fn stream() -> Stream {
    let names = ["id", "status"].map(str::to_owned);
    let columns = Columns::locate(&names).unwrap();
    let position = Position::new("b.000001", 4);
    let mut stream = Stream {
        decoder: Decoder::new(("orders", "outbox"), columns, position),
        log_pos: 100,
        flags: 0,
    };
    stream.maps();
    stream
}

fn table_map(id: u8, table: &str, types: &[u8]) -> Vec<u8> {
    let mut data = vec![id, 0, 0, 0, 0, 0, 1, 0];
    for name in ["orders", table] {
        data.push(u8::try_from(name.len()).unwrap());
        data.extend(name.as_bytes());
        data.push(0);
    }
    data.push(u8::try_from(types.len()).unwrap());
    data.extend(types);
    data.push(0);
    data
}

/// Row events of BIGINT and TINYINT with these images.
fn rows(table: u8, bitmaps: usize, images: &[(u64, u8)]) -> Vec<u8> {
    let mut data = vec![table, 0, 0, 0, 0, 0, 1, 0, 2, 0, 2];
    data.extend(vec![0b11; bitmaps]);
    for (id, status) in images {
        data.push(0);
        data.extend(id.to_le_bytes());
        data.push(*status);
    }
    data
}

fn xa(name: &str) -> (Vec<u8>, String) {
    let mut data = vec![0];
    for number in [1, u32::try_from(name.len()).unwrap(), 0] {
        data.extend(number.to_le_bytes());
    }
    data.extend(name.as_bytes());
    let hex: String = name.bytes().map(|byte| format!("{byte:02X}")).collect();
    (data, format!("X'{hex}',X'',1"))
}

fn added(ids: &[u64]) -> Option<Change> {
    let ids = ids.to_vec();
    let committed = Committed::Seconds(SECONDS);
    Some(Change::Added { ids, committed })
}

fn unvouched(what: &'static str) -> Option<Change> {
    Some(Change::Doubt(Doubt::Unvouched(what)))
}

fn undecodable(what: &str) -> Option<Change> {
    Some(Change::Doubt(Doubt::Undecodable(what.into())))
}

impl Stream {
    fn feed(&mut self, kind: u8, data: &[u8]) -> Option<Change> {
        let mut bytes = SECONDS.to_le_bytes().to_vec();
        bytes.push(kind);
        bytes.extend(1_u32.to_le_bytes());
        bytes.extend(u32::try_from(19 + data.len()).unwrap().to_le_bytes());
        bytes.extend(self.log_pos.to_le_bytes());
        bytes.extend(self.flags.to_le_bytes());
        bytes.extend(data);
        let format = FormatDescriptionEvent::new(BinlogVersion::Version4);
        self.decoder
            .feed(&Event::read(&format, bytes.as_slice()).unwrap())
    }

    fn maps(&mut self) {
        for (id, table) in [(OUTBOX, "outbox"), (OTHER, "other")] {
            assert_eq!(self.feed(TABLE_MAP, &table_map(id, table, &[8, 1])), None);
        }
    }

    /// A transaction begins, of which only the start is in the binlog.
    fn start(&mut self) {
        assert_eq!(self.feed(GTID, &[]), None);
    }

    fn query(&mut self, text: &str) -> Option<Change> {
        let mut data = vec![0; 8];
        data.extend([6, 0, 0, 0, 0]);
        data.extend(b"orders\0");
        data.extend(text.as_bytes());
        self.feed(QUERY, &data)
    }

    fn begin(&mut self) {
        self.start();
        assert_eq!(self.query("BEGIN"), None);
    }

    fn insert(&mut self, table: u8, ids: &[u64]) {
        let images: Vec<_> = ids.iter().map(|id| (*id, 1)).collect();
        assert_eq!(self.feed(INSERT, &rows(table, 1, &images)), None);
    }

    fn commit(&mut self) -> Option<Change> {
        self.feed(XID, &[0; 8])
    }

    fn at(&self) -> (&str, u64) {
        let position = self.decoder.position();
        (&position.file, position.offset)
    }
}

#[test]
fn a_transaction_yields_the_ids_it_has_added_to_the_outbox_when_it_ends() {
    let mut stream = stream();
    stream.begin();
    stream.insert(OUTBOX, &[5, 4]);
    stream.insert(OTHER, &[99]);
    stream.insert(OUTBOX, &[9]);
    assert_eq!(stream.commit(), added(&[5, 4, 9]));
    assert_eq!(stream.commit(), None, "there is none");
    stream.begin();
    stream.insert(OTHER, &[99]);
    assert_eq!(stream.commit(), None);
    for end in ["COMMIT", "ROLLBACK"] {
        stream.begin();
        stream.insert(OUTBOX, &[7]);
        assert_eq!(
            stream.query(end),
            added(&[7]),
            "{end} of a table without transactions"
        );
    }
}

#[test]
fn rows_that_an_update_sets_back_are_added_unless_it_is_large() {
    const LOOKED_INTO: usize = 1 << 20;
    let head = rows(OUTBOX, 2, &[(7, 2), (7, 1)]);
    let mut stream = stream();
    stream.begin();
    assert_eq!(stream.feed(UPDATE, &head), None);
    assert_eq!(stream.commit(), added(&[7]));
    // Images of ten bytes, and the head of 13.
    let mut update = |images: usize| {
        let images = [(7, 2), (7, 1)].repeat(images / 2);
        let data = rows(OUTBOX, 2, &images);
        stream.begin();
        stream.feed(UPDATE, &data);
        (data.len() <= LOOKED_INTO, stream.commit().is_some())
    };
    assert_eq!(update(104_854), (true, true));
    assert_eq!(update(104_858), (false, false));
    assert_eq!(UPDATE_LOOK_MAX, LOOKED_INTO);
}

#[test]
fn events_that_add_no_row_leave_no_doubt() {
    let mut stream = stream();
    for kind in [
        DELETE, 25, 39, 3, 5, 13, 14, 15, 27, 28, 29, 35, 36, 37, 41, 160, 161, 163, 164,
    ] {
        stream.begin();
        assert_eq!(
            stream.feed(kind, &rows(OUTBOX, 1, &[(7, 1)])),
            None,
            "{kind}"
        );
        assert_eq!(stream.commit(), None, "{kind}");
    }
}

#[test]
fn an_unknown_event_is_a_doubt_of_its_own_or_of_its_transaction() {
    let doubt = undecodable("an event of the unknown type 99");
    let mut stream = stream();
    for old in [6, 20] {
        let what = format!("an event of the unknown type {old}");
        assert_eq!(
            stream.feed(old, &[]),
            undecodable(&what),
            "of MySQL 4 and 5.1"
        );
    }
    assert_eq!(stream.feed(99, &[]), doubt);
    stream.start();
    assert_eq!(stream.feed(99, &[]), doubt);
    assert_eq!(stream.commit(), None, "that was all of it");
    stream.begin();
    assert_eq!(stream.feed(99, &[]), None);
    stream.insert(OUTBOX, &[7]);
    assert_eq!(stream.commit(), doubt);
    stream.flags = 0x80;
    stream.begin();
    assert_eq!(stream.feed(99, &[]), None);
    assert_eq!(stream.commit(), None, "readers may ignore it");
}

#[test]
fn more_than_a_hundred_thousand_ids_are_a_doubt() {
    for (count, doubt) in [(100_000, false), (100_001, true)] {
        let ids: Vec<u64> = (1..=count).collect();
        let mut stream = stream();
        stream.begin();
        stream.insert(OUTBOX, &ids);
        match doubt {
            false => assert_eq!(stream.commit(), added(&ids)),
            true => {
                stream.insert(OUTBOX, &[7]);
                assert!(matches!(
                    stream.commit(),
                    Some(Change::Doubt(Doubt::TooLarge(_)))
                ));
            }
        }
    }
}

#[test]
fn what_can_not_be_decoded_is_a_doubt_of_its_transaction() {
    let cut = rows(OUTBOX, 1, &[(7, 1)]);
    let cut = &cut[..cut.len() - 1];
    let unknown_type = table_map(OUTBOX, "outbox", &[8, 99]);
    let cases: [(u8, &[u8], &str); 3] = [
        (INSERT, cut, "an event that is cut short"),
        (
            TABLE_MAP,
            &unknown_type,
            "a table map: a column of the type 99",
        ),
        (
            166,
            &[OUTBOX, 0, 0, 0, 0, 0],
            "a compressed row event (log_bin_compress)",
        ),
    ];
    for (kind, data, what) in cases {
        let mut stream = stream();
        stream.begin();
        stream.insert(OUTBOX, &[5]);
        assert_eq!(stream.feed(kind, data), None);
        assert_eq!(stream.commit(), undecodable(what));
    }
    for kind in LOAD_QUERIES {
        let mut stream = stream();
        stream.begin();
        assert_eq!(stream.feed(kind, &[]), None);
        assert_eq!(stream.commit(), unvouched("LOAD DATA in STATEMENT format"));
    }
    assert_eq!(
        stream().feed(INCIDENT, &[]),
        undecodable("an INCIDENT event")
    );
    assert_eq!(stream().feed(QUERY, &[]), undecodable("a QUERY event"));
}

#[test]
fn of_compressed_row_events_those_count_that_insert_into_the_outbox() {
    for (kind, table, counts) in [
        (166, OUTBOX, true),
        (169, OUTBOX, true),
        (169, OTHER, false),
        (167, OUTBOX, false),
        (168, OUTBOX, false),
        (171, OUTBOX, false),
    ] {
        let mut stream = stream();
        stream.begin();
        assert_eq!(stream.feed(kind, &[table, 0, 0, 0, 0, 0]), None);
        assert_eq!(stream.commit().is_some(), counts, "{kind} {table}");
    }
}

#[test]
fn a_statement_is_a_doubt_of_its_own_or_of_its_transaction() {
    let insert = "INSERT INTO outbox VALUES (1)";
    let mut stream = stream();
    stream.start();
    assert_eq!(stream.query(insert), unvouched("a statement"));
    stream.begin();
    assert_eq!(stream.query("SAVEPOINT a"), None);
    assert_eq!(stream.query(insert), None);
    assert_eq!(
        stream.commit(),
        unvouched("a statement inside a transaction")
    );
}

#[test]
fn a_compressed_statement_is_a_doubt_of_its_own_or_of_its_transaction() {
    let doubt = undecodable("a compressed statement (log_bin_compress)");
    let mut stream = stream();
    stream.start();
    assert_eq!(stream.feed(165, &[]), doubt);
    stream.begin();
    assert_eq!(stream.feed(165, &[]), None);
    assert_eq!(stream.commit(), doubt);
}

#[test]
fn somebody_else_s_ddl_is_a_whole_transaction_outside_of_one() {
    let mut stream = stream();
    stream.start();
    assert_eq!(stream.query("CREATE TABLE other (a INT)"), None);
    assert_eq!(stream.commit(), None, "no transaction is open");
    stream.begin();
    stream.insert(OUTBOX, &[7]);
    assert_eq!(stream.query("CREATE TABLE other (a INT)"), None);
    assert_eq!(stream.commit(), added(&[7]));
}

#[test]
fn mariadb_begins_a_transaction_without_a_statement_unless_it_stands_alone() {
    let gtid = |flags| {
        let mut data = vec![0; 13];
        data[12] = flags;
        data
    };
    for (flags, alone) in [(0, false), (2, false), (1, true), (3, true)] {
        let mut stream = stream();
        assert_eq!(stream.feed(162, &gtid(flags)), None);
        let out = stream.query("INSERT INTO outbox VALUES (1)");
        assert_eq!(out.is_some(), alone, "{flags}");
    }
    let mut stream = stream();
    stream.feed(162, &gtid(0));
    stream.insert(OUTBOX, &[7]);
    assert_eq!(stream.commit(), added(&[7]));
}

#[test]
fn a_transaction_without_an_end_is_a_doubt_when_the_next_one_starts() {
    let doubt = undecodable("a transaction without an end");
    let mut stream = stream();
    stream.begin();
    assert_eq!(stream.feed(GTID, &[]), doubt);
    assert_eq!(stream.feed(GTID, &[]), None, "it had not begun");
    stream.insert(OUTBOX, &[7]);
    assert_eq!(stream.feed(GTID, &[]), doubt);
    assert_eq!(stream.feed(PAYLOAD, &[]), None);
    assert_eq!(stream.feed(GTID, &[]), doubt, "its events were hidden");
}

#[test]
fn an_xa_commit_is_a_doubt_unless_the_prepared_transaction_was_foreign() {
    let (prepared, id) = xa("a");
    for (table, doubts) in [(OUTBOX, true), (OTHER, false)] {
        for (end, doubt) in [("XA COMMIT", doubts), ("XA ROLLBACK", false)] {
            let mut stream = stream();
            stream.begin();
            stream.insert(table, &[7]);
            assert_eq!(stream.feed(XA_PREPARE, &prepared), None);
            assert_eq!(stream.commit(), None, "it is not open any more");
            stream.start();
            let out = stream.query(&format!("{end} {id}"));
            assert_eq!(
                out,
                unvouched("XA COMMIT").filter(|_| doubt),
                "{end} {table}"
            );
            assert_eq!(stream.feed(GTID, &[]), None, "nothing is open");
            let again = stream.query(&format!("XA COMMIT {id}"));
            assert_eq!(again, unvouched("XA COMMIT"), "the name is free again");
        }
    }
    let mut stream = stream();
    stream.begin();
    stream.insert(OUTBOX, &[7]);
    assert_eq!(stream.feed(XA_PREPARE, &[1]), added(&[7]), "in one phase");
}

#[test]
fn a_name_that_a_foreign_transaction_had_is_not_foreign_for_ever() {
    let (prepared, id) = xa("a");
    let mut stream = stream();
    for table in [OTHER, OUTBOX] {
        stream.begin();
        stream.insert(table, &[7]);
        stream.feed(XA_PREPARE, &prepared);
    }
    stream.start();
    assert_eq!(
        stream.query(&format!("XA COMMIT {id}")),
        unvouched("XA COMMIT")
    );
}

#[test]
fn four_thousand_foreign_xa_transactions_are_remembered() {
    let mut stream = stream();
    let names: Vec<_> = (0..=4096).map(|n| xa(&n.to_string())).collect();
    for (prepared, _) in &names {
        stream.begin();
        stream.feed(XA_PREPARE, prepared);
    }
    let mut foreign = |(_, id): &(Vec<u8>, String)| {
        stream.start();
        stream.query(&format!("XA COMMIT {id}")).is_none()
    };
    assert!(foreign(&names[0]) && foreign(&names[4095]));
    assert!(!foreign(&names[4096]));
}

#[test]
fn the_position_is_the_end_of_what_was_seen() {
    let mut stream = stream();
    assert_eq!(stream.at(), ("b.000001", 100));
    for (log_pos, at) in [(200, 200), (200, 200), (150, 200), (0, 200), (201, 201)] {
        stream.log_pos = log_pos;
        stream.feed(XID, &[0; 8]);
        assert_eq!(stream.at().1, at);
    }
}

#[test]
fn inside_a_compressed_transaction_the_position_waits_for_its_end() {
    let mut stream = stream();
    stream.log_pos = 200;
    stream.start();
    stream.log_pos = 500;
    assert_eq!(stream.feed(PAYLOAD, &[]), None);
    stream.insert(OUTBOX, &[7]);
    assert_eq!(stream.at().1, 200);
    stream.log_pos = 0;
    assert_eq!(stream.commit(), added(&[7]));
    assert_eq!(stream.at().1, 500);
    stream.log_pos = 600;
    stream.start();
    assert_eq!(stream.at().1, 600);
}

#[test]
fn the_first_rotate_is_an_echo_and_the_next_ones_begin_a_file() {
    let rotate = |offset: u64, name: &str| {
        let mut data = offset.to_le_bytes().to_vec();
        data.extend(name.as_bytes());
        data
    };
    let mut stream = stream();
    stream.log_pos = 900;
    stream.feed(ROTATE, &rotate(4, "b.000001-sum"));
    assert_eq!(stream.at(), ("b.000001", 100));
    stream.feed(ROTATE, &rotate(4, "b.000002"));
    assert_eq!(stream.at(), ("b.000002", 4));
    stream.begin();
    stream.insert(OUTBOX, &[7]);
    assert_eq!(
        stream.commit(),
        None,
        "table ids of one file mean nothing in the next"
    );
    stream.maps();
    stream.begin();
    stream.insert(OUTBOX, &[7]);
    assert_eq!(stream.commit(), added(&[7]));
}

#[test]
fn a_table_id_is_what_its_last_map_says() {
    let mut stream = stream();
    stream.feed(TABLE_MAP, &table_map(OUTBOX, "other", &[8, 1]));
    stream.begin();
    stream.insert(OUTBOX, &[7]);
    assert_eq!(stream.commit(), None);
    assert_eq!(stream.feed(TABLE_MAP, &[1]), None, "cut short");
    assert_eq!(stream.feed(INSERT, &[1]), None);
}

#[test]
fn rows_outside_a_transaction_are_not_lost() {
    let mut cut_off = stream();
    cut_off.insert(OUTBOX, &[7]);
    assert!(matches!(cut_off.feed(GTID, &[]), Some(Change::Doubt(_))));
    let mut ended = stream();
    ended.insert(OUTBOX, &[7]);
    let added = ended.commit();
    assert!(matches!(added, Some(Change::Added { ids, .. }) if ids == [7]));
}

#[test]
fn a_statement_of_others_does_not_drop_the_rows_before_it() {
    for text in ["CREATE TABLE other (a INT)", "XA ROLLBACK X'61',X'',1"] {
        let mut stream = stream();
        stream.start();
        stream.insert(OUTBOX, &[7]);
        assert_eq!(stream.query(text), added(&[7]), "{text}");
    }
    let (prepared, name) = xa("a");
    let mut stream = stream();
    stream.start();
    assert_eq!(stream.feed(XA_PREPARE, &prepared), None);
    stream.start();
    stream.insert(OUTBOX, &[7]);
    assert_eq!(stream.query(&format!("XA COMMIT {name}")), added(&[7]));
}

#[test]
fn the_position_does_not_go_back_within_a_file() {
    let rotate = |file: &str, offset: u64| [&offset.to_le_bytes(), file.as_bytes()].concat();
    let mut stream = stream();
    assert_eq!(stream.feed(ROTATE, &rotate("b.000001", 4)), None);
    stream.log_pos = 500;
    assert_eq!(stream.commit(), None);
    assert_eq!(stream.feed(ROTATE, &rotate("b.000001", 4)), None);
    assert_eq!(stream.at(), ("b.000001", 500));
    assert_eq!(stream.feed(ROTATE, &rotate("b.000002", 4)), None);
    assert_eq!(stream.at(), ("b.000002", 4));
}
