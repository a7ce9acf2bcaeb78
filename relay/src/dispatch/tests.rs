use outbox::row::Row;
use time::macros::datetime;

use super::*;
use crate::publish::publisher_task::{Done, Outcome};
use crate::settle::Verdict;

const SCHEDULE: Schedule = Schedule {
    min: Duration::from_secs(1),
    max: Duration::from_mins(5),
    attempts_max: 5,
};

fn dispatch(order: Order) -> Dispatch {
    let limit = BatchLimit {
        rows: 256,
        bytes: 1 << 20,
    };
    let mut dispatch = Dispatch::new(order, SCHEDULE, 1, limit);
    dispatch.pass_began(1, true);
    dispatch.page_asked();
    dispatch
}

fn row(id: u64, key: &str, routing_key: &str) -> Row {
    Row {
        id,
        message_id: format!("m{id}"),
        aggregate_type: b"order".to_vec(),
        aggregate_id: key.as_bytes().to_vec(),
        event_type: b"t".to_vec(),
        exchange: b"x".to_vec(),
        routing_key: routing_key.as_bytes().to_vec(),
        content_type: b"c".to_vec(),
        headers: None,
        payload: Vec::new(),
        created_at: Some(datetime!(2026-01-01 0:00)),
    }
}

fn head(row: &Row) -> Head {
    Head {
        id: RowId::new(row.id, &row.message_id),
        key: key_hash(&row.aggregate_type, &row.aggregate_id),
        route: Route::of(row),
        wait: None,
        bytes: 0,
        relived: false,
    }
}

/// Admits, loads and sends; what goes is the next batch.
fn load(dispatch: &mut Dispatch, rows: &[Row], attempts: u32, now: Instant) {
    let heads: Vec<Head> = rows.iter().map(head).collect();
    for head in &heads {
        let take = dispatch.admit(head, None, now);
        assert!(matches!(take, Take::Send { .. }), "{head:?}: {take:?}");
    }
    let rows = rows.iter().map(|row| (row.clone(), attempts)).collect();
    dispatch.loaded(&heads, rows, now);
}

fn batch(dispatch: &mut Dispatch) -> Vec<u64> {
    batch_of(dispatch, 0)
}

fn batch_of(dispatch: &mut Dispatch, lane: usize) -> Vec<u64> {
    let items = dispatch.queue.next_batch(lane).unwrap_or_default();
    let ids = items.iter().map(|item| item.row.id).collect();
    if !items.is_empty() {
        dispatch.queue.settled(lane, &items);
    }
    ids
}

/// The lanes of a dispatch with one lane.
const PROMPT: usize = 1;
const SLOW: usize = 2;

fn done(items: Vec<Item>, outcome: Outcome) -> Done {
    Done {
        lane: 0,
        items,
        outcome,
    }
}

#[test]
fn a_row_that_is_being_loaded_stays_when_an_earlier_one_of_its_key_fails() {
    let now = Instant::now();
    let mut dispatch = dispatch(Order::Key);
    let (first, second, other) = (row(1, "k", "r"), row(2, "k", "r"), row(3, "other", "r"));
    load(&mut dispatch, std::slice::from_ref(&first), 0, now);
    let sent = dispatch.queue.next_batch(0).unwrap();

    let asked = [head(&second), head(&other)];
    for head in &asked {
        assert!(matches!(dispatch.admit(head, None, now), Take::Send { .. }));
    }
    let invalid = Outcome::Settled(vec![Verdict::Invalid("no".into())]);
    let effects = dispatch.done(&done(sent, invalid), 0.0, now);
    assert_eq!(effects.failed.len(), 1);
    dispatch.loaded(&asked, vec![(second.clone(), 0), (other, 0)], now);

    assert_eq!(
        batch(&mut dispatch),
        [3],
        "the second waits behind the first"
    );
    assert_eq!(dispatch.admit(&head(&second), None, now), Take::Skip);
}

#[test]
fn another_message_under_a_loaded_id_is_not_sent() {
    let now = Instant::now();
    let mut dispatch = dispatch(Order::Key);
    let asked = head(&row(1, "k", "r"));
    assert!(matches!(
        dispatch.admit(&asked, None, now),
        Take::Send { .. }
    ));
    let reused = Row {
        message_id: "another".into(),
        ..row(1, "k", "r")
    };
    dispatch.loaded(&[asked], vec![(reused, 0)], now);
    assert_eq!(batch(&mut dispatch), [0_u64; 0]);
    assert_eq!(dispatch.in_flight(), 0);
}

#[test]
fn what_failed_before_goes_alone() {
    let now = Instant::now();
    let mut dispatch = dispatch(Order::Key);
    load(&mut dispatch, &[row(1, "a", "r"), row(2, "b", "r")], 0, now);
    load(&mut dispatch, &[row(3, "c", "r")], 1, now);
    assert_eq!(batch(&mut dispatch), [1, 2]);
    assert_eq!(batch(&mut dispatch), [3]);
}

