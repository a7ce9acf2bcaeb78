//! Table scans: what they find, believe and forget, and when they are made.

use super::*;

const MILLI: Duration = Duration::from_millis(1);
const POLL: Settings = Settings {
    mode: Mode::Poll,
    ..SETTINGS
};

fn is_scan(command: &Command) -> bool {
    matches!(command, Command::ReadPage(_))
}

fn query(out: &[Command]) -> &PageQuery {
    let mut queries = out.iter().filter_map(|command| match command {
        Command::ReadPage(query) => Some(query),
        _ => None,
    });
    match (queries.next(), queries.next()) {
        (Some(query), None) => query,
        _ => panic!("one page is expected: {out:?}"),
    }
}

/// As a page shows it: without its payload.
fn bare(it: It) -> Read {
    Read {
        row: None,
        ..it.read()
    }
}

fn delayed(id: u64, key: u64) -> It {
    It {
        wait: Some(1000 * SECOND),
        ..row(id, key)
    }
}

/// A poller that has made one scan, which met these rows.
fn poller(rows: &[It]) -> Desk {
    let (mut desk, _) = Desk::new(POLL);
    desk.page(rows, rows.iter().map(|it| it.id).max().unwrap_or(0));
    desk
}

fn scan(desk: &mut Desk, rows: &[It], upto: u64) -> Vec<Command> {
    let out = desk.after(SETTINGS.poll_interval);
    assert!(out.iter().any(is_scan), "{out:?}");
    desk.page(rows, upto)
}

#[test]
fn a_scan_reads_page_by_page_up_to_where_the_table_ended_when_it_began() {
    let (mut desk, _) = Desk::new(SETTINGS);
    let page = Page {
        read_to: 10,
        ..desk.page_of(&[], 30)
    };
    let out = desk.feed(Event::Page(page));
    let next = query(&out);
    assert_eq!((next.after, next.upto, next.fence), (10, Some(30), true));
    let page = Page {
        read_to: 29,
        ..desk.page_of(&[], 30)
    };
    assert_eq!(query(&desk.feed(Event::Page(page))).after, 29);
    assert!(!desk.page(&[], 30).iter().any(is_scan));
    assert_eq!(desk.engine.state(), StateName::AwaitingBinlog);
}

#[test]
fn rows_that_a_scan_does_not_meet_any_more_are_forgotten() {
    let mut desk = poller(&[delayed(1, 1), delayed(2, 2), delayed(9, 9)]);
    assert_eq!(desk.engine.snapshot().rows, 3);
    scan(&mut desk, &[delayed(2, 2)], 8);
    assert_eq!(desk.engine.snapshot().rows, 2, "9 was not looked for");
    scan(&mut desk, &[delayed(2, 2)], 9);
    assert_eq!(desk.engine.snapshot().rows, 1);
}

#[test]
fn a_row_that_is_out_or_confirmed_is_not_forgotten_by_a_scan() {
    let (mut desk, _) = Desk::new(POLL);
    let (publisher, _) = batch(&desk.page(&[row(1, 1)], 1));
    scan(&mut desk, &[], 1);
    assert_eq!(desk.engine.in_flight(), 1);
    desk.answer(publisher, vec![confirmed(1)]);
    let out = scan(&mut desk, &[row(1, 1)], 1);
    assert!(
        !out.iter()
            .any(|command| matches!(command, Command::Publish { .. })),
        "{out:?}"
    );
    assert_eq!(desk.engine.snapshot().rows, 1);
}

#[test]
fn a_page_says_nothing_of_a_row_that_was_marked_while_it_was_read() {
    let (mut desk, _) = Desk::new(POLL);
    let (publisher, _) = batch(&desk.page(&[row(1, 1)], 1));
    desk.answer(publisher, vec![confirmed(1)]);
    let out = desk.after(SETTINGS.poll_interval);
    assert_eq!(marks(&out), [1]);
    assert!(out.iter().any(is_scan));
    desk.feed(written(&[1]));
    assert!(
        desk.page(&[row(1, 1)], 1).is_empty(),
        "the page may be older than the mark"
    );
    assert_eq!(desk.engine.snapshot().rows, 0);
    let (_, ids) = batch(&scan(&mut desk, &[row(1, 1)], 1));
    assert_eq!(ids, [1], "the next one shows that it was set back");
}

