//! Reported ids, without an engine around them.

use std::time::{Duration, Instant};

use super::super::arrivals::{ARRIVALS_MAX, Arrival, Arrivals, Why};

const MILLI: Duration = Duration::from_millis(1);

fn reported(ids: &[u64]) -> (Arrivals, Instant) {
    let now = Instant::now();
    let mut arrivals = Arrivals::new(now);
    for id in ids {
        arrivals.committed(*id, now, now);
    }
    (arrivals, now)
}

fn ids(found: &[Arrival]) -> Vec<u64> {
    found.iter().map(|arrival| arrival.id).collect()
}

fn kept(arrivals: &Arrivals) -> Vec<u64> {
    arrivals.first(100).map(|arrival| arrival.id).collect()
}

#[test]
fn what_is_not_visible_yet_is_read_again_at_once_and_then_after_ever_longer_waits() {
    let (mut arrivals, start) = reported(&[7]);
    assert_eq!((arrivals.len(), arrivals.is_empty()), (1, false));
    assert_eq!(arrivals.retry_at(), Some(start));
    let mut now = start;
    for wait in [0, 0, 0, 0, 1, 2, 4, 8, 16, 32, 50, 50] {
        assert!(arrivals.read(1, now, now, (false, |_| false)).is_empty());
        assert_eq!(arrivals.retry_at(), Some(now + wait * MILLI));
        now += wait * MILLI;
    }
    assert_eq!(ids(&arrivals.read(1, now, now, (false, |_| true))), [7]);
    assert!(arrivals.retry_at().is_none() && arrivals.is_empty());
    arrivals.committed(8, now, now);
    assert_eq!(arrivals.retry_at(), Some(now));
    arrivals.read(1, now, now, (false, |_| false));
    assert_eq!(arrivals.retry_at(), Some(now), "as at first");
}

#[test]
fn a_row_that_is_absent_while_a_later_new_one_is_visible_was_deleted() {
    for in_order in [true, false] {
        let (mut arrivals, now) = reported(&[7, 8, 9, 10]);
        let found = arrivals.read(3, now, now, (in_order, |id| id == 8));
        let (held, rest) = match in_order {
            true => (vec![7, 8, 9, 10], 4),
            false => (vec![7, 9, 10], 3),
        };
        assert_eq!(ids(&found).len() + rest, 4);
        assert_eq!(kept(&arrivals), held, "one snapshot may have missed 7");
        assert_eq!(arrivals.retry_at(), Some(now), "the next one does not");
        arrivals.read(rest - 1, now, now, (in_order, |id| id == 8));
        assert_eq!(
            kept(&arrivals),
            [9, 10],
            "9 may not be visible yet, and 10 was not read"
        );
    }
}

#[test]
fn a_commit_that_a_snapshot_missed_goes_before_those_behind_it() {
    let (mut arrivals, now) = reported(&[7, 8]);
    assert!(arrivals.read(2, now, now, (true, |id| id == 8)).is_empty());
    let found = arrivals.read(2, now, now, (true, |_| true));
    assert_eq!(ids(&found), [7, 8]);
    assert!(arrivals.is_empty());
}

#[test]
fn a_row_that_was_there_before_says_nothing_of_those_before_it() {
    let (mut arrivals, now) = reported(&[5]);
    assert_eq!(ids(&arrivals.read(1, now, now, (false, |_| true))), [5]);
    for id in [7, 5] {
        arrivals.committed(id, now, now);
    }
    let is_there = |id| id == 5;
    assert_eq!(ids(&arrivals.read(2, now, now, (false, is_there))), [5]);
    assert_eq!(
        kept(&arrivals),
        [7],
        "5 may have been set back by hand before"
    );
    arrivals.swept(9, now);
    assert_eq!(ids(&arrivals.read(2, now, now, (false, |id| id == 9))), [9]);
    assert_eq!(
        kept(&arrivals),
        [7],
        "a sweep's row has no place in the order of commits"
    );
    for id in [10, 11, 10] {
        arrivals.committed(id, now, now);
    }
    assert_eq!(
        ids(&arrivals.read(4, now, now, (false, |id| id == 10))),
        [10, 10]
    );
    assert_eq!(
        kept(&arrivals),
        [7, 11],
        "10 was set back after 11, and was new before it"
    );
    arrivals.read(2, now, now, (false, |_| false));
    assert_eq!(kept(&arrivals), [11], "7 was before 10");
}

