use super::*;

fn held() -> Held {
    let schedule = Schedule {
        min: Duration::from_secs(1),
        max: Duration::from_mins(5),
        attempts_max: 5,
    };
    Held::new(Order::Key, schedule)
}

fn route(name: &str) -> Route {
    Route::new(b"x", name.as_bytes())
}

fn row(id: u64) -> RowId {
    RowId::new(id, "m")
}

#[test]
fn a_key_is_level_only_after_a_pass_that_left_nothing_and_saw_no_touch() {
    let now = Instant::now();
    let mut held = held();
    let open = route("open");
    held.put_back(7, 0, None, now);
    assert!(held.holds(7, &open));
    assert_eq!(held.wake(), Some(now), "a pass is wanted at once");

    held.pass_began(true);
    held.leave(7, &open, now);
    held.pass_ended(1, true);
    assert!(
        held.holds(7, &open),
        "the tail left a row after the pass began"
    );

    held.pass_began(true);
    assert_eq!(
        held.admit(row(1), (7, &open), None, Visit { pass: 2, now }),
        Admit::Go
    );
    held.pass_ended(2, true);
    assert!(!held.holds(7, &open));
}

#[test]
fn a_row_that_waits_holds_all_rows_behind_it() {
    let now = Instant::now();
    let later = now + Duration::from_secs(9);
    let mut held = held();
    let open = route("open");
    let visit = Visit { pass: 1, now };
    held.pass_began(true);
    assert_eq!(
        held.admit(row(1), (7, &open), Some(later), visit),
        Admit::Leave
    );
    assert_eq!(held.admit(row(2), (7, &open), None, visit), Admit::Leave);
    assert_eq!(held.admit(row(3), (8, &open), None, visit), Admit::Go);
    held.pass_ended(1, true);
    assert_eq!(held.wake(), Some(later));
    held.leave(7, &open, now);
    assert_eq!(
        held.wake(),
        Some(later),
        "what comes behind a waiting head wakes nobody"
    );
}

#[test]
fn a_shut_route_sends_one_probe_at_a_time_and_opens_by_it() {
    let now = Instant::now();
    let mut held = held();
    let shut = route("shut");
    let first = held.shut_route(&shut, row(1), true, (0.0, now));
    let due = now + Duration::from_secs(1);
    assert_eq!(first, Shutting::Sample(due), "the first failure");
    let second = held.shut_route(&shut, row(2), true, (0.0, now));
    assert_eq!(second, Shutting::Known);
    let due = now + Duration::from_secs(1);

    held.pass_began(true);
    let early = Visit { pass: 1, now };
    assert_eq!(held.admit(row(1), (1, &shut), None, early), Admit::Leave);
    assert_eq!(held.admit(row(2), (2, &shut), None, early), Admit::Leave);
    held.pass_ended(1, true);
    assert_eq!(held.waiting(), vec![(&shut, 2)]);
    assert_eq!(held.wake(), Some(due));

    held.pass_began(true);
    let ripe = Visit { pass: 2, now: due };
    assert_eq!(held.admit(row(1), (1, &shut), None, ripe), Admit::Go);
    assert_eq!(held.admit(row(2), (2, &shut), None, ripe), Admit::Leave);
    assert!(
        !held.confirmed(&shut, row(9), due),
        "only the probe opens a route"
    );
    assert!(held.confirmed(&shut, row(1), due));
    assert!(!held.holds(99, &shut));
    assert_eq!(held.wake(), Some(due), "the rest goes at once");
}

#[test]
fn a_probe_on_its_way_counts_among_the_rows_that_wait() {
    let now = Instant::now();
    let mut held = held();
    let shut = route("shut");
    held.shut_route(&shut, row(1), true, (0.0, now));
    let due = now + Duration::from_secs(1);
    held.pass_began(true);
    let visit = Visit { pass: 1, now: due };
    assert_eq!(held.admit(row(1), (1, &shut), None, visit), Admit::Go);
    assert_eq!(held.admit(row(2), (2, &shut), None, visit), Admit::Leave);
    held.pass_ended(1, true);
    assert_eq!(held.waiting(), [(&shut, 2)]);
    held.shut_route(&shut, row(1), true, (0.0, due));
    assert_eq!(held.waiting(), [(&shut, 2)]);
}

#[test]
fn above_the_bound_a_pass_goes_on_and_keeps_the_order_of_what_it_leaves() {
    let now = Instant::now();
    let later = Some(now + Duration::from_secs(9));
    let mut held = held();
    let open = route("open");
    let visit = Visit { pass: 1, now };
    held.pass_began(true);
    let bound = KEYS_MAX as u64;
    for key in 0..bound {
        held.admit(row(key), (key, &open), later, visit);
    }
    let beyond = (bound + 5, &open);
    let left = held.admit(row(bound), beyond, later, visit);
    assert_eq!(left, Admit::Leave);
    let behind = held.admit(row(bound + 1), beyond, None, visit);
    assert_eq!(behind, Admit::Leave, "it is behind one that was left");
    let other = held.admit(row(bound + 2), (bound + 6, &open), None, visit);
    assert_eq!(other, Admit::Go, "other keys go on");

    held.pass_ended(1, true);
    assert!(held.holds(bound + 5, &open), "the tail must not overtake");
    assert!(!held.holds(bound + 6, &open));
    held.leave(bound + 6, &open, now);
    held.pass_began(false);
    held.pass_ended(1, false);
    assert!(held.holds(bound + 6, &open), "the tail has left one of it");
    held.pass_began(true);
    let visit = Visit { pass: 2, now };
    assert_eq!(
        held.admit(row(bound), beyond, None, visit),
        Admit::Go,
        "each pass looks anew"
    );
    held.pass_ended(2, true);
    assert!(held.is_empty());
}

#[test]
fn a_paused_route_has_no_probe_and_only_its_operator_opens_it() {
    let now = Instant::now();
    let mut held = held();
    let paused = route("paused");
    held.shut_route(&paused, row(1), true, (0.0, now));
    let due = now + Duration::from_secs(1);
    held.pass_began(true);
    let visit = Visit { pass: 1, now: due };
    assert_eq!(held.admit(row(1), (1, &paused), None, visit), Admit::Go);
    held.pause_route(&paused, due);
    assert!(
        !held.confirmed(&paused, row(1), due),
        "the probe that was on its way opens nothing"
    );
    held.pass_ended(1, true);
    held.pass_began(true);
    let later = due + Duration::from_hours(24);
    let visit = Visit {
        pass: 2,
        now: later,
    };
    assert_eq!(held.admit(row(2), (2, &paused), None, visit), Admit::Leave);
    assert!(
        held.wake().is_none_or(|wake| wake > later),
        "nothing to try"
    );
    held.pass_ended(2, true);
    held.pass_began(true);
    held.pass_ended(3, true);
    assert!(held.holds(99, &paused), "though no row waits");
    held.resume_route(&paused, later);
    assert!(!held.holds(99, &paused));
    assert_eq!(held.wake(), Some(later));
}
