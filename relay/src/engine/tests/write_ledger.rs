//! What waits to be written, without an engine around it.

use std::time::{Duration, Instant};

use super::super::event::{Refused, Written};
use super::super::write_ledger::{UNWRITTEN_MAX, WriteLedger};
use super::super::{Reason, Record, Then, Write};
use super::confirmed;
use crate::publish::confirms::{Confirmed, Verdict};

const MILLI: Duration = Duration::from_millis(1);

fn mark(id: u64) -> Confirmed {
    match confirmed(id) {
        Verdict::Confirmed(confirmed) => confirmed,
        other => panic!("{other:?}"),
    }
}

fn record(id: u64) -> Record {
    Record {
        id,
        message_id: id.to_string(),
        reason: Reason::Invalid,
        text: String::new(),
        then: Then::Explain,
    }
}

fn ids(write: Option<Write>) -> Vec<u64> {
    match write {
        Some(Write::Sent(marks)) => marks.iter().map(Confirmed::id).collect(),
        Some(Write::Record(record)) => vec![record.id],
        None => Vec::new(),
    }
}

#[test]
fn marks_go_a_tenth_of_a_second_after_the_first_of_them() {
    let start = Instant::now();
    let mut ledger = WriteLedger::default();
    assert_eq!(ledger.deadline(), None);
    ledger.confirmed(mark(1), start);
    ledger.confirmed(mark(2), start + 60 * MILLI);
    assert_eq!(ledger.deadline(), Some(start + 100 * MILLI));
    assert!(ids(ledger.next(false, start + 99 * MILLI)).is_empty());
    assert_eq!(ids(ledger.next(false, start + 100 * MILLI)), [1, 2]);
    assert_eq!(
        (ledger.deadline(), ids(ledger.next(true, start))),
        (None, vec![])
    );
    ledger.confirmed(mark(3), start + 200 * MILLI);
    assert_eq!(ledger.deadline(), Some(start + 300 * MILLI));
}

#[test]
fn a_record_goes_at_once_and_the_marks_before_it() {
    let start = Instant::now();
    let mut ledger = WriteLedger::default();
    ledger.confirmed(mark(1), start);
    ledger.record(record(2));
    ledger.record(record(3));
    let writes: Vec<_> = (0..4).map(|_| ids(ledger.next(false, start))).collect();
    assert_eq!(writes, [vec![1], vec![2], vec![3], vec![]]);
}

#[test]
fn what_is_not_written_is_counted_until_the_writer_has_finished_with_it() {
    let start = Instant::now();
    let mut ledger = WriteLedger::default();
    for id in 1..=3 {
        ledger.confirmed(mark(id), start);
    }
    ledger.record(record(4));
    ledger.record(record(5));
    assert_eq!(ledger.unwritten(), 5);
    ledger.next(true, start);
    assert_eq!(ledger.unwritten(), 5);
    ledger.next(true, start);
    ledger.confirmed(mark(6), start);
    assert_eq!(ledger.unwritten(), 6);
    let refused = Refused {
        marks: 2,
        ..Refused::default()
    };
    ledger.written(&Written {
        finished: 3,
        refused: refused.clone(),
        ..Written::default()
    });
    assert_eq!((ledger.unwritten(), ledger.refused()), (3, &refused));
}

#[test]
fn it_is_full_at_its_bound_and_a_stall_is_seen_three_seconds_later() {
    let start = Instant::now();
    let at = |millis| start + millis * MILLI;
    let mut ledger = WriteLedger::default();
    for id in 1..UNWRITTEN_MAX as u64 {
        ledger.record(record(id));
    }
    assert!(!ledger.is_full());
    ledger.record(record(UNWRITTEN_MAX as u64));
    assert!(ledger.is_full());
    while ledger.next(false, start).is_some() {}
    assert_eq!(ledger.look(at(0)), None);
    assert_eq!(ledger.deadline(), Some(at(3000)));
    assert_eq!(ledger.look(at(2999)), None);
    ledger.written(&Written::default());
    assert_eq!(ledger.deadline(), Some(at(3000)), "nothing was written");
    assert!(!ledger.is_stalled());
    assert_eq!(ledger.look(at(3000)), Some(true));
    assert_eq!((ledger.is_stalled(), ledger.deadline()), (true, None));
    assert_eq!(ledger.look(at(3001)), None);
    ledger.written(&Written {
        finished: 1,
        ..Written::default()
    });
    assert_eq!(ledger.look(at(3002)), Some(false));
    assert!(!ledger.is_stalled());
}
