//! Whose fault a failure is, and what follows from it.

use super::*;

const MILLI: Duration = Duration::from_millis(1);

fn closed(publisher: usize, code: u16) -> Event {
    let text = format!("{code} closed");
    let outcome = Outcome::Closed { code, text };
    Event::Published { publisher, outcome }
}

fn timed_out(publisher: usize, answered: &[bool]) -> Event {
    let answered = answered.to_vec();
    let outcome = Outcome::TimedOut { answered };
    Event::Published { publisher, outcome }
}

/// Two rows of two keys go in one batch; its publisher.
fn publish_two(desk: &mut Desk) -> usize {
    assert_eq!(loaded(&desk.committed(&[7, 8])), [7, 8]);
    let (publisher, ids) = batch(&desk.rows(&[row(7, 7), row(8, 8)]));
    assert_eq!(ids, [7, 8]);
    publisher
}

/// What is written of rows, with the class of the failure.
fn reasons(out: &[Command]) -> Vec<(u64, Reason)> {
    let records = out.iter().filter_map(|command| match command {
        Command::Write(Write::Record(record)) => Some((record.id, record.reason)),
        _ => None,
    });
    records.collect()
}

#[test]
fn rows_of_a_batch_that_the_broker_answered_by_closing_go_alone_and_fail_the_second_time() {
    let mut desk = Desk::tailing(SETTINGS);
    let publisher = publish_two(&mut desk);
    let out = desk.feed(closed(publisher, 541));
    assert_eq!(records(&out), [], "nobody knows which of the two it was");
    assert_eq!(loaded(&out), [7, 8]);
    let (publisher, ids) = batch(&desk.rows(&[row(7, 7), row(8, 8)]));
    assert_eq!(ids, [7], "alone");
    let out = desk.feed(closed(publisher, 541));
    assert_eq!(records(&out), [], "once may be by chance");
    let (publisher, ids) = batch(&out);
    assert_eq!(ids, [8]);
    assert!(desk.rows(&[row(7, 7)]).is_empty());
    let out = desk.answer(publisher, vec![confirmed(8)]);
    let (publisher, ids) = batch(&out);
    assert_eq!(ids, [7]);
    let out = desk.feed(closed(publisher, 541));
    assert_eq!(reasons(&out), [(7, Reason::ChannelClosed)]);
    assert!(matches!(
        records(&out)[..],
        [(7, Then::Retry { attempts: 1, .. })]
    ));
}

#[test]
fn suspects_are_remembered_by_the_next_session_and_other_messages_of_their_ids_are_not() {
    for (tag, alone) in [(7, true), (70, false)] {
        let mut desk = Desk::tailing(SETTINGS);
        let publisher = publish_two(&mut desk);
        desk.feed(closed(publisher, 541));
        let memory = desk.engine.into_memory();
        desk.engine = Engine::new(SETTINGS, memory, 1, desk.now);
        desk.feed(Event::Pauses(Pauses::default()));
        let mut page = desk.page_of(&[row(7, 7), row(9, 9)], 9);
        page.rows[0].head.tag = tag;
        let out = desk.feed(Event::Page(page));
        let (_, ids) = batch(&out);
        assert_eq!(ids.len(), if alone { 1 } else { 2 }, "{ids:?}");
    }
}

#[test]
fn a_confirmed_or_returned_row_is_no_suspect_any_more() {
    let returned = || Verdict::Returned("312".into());
    for (verdict, suspect) in [(returned(), false), (Verdict::Nacked, false)] {
        let mut desk = Desk::tailing(SETTINGS);
        let publisher = publish_two(&mut desk);
        desk.feed(closed(publisher, 541));
        let (publisher, ids) = batch(&desk.rows(&[row(7, 7), row(8, 8)]));
        assert_eq!(ids, [7]);
        desk.answer(publisher, vec![verdict]);
        assert_eq!(desk.engine.into_memory().suspects.contains_key(&7), suspect);
    }
}