#[test]
fn a_scan_brings_payloads_while_there_is_room_and_no_sweep_does() {
    let (mut desk, _) = Desk::new(POLL);
    let out = desk.after(Duration::ZERO);
    assert!(out.is_empty(), "a page is being read");
    desk.page(&[], 0);
    assert!(query(&desk.after(SETTINGS.poll_interval)).payloads);
    let mut desk = Desk::tailing(SETTINGS);
    let out = desk.after(SETTINGS.sweep_interval);
    let query = query(&out);
    assert_eq!(
        (query.payloads, query.positions, query.fence),
        (false, true, false)
    );
}

#[test]
fn with_a_quarter_of_the_buffer_left_a_scan_brings_no_payloads() {
    let size = 10 + ROW_MEMORY;
    for (rows, brings) in [(1, true), (2, false)] {
        let settings = Settings {
            buffer_bytes: 4 * size + 4,
            ..POLL
        };
        let (mut desk, _) = Desk::new(settings);
        desk.feed(Event::BrokerBlocked(String::new()));
        let all: Vec<It> = (1..=rows).map(|id| row(id, id)).collect();
        desk.page(&all, rows);
        let out = desk.after(SETTINGS.poll_interval);
        assert_eq!(query(&out).payloads, brings, "{rows} rows are loaded");
    }
}

#[test]
fn payloads_that_came_with_a_page_are_used_within_a_second() {
    for (late, used) in [(999 * MILLI, true), (SECOND, false)] {
        let (mut desk, _) = Desk::new(POLL);
        let page = desk.page_of(&[row(1, 1)], 1);
        desk.now += late;
        let out = desk.feed(Event::Page(page));
        match used {
            true => assert_eq!(batch(&out).1, [1]),
            false => assert_eq!(loaded(&out), [1]),
        }
    }
}

#[test]
fn payloads_beyond_the_buffer_are_loaded_later() {
    let settings = Settings {
        buffer_bytes: 2 * 2 * (10 + ROW_MEMORY),
        ..POLL
    };
    let (mut desk, _) = Desk::new(settings);
    desk.feed(Event::BrokerBlocked(String::new()));
    let rows: Vec<It> = (1..=5).map(|id| row(id, id)).collect();
    assert!(desk.page(&rows, 5).is_empty());
    let (publisher, ids) = batch(&desk.feed(Event::BrokerUnblocked));
    assert_eq!(ids, [1, 2]);
    assert_eq!(loaded(&desk.feed(Event::Tick)), [3, 4]);
    desk.answer(publisher, vec![confirmed(1), confirmed(2)]);
}

#[test]
fn a_scan_rests_nine_times_as_long_as_the_database_took_for_it() {
    for (took, rest) in [(10, 200), (100, 900), (5000, 30_000)] {
        let (mut desk, _) = Desk::new(POLL);
        let page = Page {
            read_to: 1,
            ..desk.page_of(&[], 2)
        };
        desk.now += took * MILLI / 2;
        desk.feed(Event::Page(page));
        desk.now += took * MILLI / 2;
        desk.page(&[], 2);
        assert_eq!(
            desk.engine.deadline(),
            desk.now + (rest * MILLI).min(SECOND)
        );
        assert!(
            !desk.after(rest * MILLI - MILLI).iter().any(is_scan),
            "{took}"
        );
        assert!(desk.after(MILLI).iter().any(is_scan), "{took}");
    }
}

#[test]
fn a_scan_that_finds_a_thousand_rows_is_followed_by_the_next_one_at_the_interval() {
    for (rows, rests) in [(999, true), (1000, false)] {
        let (mut desk, _) = Desk::new(POLL);
        let rows: Vec<It> = (1..=rows).map(|id| delayed(id, id)).collect();
        desk.now += SECOND;
        desk.page(&rows, 1000);
        let out = desk.after(SETTINGS.poll_interval);
        assert_eq!(!out.iter().any(is_scan), rests);
    }
}

