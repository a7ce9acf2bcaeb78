//! Routes and their breakers, without an engine around them.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use super::super::breaker::{OPEN_MAX, Opened, Pace, RouteId, Routes};
use super::super::retry::Retry;
use super::super::route::Route;
use super::super::snapshot::ROUTES_SHOWN;

const SECOND: Duration = Duration::from_secs(1);
const NONE: [u64; 0] = [];
const RETRY: Retry = Retry {
    min: SECOND,
    max: Duration::from_mins(5),
    attempts_max: 5,
};

fn name(name: &str) -> Route {
    Route::new(b"exchange", name.as_bytes())
}

/// Routes, and one of them with these rows.
fn with_rows(rows: u64) -> (Routes, RouteId, Instant) {
    let mut routes = Routes::new(RETRY);
    let id = (0..rows).map(|_| routes.enter(&name("a"))).last();
    (routes, id.unwrap(), Instant::now())
}

/// The breaker of `id` opens by row 1, and these rows wait for it.
fn open(routes: &mut Routes, id: RouteId, rows: &[u64], now: Instant) {
    assert_eq!(routes.failed(id, 1, true, (0.0, now)), Opened::News);
    for row in rows {
        routes.block(id, *row);
    }
    routes.check();
}

fn rows_shown(routes: &Routes) -> Vec<u64> {
    routes.waiting().iter().map(|route| route.rows).collect()
}

#[test]
fn a_route_is_known_as_long_as_it_has_rows() {
    let (mut routes, a, _) = with_rows(2);
    let b = routes.enter(&name("bb"));
    assert_ne!(a, b);
    assert!(routes.is(a, &name("a")) && !routes.is(a, &name("bb")));
    assert_eq!(routes.route(b), Some(&name("bb")));
    let one_more = |rows: usize, letters: usize| rows * (384 + 8) + letters;
    assert_eq!(routes.memory(), one_more(2, 3));
    routes.leave(a, 1);
    assert_eq!(routes.route(a), Some(&name("a")), "another row has it");
    routes.leave(a, 2);
    assert_eq!((routes.route(a), routes.memory()), (None, one_more(1, 2)));
    let again = routes.enter(&name("a"));
    assert!(again != a && again != b, "numbers are not used again");
    routes.check();
}

#[test]
fn a_breaker_opens_lets_one_row_through_and_closes_with_its_confirm() {
    let (mut routes, a, now) = with_rows(3);
    assert!(routes.takes(a, 2) && routes.flows(&name("a")) && !routes.any_waits());
    open(&mut routes, a, &[1, 2, 3], now);
    assert!(!routes.takes(a, 2) && !routes.flows(&name("a")) && routes.any_waits());
    assert!(routes.flows(&name("other")));
    assert_eq!(routes.next_probe(), Some(now + SECOND));
    assert_eq!(routes.let_through(now + SECOND / 2), None, "it is not due");
    let probe = routes.let_through(now + SECOND);
    assert_eq!(probe, Some(2), "another row than the one that failed");
    routes.check();
    assert_eq!(routes.probe(a, 2), Some(Pace::Prompt));
    assert_eq!(routes.probe(a, 3), None);
    assert!(routes.takes(a, 2) && !routes.takes(a, 3));
    assert_eq!(
        (routes.next_probe(), routes.let_through(now + 9 * SECOND)),
        (None, None)
    );
    assert_eq!(routes.confirmed(a, 3), None, "it is not the probe");
    assert_eq!(routes.confirmed(a, 2), Some(BTreeSet::from([1, 3])));
    assert!(routes.takes(a, 3) && routes.flows(&name("a")) && !routes.any_waits());
    assert_eq!(routes.waiting(), []);
    routes.check();
}

#[test]
fn each_failed_probe_doubles_the_wait_up_to_ten_seconds() {
    let (mut routes, a, mut now) = with_rows(2);
    open(&mut routes, a, &[1, 2], now);
    for wait in [1, 2, 4, 8, 10, 10] {
        assert_eq!(routes.next_probe(), Some(now + wait * SECOND));
        now += wait * SECOND;
        let probe = routes.let_through(now).unwrap();
        let bystander = 3 - probe;
        assert_eq!(routes.failed(a, bystander, true, (0.0, now)), Opened::Known);
        assert_eq!(routes.failed(a, probe, true, (0.0, now)), Opened::News);
        routes.block(a, probe);
        routes.check();
    }
    assert_eq!(routes.unnamed_wait(0.0), 10 * SECOND);
    assert_eq!(routes.unnamed_wait(1.0), 5 * SECOND);
}