#[test]
fn a_code_that_names_the_exchange_or_the_size_blames_a_row_that_was_alone() {
    for (code, reason, then_waits) in [
        (403, Reason::ChannelClosed, true),
        (404, Reason::ChannelClosed, true),
        (406, Reason::TooLarge, false),
    ] {
        let mut desk = Desk::tailing(SETTINGS);
        let publisher = desk.publish(row(7, 1));
        let out = desk.feed(closed(publisher, code));
        assert_eq!(reasons(&out), [(7, reason)], "{code}");
        let explains = records(&out) == [(7, Then::Explain)];
        assert_eq!(explains, then_waits, "{code}");
        assert_eq!(desk.route("r").is_some(), then_waits, "{code}");
    }
    let mut desk = Desk::tailing(SETTINGS);
    let publisher = publish_two(&mut desk);
    let reports = desk.reports(closed(publisher, 404));
    let why = "404 closed".to_owned();
    assert!(reports.contains(&Report::ChannelClosed { why, rows: 2 }));
    let refused = Report::Refused(Reason::ChannelClosed);
    assert_eq!(
        reports.iter().filter(|report| **report == refused).count(),
        2
    );
    assert_eq!(desk.route("r"), None, "it may be the other one's exchange");
}

#[test]
fn a_time_out_closes_the_routes_of_the_rows_without_an_answer() {
    let mut desk = Desk::tailing(SETTINGS);
    let other = It {
        route: "other",
        ..row(8, 8)
    };
    assert_eq!(loaded(&desk.committed(&[7, 8])), [7, 8]);
    let (publisher, _) = batch(&desk.rows(&[row(7, 7), other]));
    let out = desk.feed(timed_out(publisher, &[false, true]));
    assert_eq!(reasons(&out), [(7, Reason::Timeout)]);
    assert_eq!(
        loaded(&out),
        [8],
        "its answer is not to be trusted, so it goes again"
    );
    assert!(desk.route("r").is_some() && desk.route("other").is_none());
    assert_eq!(
        loaded(&{
            desk.rows(&[other]);
            desk.after(SECOND)
        }),
        [7]
    );
    let (publisher, ids) = batch(&desk.rows(&[row(7, 7)]));
    let slow = SETTINGS.publishers + 1;
    assert_eq!(
        (publisher, ids),
        (slow, vec![7]),
        "a silent route has its own publishers"
    );
}

#[test]
fn a_time_out_during_a_block_is_no_route_s_fault() {
    let blocked = |desk: &mut Desk| drop(desk.feed(Event::BrokerBlocked(String::new())));
    let unblocked = |desk: &mut Desk| drop(desk.feed(Event::BrokerUnblocked));
    for (case, excused) in [("before", false), ("ended", true), ("lasts", true)] {
        let mut desk = Desk::tailing(SETTINGS);
        if case == "before" {
            blocked(&mut desk);
            unblocked(&mut desk);
            desk.now += MILLI;
        }
        let publisher = desk.publish(row(7, 1));
        desk.now += SECOND;
        if case != "before" {
            blocked(&mut desk);
        }
        if case == "ended" {
            unblocked(&mut desk);
        }
        desk.feed(timed_out(publisher, &[false]));
        assert_eq!(desk.route("r").is_none(), excused, "{case}");
    }
    let mut desk = Desk::tailing(SETTINGS);
    blocked(&mut desk);
    assert_eq!(loaded(&desk.committed(&[7])), [7]);
    desk.rows(&[row(7, 1)]);
    let (publisher, _) = batch(&desk.feed(Event::BrokerUnblocked));
    desk.feed(timed_out(publisher, &[false]));
    assert_eq!(desk.route("r"), None, "the block ended as it went");
}