#[test]
fn a_sweep_believes_a_page_once_the_stream_has_passed_it() {
    let mut desk = Desk::tailing(SETTINGS);
    desk.after(SETTINGS.sweep_interval);
    assert!(!desk.engine.awaits_position());
    desk.page(&[delayed(7, 7)], 7);
    assert!(desk.engine.awaits_position());
    let snapshot = desk.engine.snapshot();
    assert_eq!(
        (snapshot.rows, snapshot.memory),
        (0, 10),
        "its payload is kept"
    );
    assert_eq!(
        loaded(&desk.committed(&[7])),
        [7],
        "the stream reports it itself"
    );
    desk.rows(&[delayed(7, 7)]);
    assert!(
        desk.feed(Event::BinlogAt(Position::new("b.1", 10)))
            .is_empty()
    );
    assert!(!desk.engine.awaits_position());
    assert_eq!(desk.engine.snapshot().rows, 1);
    assert!(desk.after(9 * SECOND).is_empty());
    assert!(
        desk.after(SECOND).iter().any(is_scan),
        "the next one after the sweep interval"
    );
}

#[test]
fn missed_rows_are_counted_unless_something_explains_them() {
    let pending = row(7, 7);
    let has_history = It {
        has_history: true,
        ..pending
    };
    let sent = It {
        pending: false,
        ..pending
    };
    for (it, missed) in [(pending, 1), (has_history, 0), (sent, 0)] {
        let mut desk = Desk::tailing(SETTINGS);
        desk.after(SETTINGS.sweep_interval);
        desk.page(&[pending, row(8, 8)], 8);
        assert_eq!(
            loaded(&desk.feed(Event::BinlogAt(Position::new("b.1", 9)))),
            [7, 8]
        );
        let (rows, read_at) = (vec![it.read(), row(8, 8).read()], desk.now);
        let reports = desk.reports(Event::Rows(Rows { rows, read_at }));
        assert!(
            reports.contains(&Report::MissedByBinlog(missed + 1)),
            "{reports:?}"
        );
        let reports = desk.reports(Event::Tick);
        assert!(
            !reports
                .iter()
                .any(|report| matches!(report, Report::MissedByBinlog(_)))
        );
    }
}

#[test]
fn a_stream_that_is_not_taken_from_is_not_broken() {
    let mut desk = Desk::tailing(SETTINGS);
    desk.after(SETTINGS.sweep_interval);
    desk.page(&[], 0);
    desk.committed(&(1..=65_536).collect::<Vec<_>>());
    assert!(!desk.engine.takes_transactions());
    assert!(desk.after(10 * SECOND).is_empty());
    assert_eq!(desk.engine.state(), StateName::Tailing);
    assert!(desk.engine.deadline() > desk.now);
    desk.rows(&[]);
    assert_eq!(desk.engine.state(), StateName::Tailing);
}

#[test]
fn a_position_that_can_not_be_read_makes_the_relay_a_poller() {
    let (mut desk, _) = Desk::new(SETTINGS);
    let page = Page {
        start: None,
        end: None,
        unreadable: Some("access denied".into()),
        ..desk.page_of(&[row(1, 1)], 1)
    };
    desk.feed(Event::Page(page));
    assert_eq!(desk.engine.state(), StateName::Polling);
    assert_eq!(desk.engine.snapshot().why, "access denied");
    let mut desk = poller(&[]);
    let page = Page {
        unreadable: Some("access denied".into()),
        ..desk.page_of(&[row(1, 1)], 1)
    };
    desk.after(SETTINGS.poll_interval);
    assert_eq!(
        batch(&desk.feed(Event::Page(page))).1,
        [1],
        "a poller needs none"
    );
}

#[test]
fn a_table_that_can_not_be_read_is_shown_until_it_can() {
    let (mut desk, _) = Desk::new(POLL);
    desk.feed(Event::TableRefused("locked".into()));
    assert_eq!(
        desk.engine.snapshot().table_refused.as_deref(),
        Some("locked")
    );
    desk.page(&[], 0);
    assert_eq!(desk.engine.snapshot().table_refused, None);
}

