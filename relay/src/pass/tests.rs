use super::*;
use crate::config::Order;
use crate::queue::BatchLimit;
use crate::route::Route;
use crate::schedule::Schedule;

const ROOM: Room = Room {
    rows: 100,
    bytes: 1000,
};
const PLAN: Plan = Plan {
    fence: true,
    positions: true,
    verify: false,
    count_missed: false,
    probes_only: false,
};

fn dispatch() -> Dispatch {
    let schedule = Schedule {
        min: Duration::from_secs(1),
        max: Duration::from_mins(5),
        attempts_max: 5,
    };
    let limit = BatchLimit {
        rows: 256,
        bytes: 1 << 20,
    };
    Dispatch::new(Order::Key, schedule, 4, limit)
}

fn head(id: u64, bytes: usize) -> Head {
    Head {
        id: RowId::new(id, "m"),
        key: id,
        route: Route::new(b"", b""),
        wait: None,
        bytes,
        relived: false,
    }
}

fn page(heads: Vec<Head>, end: Option<Position>, now: Instant) -> Page {
    Page {
        heads,
        small: Vec::new(),
        upto: 1000,
        start: None,
        end,
        unreadable: None,
        read_to: 1000,
        read_at: now,
    }
}

#[test]
fn a_pass_rests_for_what_it_read_and_not_for_what_it_waited() {
    let began = Instant::now();
    let mut dispatch = dispatch();
    let mut passes = Passes::new(began);
    passes.begin(PLAN, &mut dispatch, began);
    let read = began + Duration::from_millis(10);
    passes.page(page(Vec::new(), None, read), read, read);
    let no_room = Room { rows: 0, bytes: 0 };
    let blocked = passes.go_on(&mut dispatch, no_room, read);
    assert!(matches!(blocked, Progress::Wait));
    let later = began + Duration::from_mins(10);
    let ended = passes.go_on(&mut dispatch, ROOM, later);
    assert!(matches!(ended, Progress::Ended(_)));
    assert_eq!(passes.rest_until(), later + Duration::from_millis(90));
}

#[test]
fn a_page_that_is_verified_waits_for_the_tail_to_pass_it() {
    let now = Instant::now();
    let mut dispatch = dispatch();
    let mut passes = Passes::new(now);
    let plan = Plan {
        verify: true,
        count_missed: true,
        ..PLAN
    };
    passes.begin(plan, &mut dispatch, now);
    let end = Position::new("binlog.000001", 77);
    let rows = vec![head(1, 10), head(2, 10)];
    passes.page(page(rows, Some(end.clone()), now), now, now);
    assert_eq!(passes.awaited(), Some((&end, now)));
    let waits = passes.go_on(&mut dispatch, ROOM, now);
    assert!(matches!(waits, Progress::Wait));
    passes.verified();
    let asked = passes.go_on(&mut dispatch, ROOM, now);
    assert!(matches!(asked, Progress::Ask(Ask::Rows(ids)) if ids == [1, 2]));
    assert_eq!(passes.take_missed(), 2, "nothing explains them");
}

#[test]
fn rows_are_loaded_as_far_as_there_is_room_and_a_giant_alone() {
    let now = Instant::now();
    let mut dispatch = dispatch();
    let mut passes = Passes::new(now);
    passes.begin(PLAN, &mut dispatch, now);
    let rows = vec![head(1, 600), head(2, 600), head(3, 5000)];
    passes.page(page(rows, None, now), now, now);
    for expected in [[1], [2], [3]] {
        let asked = passes.go_on(&mut dispatch, ROOM, now);
        assert!(matches!(asked, Progress::Ask(Ask::Rows(ids)) if ids == expected));
        let asked = passes.loaded(now);
        dispatch.loaded(&asked, Vec::new(), now);
    }
    let ended = passes.go_on(&mut dispatch, ROOM, now);
    let Progress::Ended(summary) = ended else {
        panic!("{ended:?}");
    };
    assert_eq!(summary.sent.map(|sent| sent.len()), Some(3));
}

/// A shut route with a hundred thousand rows is probed by its first one, and the rest of a pass over
/// all of them is not waited for.
#[test]
fn a_pass_for_probes_ends_with_the_page_that_has_them_and_does_not_count_as_whole() {
    let began = Instant::now();
    let mut dispatch = dispatch();
    let (first, second) = (head(1, 1), head(2, 1));
    dispatch
        .held
        .shut_route(&first.route, first.id, true, (0.5, began));
    let due = began + Duration::from_mins(1);
    let mut passes = Passes::new(began);
    let plan = Plan {
        probes_only: true,
        ..PLAN
    };
    passes.begin(plan, &mut dispatch, due);
    let mut found = page(vec![first, second], None, due);
    found.read_to = 999;
    passes.page(found, due, due);
    let Progress::Ask(Ask::Rows(asked)) = passes.go_on(&mut dispatch, ROOM, due) else {
        panic!("the probe is not loaded");
    };
    assert_eq!(asked, [1]);
    passes.loaded(due);
    let Progress::Ended(summary) = passes.go_on(&mut dispatch, ROOM, due) else {
        panic!("it goes on behind the probe");
    };
    assert!(summary.cut_short);
    assert_eq!(
        passes.rest_until(),
        began,
        "whole passes have a rest of their own"
    );
    assert_eq!(dispatch.held.next_probe(), None, "its answer is awaited");
}
