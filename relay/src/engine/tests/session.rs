//! States, bounds and what the engine shows of itself.

use super::*;

const MILLI: Duration = Duration::from_millis(1);

fn end_of(why: &str, timed_out: bool) -> Event {
    let why = why.to_owned();
    Event::BinlogEnded(BinlogEnd { why, timed_out })
}

fn pauses(whole: bool, routes: &[&str]) -> Event {
    let routes = routes.iter().map(|name| Route::new(b"x", name.as_bytes()));
    let routes = routes.collect();
    Event::Pauses(Pauses { whole, routes })
}

fn is_scan(command: &Command) -> bool {
    matches!(command, Command::ReadPage(_))
}

/// In a catch-up whose stream is open.
fn catching_up(settings: Settings) -> Desk {
    let (mut desk, _) = Desk::new(settings);
    let page = Page {
        read_to: 1,
        ..desk.page_of(&[], 2)
    };
    let out = desk.feed(Event::Page(page));
    assert!(
        matches!(&out[..], [Command::OpenBinlog(_), Command::ReadPage(_)]),
        "{out:?}"
    );
    desk.feed(Event::BinlogOpened);
    assert_eq!(desk.engine.state(), StateName::CatchingUp);
    desk
}

#[test]
fn a_catch_up_remembers_65536_ids_and_begins_again_when_there_are_more() {
    let mut desk = catching_up(SETTINGS);
    assert!(desk.committed(&(1..=65_536).collect::<Vec<_>>()).is_empty());
    assert!(
        desk.engine.takes_transactions(),
        "in a catch-up whatever comes is taken"
    );
    let out = desk.committed(&[65_537]);
    assert!(matches!(&out[..], [Command::CloseBinlog]), "{out:?}");
    assert!(desk.committed(&[65_538]).is_empty());
    assert_eq!(desk.engine.snapshot().memory, 0, "nothing of it is kept");
    let last = Page {
        start: None,
        ..desk.page_of(&[], 2)
    };
    let out = desk.feed(Event::Page(last));
    assert!(matches!(
        &out[..],
        [Command::ReadPage(PageQuery {
            fence: true,
            upto: None,
            ..
        })]
    ));
}

#[test]
fn while_tailing_transactions_wait_in_the_stream_when_65536_ids_are_not_read() {
    let mut desk = Desk::tailing(SETTINGS);
    assert!(desk.engine.takes_transactions());
    desk.committed(&(1..=65_535).collect::<Vec<_>>());
    assert!(desk.engine.takes_transactions());
    desk.committed(&[65_536]);
    assert!(!desk.engine.takes_transactions());
    desk.feed(end_of("gone", false));
    assert!(!desk.engine.takes_transactions(), "there is no stream");
}

#[test]
fn without_an_order_reported_rows_do_not_wait_for_the_catch_up() {
    let settings = Settings {
        order: Order::None,
        ..SETTINGS
    };
    let mut desk = catching_up(settings);
    assert_eq!(loaded(&desk.committed(&[7])), [7]);
    assert_eq!(batch(&desk.rows(&[row(7, 1)])).1, [7]);
    assert_eq!(loaded(&desk.committed(&[8, 9])), [8, 9]);
    assert_eq!(
        batch(&desk.rows(&[row(8, 1), row(9, 1)])).1,
        [8, 9],
        "both of one key"
    );
    desk.committed(&(10..70_000).collect::<Vec<_>>());
    assert!(!desk.engine.takes_transactions());
    assert_eq!(desk.engine.state(), StateName::CatchingUp);
}

#[test]
fn nothing_is_published_while_the_broker_blocks_or_a_lease_was_over() {
    let mut desk = Desk::tailing(SETTINGS);
    desk.feed(Event::BrokerBlocked("memory".into()));
    assert_eq!(desk.engine.snapshot().blocked.as_deref(), Some("memory"));
    assert_eq!(loaded(&desk.committed(&[7])), [7]);
    assert!(desk.rows(&[row(7, 1)]).is_empty());
    let (publisher, _) = batch(&desk.feed(Event::BrokerUnblocked));
    let outcome = Outcome::LeaseOver;
    let out = desk.feed(Event::Published { publisher, outcome });
    assert_eq!(loaded(&out), [7]);
    assert_eq!(desk.engine.deadline(), desk.now + 100 * MILLI);
    assert!(desk.rows(&[row(7, 1)]).is_empty());
    assert!(desk.after(99 * MILLI).is_empty());
    assert_eq!(batch(&desk.after(MILLI)).1, [7]);
}

