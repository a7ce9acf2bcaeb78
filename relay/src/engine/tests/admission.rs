//! Which rows the index takes, and what each of them waits for.

use super::*;

const MILLI: Duration = Duration::from_millis(1);

/// Room for so many rows, whose one route is `r`.
fn room_for(rows: usize) -> Settings {
    Settings {
        index_bytes: rows * ROW_BYTES + 386,
        ..SETTINGS
    }
}

fn delayed(id: u64, key: u64, wait: Duration) -> It {
    It {
        wait: Some(wait),
        ..row(id, key)
    }
}

/// The row is reported and read.
fn report(desk: &mut Desk, it: It) -> Vec<Command> {
    let out = desk.committed(&[it.id]);
    assert_eq!(loaded(&out), [it.id]);
    desk.rows(&[it])
}

fn shown(desk: &Desk) -> (usize, usize, bool) {
    let snapshot = desk.engine.snapshot();
    (snapshot.rows, snapshot.delayed, snapshot.overflowed)
}

#[test]
fn a_delayed_row_goes_when_its_time_has_come_and_keeps_its_key_waiting() {
    let mut desk = Desk::tailing(SETTINGS);
    assert!(report(&mut desk, delayed(7, 1, 500 * MILLI)).is_empty());
    assert_eq!(shown(&desk), (1, 1, false));
    assert_eq!(desk.engine.deadline(), desk.now + 500 * MILLI);
    assert!(report(&mut desk, row(8, 1)).is_empty());
    assert_eq!(shown(&desk), (2, 1, false));
    assert!(desk.after(499 * MILLI).is_empty());
    assert_eq!(loaded(&desk.after(MILLI)), [7]);
    let (publisher, ids) = batch(&desk.rows(&[row(7, 1)]));
    assert_eq!(ids, [7]);
    assert_eq!(loaded(&desk.answer(publisher, vec![confirmed(7)])), [8]);
}

#[test]
fn the_time_of_a_row_counts_from_when_it_was_read() {
    let mut desk = Desk::tailing(SETTINGS);
    for (id, late, goes) in [(7, 0, false), (8, 99, false), (9, 100, true)] {
        assert_eq!(loaded(&desk.committed(&[id])), [id]);
        let rows = vec![delayed(id, id, 100 * MILLI).read()];
        let read_at = desk.now;
        desk.now += late * MILLI;
        let out = desk.feed(Event::Rows(Rows { rows, read_at }));
        let published = out.iter().any(|command| {
            matches!(command, Command::Publish { batch, .. } if batch.iter().any(|row| row.id == id))
        });
        assert_eq!(published, goes, "{id}");
    }
}

#[test]
fn an_earlier_row_of_a_key_comes_before_those_that_wait() {
    let mut desk = Desk::tailing(SETTINGS);
    report(&mut desk, delayed(8, 1, 500 * MILLI));
    let out = report(&mut desk, row(7, 1));
    let (publisher, ids) = batch(&out);
    assert_eq!(ids, [7]);
    assert_eq!(
        shown(&desk),
        (2, 0, false),
        "8 waits for 7 and not for its time"
    );
    desk.answer(publisher, vec![confirmed(7)]);
    assert_eq!(shown(&desk), (2, 1, false));
}

#[test]
fn a_time_that_is_read_anew_counts_when_it_differs_by_a_second() {
    let wait = 10 * SECOND;
    for (again, changes) in [
        (wait + 999 * MILLI, false),
        (wait - 999 * MILLI, false),
        (wait + SECOND, true),
        (wait - SECOND, true),
    ] {
        let mut desk = Desk::tailing(SETTINGS);
        report(&mut desk, delayed(7, 1, wait));
        report(&mut desk, delayed(7, 1, again));
        assert_eq!(shown(&desk), (1, 1, false));
        let due = if changes { again } else { wait };
        assert!(!loads(&desk.after(due - MILLI), 7));
        assert!(loads(&desk.after(MILLI), 7), "{again:?}");
    }
}

fn loads(out: &[Command], id: u64) -> bool {
    out.iter()
        .any(|command| matches!(command, Command::Load(query) if query.ids.contains(&id)))
}

