//! The lines of rows that may go, without an engine around them.

use super::super::breaker::Pace;
use super::super::ready_queue::{Batch, Isolation, Queued, ReadyQueue};
use super::SETTINGS;
use crate::engine::Settings;

use Isolation::{Shared, Solo};

const PROMPT: Isolation = Isolation::Probe(Pace::Prompt);
const SLOW: Isolation = Isolation::Probe(Pace::Slow);

/// Four publishers for all, of which 4 probes promptly and 5, 6 and 7 slowly; 8 rows or 100 bytes in a
/// batch.
fn queue() -> ReadyQueue {
    ReadyQueue::new(&Settings {
        publishers: 4,
        batch_rows: 8,
        batch_bytes: 100,
        ..SETTINGS
    })
}

const NONE: [u64; 0] = [];
const PROMPT_PUBLISHER: usize = 4;

fn push(queue: &mut ReadyQueue, ids: std::ops::RangeInclusive<u64>, old: bool) {
    for id in ids {
        queue.push(Queued { id, bytes: 1, old }, Shared);
    }
}

fn add(queue: &mut ReadyQueue, id: u64, isolation: Isolation) {
    let row = Queued {
        id,
        bytes: 1,
        old: false,
    };
    queue.push(row, isolation);
}

fn ids(batch: Option<Batch>) -> Vec<u64> {
    let rows = batch.into_iter().flat_map(|batch| batch.rows);
    rows.map(|row| row.id).collect()
}

fn next(queue: &mut ReadyQueue, publisher: usize) -> Vec<u64> {
    ids(queue.next_batch(publisher, |_| true))
}

#[test]
fn a_batch_has_as_many_rows_as_it_may_and_no_publisher_two_batches() {
    let mut queue = queue();
    assert_eq!(queue.publishers(), 8);
    push(&mut queue, 1..=9, false);
    assert_eq!(queue.lines().count(), 9);
    assert_eq!(next(&mut queue, 0), [1, 2, 3, 4, 5, 6, 7, 8]);
    assert_eq!(next(&mut queue, 0), NONE);
    assert_eq!((queue.out().count(), queue.lines().count()), (8, 1));
    assert_eq!(next(&mut queue, 8), NONE, "there is no such publisher");
    assert!(!queue.is_idle());
    assert_eq!(ids(queue.done(0)), [1, 2, 3, 4, 5, 6, 7, 8]);
    assert!(queue.is_idle() && queue.done(0).is_none());
    assert_eq!(next(&mut queue, 0), [9]);
}

#[test]
fn rows_that_may_not_go_any_more_are_dropped() {
    let mut queue = queue();
    push(&mut queue, 1..=4, false);
    assert_eq!(ids(queue.next_batch(0, |id| id % 2 == 0)), [2, 4]);
    assert_eq!(queue.lines().count(), 0);
    for isolation in [Solo, PROMPT, SLOW] {
        let of = |publisher| {
            let mut queue = self::queue();
            add(&mut queue, 1, isolation);
            add(&mut queue, 2, isolation);
            ids(queue.next_batch(publisher, |id| id == 2))
        };
        let all: Vec<_> = (0..8).map(of).filter(|ids| *ids == [2]).collect();
        let publishers = match isolation {
            Solo => 4,
            PROMPT => 1,
            _ => 3,
        };
        assert_eq!(all.len(), publishers, "{isolation:?}");
    }
}

#[test]
fn a_batch_has_as_many_bytes_as_it_may_and_a_larger_row_goes_alone() {
    let mut queue = queue();
    for (id, bytes) in [(1, 60), (2, 40), (3, 101), (4, 1), (5, 100), (6, 0)] {
        let old = false;
        queue.push(Queued { id, bytes, old }, Shared);
    }
    for batch in [&[1, 2][..], &[3], &[4], &[5, 6]] {
        assert_eq!(next(&mut queue, 0), batch);
        queue.done(0);
    }
}

#[test]
fn a_publisher_waits_for_room_for_a_full_batch_of_rows() {
    let mut queue = queue();
    push(&mut queue, 1..=3, false);
    assert_eq!(next(&mut queue, 0).len(), 3);
    push(&mut queue, 1..=5, false);
    assert_eq!(next(&mut queue, 1).len(), 5);
    push(&mut queue, 1..=1, false);
    assert_eq!(next(&mut queue, 2).len(), 1, "8 rows were out");
    push(&mut queue, 1..=1, false);
    assert_eq!(next(&mut queue, 3), NONE, "9 rows are out");
    queue.done(2);
    assert_eq!(next(&mut queue, 3), [1]);
}

#[test]
fn three_batches_of_bytes_may_be_out_when_another_one_goes() {
    let mut queue = queue();
    let mut go = |publisher, bytes| {
        let (id, old) = (1, false);
        queue.push(Queued { id, bytes, old }, Shared);
        next(&mut queue, publisher).len()
    };
    assert_eq!((go(0, 200), go(1, 100), go(2, 1)), (1, 1, 1));
    assert_eq!(go(3, 1), 0, "301 bytes are out");
}