#[test]
fn nothing_is_published_while_8192_rows_are_not_marked() {
    let settings = Settings {
        batch_rows: 4096,
        buffer_bytes: 1 << 30,
        index_bytes: 1 << 30,
        batch_bytes: 1 << 30,
        ..SETTINGS
    };
    let mut desk = Desk::tailing(settings);
    let mut id = 0;
    for _ in 0..64 {
        let ids: Vec<u64> = (0..128).map(|n| id + n + 1).collect();
        id += 128;
        assert_eq!(loaded(&desk.committed(&ids)), ids);
        let rows: Vec<It> = ids.iter().map(|id| row(*id, *id)).collect();
        let (publisher, published) = batch(&desk.rows(&rows));
        assert_eq!(published.len(), 128);
        desk.answer(publisher, ids.iter().map(|id| confirmed(*id)).collect());
    }
    assert_eq!(desk.engine.snapshot().unwritten, UNWRITTEN_MAX);
    assert_eq!(loaded(&desk.committed(&[9000])), [9000]);
    assert!(
        desk.rows(&[row(9000, 9000)])
            .iter()
            .all(|command| !is_publish(command))
    );
    assert!(desk.reports(Event::Tick).is_empty());
    desk.now += 3 * SECOND;
    assert!(
        desk.reports(Event::Tick)
            .contains(&Report::WriteStall(true))
    );
    assert!(desk.engine.snapshot().stalled);
    assert_eq!(batch(&desk.feed(written(&[1]))).1, [9000]);
}

fn is_publish(command: &Command) -> bool {
    matches!(command, Command::Publish { .. })
}

#[test]
fn a_queued_row_gives_way_to_an_earlier_one_of_its_key() {
    let mut desk = Desk::tailing(SETTINGS);
    desk.feed(Event::BrokerBlocked(String::new()));
    assert_eq!(loaded(&desk.committed(&[8])), [8]);
    assert!(desk.rows(&[row(8, 1)]).is_empty());
    assert_eq!(loaded(&desk.committed(&[7])), [7]);
    assert!(desk.rows(&[row(7, 1)]).is_empty());
    let (publisher, ids) = batch(&desk.feed(Event::BrokerUnblocked));
    assert_eq!(ids, [7]);
    assert_eq!(loaded(&desk.feed(Event::Tick)), [8]);
    assert!(desk.rows(&[row(8, 1)]).is_empty());
    let (_, ids) = batch(&desk.answer(publisher, vec![confirmed(7)]));
    assert_eq!(ids, [8]);
}

#[test]
fn a_row_that_was_held_back_and_comes_again_goes_once() {
    let mut desk = Desk::tailing(SETTINGS);
    desk.feed(Event::BrokerBlocked(String::new()));
    assert_eq!(loaded(&desk.committed(&[8])), [8]);
    assert!(desk.rows(&[row(8, 1)]).is_empty());
    assert_eq!(loaded(&desk.committed(&[7])), [7]);
    assert!(desk.rows(&[row(7, 1)]).is_empty());
    let deleted = It {
        pending: false,
        ..row(7, 1)
    };
    assert_eq!(loaded(&desk.committed(&[7])), [7]);
    assert_eq!(loaded(&desk.rows(&[deleted])), [8]);
    assert!(desk.rows(&[row(8, 1)]).is_empty());
    assert_eq!(batch(&desk.feed(Event::BrokerUnblocked)).1, [8]);
}

