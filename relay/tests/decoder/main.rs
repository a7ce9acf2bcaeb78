//! Whatever comes off the binlog, decoding it ends in rows or in a doubt: never in a panic, never in
//! memory out of all proportion.
#![expect(
    clippy::unwrap_used,
    reason = "clippy exempts test functions alone, and the helpers beside them are tests as well"
)]

mod fuzz;

use std::time::Duration;

use relay::source::binlog::library::Reader;

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
