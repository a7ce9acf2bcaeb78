//! What fuzzing has collected and found stays checked: `make fuzz` looks for more.
#![expect(
    clippy::unwrap_used,
    reason = "clippy exempts test functions alone, and the helpers beside them are tests as well"
)]

use std::fs;
use std::path::Path;

use fuzz_checks::{Events, Head, database_url, message, statement, traceparent, transaction};

/// Events of real servers, from the relay's tests.
const CAPTURED: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../relay/tests/it/decoder");
const CORPUS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../fuzz/corpus");

/// Puts each input of a target through its check.
fn replay(target: &str, check: impl Fn(&[u8])) {
    let corpus = Path::new(CORPUS).join(target);
    let mut replayed = 0;
    for input in fs::read_dir(corpus).unwrap() {
        let path = input.unwrap().path();
        // The last of these lines before a panic names the input.
        eprintln!("{}", path.display());
        check(&fs::read(&path).unwrap());
        replayed += 1;
    }
    assert!(replayed >= 10, "{target}: {replayed} inputs");
}

#[test]
fn a_row_that_events_add_comes_out_as_an_id_or_a_doubt() {
    replay("transaction", |data| {
        transaction(data);
    });
}

#[test]
fn a_statement_that_may_write_to_the_outbox_is_a_doubt() {
    replay("statement", statement);
}

#[test]
fn the_inbox_can_store_whatever_is_delivered() {
    replay("message", message);
}

#[test]
fn a_database_url_shows_no_secret() {
    replay("database_url", database_url);
}

#[test]
fn a_traceparent_is_taken_as_the_standard_says() {
    replay("traceparent", traceparent);
}

#[test]
fn captured_events_pass_the_check_with_all_their_ids() {
    for server in ["mariadb", "mysql"] {
        let events = captured(&format!("{CAPTURED}/{server}.events"));
        let written = events.write();
        assert_eq!(Events::read(&written), events);
        let found = transaction(&written);
        assert!(found.ids > 60 && found.doubts > 3, "{server}: {found:?}");
    }
}

/// The events of a file, which are as they are in a binlog without checksums.
fn captured(path: &str) -> Events {
    const TABLE_MAP: u8 = 19;
    let binlog = fs::read(path).unwrap_or_else(|err| panic!("{path}: {err}"));
    let mut binlog = binlog.as_slice();
    let mut events = Events::default();
    while let Some((wire, rest)) = binlog.split_first_chunk::<19>() {
        let number = |at: usize| u32::from_le_bytes(wire[at..at + 4].try_into().unwrap());
        let length = usize::try_from(number(9)).unwrap() - wire.len();
        let (data, rest) = rest.split_at(length);
        binlog = rest;
        let head = Head {
            kind: wire[4],
            flags: u16::from_le_bytes([wire[17], wire[18]]),
            end: number(13),
        };
        if head.kind == TABLE_MAP && data.windows(8).any(|part| part == b"\x06outbox\0") {
            events.schema = data[9..][..usize::from(data[8])].to_vec();
        }
        events.list.push((head, data.to_vec()));
    }
    events
}