#[test]
fn the_same_answer_of_a_route_is_reported_once() {
    let mut desk = Desk::tailing(SETTINGS);
    let mut publisher = desk.publish(row(7, 1));
    let texts = ["312 a", "312 a", "312 b", "312 b", "312 a"];
    for (probe, (text, news)) in texts
        .into_iter()
        .zip([true, false, true, false, true])
        .enumerate()
    {
        let verdict = Verdict::Returned(text.into());
        let outcome = Outcome::Settled(vec![verdict]);
        let reports = desk.reports(Event::Published { publisher, outcome });
        let is_closed = |report: &&Report| matches!(report, Report::RouteClosed(record) if record.text == text && record.message_id == "7");
        assert_eq!(
            reports.iter().filter(is_closed).count(),
            usize::from(news),
            "{probe}"
        );
        assert!(reports.contains(&Report::Refused(Reason::Returned)));
        assert_eq!(
            loaded(
                &desk
                    .after(10 * SECOND)
                    .into_iter()
                    .filter(|command| matches!(command, Command::Load(_)))
                    .collect::<Vec<_>>()
            ),
            [7]
        );
        publisher = batch(&desk.rows(&[row(7, 1)])).0;
    }
    let outcome = Outcome::Settled(vec![confirmed(7)]);
    let reports = desk.reports(Event::Published { publisher, outcome });
    assert!(reports.contains(&Report::RouteOpened(Route::new(b"x", b"r"))));
}

#[test]
fn an_error_is_cut_to_a_thousand_characters() {
    for (length, kept) in [(999, 999), (1000, 1000), (1001, 1000)] {
        let mut desk = Desk::tailing(SETTINGS);
        let publisher = desk.publish(row(7, 1));
        let out = desk.answer(publisher, vec![Verdict::Invalid("é".repeat(length))]);
        let text = out.iter().find_map(|command| match command {
            Command::Write(Write::Record(record)) => Some(record.text.clone()),
            _ => None,
        });
        assert_eq!(text.map(|text| text.chars().count()), Some(kept));
    }
}

#[test]
fn a_failed_row_goes_again_after_its_back_off_and_alone() {
    let settings = Settings {
        attempts_max: 9,
        ..SETTINGS
    };
    let mut desk = Desk::tailing(settings);
    let publisher = desk.publish(row(7, 1));
    let out = desk.answer(publisher, vec![Verdict::Invalid("headers".into())]);
    let [(7, Then::Retry { attempts: 1, after })] = records(&out)[..] else {
        panic!("{out:?}");
    };
    assert!(after <= SECOND && after >= SECOND / 2);
    let failed_at = desk.now;
    desk.feed(written(&[7]));
    assert_eq!(desk.engine.deadline(), failed_at + after);
    assert_eq!(desk.engine.snapshot().delayed, 1);
    assert!(desk.after(after - MILLI / 10).is_empty());
    assert_eq!(loaded(&desk.after(MILLI / 10)), [7]);
    let again = It {
        attempts: 1,
        ..row(7, 1)
    };
    desk.feed(Event::BrokerBlocked(String::new()));
    desk.rows(&[again]);
    assert_eq!(loaded(&desk.committed(&[8])), [8]);
    desk.rows(&[row(8, 8)]);
    let (publisher, ids) = batch(&desk.feed(Event::BrokerUnblocked));
    assert_eq!(ids, [7], "what has failed before is in nobody's company");
    let out = desk.answer(publisher, vec![Verdict::Invalid("headers".into())]);
    assert!(matches!(
        records(&out)[..],
        [(7, Then::Retry { attempts: 2, .. })]
    ));
}

#[test]
fn an_attempt_that_could_not_be_recorded_is_not_counted() {
    let mut desk = Desk::tailing(SETTINGS);
    let publisher = desk.publish(row(7, 1));
    desk.answer(publisher, vec![Verdict::Invalid("headers".into())]);
    let given_up = |ids: &[u64]| {
        Event::Written(Written {
            given_up: ids.to_vec(),
            finished: ids.len(),
            ..Written::default()
        })
    };
    desk.feed(given_up(&[7]));
    assert_eq!(loaded(&desk.after(SECOND)), [7]);
    let (publisher, _) = batch(&desk.rows(&[row(7, 1)]));
    let out = desk.answer(publisher, vec![Verdict::Invalid("headers".into())]);
    assert!(matches!(
        records(&out)[..],
        [(7, Then::Retry { attempts: 1, .. })]
    ));
}