#[test]
fn a_page_of_a_scan_that_was_given_up_is_dropped_and_no_second_one_is_read_beside_it() {
    let (mut desk, _) = Desk::new(SETTINGS);
    let whole = |whole| {
        Event::Pauses(Pauses {
            whole,
            ..Pauses::default()
        })
    };
    desk.feed(whole(true));
    let out = desk.feed(whole(false));
    assert!(!out.iter().any(is_scan), "the page of before is being read");
    assert_eq!(desk.engine.deadline(), desk.now + SECOND);
    let out = desk.page(&[row(1, 1)], 1);
    assert!(query(&out).upto.is_none());
    assert_eq!(desk.engine.snapshot().rows, 0);
}

#[test]
fn a_message_under_the_id_of_another_is_met_as_another() {
    let mut other = bare(row(1, 2));
    other.head.tag = 70;
    // Waiting: it is taken as it is now.
    let mut desk = poller(&[delayed(1, 1)]);
    desk.after(SETTINGS.poll_interval);
    let page = Page {
        rows: vec![other.clone()],
        ..desk.page_of(&[], 1)
    };
    assert_eq!(loaded(&desk.feed(Event::Page(page))), [1]);
    // Loaded: what was loaded does not go.
    let (mut desk, _) = Desk::new(POLL);
    desk.feed(Event::BrokerBlocked(String::new()));
    desk.page(&[row(1, 1)], 1);
    desk.after(SETTINGS.poll_interval);
    let page = Page {
        rows: vec![other.clone()],
        ..desk.page_of(&[], 1)
    };
    assert_eq!(loaded(&desk.feed(Event::Page(page))), [1]);
    assert!(desk.feed(Event::BrokerUnblocked).is_empty());
    // With a publisher: it is read again when that one is done with.
    let (mut desk, _) = Desk::new(POLL);
    let (publisher, _) = batch(&desk.page(&[row(1, 1)], 1));
    desk.after(SETTINGS.poll_interval);
    let page = Page {
        rows: vec![other],
        ..desk.page_of(&[], 1)
    };
    assert!(desk.feed(Event::Page(page)).is_empty());
    desk.answer(publisher, vec![confirmed(1)]);
    desk.after(100 * MILLI);
    assert_eq!(loaded(&desk.feed(written(&[1]))), [1]);
}

#[test]
fn between_scans_a_message_under_the_id_of_another_waits_for_the_next_scan() {
    let mut other = row(9, 2).read();
    other.head.tag = 70;
    let soon = It {
        wait: Some(100 * MILLI),
        ..row(9, 1)
    };
    let mut desk = poller(&[soon]);
    assert_eq!(loaded(&desk.after(100 * MILLI)), [9]);
    for again in [true, false] {
        let rows = Rows {
            rows: vec![other.clone()],
            read_at: desk.now,
        };
        let out = desk.feed(Event::Rows(rows));
        let loads = |command: &Command| matches!(command, Command::Load(_));
        let publishes = |command: &Command| matches!(command, Command::Publish { .. });
        assert_eq!(out.iter().any(loads), again, "{out:?}");
        assert!(
            !out.iter().any(publishes),
            "earlier ones of its key may be there"
        );
    }
    assert_eq!(batch(&scan(&mut desk, &[row(3, 2), row(9, 2)], 9)).1, [3]);
}

