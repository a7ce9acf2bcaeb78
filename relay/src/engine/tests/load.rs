//! Which rows are read, and what is believed of them.

use super::*;

const MILLI: Duration = Duration::from_millis(1);
const SIZE: usize = 10 + ROW_MEMORY;

fn bare(it: It) -> Read {
    Read {
        row: None,
        ..it.read()
    }
}

fn rows(desk: &mut Desk, rows: Vec<Read>) -> Vec<Command> {
    let read_at = desk.now;
    desk.feed(Event::Rows(Rows { rows, read_at }))
}

fn load(out: &[Command]) -> &LoadQuery {
    let load = out.iter().find_map(|command| match command {
        Command::Load(query) => Some(query),
        _ => None,
    });
    load.unwrap_or_else(|| panic!("a load is expected: {out:?}"))
}

#[test]
fn a_load_has_a_thousand_reported_rows_and_half_of_the_buffer() {
    let mut desk = Desk::tailing(SETTINGS);
    let out = desk.committed(&(1..=1001).collect::<Vec<_>>());
    let query = load(&out);
    assert_eq!(query.ids, (1..=1000).collect::<Vec<_>>());
    assert_eq!(query.bytes, SETTINGS.buffer_bytes / 2);
    assert!(desk.committed(&[2000]).is_empty(), "one load at a time");
}

#[test]
fn payloads_that_are_here_take_from_the_room() {
    let mut desk = Desk::tailing(SETTINGS);
    desk.feed(Event::BrokerBlocked(String::new()));
    assert_eq!(loaded(&desk.committed(&[1, 2])), [1, 2]);
    desk.rows(&[row(1, 1), row(2, 2)]);
    let out = desk.committed(&[3]);
    assert_eq!(load(&out).bytes, SETTINGS.buffer_bytes / 2 - 2 * SIZE);
}

#[test]
fn a_row_larger_than_the_buffer_is_loaded_when_nothing_else_is_here() {
    let settings = Settings {
        buffer_bytes: 2 * SIZE,
        ..SETTINGS
    };
    let large = |id| {
        let mut read = bare(row(id, id));
        read.head.bytes = 5000;
        read
    };
    let mut desk = Desk::tailing(settings);
    desk.feed(Event::BrokerBlocked(String::new()));
    assert_eq!(loaded(&desk.committed(&[1, 2, 3])), [1, 2, 3]);
    let read = vec![bare(row(1, 1)), large(2), bare(row(3, 3))];
    let out = rows(&mut desk, read);
    assert_eq!(
        loaded(&out),
        [1],
        "the large one does not fit beside it, and 3 is behind that"
    );
    desk.rows(&[row(1, 1)]);
    assert_eq!(batch(&desk.feed(Event::BrokerUnblocked)).1, [1]);
    let out = desk.feed(Event::Tick);
    let query = load(&out);
    assert_eq!(query.ids, [2]);
    assert!(query.bytes > 0, "so the first one comes whatever its size");
}

#[test]
fn as_many_rows_are_loaded_ahead_as_fit_into_the_buffer_exactly() {
    for (buffer, ids) in [(6 * SIZE, vec![1, 2, 3]), (6 * SIZE - 2, vec![1, 2])] {
        let settings = Settings {
            buffer_bytes: buffer,
            ..SETTINGS
        };
        let mut desk = Desk::tailing(settings);
        assert_eq!(loaded(&desk.committed(&[1, 2, 3])), [1, 2, 3]);
        let read = (1..=3).map(|id| bare(row(id, id))).collect();
        assert_eq!(loaded(&rows(&mut desk, read)), ids);
    }
}

#[test]
fn four_thousand_rows_may_wait_for_publishers_whose_batches_are_small() {
    for (batch_rows, ahead) in [(8, 4000), (3000, 6000)] {
        let settings = Settings {
            batch_rows,
            buffer_bytes: 1 << 30,
            index_bytes: 1 << 30,
            ..SETTINGS
        };
        let mut desk = Desk::tailing(settings);
        desk.feed(Event::BrokerBlocked(String::new()));
        let mut out = desk.committed(&(1..=7000).collect::<Vec<_>>());
        while let Some(query) = out.iter().find_map(|command| match command {
            Command::Load(query) => Some(query.clone()),
            _ => None,
        }) {
            let brings = query.bytes > 0;
            let read = query.ids.iter().map(|id| match brings {
                true => row(*id, *id).read(),
                false => bare(row(*id, *id)),
            });
            let read = read.collect();
            out = rows(&mut desk, read);
        }
        assert_eq!(desk.engine.in_flight(), ahead);
    }
}

#[test]
fn a_row_that_changes_while_it_is_read_is_read_again() {
    let mut desk = Desk::tailing(SETTINGS);
    let publisher = desk.publish(row(7, 1));
    desk.answer(publisher, vec![confirmed(7)]);
    assert_eq!(marks(&desk.after(SECOND)), [7]);
    assert_eq!(loaded(&desk.committed(&[7])), [7]);
    desk.feed(written(&[7]));
    let out = desk.rows(&[row(7, 1)]);
    assert_eq!(
        loaded(&out),
        [7],
        "what was read may be older than the mark"
    );
    let sent = It {
        pending: false,
        ..row(7, 1)
    };
    assert!(desk.rows(&[sent]).is_empty());
    assert_eq!(desk.engine.snapshot().rows, 0);
}