#[test]
fn a_queued_row_whose_route_is_paused_waits_until_it_is_resumed() {
    let mut desk = Desk::tailing(SETTINGS);
    desk.feed(Event::BrokerBlocked(String::new()));
    assert_eq!(loaded(&desk.committed(&[7])), [7]);
    assert!(desk.rows(&[row(7, 1)]).is_empty());
    desk.feed(pauses(false, &["r"]));
    assert!(desk.feed(Event::BrokerUnblocked).is_empty());
    assert!(desk.route("r").is_some_and(|route| route.paused));
    assert_eq!(loaded(&desk.feed(pauses(false, &["other"]))), [7]);
    assert_eq!(batch(&desk.rows(&[row(7, 1)])).1, [7]);
}

#[test]
fn what_is_published_is_reported_by_who_found_it() {
    let (mut desk, _) = Desk::new(SETTINGS);
    let page = desk.page_of(&[row(1, 1), row(2, 2)], 2);
    let published = |reports: &[Report], source, rows| {
        let report = Report::Published { source, rows };
        let of_kind = reports
            .iter()
            .filter(|report| matches!(report, Report::Published { .. }));
        assert_eq!(of_kind.collect::<Vec<_>>(), [&report]);
    };
    published(&desk.reports(Event::Page(page)), Source::Sweep, 2);
    desk.feed(Event::BinlogOpened);
    assert_eq!(loaded(&desk.committed(&[3])), [3]);
    let rows = vec![row(3, 3).read()];
    let read_at = desk.now;
    published(
        &desk.reports(Event::Rows(Rows { rows, read_at })),
        Source::Binlog,
        1,
    );
}

#[test]
fn a_row_behind_the_one_that_is_out_is_loaded_only_if_it_could_go() {
    let second = row(8, 1);
    let delayed = It {
        wait: Some(SECOND),
        ..second
    };
    let elsewhere = It {
        route: "closed",
        ..second
    };
    for (it, loads) in [(second, true), (delayed, false), (elsewhere, false)] {
        let mut desk = Desk::tailing(SETTINGS);
        desk.feed(pauses(false, &["closed"]));
        desk.feed(Event::BrokerBlocked(String::new()));
        assert_eq!(loaded(&desk.committed(&[7, 8])), [7, 8]);
        let read = |it: It| Read {
            row: None,
            ..it.read()
        };
        let (rows, read_at) = (vec![read(row(7, 1)), read(it)], desk.now);
        let out = desk.feed(Event::Rows(Rows { rows, read_at }));
        assert_eq!(loaded(&out), [7]);
        assert!(desk.rows(&[row(7, 1)]).is_empty());
        assert_eq!(batch(&desk.feed(Event::BrokerUnblocked)).1, [7]);
        let out = desk.feed(Event::Tick);
        assert_eq!(!out.is_empty(), loads, "{out:?}");
    }
}

#[test]
fn an_idle_engine_wants_to_be_looked_at_once_a_second() {
    let mut desk = Desk::tailing(SETTINGS);
    assert_eq!(desk.engine.deadline(), desk.now + SECOND);
    desk.after(9_500 * MILLI);
    assert_eq!(desk.engine.deadline(), desk.now + 500 * MILLI, "the sweep");
    let publisher = desk.publish(row(7, 1));
    desk.answer(publisher, vec![confirmed(7)]);
    assert_eq!(desk.engine.deadline(), desk.now + 100 * MILLI, "the mark");
}

#[test]
fn lag_is_of_the_oldest_reported_row_that_is_not_confirmed() {
    let mut desk = Desk::tailing(SETTINGS);
    let lag = |desk: &Desk| desk.engine.snapshot().lag;
    assert_eq!(lag(&desk), Lag::Reported(None));
    let start = desk.now;
    desk.committed(&[7]);
    assert_eq!(lag(&desk), Lag::Reported(Some(start)));
    desk.now += MILLI;
    let publisher = batch(&desk.rows(&[row(7, 1)])).0;
    desk.committed(&[8]);
    assert_eq!(lag(&desk), Lag::Reported(Some(start)), "it is out");
    desk.answer(publisher, vec![confirmed(7)]);
    assert_eq!(lag(&desk), Lag::Reported(Some(start + MILLI)));
    desk.rows(&[row(8, 2)]);
    desk.feed(pauses(false, &["r"]));
    assert_eq!(lag(&desk), Lag::InTable, "a route is paused");
    desk.feed(pauses(false, &[]));
    desk.feed(end_of("gone", false));
    assert_eq!(lag(&desk), Lag::InTable, "scans alone find rows");
}

