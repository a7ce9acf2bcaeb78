use std::collections::HashMap;

use outbox::row::Row;
use proptest::prelude::*;

use super::*;

fn item(id: u64, key: u64, company: Company) -> Item {
    let row = Row {
        id,
        message_id: id.to_string(),
        aggregate_type: Vec::new(),
        aggregate_id: Vec::new(),
        event_type: Vec::new(),
        exchange: Vec::new(),
        routing_key: Vec::new(),
        content_type: Vec::new(),
        headers: None,
        payload: Vec::new(),
        created_at: None,
    };
    Item {
        row,
        attempts: 0,
        key,
        source: Source::Sweep,
        committed: None,
        company,
    }
}

fn company() -> impl Strategy<Value = Company> {
    prop_oneof![
        8 => Just(Company::Anyone),
        1 => Just(Company::Probe(Pace::Prompt)),
        1 => Just(Company::Probe(Pace::Slow)),
        1 => Just(Company::Nobody),
    ]
}

const LANES: usize = 3 + PROBE_LANES;

proptest! {
    /// Whatever is pushed goes exactly once, in order per key, never two of a key at a time, and a
    /// suspect with nothing beside it but slow probes, which have lanes of their own.
    #[test]
    fn all_goes_once_in_order_per_key(
        rows in proptest::collection::vec((0..6u64, company()), 0..200),
        turns in proptest::collection::vec(0..LANES, 1..50),
    ) {
        let limit = BatchLimit { rows: 5, bytes: usize::MAX };
        let mut queue = Queue::new(Order::Key, 3, limit);
        for (id, (key, company)) in rows.iter().enumerate() {
            queue.push(item(id as u64, *key, *company));
        }
        let mut busy: HashMap<usize, Vec<Item>> = HashMap::new();
        let mut gone: HashMap<u64, u64> = HashMap::new();
        let mut count = 0;
        for turn in turns.iter().cycle().take(rows.len() * 12 + 12) {
            if let Some(batch) = busy.remove(turn) {
                queue.settled(*turn, &batch);
                continue;
            }
            let Some(batch) = queue.next_batch(*turn) else { continue };
            let suspects = batch.iter().filter(|item| item.is_suspect()).count();
            let beside = busy.iter().filter(|(lane, _)| !queue.is_slow(**lane)).count();
            prop_assert!(suspects == 0 || (batch.len() == 1 && beside == 0));
            prop_assert!(busy.values().flatten().all(|item| !item.is_suspect()));
            for item in &batch {
                let slow = item.company == Company::Probe(Pace::Slow);
                prop_assert_eq!(slow, queue.is_slow(*turn));
                let probe = matches!(item.company, Company::Probe(_));
                prop_assert!(!probe || batch.len() == 1);
                prop_assert_eq!(probe, *turn >= 3);
            }
            for item in &batch {
                let last = gone.insert(item.key, item.row.id);
                prop_assert!(last.is_none_or(|last| last < item.row.id));
                prop_assert!(busy.values().flatten().all(|other| other.key != item.key));
            }
            count += batch.len();
            busy.insert(*turn, batch);
        }
        for lane in 0..LANES {
            if let Some(batch) = busy.remove(&lane) {
                queue.settled(lane, &batch);
            }
        }
        for _ in 0..rows.len() * 2 {
            for lane in 0..LANES {
                if let Some(batch) = queue.next_batch(lane) {
                    count += batch.len();
                    queue.settled(lane, &batch);
                }
            }
        }
        prop_assert_eq!(count, rows.len());
        prop_assert_eq!((queue.rows(), queue.bytes()), (0, 0));
    }
}