#[test]
fn a_shut_route_puts_its_rows_back_and_probes_with_one_in_a_lane_of_its_own() {
    let now = Instant::now();
    let mut dispatch = dispatch(Order::Key);
    let (shut, open) = (row(1, "a", "shut"), row(2, "b", "open"));
    load(
        &mut dispatch,
        &[shut.clone(), row(3, "a", "open"), open],
        0,
        now,
    );
    let sent = dispatch.queue.next_batch(0).unwrap();
    assert_eq!(sent.len(), 2, "one row of a key");
    let returned = Outcome::Settled(vec![
        Verdict::Returned("312 NO_ROUTE".into()),
        Verdict::Confirmed,
    ]);
    let effects = dispatch.done(&done(sent, returned), 0.0, now);
    assert_eq!(effects.sent.len(), 1);
    assert_eq!(effects.samples.len(), 1);
    assert_eq!(effects.failed.len(), 0, "no attempt is spent");
    assert_eq!(
        batch(&mut dispatch),
        [0_u64; 0],
        "the row behind is back as well"
    );

    let due = now + SCHEDULE.min;
    dispatch.pass_began(2, true);
    dispatch.page_asked();
    load(&mut dispatch, &[shut, row(4, "c", "open")], 0, due);
    assert_eq!(batch(&mut dispatch), [4]);
    assert_eq!(batch_of(&mut dispatch, SLOW), [0_u64; 0]);
    assert_eq!(batch_of(&mut dispatch, PROMPT), [1]);
}

#[test]
fn a_route_that_keeps_silent_keeps_neither_a_lane_nor_a_suspect_waiting() {
    let now = Instant::now();
    let mut dispatch = dispatch(Order::Key);
    let silent = row(1, "a", "silent");
    // It has failed before, so it would go alone in the whole process.
    load(&mut dispatch, std::slice::from_ref(&silent), 1, now);
    let sent = dispatch.queue.next_batch(0).unwrap();
    let timed_out = Outcome::TimedOut {
        answered: vec![false],
    };
    let effects = dispatch.done(&done(sent, timed_out), 0.0, now);
    assert_eq!((effects.samples.len(), effects.failed.len()), (1, 0));

    let due = now + SCHEDULE.min;
    dispatch.pass_began(2, true);
    dispatch.page_asked();
    load(&mut dispatch, &[silent], 1, due);
    let probe = dispatch.queue.next_batch(SLOW).unwrap();
    load(&mut dispatch, &[row(2, "b", "open")], 1, due);
    load(&mut dispatch, &[row(3, "c", "open")], 0, due);
    assert_eq!(batch(&mut dispatch), [2], "a suspect, beside the probe");
    assert_eq!(batch(&mut dispatch), [3]);

    // The row behind the probe in its key goes when that is confirmed, by a lane for all.
    load(&mut dispatch, &[row(4, "a", "open")], 0, due);
    assert_eq!(batch(&mut dispatch), [0_u64; 0]);
    let confirmed = Outcome::Settled(vec![Verdict::Confirmed]);
    let lane = SLOW;
    dispatch.done(
        &Done {
            lane,
            items: probe,
            outcome: confirmed,
        },
        0.0,
        due,
    );
    assert_eq!(batch(&mut dispatch), [4]);
}

#[test]
fn what_was_settled_since_the_page_was_asked_for_is_not_sent_again() {
    let now = Instant::now();
    let mut dispatch = dispatch(Order::None);
    let sent = row(1, "k", "r");
    load(&mut dispatch, std::slice::from_ref(&sent), 0, now);
    let items = dispatch.queue.next_batch(0).unwrap();
    let confirmed = Outcome::Settled(vec![Verdict::Confirmed]);
    let effects = dispatch.done(&done(items, confirmed), 0.0, now);
    dispatch.written(effects.sent.iter().map(|(mark, ..)| mark.id), now);
    assert_eq!(dispatch.admit(&head(&sent), None, now), Take::Skip);
    dispatch.page_done();
    dispatch.page_asked();
    let again = dispatch.admit(&head(&sent), None, now);
    assert!(matches!(again, Take::Send { .. }), "set back by hand");
}

#[test]
fn alone_twice_when_the_broker_closes_is_to_blame() {
    let now = Instant::now();
    let mut dispatch = dispatch(Order::Key);
    let closed = || Outcome::Closed {
        code: 501,
        text: "501 FRAME_ERROR".into(),
    };
    let mut failed = 0;
    let mut rounds = 0;
    let rows = [row(1, "a", "r"), row(2, "b", "r")];
    while failed == 0 && rounds < 10 {
        rounds += 1;
        dispatch.pass_began(rounds + 1, true);
        dispatch.page_asked();
        let heads: Vec<Head> = rows.iter().map(head).collect();
        let asked: Vec<Head> = heads
            .into_iter()
            .filter(|head| matches!(dispatch.admit(head, None, now), Take::Send { .. }))
            .collect();
        dispatch.loaded(
            &asked,
            rows.iter().map(|row| (row.clone(), 0)).collect(),
            now,
        );
        while let Some(items) = dispatch.queue.next_batch(0) {
            let guilty = items.iter().any(|item| item.row.id == 2);
            let outcome = if guilty {
                closed()
            } else {
                Outcome::Settled(vec![Verdict::Confirmed; items.len()])
            };
            failed += dispatch.done(&done(items, outcome), 0.0, now).failed.len();
        }
    }
    assert_eq!((failed, rounds), (1, 3), "together, alone, alone again");
}

