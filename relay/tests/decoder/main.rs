//! Whatever comes off the binlog, decoding it ends in rows or in a doubt: never in a panic, never in
//! memory out of all proportion.
#![expect(
    clippy::unwrap_used,
    reason = "clippy exempts test functions alone, and the helpers beside them are tests as well"
)]

mod fuzz;

use std::time::Duration;

use relay::binlog::reader::Reader;

/// More than the decoder can need. Beyond it an allocation fails, which ends the process.
const ADDRESS_SPACE: u64 = 512 << 20;

fn run(time: Duration) {
    let limit = rustix::process::Rlimit {
        current: Some(ADDRESS_SPACE),
        maximum: Some(ADDRESS_SPACE),
    };
    rustix::process::setrlimit(rustix::process::Resource::As, limit).unwrap();
    fuzz::run(&[Reader::MysqlAsync], time);
}

#[test]
fn the_captured_events_are_decoded_as_they_were_written() {
    for (name, bytes) in fuzz::FIXTURES {
        let told = fuzz::Corpus::read(bytes).tell(Reader::MysqlAsync);
        let rows: usize = told.iter().map(|group| group.rows.len()).sum();
        let deferred: usize = told.iter().map(|group| group.deferred.len()).sum();
        let doubts = told.iter().filter(|group| group.doubt.is_some()).count();
        assert!(
            rows > 40 && deferred > 4 && doubts > 9,
            "{name}: {rows} {deferred} {doubts}"
        );
    }
}

#[cfg(not(feature = "long"))]
#[test]
fn a_minute_of_mutated_events() {
    run(Duration::from_mins(1));
}

#[cfg(feature = "long")]
#[test]
fn long_decoder_ten_minutes_of_mutated_events() {
    run(Duration::from_mins(10));
}

#[test]
fn an_event_of_an_unknown_type_is_a_doubt_unless_the_server_lets_readers_ignore_it() {
    for (name, bytes) in fuzz::FIXTURES {
        let corpus = fuzz::Corpus::read(bytes);
        let doubts = |kind: u8, flags: u16| {
            let groups = corpus
                .with_event_before_each_end(kind, flags)
                .tell(Reader::MysqlAsync);
            groups.iter().filter(|group| group.doubt.is_some()).count()
        };
        let without = doubts(IGNORABLE, LOG_EVENT_IGNORABLE_F);
        assert!(without > 9, "{name}: the corpus has doubts of its own");
        for kind in HARMLESS {
            assert_eq!(
                doubts(kind, 0),
                without,
                "{name}: type {kind} changes no table"
            );
        }
        for kind in [PARTIAL_ROW_DATA, 43, 99, 200] {
            assert!(doubts(kind, 0) > without + 9, "{name}: type {kind}");
            assert_eq!(
                doubts(kind, LOG_EVENT_IGNORABLE_F),
                without,
                "{name}: {kind}"
            );
        }
    }
}

const IGNORABLE: u8 = 28;
/// MariaDB 12.3 splits row events over 1 GiB into these (MDEV-32570).
const PARTIAL_ROW_DATA: u8 = 172;
/// INTVAR, USER_VAR, HEARTBEAT_V2, ANNOTATE_ROWS, BINLOG_CHECKPOINT, GTID_LIST, START_ENCRYPTION.
const HARMLESS: [u8; 7] = [5, 14, 41, 160, 161, 163, 164];
const LOG_EVENT_IGNORABLE_F: u16 = 0x80;