#[test]
fn with_batches_of_one_row_three_may_be_out() {
    let mut queue = ReadyQueue::new(&Settings {
        publishers: 4,
        batch_rows: 1,
        ..SETTINGS
    });
    push(&mut queue, 1..=9, false);
    let out: Vec<_> = (0..4)
        .map(|publisher| next(&mut queue, publisher).len())
        .collect();
    assert_eq!(out, [1, 1, 1, 0]);
}

#[test]
fn a_backlog_has_a_quarter_of_the_batches_of_two_publishers() {
    let mut queue = queue();
    push(&mut queue, 1..=2, false);
    push(&mut queue, 101..=120, true);
    assert_eq!(next(&mut queue, 0), [101, 102, 1, 2]);
    push(&mut queue, 3..=3, false);
    assert_eq!(next(&mut queue, 1), [3, 103], "new rows go first");
    assert_eq!(next(&mut queue, 2), NONE, "two publishers have some of it");
    push(&mut queue, 4..=4, false);
    assert_eq!(next(&mut queue, 3), [4]);
    queue.done(0);
    assert_eq!(next(&mut queue, 0), [104, 105]);
}

#[test]
fn a_solo_row_goes_while_nothing_else_is_out_and_nothing_goes_beside_it() {
    let mut queue = queue();
    push(&mut queue, 1..=1, false);
    assert_eq!(next(&mut queue, 0), [1]);
    add(&mut queue, 50, Solo);
    push(&mut queue, 2..=3, false);
    assert_eq!(next(&mut queue, 1), NONE, "a batch is out");
    queue.done(0);
    for publisher in 4..8 {
        assert_eq!(
            next(&mut queue, publisher),
            NONE,
            "it needs no probe's publisher"
        );
    }
    assert_eq!(next(&mut queue, 1), [50]);
    add(&mut queue, 60, PROMPT);
    add(&mut queue, 61, SLOW);
    for publisher in 0..8 {
        assert_eq!(next(&mut queue, publisher), NONE);
    }
    queue.done(1);
    add(&mut queue, 51, Solo);
    assert_eq!(
        next(&mut queue, 0),
        [2, 3],
        "others have a turn after one solo row"
    );
    assert_eq!(next(&mut queue, 1), NONE);
    queue.done(0);
    assert_eq!(next(&mut queue, 1), [51]);
}

#[test]
fn a_turn_of_the_others_passes_when_there_is_none_of_them() {
    let mut queue = queue();
    push(&mut queue, 1..=8, false);
    assert_eq!(next(&mut queue, 0).len(), 8);
    queue.done(0);
    add(&mut queue, 50, Solo);
    assert_eq!(next(&mut queue, 0), [50]);
    queue.done(0);
    add(&mut queue, 51, Solo);
    assert_eq!(
        next(&mut queue, 0),
        NONE,
        "their turn, and there is none of them"
    );
    assert_eq!(next(&mut queue, 0), [51]);
}

#[test]
fn a_slow_probe_keeps_nobody_waiting() {
    let mut queue = queue();
    for id in 60..=63 {
        add(&mut queue, id, SLOW);
    }
    for publisher in 0..=PROMPT_PUBLISHER {
        assert_eq!(next(&mut queue, publisher), NONE);
    }
    for (publisher, id) in [(5, 60), (6, 61), (7, 62)] {
        assert_eq!(next(&mut queue, publisher), [id]);
    }
    assert!(
        queue.is_idle(),
        "their answers are not waited for at the end"
    );
    add(&mut queue, 50, Solo);
    assert_eq!(next(&mut queue, 0), [50], "not even by a solo row");
}

#[test]
fn a_prompt_probe_has_a_publisher_and_a_batch_of_its_own() {
    let mut queue = queue();
    add(&mut queue, 60, PROMPT);
    add(&mut queue, 61, PROMPT);
    for publisher in [0, 1, 2, 3, 5, 6, 7] {
        assert_eq!(next(&mut queue, publisher), NONE);
    }
    assert_eq!(next(&mut queue, PROMPT_PUBLISHER), [60]);
    assert_eq!(next(&mut queue, PROMPT_PUBLISHER), NONE);
    assert!(!queue.is_idle());
    push(&mut queue, 1..=1, false);
    assert_eq!(next(&mut queue, 0), [1]);
}

#[test]
fn all_lines_can_be_forgotten() {
    let mut queue = queue();
    push(&mut queue, 1..=2, false);
    push(&mut queue, 1..=2, true);
    for isolation in [PROMPT, SLOW, Solo] {
        add(&mut queue, 9, isolation);
    }
    queue.clear();
    assert_eq!(queue.lines().count(), 0);
    for publisher in 0..8 {
        assert_eq!(next(&mut queue, publisher), NONE);
    }
}