#[test]
fn what_operators_change_in_a_waiting_row_counts_once_it_is_read() {
    let wait = delayed(7, 1, 100 * SECOND);
    let elsewhere = It { route: "s", ..wait };
    let moved = It { key: 2, ..wait };
    let now = row(7, 1);
    let gone = It {
        pending: false,
        ..wait
    };
    let tried = It {
        attempts: 1,
        ..wait
    };
    for (case, it, second_goes) in [
        ("route", elsewhere, false),
        ("key", moved, true),
        ("time", now, false),
        ("gone", gone, true),
        ("attempts", tried, false),
        ("nothing", wait, false),
    ] {
        let mut desk = Desk::tailing(SETTINGS);
        report(&mut desk, wait);
        report(&mut desk, row(8, 1));
        let out = report(&mut desk, it);
        assert_eq!(loads(&out, 8), second_goes, "{case}: {out:?}");
        let is_published = |command: &Command| matches!(command, Command::Publish { .. });
        assert_eq!(out.iter().any(is_published), case == "time", "{case}");
        assert_eq!(
            desk.engine.snapshot().rows,
            if case == "gone" { 1 } else { 2 },
            "{case}"
        );
    }
}

#[test]
fn a_row_that_failed_before_goes_alone_after_its_attempts_were_read() {
    let mut desk = Desk::tailing(SETTINGS);
    desk.feed(Event::BrokerBlocked(String::new()));
    report(&mut desk, row(8, 8));
    let tried = It {
        attempts: 1,
        ..row(7, 7)
    };
    report(&mut desk, tried);
    assert_eq!(batch(&desk.feed(Event::BrokerUnblocked)).1, [7]);
}

#[test]
fn without_an_order_rows_of_one_key_wait_for_nothing() {
    let settings = Settings {
        order: Order::None,
        ..SETTINGS
    };
    let mut desk = Desk::tailing(settings);
    report(&mut desk, delayed(7, 1, SECOND));
    assert_eq!(batch(&report(&mut desk, row(8, 1))).1, [8]);
}

#[test]
fn rows_that_wait_may_fill_three_quarters_of_the_index() {
    let settings = room_for(1000);
    let max = (settings.index_bytes / 4 * 3 - 386).div_ceil(ROW_BYTES);
    let mut desk = Desk::tailing(settings);
    for (rows, id) in (1..=max).zip(1..) {
        report(&mut desk, delayed(id, id, 100 * SECOND));
        assert_eq!(shown(&desk), (rows, rows, false));
    }
    report(&mut desk, delayed(5000, 5000, 100 * SECOND));
    assert_eq!(shown(&desk), (max, max, true));
    let earlier = row(0, 1);
    assert_eq!(
        batch(&report(&mut desk, earlier)).1,
        [0],
        "before what is known of its key"
    );
    assert_eq!(
        batch(&report(&mut desk, row(6000, 6000))).1,
        [6000],
        "it waits for nothing"
    );
    report(&mut desk, row(6001, 5000));
    report(&mut desk, row(6002, 2));
    assert_eq!(shown(&desk).0, max + 2, "both would wait for earlier rows");
}

#[test]
fn a_row_that_stays_in_the_table_takes_those_behind_it_out_of_the_index() {
    let mut desk = Desk::tailing(room_for(100));
    for id in 11..=70 {
        report(&mut desk, delayed(id, id, 100 * SECOND));
    }
    report(&mut desk, delayed(8, 1, 200 * MILLI));
    let (publisher, ids) = batch(&report(&mut desk, row(6, 1)));
    assert_eq!(ids, [6]);
    assert_eq!(shown(&desk), (62, 60, false));
    report(&mut desk, delayed(7, 1, SECOND));
    assert_eq!(shown(&desk), (61, 60, true), "neither 7 nor 8 has room");
    desk.answer(publisher, vec![confirmed(6)]);
    assert!(!loads(&desk.after(SECOND), 8), "7 comes before 8");
}