#[test]
fn a_row_that_waits_for_something_else_is_no_probe() {
    let (mut routes, a, now) = with_rows(3);
    open(&mut routes, a, &[2, 3], now);
    routes.unblock(a, 2);
    assert_eq!(routes.let_through(now + SECOND), Some(3));
    routes.check();
}

#[test]
fn a_probe_that_does_not_go_leaves_its_turn_to_another_one() {
    let (mut routes, a, now) = with_rows(3);
    open(&mut routes, a, &[2, 3], now);
    assert_eq!(routes.let_through(now + SECOND), Some(2));
    routes.probe_gone(a, 3, None);
    assert_eq!(routes.probe(a, 2), Some(Pace::Prompt), "3 was no probe");
    routes.probe_gone(a, 2, None);
    routes.block(a, 2);
    routes.check();
    assert_eq!(routes.let_through(now + SECOND), Some(3));
    routes.leave(a, 3);
    routes.check();
    assert_eq!(
        routes.let_through(now + SECOND),
        Some(2),
        "there is no other"
    );
    routes.unblock(a, 2);
    routes.probe_gone(a, 2, Some(Pace::Slow));
    assert_eq!(routes.next_probe(), None, "no row waits");
    routes.block(a, 2);
    assert_eq!(routes.let_through(now + SECOND), Some(2));
    assert_eq!(routes.probe(a, 2), Some(Pace::Slow));
    routes.check();
}

/// How many of 70 routes that are due are probed at once.
fn probes_at_once(answered: bool) -> usize {
    let now = Instant::now();
    let mut routes = Routes::new(RETRY);
    for row in 0..70 {
        let id = routes.enter(&name(&row.to_string()));
        assert_eq!(routes.failed(id, row, answered, (0.0, now)), Opened::News);
        routes.block(id, row);
    }
    let mut probes = 0;
    while routes.let_through(now + SECOND).is_some() {
        probes += 1;
    }
    routes.check();
    assert_eq!(routes.next_probe(), None, "as many as may are under way");
    probes
}

#[test]
fn silent_routes_are_probed_by_three_at_a_time_and_others_by_sixty_four() {
    assert_eq!(probes_at_once(false), 3);
    assert_eq!(probes_at_once(true), 64);
}

#[test]
fn a_silent_route_does_not_hold_up_the_probe_of_another() {
    let now = Instant::now();
    let mut routes = Routes::new(RETRY);
    for row in 0..5 {
        let id = routes.enter(&name(&row.to_string()));
        routes.failed(id, row, row == 4, (0.0, now));
        routes.block(id, row);
    }
    let through: BTreeSet<_> = (0..5)
        .filter_map(|_| routes.let_through(now + SECOND))
        .collect();
    assert_eq!(through.len(), 4);
    assert!(through.contains(&4));
}

#[test]
fn above_ten_thousand_open_breakers_rows_wait_by_themselves() {
    let now = Instant::now();
    let mut routes = Routes::new(RETRY);
    let mut ids = Vec::new();
    for row in 0..=OPEN_MAX as u64 {
        ids.push(routes.enter(&name(&row.to_string())));
    }
    let (last, first) = ids.split_last().unwrap();
    for (row, id) in (0..).zip(first) {
        assert_eq!(routes.failed(*id, row, true, (0.0, now)), Opened::News);
    }
    assert_eq!(routes.failed(*last, 1, true, (0.0, now)), Opened::TooMany);
    assert!(routes.takes(*last, 1));
    assert_eq!(routes.waiting().len(), ROUTES_SHOWN);
    routes.block(first[0], 9);
    assert_eq!(routes.let_through(now + SECOND), Some(9));
    routes.confirmed(first[0], 9);
    assert_eq!(routes.failed(*last, 1, true, (0.0, now)), Opened::News);
}

#[test]
fn only_an_operator_closes_what_an_operator_has_opened() {
    let (mut routes, a, now) = with_rows(2);
    routes.pause(&name("a"));
    routes.block(a, 1);
    assert!(!routes.takes(a, 1) && !routes.lacks_probe(&name("a")));
    assert_eq!(routes.failed(a, 2, true, (0.0, now)), Opened::Known);
    assert_eq!(
        (routes.next_probe(), routes.let_through(now + SECOND)),
        (None, None)
    );
    let waiting = routes.waiting();
    assert!(matches!(&waiting[..], [route] if route.paused && route.rows == 2));
    assert_eq!(routes.resume(&name("other")), BTreeSet::new());
    assert_eq!(routes.resume(&name("a")), BTreeSet::from([1]));
    assert!(routes.takes(a, 1) && !routes.any_waits());
    open(&mut routes, a, &[1], now);
    assert_eq!(
        routes.resume(&name("a")),
        BTreeSet::new(),
        "it was not paused"
    );
    assert!(!routes.takes(a, 1));
    routes.check();
}

