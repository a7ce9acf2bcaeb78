use super::*;

const NOW: (f64, Duration) = (0.0, Duration::from_secs(1));

fn routes() -> Routes {
    Routes::new(Schedule {
        min: NOW.1,
        max: Duration::from_mins(5),
        attempts_max: 5,
    })
}

fn route(name: &str) -> Route {
    Route::new(b"x", name.as_bytes())
}

fn row(id: u64) -> RowId {
    RowId::new(id, "m")
}

#[test]
fn a_route_is_probed_every_ten_seconds_however_long_it_is_shut() {
    let (mut routes, shut, mut now) = (routes(), route("shut"), Instant::now());
    let mut waits = Vec::new();
    routes.shut(&shut, row(1), true, (0.0, now));
    for _ in 0..8 {
        let Some(Turn::At(due)) = routes.visit(&shut, row(1), now) else {
            panic!("not due yet");
        };
        waits.push((due - now).as_secs());
        now = due;
        routes.pass_began(true);
        assert_eq!(routes.visit(&shut, row(1), now), Some(Turn::Probe));
        routes.shut(&shut, row(1), true, (0.0, now));
    }
    assert_eq!(waits, [1, 2, 4, 8, 10, 10, 10, 10]);
}

#[test]
fn a_route_that_kept_silent_is_probed_in_a_slow_lane_until_it_answers() {
    let (mut routes, shut, now) = (routes(), route("shut"), Instant::now());
    routes.shut(&shut, row(1), false, (0.0, now));
    let later = now + PROBE_MAX;
    assert_eq!(routes.visit(&shut, row(1), later), Some(Turn::Probe));
    assert_eq!(routes.probe(&shut, row(1)), Some(Pace::Slow));
    routes.shut(&shut, row(1), true, (0.0, later));
    routes.pass_began(true);
    let later = later + PROBE_MAX;
    assert_eq!(routes.visit(&shut, row(1), later), Some(Turn::Probe));
    assert_eq!(routes.probe(&shut, row(1)), Some(Pace::Prompt));
}

#[test]
fn of_many_shut_routes_all_have_their_turn() {
    let (mut routes, mut now) = (routes(), Instant::now());
    let max = Pace::Slow.probes_max();
    let all: Vec<Route> = (0..20).map(|n| route(&n.to_string())).collect();
    for (shut, id) in all.iter().zip(0..) {
        routes.shut(shut, row(id), false, (0.0, now));
    }
    let mut probed = vec![0; all.len()];
    for _ in 0..all.len() {
        now += PROBE_MAX;
        routes.pass_began(true);
        let mut out = Vec::new();
        for (number, shut) in all.iter().enumerate() {
            let id = row(number as u64);
            if routes.visit(shut, id, now) == Some(Turn::Probe) {
                out.push((shut, id));
                probed[number] += 1;
            }
        }
        assert_eq!(out.len(), max);
        assert!(routes.is_crowded());
        for (shut, id) in out {
            routes.shut(shut, id, false, (0.0, now));
        }
    }
    assert!(probed.iter().all(|times| *times == max), "{probed:?}");
}

#[test]
fn a_silent_route_does_not_take_the_turn_of_one_that_refuses() {
    let (mut routes, now) = (routes(), Instant::now());
    for n in 0..9 {
        routes.shut(&route(&n.to_string()), row(n), n == 8, (0.0, now));
    }
    let later = now + PROBE_MAX;
    let mut visit = |n: u64| routes.visit(&route(&n.to_string()), row(n), later);
    let silent: Vec<_> = (0..8).map(&mut visit).collect();
    let probes = silent.iter().filter(|turn| **turn == Some(Turn::Probe));
    assert_eq!(probes.count(), Pace::Slow.probes_max());
    assert_eq!(visit(8), Some(Turn::Probe));
}

#[test]
fn beyond_so_many_routes_a_row_waits_by_itself() {
    let (mut routes, now) = (routes(), Instant::now());
    for n in 0..ROUTES_MAX {
        let shutting = routes.shut(&route(&n.to_string()), row(1), true, (0.0, now));
        assert!(matches!(shutting, Shutting::Sample(_)));
    }
    let more = route("one more");
    let shutting = routes.shut(&more, row(1), true, (0.0, now));
    assert_eq!(shutting, Shutting::Unnamed);
    assert!(!routes.contains(&more));
    // Those that nothing waits for make room.
    routes.pass_began(true);
    routes.pass_ended(true);
    let shutting = routes.shut(&more, row(1), true, (0.0, now));
    assert!(matches!(shutting, Shutting::Sample(_)));
}