#[test]
fn memory_is_the_sum_of_all_that_is_kept() {
    const ROUTE: usize = 384 + 2;
    const PAYLOAD: usize = 10 + ROW_MEMORY;
    let mut desk = Desk::tailing(SETTINGS);
    let memory = |desk: &Desk| desk.engine.snapshot().memory;
    assert_eq!(memory(&desk), 0);
    desk.committed(&[1, 2, 3]);
    assert_eq!(memory(&desk), 3 * 40, "reported ids");
    desk.feed(Event::BrokerBlocked(String::new()));
    desk.rows(&[row(1, 1), row(2, 2), row(3, 3)]);
    assert_eq!(
        memory(&desk),
        3 * (ROW_BYTES + PAYLOAD) + ROUTE,
        "loaded rows"
    );
    let (publisher, ids) = batch(&desk.feed(Event::BrokerUnblocked));
    assert_eq!(ids, [1, 2, 3]);
    assert_eq!(
        memory(&desk),
        3 * (ROW_BYTES + PAYLOAD) + ROUTE,
        "rows that are out"
    );
    desk.answer(publisher, (1..=3).map(confirmed).collect());
    assert_eq!(
        memory(&desk),
        3 * (ROW_BYTES + 160) + ROUTE,
        "confirmed rows"
    );
    desk.after(SECOND);
    desk.feed(written(&[1, 2, 3]));
    assert_eq!(memory(&desk), 0);
}

#[test]
fn a_page_that_waits_counts_with_its_payloads() {
    let (mut desk, _) = Desk::new(Settings {
        mode: Mode::Poll,
        index_bytes: 0,
        ..SETTINGS
    });
    let rows: Vec<It> = (1..=200).map(|id| row(id, id)).collect();
    desk.page(&rows, 200);
    assert_eq!(
        desk.engine.snapshot().rows,
        65,
        "rows above the bound stay on the page"
    );
}

#[test]
fn each_binlog_failure_in_a_row_doubles_the_wait_for_the_next_try() {
    for (timed_out, waits) in [
        (
            false,
            [100, 200, 400, 800, 1600, 3200, 6400, 10_000, 10_000],
        ),
        (
            true,
            [
                2000, 4000, 8000, 10_000, 10_000, 10_000, 10_000, 10_000, 10_000,
            ],
        ),
    ] {
        let (mut desk, _) = Desk::new(SETTINGS);
        for wait in waits {
            let out = desk.page(&[], 0);
            assert!(matches!(&out[..], [Command::OpenBinlog(_)]), "{out:?}");
            let reports = desk.reports(end_of("no answer", timed_out));
            let [Report::BinlogAway { why, retry_at }] = &reports[..] else {
                panic!("{reports:?}");
            };
            assert_eq!(why, "no answer");
            let retry = *retry_at - desk.now;
            assert!(
                retry <= wait * MILLI && retry >= wait * MILLI * 3 / 4,
                "{retry:?} {wait}"
            );
            assert_eq!(desk.engine.state(), StateName::Polling);
            assert!(desk.feed(end_of("late", false)).is_empty(), "there is none");
            desk.page(&[], 0);
            let out = desk.after(retry.max(SETTINGS.poll_interval));
            let fence =
                |command: &Command| matches!(command, Command::ReadPage(query) if query.fence);
            assert!(out.iter().any(fence), "{out:?}");
        }
    }
}