#[test]
fn a_pause_of_a_route_without_rows_lasts_until_it_is_resumed() {
    let mut routes = Routes::new(RETRY);
    routes.pause(&name("a"));
    let a = routes.enter(&name("a"));
    routes.leave(a, 1);
    routes.scan_began();
    routes.scan_ended();
    assert!(!routes.flows(&name("a")));
    routes.resume(&name("a"));
    assert_eq!((routes.memory(), routes.waiting().len()), (0, 0));
    routes.check();
}

#[test]
fn more_than_eight_nacked_rows_of_a_route_are_nobody_s_own_fault() {
    let (mut routes, a, _) = with_rows(20);
    for row in 1..=8 {
        assert_eq!(routes.nacked(a, row), NONE);
        assert_eq!(routes.nacked(a, row), NONE, "it is counted once");
    }
    assert_eq!(routes.nacked_beside(a, 3), [1, 2, 4, 5, 6, 7, 8]);
    assert_eq!(routes.nacked(a, 9), NONE);
    routes.leave(a, 9);
    assert_eq!(routes.nacked(a, 10), NONE);
    let all = vec![1, 2, 4, 5, 6, 7, 8, 10, 11];
    assert_eq!(routes.nacked(a, 11), all);
    assert_eq!(routes.nacked_beside(a, 12), NONE);
}

#[test]
fn a_route_is_probed_with_rows_that_were_not_nacked_as_long_as_there_are_any() {
    let (mut routes, a, now) = with_rows(4);
    assert!(!routes.lacks_probe(&name("a")) && !routes.lacks_probe(&name("other")));
    open(&mut routes, a, &[], now);
    assert!(routes.lacks_probe(&name("a")), "no row waits");
    for row in [2, 3] {
        routes.nacked(a, row);
        routes.block(a, row);
    }
    assert!(routes.lacks_probe(&name("a")), "both were nacked");
    routes.block(a, 4);
    assert!(!routes.lacks_probe(&name("a")));
    assert_eq!(routes.let_through(now + SECOND), Some(4));
    assert!(!routes.lacks_probe(&name("a")), "a probe is under way");
    routes.probe_gone(a, 4, None);
    assert_eq!(
        routes.let_through(now + SECOND),
        Some(2),
        "4 was the last one"
    );
    routes.probe_gone(a, 2, None);
    routes.block(a, 2);
    assert_eq!(
        routes.let_through(now + SECOND),
        Some(3),
        "2 was the last one"
    );
    routes.nacked(a, 5);
    routes.probe_gone(a, 3, None);
    routes.block(a, 6);
    routes.unblock(a, 2);
    assert!(!routes.lacks_probe(&name("a")), "6 was not nacked");
}

#[test]
fn rows_in_the_table_alone_are_shown_and_keep_a_breaker_open() {
    let (mut routes, a, now) = with_rows(1);
    open(&mut routes, a, &[1], now);
    routes.scan_began();
    routes.overflow(&name("a"), true);
    routes.overflow(&name("a"), true);
    routes.overflow(&name("other"), true);
    assert_eq!(rows_shown(&routes), [1], "the scan has not ended");
    routes.overflow(&name("a"), false);
    assert_eq!(rows_shown(&routes), [2]);
    routes.scan_ended();
    assert_eq!(rows_shown(&routes), [4]);
    routes.leave(a, 1);
    routes.scan_began();
    assert_eq!(rows_shown(&routes), [3]);
    routes.overflow(&name("a"), true);
    routes.scan_ended();
    assert_eq!(rows_shown(&routes), [1]);
    let b = routes.enter(&name("b"));
    open(&mut routes, b, &[1], now);
    routes.scan_began();
    routes.scan_ended();
    assert_eq!((rows_shown(&routes), routes.route(a)), (vec![1], None));
    routes.check();
}

#[test]
fn the_fullest_routes_are_shown_first() {
    let (mut routes, a, now) = with_rows(1);
    let b = routes.enter(&name("b"));
    let c = (0..2).map(|_| routes.enter(&name("c"))).last().unwrap();
    routes.enter(&name("flows"));
    for (row, id) in [(1, b), (2, a), (3, c)] {
        routes.failed(id, row, true, (0.0, now));
    }
    let shown: Vec<_> = routes
        .waiting()
        .into_iter()
        .map(|route| route.route)
        .collect();
    assert_eq!(shown, ["c", "a", "b"].map(name));
}