#[test]
fn a_hot_key_leaves_room_for_others_and_is_served_from_the_table() {
    let now = Instant::now();
    let mut dispatch = dispatch(Order::Key);
    let count = KEY_ROWS_MAX as u64 + 10;
    for id in 0..count {
        dispatch.tail(row(id, "hot", "r"), now, now);
    }
    dispatch.tail(row(count, "other", "r"), now, now);
    assert_eq!(dispatch.queue.rows(), KEY_ROWS_MAX + 2);

    // A pass leaves the rest too, but one that comes when the queue is shorter takes it.
    let left = head(&row(count - 1, "hot", "r"));
    assert_eq!(dispatch.admit(&left, None, now), Take::Skip);
    dispatch.held.pass_ended(1, true);
    let hot = left.key;
    assert!(dispatch.held.holds(hot, &left.route));
    assert_eq!(dispatch.held.wake(), Some(now), "a pass is wanted");
    let sent = dispatch.queue.next_batch(0).unwrap();
    dispatch.queue.settled(0, &sent);
    dispatch.pass_began(2, true);
    let take = dispatch.admit(&left, None, now);
    assert_eq!(take, Take::Send { missed: false });
}

#[test]
fn rows_that_are_being_loaded_go_back_to_the_table_with_those_in_the_queue() {
    let now = Instant::now();
    let mut dispatch = dispatch(Order::Key);
    let (first, second) = (row(1, "k", "r"), row(2, "k", "r"));
    load(&mut dispatch, std::slice::from_ref(&first), 0, now);
    let asked = [head(&second)];
    assert!(matches!(
        dispatch.admit(&asked[0], None, now),
        Take::Send { .. }
    ));
    dispatch.put_back_all(now);
    dispatch.loaded(&asked, vec![(second.clone(), 0)], now);
    assert!(batch(&mut dispatch).is_empty(), "the second would overtake");
    assert_eq!(dispatch.in_flight(), 0);
    load(&mut dispatch, &[first, second], 0, now);
    assert_eq!(batch(&mut dispatch), [1]);
}

#[test]
fn a_row_that_is_being_loaded_stays_when_its_route_is_paused_and_so_does_what_is_behind_it() {
    let now = Instant::now();
    let mut dispatch = dispatch(Order::Key);
    let rows = [
        row(1, "k", "paused"),
        row(2, "k", "open"),
        row(3, "other", "open"),
    ];
    let asked: Vec<Head> = rows.iter().map(head).collect();
    for head in &asked {
        assert!(matches!(dispatch.admit(head, None, now), Take::Send { .. }));
    }
    dispatch.pause_route(&asked[0].route, now);
    dispatch.loaded(&asked, rows.map(|row| (row, 0)).into(), now);
    assert_eq!(batch(&mut dispatch), [3]);
    assert_eq!(dispatch.admit(&asked[0], None, now), Take::Skip);
    dispatch.resume_route(&asked[0].route, now);
    dispatch.pass_began(2, true);
    let take = dispatch.admit(&asked[0], None, now);
    assert_eq!(take, Take::Send { missed: false });
}

#[test]
fn a_row_that_is_sent_elsewhere_while_it_is_loaded_is_decided_anew() {
    let now = Instant::now();
    let mut dispatch = dispatch(Order::Key);
    let (probe, behind) = (row(1, "k", "shut"), row(2, "k", "open"));
    let shut = Route::of(&probe);
    let id = RowId::new(9, "m9");
    dispatch.held.shut_route(&shut, id, true, (0.0, now));
    let due = now + SCHEDULE.max;
    let asked = [head(&probe), head(&behind)];
    for head in &asked {
        assert!(matches!(dispatch.admit(head, None, due), Take::Send { .. }));
    }
    assert!(!dispatch.held.wants_probe(due), "it is on its way");

    let elsewhere = row(1, "k", "open");
    dispatch.loaded(&asked, vec![(elsewhere, 0), (behind, 0)], due);
    assert_eq!(dispatch.queue.rows(), 0, "what is behind it waits for it");
    assert_eq!(dispatch.in_flight(), 0);
    assert!(dispatch.held.wants_probe(due), "another may probe");
    assert!(dispatch.held.wake().is_some_and(|wake| wake <= due));
}