#[test]
fn a_stream_that_was_open_for_more_than_ten_seconds_was_sound() {
    for (open_for, wait) in [(10 * SECOND, 400), (10 * SECOND + MILLI, 100)] {
        let (mut desk, _) = Desk::new(SETTINGS);
        let mut retry = Duration::ZERO;
        for failure in 0..3 {
            desk.page(&[], 0);
            if failure == 2 {
                desk.feed(Event::BinlogOpened);
                desk.now += open_for;
            }
            let reports = desk.reports(end_of("gone", false));
            let away = reports.iter().find_map(|report| match report {
                Report::BinlogAway { retry_at, .. } => Some(*retry_at - desk.now),
                _ => None,
            });
            retry = away.unwrap();
            desk.page(&[], 0);
            desk.after(SETTINGS.poll_interval.max(retry));
        }
        assert!(
            retry <= wait * MILLI && retry >= wait * MILLI * 3 / 4,
            "{retry:?} {wait}"
        );
    }
}

#[test]
fn a_binlog_that_hides_everything_causes_one_scan_a_second() {
    let mut desk = Desk::tailing(SETTINGS);
    let out = desk.feed(Event::Doubt);
    assert!(
        matches!(&out[..], [Command::CloseBinlog, Command::ReadPage(_)]),
        "{out:?}"
    );
    for _ in 0..2 {
        desk.page(&[], 0);
        desk.feed(Event::BinlogOpened);
        assert_eq!(desk.engine.state(), StateName::Tailing);
        let out = desk.feed(Event::Doubt);
        assert!(matches!(&out[..], [Command::CloseBinlog]), "{out:?}");
        assert!(desk.after(999 * MILLI).is_empty());
        assert!(desk.after(MILLI).iter().any(is_scan));
    }
    assert!(desk.feed(Event::Doubt).is_empty(), "no stream is open");
}

#[test]
fn a_paused_relay_takes_nothing_in_and_catches_up_when_it_is_resumed() {
    let mut desk = Desk::tailing(SETTINGS);
    let publisher = desk.publish(row(7, 1));
    assert_eq!(loaded(&desk.committed(&[8])), [8]);
    desk.now += SECOND;
    let paused_at = desk.now;
    let out = desk.feed(pauses(true, &[]));
    assert!(matches!(&out[..], [Command::CloseBinlog]), "{out:?}");
    assert_eq!(desk.engine.state(), StateName::Paused);
    assert!(desk.rows(&[row(8, 2)]).is_empty());
    assert!(desk.after(100 * SECOND).is_empty());
    assert_eq!(desk.engine.deadline(), desk.now + SECOND);
    assert_eq!(desk.engine.snapshot().since, paused_at);
    let out = desk.answer(publisher, vec![confirmed(7)]);
    assert_eq!(marks(&out), [7], "what the broker has is marked at once");
    desk.feed(written(&[7]));
    assert_eq!(
        (desk.engine.snapshot().rows, desk.engine.in_flight()),
        (0, 0)
    );
    let out = desk.feed(pauses(false, &[]));
    assert!(
        matches!(&out[..], [Command::CloseBinlog, Command::ReadPage(_)]),
        "{out:?}"
    );
    assert_eq!(desk.engine.state(), StateName::CatchingUp);
}

fn ends(out: &[Command]) -> Vec<&End> {
    let ends = out.iter().filter_map(|command| match command {
        Command::End(end) => Some(end),
        _ => None,
    });
    ends.collect()
}

#[test]
fn a_drain_ends_when_what_is_out_is_confirmed_and_marked() {
    let mut desk = Desk::tailing(SETTINGS);
    let publisher = desk.publish(row(7, 1));
    let out = desk.feed(Event::Drain);
    assert!(matches!(&out[..], [Command::CloseBinlog]), "{out:?}");
    assert_eq!(desk.engine.state(), StateName::Draining);
    assert!(desk.feed(Event::Drain).is_empty());
    assert!(desk.feed(pauses(true, &[])).is_empty());
    let out = desk.answer(publisher, vec![confirmed(7)]);
    assert!(ends(&out).is_empty());
    assert_eq!(marks(&out), [7]);
    assert_eq!(ends(&desk.feed(written(&[7]))), [&End::Drained]);
}

#[test]
fn an_idle_relay_drains_at_once() {
    let mut desk = Desk::tailing(SETTINGS);
    assert_eq!(ends(&desk.feed(Event::Drain)), [&End::Drained]);
}