#[test]
fn a_row_that_is_set_back_while_it_is_confirmed_goes_again() {
    let mut desk = Desk::tailing(SETTINGS);
    let publisher = desk.publish(row(7, 1));
    desk.answer(publisher, vec![confirmed(7)]);
    assert_eq!(loaded(&desk.committed(&[7])), [7]);
    desk.rows(&[row(7, 1)]);
    assert_eq!(marks(&desk.after(SECOND)), [7]);
    assert_eq!(loaded(&desk.feed(written(&[7]))), [7]);
    assert_eq!(batch(&desk.rows(&[row(7, 1)])).1, [7]);
}

#[test]
fn a_row_that_is_set_back_while_its_failure_is_written_is_read_again() {
    let mut desk = Desk::tailing(SETTINGS);
    let publisher = desk.publish(row(7, 1));
    desk.answer(publisher, vec![Verdict::Invalid("headers".into())]);
    assert_eq!(loaded(&desk.committed(&[7])), [7]);
    desk.rows(&[row(7, 1)]);
    assert_eq!(loaded(&desk.feed(written(&[7]))), [7]);
    desk.rows(&[row(7, 1)]);
    assert_eq!(
        desk.engine.in_flight(),
        1,
        "an operator has set its time back"
    );
}

#[test]
fn a_confirm_is_reported_with_the_time_since_the_commit() {
    let mut desk = Desk::tailing(SETTINGS);
    let publisher = desk.publish(row(7, 1));
    desk.now += 30 * MILLI;
    let outcome = Outcome::Settled(vec![confirmed(7)]);
    let reports = desk.reports(Event::Published { publisher, outcome });
    let took = Some(30 * MILLI);
    let source = Source::Binlog;
    assert_eq!(reports, [Report::Confirmed { source, took }]);

    let (mut desk, _) = Desk::new(SETTINGS);
    let (publisher, _) = batch(&desk.page(&[row(7, 1)], 7));
    let outcome = Outcome::Settled(vec![confirmed(7)]);
    let reports = desk.reports(Event::Published { publisher, outcome });
    let (source, took) = (Source::Sweep, None);
    assert_eq!(reports, [Report::Confirmed { source, took }]);
}

#[test]
fn a_nacked_row_is_not_blamed_while_nothing_else_of_its_route_is_confirmed() {
    let settings = Settings {
        attempts_max: 1,
        ..SETTINGS
    };
    let mut desk = Desk::tailing(settings);
    let mut publisher = desk.publish(row(7, 1));
    for _ in 0..10 {
        let out = desk.answer(publisher, vec![Verdict::Nacked]);
        assert!(records(&out).iter().all(|(_, then)| *then == Then::Explain));
        let out = desk.after(10 * SECOND);
        assert!(
            out.iter()
                .any(|command| matches!(command, Command::Load(query) if query.ids == [7]))
        );
        publisher = batch(&desk.rows(&[row(7, 1)])).0;
    }
}

#[test]
fn above_ten_thousand_closed_routes_a_row_waits_by_itself() {
    let settings = Settings {
        batch_rows: 10_001,
        buffer_bytes: 1 << 30,
        batch_bytes: 1 << 30,
        index_bytes: 1 << 30,
        ..SETTINGS
    };
    let mut desk = Desk::tailing(settings);
    let its: Vec<It> = (1..=10_001)
        .map(|id| It {
            route: id.to_string().leak(),
            ..row(id, id)
        })
        .collect();
    desk.feed(Event::BrokerBlocked(String::new()));
    desk.committed(&its.iter().map(|it| it.id).collect::<Vec<_>>());
    for its in its.chunks(1000) {
        desk.rows(its);
    }
    let (publisher, ids) = batch(&desk.feed(Event::BrokerUnblocked));
    assert_eq!(ids.len(), its.len());
    let returned = its.iter().map(|_| Verdict::Returned("312".into()));
    let out = desk.answer(publisher, returned.collect());
    let waits: Vec<_> = records(&out)
        .into_iter()
        .filter(|(_, then)| *then != Then::Explain)
        .collect();
    let [(10_001, Then::Wait(wait))] = waits[..] else {
        panic!("{waits:?}");
    };
    assert!(wait <= 10 * SECOND && wait >= 5 * SECOND);
    desk.feed(written(&[10_001]));
    assert_eq!(desk.engine.snapshot().delayed, 1);
}