#[test]
fn a_closed_route_has_a_row_to_probe_with_however_full_the_index_is() {
    let settings = room_for(200);
    let mut desk = Desk::tailing(settings);
    let publisher = desk.publish(row(1, 1));
    desk.answer(publisher, vec![Verdict::Returned("312".into())]);
    desk.feed(written(&[1]));
    let gone = It {
        pending: false,
        ..row(1, 1)
    };
    for id in 2..=400 {
        let wait = It {
            route: "s",
            ..delayed(id, id, 1000 * SECOND)
        };
        report(&mut desk, wait);
    }
    assert!(shown(&desk).2);
    let rows = shown(&desk).0;
    report(&mut desk, row(500, 500));
    assert_eq!(shown(&desk).0, rows, "1 probes");
    report(&mut desk, gone);
    assert_eq!(shown(&desk).0, rows - 1);
    report(&mut desk, row(501, 501));
    assert_eq!(shown(&desk).0, rows, "no other row of its route is there");
    report(&mut desk, row(502, 501));
    report(&mut desk, delayed(503, 503, SECOND));
    assert_eq!(shown(&desk).0, rows);
}

#[test]
fn when_rows_that_wait_have_gone_a_scan_brings_those_that_were_left() {
    let settings = room_for(1000);
    let mut desk = Desk::tailing(settings);
    desk.after(SETTINGS.sweep_interval);
    let all: Vec<It> = (1..=900).map(|id| delayed(id, id, 100 * SECOND)).collect();
    let at = |desk: &mut Desk| drop(desk.feed(Event::BinlogAt(Position::new("b.1", 9))));
    desk.page(&all, 900);
    at(&mut desk);
    let out = desk.rows(&all);
    let fenced = |command: &Command| matches!(command, Command::ReadPage(query) if query.fence);
    assert!(out.iter().any(fenced), "a whole scan makes it level");
    let (rows, _, overflowed) = shown(&desk);
    assert!(overflowed && rows < 800, "{rows}");
    desk.page(&all, 900);
    at(&mut desk);
    assert_eq!(shown(&desk), (rows, rows, true), "there is no more room");
    // Those that waited are deleted: the scan behind the one that finds that takes the others in.
    for _ in 0..2 {
        desk.after(SETTINGS.sweep_interval);
        desk.page(&all[rows..], 900);
        at(&mut desk);
    }
    assert_eq!(shown(&desk).0, 900 - rows);
}

#[test]
fn a_backlog_is_taken_in_up_to_32768_rows_that_could_go() {
    let settings = Settings {
        mode: Mode::Poll,
        index_bytes: 1 << 30,
        ..SETTINGS
    };
    let (mut desk, _) = Desk::new(settings);
    let rows: Vec<It> = (1..=33_000).map(|id| row(id, id)).collect();
    let (publisher, ids) = batch(
        &desk
            .page(&rows, 33_000)
            .into_iter()
            .filter(|command| matches!(command, Command::Publish { publisher: 0, .. }))
            .collect::<Vec<_>>(),
    );
    assert_eq!(shown(&desk), (32_769, 0, false));
    let verdicts = ids.iter().map(|id| confirmed(*id)).collect();
    desk.answer(publisher, verdicts);
    assert_eq!(
        shown(&desk).0,
        32_769,
        "confirmed rows count until they are marked"
    );
    desk.after(SECOND);
    desk.feed(written(&ids));
    assert_eq!(shown(&desk), (32_769, 0, false), "others have their place");
}

#[test]
fn new_rows_and_a_backlog_are_loaded_in_turns() {
    let settings = Settings {
        buffer_bytes: 2 * 4 * (10 + ROW_MEMORY),
        ..SETTINGS
    };
    let (mut desk, _) = Desk::new(settings);
    let bare = |ids: std::ops::RangeInclusive<u64>| {
        ids.map(|id| Read {
            row: None,
            ..row(id, id).read()
        })
    };
    let page = Page {
        rows: bare(1..=8).collect(),
        ..desk.page_of(&[], 8)
    };
    let out = desk.feed(Event::Page(page));
    assert_eq!(loaded(&out), [1, 2, 3, 4], "as many as there is room for");
    desk.feed(Event::BinlogOpened);
    desk.committed(&(11..=18).collect::<Vec<_>>());
    let (rows, read_at) = (
        bare(1..=4)
            .map(|read| Read {
                row: row(read.head.id, read.head.id).read().row,
                ..read
            })
            .collect(),
        desk.now,
    );
    let out = desk.feed(Event::Rows(Rows { rows, read_at }));
    let publisher = out.iter().find_map(|command| match command {
        Command::Publish { publisher, .. } => Some(*publisher),
        _ => None,
    });
    assert_eq!(publisher, Some(0));
}