#[test]
fn when_the_broker_is_lost_answers_and_marks_are_waited_for_three_seconds() {
    let mut desk = Desk::tailing(SETTINGS);
    desk.publish(row(7, 1));
    assert!(ends(&desk.feed(Event::BrokerLost("reset".into()))).is_empty());
    assert_eq!(desk.engine.state(), StateName::Closing);
    assert_eq!(desk.engine.snapshot().why, "reset");
    assert!(desk.feed(Event::BrokerLost("again".into())).is_empty());
    assert!(desk.feed(Event::Drain).is_empty());
    let over = End::BrokerLost("reset".into());
    assert!(desk.after(2_999 * MILLI).is_empty());
    assert_eq!(desk.engine.deadline(), desk.now + MILLI);
    assert_eq!(ends(&desk.after(MILLI)), [&over]);

    let mut desk = Desk::tailing(SETTINGS);
    let publisher = desk.publish(row(7, 1));
    desk.feed(Event::BrokerLost("reset".into()));
    let outcome = Outcome::Lost("reset".into());
    let out = desk.feed(Event::Published { publisher, outcome });
    assert_eq!(ends(&out), [&over], "all is settled");
}

#[test]
fn a_stream_that_opens_is_used_only_while_it_is_waited_for() {
    let (mut desk, _) = Desk::new(SETTINGS);
    desk.feed(Event::BinlogOpened);
    assert_eq!(desk.engine.state(), StateName::CatchingUp);
    assert!(!desk.engine.snapshot().is_streaming, "none was wanted yet");
    desk.page(&[], 0);
    assert_eq!(desk.engine.state(), StateName::AwaitingBinlog);
    let out = desk.after(SETTINGS.poll_interval);
    assert!(out.iter().any(is_scan));
    desk.feed(Event::BinlogOpened);
    assert_eq!(
        desk.engine.state(),
        StateName::CatchingUp,
        "a scan is being made"
    );
    assert!(desk.engine.snapshot().is_streaming);
    desk.page(&[], 0);
    assert_eq!(desk.engine.state(), StateName::Tailing);
    let since = desk.engine.snapshot().since;
    desk.now += SECOND;
    desk.feed(Event::BinlogOpened);
    assert_eq!(
        (desk.engine.state(), desk.engine.snapshot().since),
        (StateName::Tailing, since)
    );
    assert!(desk.after(9 * SECOND - MILLI).is_empty());
    assert!(
        desk.after(MILLI).iter().any(is_scan),
        "a sweep ten seconds after"
    );
}

#[test]
fn a_position_that_goes_backwards_means_that_the_server_was_reset() {
    let mut desk = Desk::tailing(SETTINGS);
    desk.feed(Event::BinlogAt(Position::new("b.1", 9)));
    let mut sweep = |offset| {
        desk.after(SETTINGS.sweep_interval);
        let page = Page {
            end: Some(Position::new("b.1", offset)),
            ..desk.page_of(&[], 0)
        };
        let out = desk.feed(Event::Page(page));
        (desk.engine.state(), out.len())
    };
    assert_eq!(sweep(9), (StateName::Tailing, 0));
    assert_eq!(sweep(8), (StateName::CatchingUp, 2));
}

#[test]
fn a_poller_scans_at_its_interval_and_opens_no_stream() {
    let settings = Settings {
        mode: Mode::Poll,
        ..SETTINGS
    };
    let (mut desk, out) = Desk::new(settings);
    assert_eq!(desk.engine.state(), StateName::Polling);
    let query = PageQuery {
        after: 0,
        upto: None,
        fence: false,
        positions: false,
        payloads: true,
    };
    assert!(
        matches!(&out[..], [Command::ReadPage(first)] if *first == query),
        "{out:?}"
    );
    assert_eq!(batch(&desk.page(&[row(1, 1)], 1)).1, [1]);
    assert!(desk.after(199 * MILLI).is_empty());
    assert!(desk.after(MILLI).iter().any(is_scan));
    assert!(!desk.engine.snapshot().is_streaming);
}