#[test]
fn a_message_under_the_id_of_another_waits_for_earlier_ones_that_the_index_lacks() {
    let settings = Settings {
        index_bytes: 100 * ROW_BYTES + 386,
        ..POLL
    };
    let (mut desk, _) = Desk::new(settings);
    desk.page(&[], 0);
    let mut before: Vec<It> = (100..=170).map(|id| delayed(id, id)).collect();
    before.push(delayed(180, 3));
    scan(&mut desk, &before, 180);
    assert_eq!(desk.engine.snapshot().rows, 72);
    // After a TRUNCATE 180 is of key 2, whose second row has no room.
    let mut rows = vec![delayed(1, 2).read(), row(2, 2).read()];
    rows.extend(before[..71].iter().map(|it| it.read()));
    let mut reused = row(180, 2).read();
    reused.head.tag = 70;
    rows.push(reused);
    desk.after(SETTINGS.poll_interval);
    let page = Page {
        rows,
        ..desk.page_of(&[], 180)
    };
    let out = desk.feed(Event::Page(page));
    assert!(out.is_empty(), "{out:?}");
    assert_eq!(
        desk.engine.snapshot().rows,
        72,
        "1 has come and 180 has gone"
    );
}

#[test]
fn a_loaded_row_that_a_scan_meets_unchanged_goes_as_it_is() {
    let (mut desk, _) = Desk::new(POLL);
    desk.feed(Event::BrokerBlocked(String::new()));
    desk.page(&[row(1, 1)], 1);
    let out = scan(&mut desk, &[row(1, 1)], 1);
    assert!(out.is_empty(), "{out:?}");
    assert_eq!(batch(&desk.feed(Event::BrokerUnblocked)).1, [1]);
}

#[test]
fn a_stream_is_tried_again_by_the_scan_that_is_due_then() {
    let mut desk = Desk::tailing(SETTINGS);
    let why = String::new();
    let end = BinlogEnd {
        why,
        timed_out: true,
    };
    let reports = desk.reports(Event::BinlogEnded(end));
    let retry_at = reports.iter().find_map(|report| match report {
        Report::BinlogAway { retry_at, .. } => Some(*retry_at),
        _ => None,
    });
    let mut fences = Vec::new();
    desk.page(&[], 0);
    while desk.now < retry_at.unwrap() {
        assert_eq!(desk.engine.state(), StateName::Polling);
        let out = desk.after(100 * MILLI);
        if out.iter().any(is_scan) {
            fences.push(query(&out).fence);
            desk.page(&[], 0);
        }
    }
    let (last, before) = fences.split_last().unwrap();
    assert!(
        *last && before.len() > 5 && !before.contains(&true),
        "{fences:?}"
    );
    assert_eq!(desk.engine.state(), StateName::AwaitingBinlog);
}

#[test]
fn the_rows_of_a_backlog_are_read_once() {
    let settings = Settings {
        batch_rows: 2048,
        buffer_bytes: 32 << 20,
        index_bytes: 64 << 20,
        ..SETTINGS
    };
    let (mut desk, mut out) = Desk::new(settings);
    let (mut next, mut published, mut loads) = (1, 0, 0);
    let mut batches = VecDeque::new();
    while published < 20_000 {
        for command in std::mem::take(&mut out) {
            match command {
                Command::ReadPage(query) => {
                    assert_eq!(query.after + 1, next);
                    assert!(query.after < published as u64 + 6000, "rows are loaded");
                }
                Command::Publish { publisher, batch } => {
                    let ids: Vec<u64> = batch.iter().map(|row| row.id).collect();
                    batches.push_back((publisher, ids));
                }
                Command::Load(_) => loads += 1,
                Command::Write(Write::Sent(sent)) => {
                    let ids: Vec<u64> = sent.iter().map(Confirmed::id).collect();
                    batches.push_back((usize::MAX, ids));
                }
                _ => {}
            }
        }
        if desk.engine.scans.is_reading() {
            let rows: Vec<It> = (next..next + 1000).map(|id| row(id, id)).collect();
            next += 1000;
            let page = Page {
                read_to: next - 1,
                ..desk.page_of(&rows, 1_000_000)
            };
            out.extend(desk.feed(Event::Page(page)));
        } else if let Some((publisher, ids)) = batches.pop_front() {
            out.extend(match publisher {
                usize::MAX => desk.feed(written(&ids)),
                _ => {
                    published += ids.len();
                    desk.answer(publisher, ids.iter().map(|id| confirmed(*id)).collect())
                }
            });
        } else {
            out.extend(desk.after(MILLI));
        }
    }
    assert_eq!(loads, 0);
}