#[test]
fn a_reported_row_that_is_not_pending_is_read_once_more() {
    let mut desk = Desk::tailing(SETTINGS);
    let sent = It {
        pending: false,
        ..row(7, 1)
    };
    assert_eq!(loaded(&desk.committed(&[7])), [7]);
    assert!(desk.rows(&[sent]).is_empty());
    assert_eq!(desk.engine.deadline(), desk.now + 50 * MILLI);
    assert!(desk.after(49 * MILLI).is_empty());
    assert_eq!(loaded(&desk.after(MILLI)), [7]);
    assert!(desk.rows(&[sent]).is_empty());
    assert!(desk.after(SECOND).is_empty(), "once is enough");
}

#[test]
fn what_a_loaded_row_has_become_meanwhile_counts() {
    let ready = row(7, 1);
    let gone = It {
        pending: false,
        ..ready
    };
    let delayed = It {
        wait: Some(SECOND),
        ..ready
    };
    for (case, read, in_index) in [
        ("gone", vec![gone.read()], 0),
        ("deleted", vec![], 0),
        ("delayed", vec![delayed.read()], 1),
    ] {
        let mut desk = Desk::tailing(SETTINGS);
        assert_eq!(loaded(&desk.committed(&[7])), [7]);
        assert_eq!(loaded(&rows(&mut desk, vec![bare(ready)])), [7]);
        let out = rows(&mut desk, read);
        assert!(out.is_empty(), "{case}: {out:?}");
        assert_eq!(desk.engine.snapshot().rows, in_index, "{case}");
    }
    let mut desk = Desk::tailing(SETTINGS);
    assert_eq!(loaded(&desk.committed(&[7])), [7]);
    assert_eq!(loaded(&rows(&mut desk, vec![bare(ready)])), [7]);
    let mut other = ready.read();
    other.head.tag = 70;
    assert_eq!(
        loaded(&rows(&mut desk, vec![other.clone()])),
        [7],
        "another message has the id"
    );
    assert_eq!(batch(&rows(&mut desk, vec![other])).1, [7]);
}

#[test]
fn a_row_behind_one_that_is_out_is_kept_if_it_is_as_it_was() {
    let second = row(8, 1);
    let delayed = It {
        wait: Some(SECOND),
        ..second
    };
    let elsewhere = It {
        route: "s",
        ..second
    };
    for (case, it, kept) in [
        ("same", second, true),
        ("delayed", delayed, false),
        ("route", elsewhere, false),
    ] {
        let mut desk = Desk::tailing(SETTINGS);
        desk.feed(Event::BrokerBlocked(String::new()));
        assert_eq!(loaded(&desk.committed(&[7, 8])), [7, 8]);
        desk.rows(&[row(7, 1), second]);
        let (publisher, _) = batch(&desk.feed(Event::BrokerUnblocked));
        assert_eq!(loaded(&desk.feed(Event::Tick)), [8]);
        assert!(desk.rows(&[it]).is_empty());
        assert_eq!(desk.engine.in_flight(), if kept { 2 } else { 1 }, "{case}");
        let out = desk.answer(publisher, vec![confirmed(7)]);
        let goes = out
            .iter()
            .any(|command| matches!(command, Command::Publish { .. }));
        assert_eq!(goes, kept, "{case}: {out:?}");
    }
}

#[test]
fn a_line_of_rows_that_may_not_go_any_more_is_passed_over() {
    let settings = Settings {
        buffer_bytes: 2 * SIZE,
        ..SETTINGS
    };
    let mut desk = Desk::tailing(settings);
    assert_eq!(loaded(&desk.committed(&[5, 7, 8])), [5, 7, 8]);
    let elsewhere = It {
        route: "s",
        ..row(7, 7)
    };
    let read = vec![bare(row(5, 5)), bare(elsewhere), bare(row(8, 8))];
    assert_eq!(
        loaded(&rows(&mut desk, read)),
        [5],
        "there is no room for more"
    );
    let routes = [Route::new(b"x", b"s")].into();
    desk.feed(Event::Pauses(Pauses {
        whole: false,
        routes,
    }));
    let out = desk.rows(&[row(5, 5)]);
    let publisher = batch(&out).0;
    assert_eq!(loaded(&desk.feed(Event::Tick)), [8]);
    desk.answer(publisher, vec![confirmed(5)]);
    let out = desk.feed(Event::Pauses(Pauses::default()));
    assert!(out.is_empty());
    assert_eq!(batch(&desk.rows(&[row(8, 8)])).1, [8]);
    assert_eq!(loaded(&desk.feed(Event::Tick)), [7], "it has come again");
}

#[test]
fn an_answer_to_a_load_of_before_a_pause_is_taken_as_news_of_nothing() {
    let mut desk = Desk::tailing(SETTINGS);
    assert_eq!(loaded(&desk.committed(&[7])), [7]);
    desk.feed(Event::Doubt);
    assert!(desk.rows(&[row(7, 1)]).is_empty());
    assert_eq!(
        desk.engine.snapshot().rows,
        0,
        "the scan meets it in its order"
    );
    let (_, ids) = batch(&desk.page(&[row(6, 1), row(7, 1)], 7));
    assert_eq!(ids, [6]);
}