#[test]
fn without_an_order_new_rows_go_before_a_backlog_and_some_lanes_are_kept_for_them() {
    let limit = BatchLimit {
        rows: 5 * OLD_SHARE,
        bytes: usize::MAX,
    };
    let mut queue = Queue::new(Order::None, 4, limit);
    for id in 0..100 {
        queue.push(item(id, id, Company::Anyone));
    }
    let old: Vec<_> = (0..4).filter_map(|lane| queue.next_batch(lane)).collect();
    let rows: Vec<_> = old.iter().map(Vec::len).collect();
    assert_eq!(rows, [5; OLD_LANES_MAX], "a part of a batch each");
    let source = Source::Binlog;
    let fresh = |id| Item {
        source,
        ..item(id, id, Company::Anyone)
    };
    for id in 100..122 {
        queue.push(fresh(id));
    }
    let ids = |batch: &[Item]| -> Vec<u64> { batch.iter().map(|item| item.row.id).collect() };
    let full = queue.next_batch(2).unwrap();
    assert_eq!(ids(&full), Vec::from_iter(100..120));
    for (lane, batch) in [&old[0], &old[1], &full].into_iter().enumerate() {
        queue.settled(lane, batch);
    }
    queue.push(fresh(122));
    assert_eq!(
        ids(&queue.next_batch(0).unwrap()),
        [10, 11, 12, 13, 14, 120, 121, 122]
    );
    queue.push(fresh(123));
    assert_eq!(
        ids(&queue.next_batch(1).unwrap()),
        [123, 15, 16, 17, 18],
        "the rest of its part is for the backlog"
    );
}

#[test]
fn an_idle_lane_takes_what_there_is_but_a_backlog_goes_in_full_batches() {
    let limit = BatchLimit {
        rows: 5,
        bytes: usize::MAX,
    };
    let mut queue = Queue::new(Order::Key, 16, limit);
    let mut small = Vec::new();
    for id in 0..6 {
        queue.push(item(id, id, Company::Anyone));
        small.extend(queue.next_batch(small.len()));
    }
    let sizes: Vec<_> = small.iter().map(Vec::len).collect();
    assert_eq!(sizes, [1; 6], "none of them waits for the others");
    for id in 6..100 {
        queue.push(item(id, id, Company::Anyone));
    }
    // As much as one full batch and a row is out: the next one goes when there is room for all of it.
    assert!(queue.next_batch(15).is_none());
    queue.settled(0, &small[0]);
    assert_eq!(queue.next_batch(15).map(|batch| batch.len()), Some(5));
    for (lane, batch) in small.iter().enumerate().skip(1) {
        assert!(queue.next_batch(lane).is_none());
        queue.settled(lane, batch);
    }
    assert_eq!(queue.next_batch(0).map(|batch| batch.len()), Some(5));
    assert!(queue.next_batch(1).is_none());
}

#[test]
fn a_message_larger_than_a_batch_does_not_keep_others_waiting() {
    let large = || {
        let mut large = item(0, 0, Company::Anyone);
        large.row.payload = vec![0; 2048];
        large
    };
    let limit = BatchLimit {
        rows: 5,
        bytes: large().bytes() / 2,
    };
    let mut queue = Queue::new(Order::Key, 16, limit);
    queue.push(large());
    queue.push(item(1, 1, Company::Anyone));
    let sizes = [0, 1].map(|lane| queue.next_batch(lane).map(|batch| batch.len()));
    assert_eq!(sizes, [Some(1); 2]);
}

#[test]
fn a_backlog_leaves_room_for_a_new_row_however_small_a_batch_is() {
    let limit = BatchLimit {
        rows: 1,
        bytes: usize::MAX,
    };
    let mut queue = Queue::new(Order::None, 4, limit);
    for id in 0..10 {
        queue.push(item(id, id, Company::Anyone));
    }
    let old = (0..4).filter_map(|lane| queue.next_batch(lane)).count();
    assert_eq!(old, OLD_LANES_MAX);
    queue.push(Item {
        source: Source::Binlog,
        ..item(10, 10, Company::Anyone)
    });
    assert!(queue.next_batch(2).is_some());
}