#[test]
fn the_oldest_row_of_a_key_is_loaded_first_when_it_is_a_probe() {
    let mut desk = Desk::tailing(SETTINGS);
    let publisher = desk.publish(row(7, 7));
    desk.answer(publisher, vec![Verdict::Returned("312".into())]);
    report(&mut desk, row(8, 8));
    desk.feed(Event::BrokerBlocked(String::new()));
    desk.now += SECOND;
    assert_eq!(
        loaded(&desk.feed(Event::Tick)),
        [8],
        "the probe, and not the other row"
    );
}

#[test]
fn after_a_pause_nothing_of_before_is_left() {
    let mut desk = Desk::tailing(SETTINGS);
    desk.feed(Event::BrokerBlocked(String::new()));
    report(&mut desk, row(1, 1));
    report(&mut desk, row(2, 1));
    report(&mut desk, delayed(3, 3, SECOND));
    let whole = |whole| {
        Event::Pauses(Pauses {
            whole,
            ..Pauses::default()
        })
    };
    desk.feed(whole(true));
    assert_eq!(shown(&desk), (0, 0, false));
    assert_eq!(desk.engine.snapshot().memory, 0);
    desk.feed(Event::BrokerUnblocked);
    desk.feed(whole(false));
    let (_, ids) = batch(&desk.page(&[row(1, 1), row(2, 1)], 3));
    assert_eq!(ids, [1]);
    assert_eq!(shown(&desk).0, 2);
}

#[test]
fn a_row_that_was_loaded_as_the_next_one_gives_up_its_room_to_an_earlier_one() {
    for earlier in [5, 1] {
        let mut desk = Desk::tailing(SETTINGS);
        assert_eq!(loaded(&desk.committed(&[2, 9])), [2, 9]);
        let out = desk.rows(&[row(2, 1), row(9, 1)]);
        assert_eq!(batch(&out).1, [2]);
        assert_eq!(loaded(&desk.feed(Event::Tick)), [9]);
        assert!(desk.rows(&[row(9, 1)]).is_empty());
        assert_eq!(desk.engine.index.count(Stage::Loaded), 1);
        desk.committed(&[earlier]);
        desk.rows(&[row(earlier, 1)]);
        assert!(!desk.engine.payloads.contains_key(&9), "{earlier}");
    }
}

#[test]
fn a_reused_id_is_another_message_and_waits_until_the_first_is_done_with() {
    let mut desk = Desk::tailing(SETTINGS);
    let publisher = desk.publish(row(7, 1));
    assert_eq!(loaded(&desk.committed(&[7])), [7]);
    let mut other = row(7, 2).read();
    other.head.tag = 70;
    let (rows, read_at) = (vec![other], desk.now);
    assert!(desk.feed(Event::Rows(Rows { rows, read_at })).is_empty());
    desk.answer(publisher, vec![confirmed(7)]);
    desk.after(SECOND);
    assert_eq!(loaded(&desk.feed(written(&[7]))), [7]);
}

#[test]
fn a_row_that_is_out_and_is_reported_again_unchanged_goes_once() {
    let mut desk = Desk::tailing(SETTINGS);
    let publisher = desk.publish(row(7, 1));
    assert_eq!(loaded(&desk.committed(&[7])), [7]);
    assert!(desk.rows(&[row(7, 1)]).is_empty());
    desk.answer(publisher, vec![confirmed(7)]);
    assert_eq!(marks(&desk.after(SECOND)), [7]);
    assert!(desk.feed(written(&[7])).is_empty());
    assert_eq!(shown(&desk), (0, 0, false));
}

#[test]
fn a_row_that_is_read_anew_is_still_one_that_the_binlog_reported() {
    let mut desk = Desk::tailing(SETTINGS);
    report(&mut desk, delayed(7, 1, 100 * SECOND));
    let (publisher, _) = batch(&report(&mut desk, row(7, 1)));
    let outcome = Outcome::Settled(vec![confirmed(7)]);
    let reports = desk.reports(Event::Published { publisher, outcome });
    let (source, took) = (Source::Binlog, Some(Duration::ZERO));
    assert_eq!(reports, [Report::Confirmed { source, took }]);
}