#[test]
fn after_a_truncate_low_ids_are_new_again() {
    let (mut arrivals, now) = reported(&[50]);
    arrivals.read(1, now, now, (false, |_| true));
    arrivals.scan_began(3);
    for id in [3, 4, 5] {
        arrivals.committed(id, now, now);
    }
    assert_eq!(ids(&arrivals.read(3, now, now, (false, |id| id == 5))), [5]);
    arrivals.read(2, now, now, (false, |_| false));
    assert!(arrivals.is_empty());
    arrivals.scan_began(9);
    for id in [8, 9] {
        arrivals.committed(id, now, now);
    }
    arrivals.read(2, now, now, (false, |id| id == 9));
    assert_eq!(kept(&arrivals), [8], "the scan has seen 9");
}

#[test]
fn what_was_reported_before_a_fence_and_is_absent_behind_it_is_gone() {
    let (mut arrivals, start) = reported(&[7]);
    let at = |millis| start + millis * MILLI;
    arrivals.committed(8, start, at(10));
    arrivals.fenced(at(10), at(20));
    arrivals.read(2, at(19), at(21), (false, |_| false));
    assert_eq!(kept(&arrivals), [7, 8], "this query did not see the fence");
    arrivals.read(2, at(20), at(22), (false, |_| false));
    assert_eq!(kept(&arrivals), [8], "8 came after the fence had begun");
}

#[test]
fn a_row_to_be_looked_at_again_is_not_waited_for() {
    let (mut arrivals, now) = reported(&[]);
    arrivals.again(7, now);
    arrivals.swept(8, now);
    assert_eq!(arrivals.oldest_commit(), None);
    assert!(arrivals.read(2, now, now, (false, |_| false)).is_empty());
    assert!(arrivals.is_empty());
    arrivals.committed(9, now - MILLI, now);
    arrivals.committed(10, now - 2 * MILLI, now);
    assert_eq!(
        arrivals.oldest_commit(),
        Some(now - MILLI),
        "the first in the order of commits"
    );
}

#[test]
fn a_reported_row_that_is_not_pending_is_looked_at_once_more() {
    let (mut arrivals, at) = reported(&[]);
    let arrival = |why| Arrival::new(7, at, why);
    let look_at = at + 50 * MILLI;
    for why in [Why::Swept, Why::Again] {
        arrivals.is_not_pending(&arrival(why), at);
    }
    let committed = arrival(Why::Committed(at));
    arrivals.is_not_pending(&committed, look_at);
    assert_eq!(arrivals.look_at(), None);
    arrivals.is_not_pending(&committed, look_at - MILLI);
    assert_eq!(arrivals.look_at(), Some(look_at));
    arrivals.release_looks(look_at - MILLI);
    assert!(arrivals.is_empty());
    arrivals.release_looks(look_at);
    assert_eq!((kept(&arrivals), arrivals.look_at()), (vec![7], None));
    assert!(arrivals.first(1).all(|arrival| arrival.why == Why::Again));
}

#[test]
fn looks_are_bounded_and_forgotten_with_the_rest() {
    let (mut arrivals, at) = reported(&[1, 2]);
    assert_eq!(ARRIVALS_MAX, 65_536);
    let why = Why::Committed(at);
    for id in 0..70_000 {
        arrivals.is_not_pending(&Arrival::new(id, at, why), at);
    }
    arrivals.read(2, at, at, (false, |_| false));
    arrivals.clear();
    assert!(arrivals.is_empty() && arrivals.look_at().is_none());
    for id in 0..70_000 {
        arrivals.is_not_pending(&Arrival::new(id, at, why), at);
    }
    arrivals.release_looks(at + 50 * MILLI);
    assert_eq!(arrivals.len(), ARRIVALS_MAX);
    arrivals.clear();
    arrivals.committed(1, at, at);
    arrivals.read(1, at, at, (false, |_| false));
    assert_eq!(arrivals.retry_at(), Some(at));
}
