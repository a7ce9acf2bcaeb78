//! The second reader against the first, over the binlogs of real servers.
#![expect(
    clippy::unwrap_used,
    reason = "clippy exempts test functions alone, and the helpers beside them are tests as well"
)]

#[path = "../rig/mod.rs"]
mod rig;

#[path = "../decoder/fuzz.rs"]
mod fuzz;

mod differential;
mod limits;
mod reading;
mod smoke;
mod workload;

use relay::source::binlog::library::Reader;

#[test]
fn ten_seconds_of_mutated_events_through_the_second_reader() {
    let of = |reader| fuzz::Corpus::read(fuzz::FIXTURES[0].1).tell(reader).len();
    assert_eq!(of(Reader::MysqlAsync), of(Reader::MysqlCdc));
    fuzz::run(&[Reader::MysqlCdc], std::time::Duration::from_secs(10));
}
