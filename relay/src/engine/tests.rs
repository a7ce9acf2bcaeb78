//! The engine by hand, one event after the other. The simulator does the rest.

use std::time::{Duration, Instant};

use outbox::row::Row;

use super::position::Position;
use super::route::Route;
use super::*;
use crate::publish::confirms::{Answer, Confirmed, Outcome, Published, Returned, Verdict, settle};

mod admission;
mod arrivals;
mod attribution;
mod breaker;
mod load;
mod overflow;
mod ready_queue;
mod scan;
mod session;
mod write_ledger;

const SECOND: Duration = Duration::from_secs(1);

const SETTINGS: Settings = Settings {
    order: Order::Key,
    mode: Mode::Cdc,
    publishers: 2,
    batch_rows: 8,
    batch_bytes: 1 << 20,
    buffer_bytes: 1 << 20,
    index_bytes: 1 << 20,
    backoff_min: SECOND,
    backoff_max: Duration::from_mins(5),
    attempts_max: 2,
    sweep_interval: Duration::from_secs(10),
    poll_interval: Duration::from_millis(200),
};

/// A row of the table in two words: its id, and its key and route.
#[derive(Clone, Copy)]
struct It {
    id: u64,
    key: u64,
    route: &'static str,
    wait: Option<Duration>,
    attempts: u32,
    pending: bool,
    has_history: bool,
}

fn row(id: u64, key: u64) -> It {
    It {
        id,
        key,
        route: "r",
        wait: None,
        attempts: 0,
        pending: true,
        has_history: false,
    }
}

impl It {
    fn read(self) -> Read {
        let route = Route::new(b"x", self.route.as_bytes());
        Read {
            head: Head {
                id: self.id,
                tag: self.id,
                key: self.key,
                route: route.clone(),
                wait: self.wait,
                bytes: 10,
                attempts: self.attempts,
                has_history: self.has_history,
            },
            pending: self.pending,
            row: Some(Box::new(Row {
                id: self.id,
                message_id: self.id.to_string(),
                aggregate_type: b"order".to_vec(),
                aggregate_id: self.key.to_string().into_bytes(),
                event_type: b"placed".to_vec(),
                exchange: route.exchange.to_vec(),
                routing_key: route.routing_key.to_vec(),
                content_type: b"text/plain".to_vec(),
                headers: None,
                payload: vec![0; 10],
                created_at: None,
            })),
        }
    }
}

struct Desk {
    engine: Engine,
    now: Instant,
}

impl Desk {
    fn new(settings: Settings) -> (Self, Vec<Command>) {
        let now = Instant::now();
        let engine = Engine::new(settings, Memory::default(), 1, now);
        let mut desk = Self { engine, now };
        let out = desk.feed(Event::Pauses(Pauses::default()));
        (desk, out)
    }

    /// Past an empty catch-up.
    fn tailing(settings: Settings) -> Self {
        let (mut desk, out) = Self::new(settings);
        assert!(matches!(
            &out[..],
            [Command::ReadPage(PageQuery {
                fence: true,
                upto: None,
                ..
            })]
        ));
        let out = desk.page(&[], 0);
        assert!(matches!(&out[..], [Command::OpenBinlog(_)]));
        assert_eq!(desk.engine.state(), StateName::AwaitingBinlog);
        assert!(desk.feed(Event::BinlogOpened).is_empty());
        assert_eq!(desk.engine.state(), StateName::Tailing);
        desk
    }

    fn feed(&mut self, event: Event) -> Vec<Command> {
        let mut out = Vec::new();
        self.engine.handle(event, self.now, &mut out);
        out.retain(|command| !matches!(command, Command::Report(_)));
        out
    }

    fn after(&mut self, wait: Duration) -> Vec<Command> {
        self.now += wait;
        self.feed(Event::Tick)
    }

    /// What is reported, and nothing else.
    fn reports(&mut self, event: Event) -> Vec<Report> {
        let mut out = Vec::new();
        self.engine.handle(event, self.now, &mut out);
        let reports = out.into_iter().filter_map(|command| match command {
            Command::Report(report) => Some(report),
            _ => None,
        });
        reports.collect()
    }

    /// The last page of a scan.
    fn page(&mut self, rows: &[It], upto: u64) -> Vec<Command> {
        let page = self.page_of(rows, upto);
        self.feed(Event::Page(page))
    }

    fn page_of(&self, rows: &[It], upto: u64) -> Page {
        Page {
            rows: rows.iter().map(|row| row.read()).collect(),
            upto,
            start: Some(Position::new("b.1", 4)),
            end: Some(Position::new("b.1", 9)),
            unreadable: None,
            read_to: upto,
            read_at: self.now,
        }
    }

    fn committed(&mut self, ids: &[u64]) -> Vec<Command> {
        let ids = ids.to_vec();
        let committed = self.now;
        self.feed(Event::Committed(Transaction { ids, committed }))
    }

    fn rows(&mut self, rows: &[It]) -> Vec<Command> {
        let rows = rows.iter().map(|row| row.read()).collect();
        let read_at = self.now;
        self.feed(Event::Rows(Rows { rows, read_at }))
    }

    /// A row is reported, read and published; its publisher.
    fn publish(&mut self, it: It) -> usize {
        assert_eq!(loaded(&self.committed(&[it.id])), [it.id]);
        let (publisher, ids) = batch(&self.rows(&[it]));
        assert_eq!(ids, [it.id]);
        publisher
    }

    fn answer(&mut self, publisher: usize, verdicts: Vec<Verdict>) -> Vec<Command> {
        let outcome = Outcome::Settled(verdicts);
        self.feed(Event::Published { publisher, outcome })
    }

    fn route(&self, name: &str) -> Option<WaitingRoute> {
        let route = Route::new(b"x", name.as_bytes());
        let mut routes = self.engine.snapshot().routes.into_iter();
        routes.find(|waiting| waiting.route == route)
    }
}

fn loaded(out: &[Command]) -> Vec<u64> {
    let mut loads = out.iter().filter_map(|command| match command {
        Command::Load(query) => Some(query.ids.clone()),
        _ => None,
    });
    match (loads.next(), loads.next()) {
        (Some(ids), None) => ids,
        _ => panic!("one load is expected: {out:?}"),
    }
}

fn batch(out: &[Command]) -> (usize, Vec<u64>) {
    let mut batches = out.iter().filter_map(|command| match command {
        Command::Publish { publisher, batch } => {
            Some((*publisher, batch.iter().map(|row| row.id).collect()))
        }
        _ => None,
    });
    match (batches.next(), batches.next()) {
        (Some(batch), None) => batch,
        _ => panic!("one batch is expected: {out:?}"),
    }
}

fn confirmed(id: u64) -> Verdict {
    let message_id = id.to_string();
    let message = Published {
        id,
        message_id: &message_id,
        answer: Answer::Ack,
    };
    settle(&[message], Vec::<Returned>::new())
        .unwrap()
        .remove(0)
}

fn written(ids: &[u64]) -> Event {
    Event::Written(Written {
        rows: ids.to_vec(),
        finished: ids.len(),
        ..Written::default()
    })
}

fn marks(out: &[Command]) -> Vec<u64> {
    let sent = out.iter().filter_map(|command| match command {
        Command::Write(Write::Sent(marks)) => Some(marks),
        _ => None,
    });
    sent.flatten().map(Confirmed::id).collect()
}

fn records(out: &[Command]) -> Vec<(u64, Then)> {
    let records = out.iter().filter_map(|command| match command {
        Command::Write(Write::Record(record)) => Some((record.id, record.then)),
        _ => None,
    });
    records.collect()
}

#[test]
fn a_committed_row_is_read_published_confirmed_and_marked() {
    let mut desk = Desk::tailing(SETTINGS);
    let publisher = desk.publish(row(7, 1));
    assert_eq!(desk.engine.in_flight(), 1);
    assert!(
        desk.answer(publisher, vec![confirmed(7)]).is_empty(),
        "marks are collected"
    );
    assert_eq!(marks(&desk.after(SECOND / 10)), [7]);
    assert!(desk.feed(written(&[7])).is_empty());
    assert_eq!(
        (desk.engine.in_flight(), desk.engine.snapshot().rows),
        (0, 0)
    );
}

#[test]
fn a_row_that_is_not_visible_yet_is_read_again_and_one_behind_which_another_is_visible_is_gone() {
    let mut desk = Desk::tailing(SETTINGS);
    assert_eq!(loaded(&desk.committed(&[7])), [7]);
    assert_eq!(loaded(&desk.rows(&[])), [7], "at once");
    assert!(
        desk.committed(&[8]).is_empty(),
        "it is read with the one before it"
    );
    assert_eq!(loaded(&desk.rows(&[])), [7, 8]);
    let out = desk.rows(&[row(8, 1)]);
    assert_eq!(loaded(&out), [7, 8], "the next snapshot has both");
    let (_, ids) = batch(&desk.rows(&[row(8, 1)]));
    assert_eq!(ids, [8]);
    assert!(desk.after(SECOND).is_empty(), "nobody waits for 7 any more");
}

#[test]
fn one_row_of_a_key_goes_at_a_time_and_the_next_one_is_loaded_meanwhile() {
    let mut desk = Desk::tailing(SETTINGS);
    let publisher = desk.publish(row(7, 1));
    assert_eq!(loaded(&desk.committed(&[8, 9])), [8, 9]);
    assert!(desk.rows(&[row(8, 1), row(9, 1)]).is_empty());
    let out = desk.answer(publisher, vec![confirmed(7)]);
    assert_eq!(loaded(&out), [8]);
    let out = desk.rows(&[row(8, 1)]);
    let (publisher, ids) = batch(&out);
    assert_eq!(ids, [8]);
    // 9 is read while 8 is out.
    let out = desk.after(SECOND / 1000);
    assert_eq!(loaded(&out), [9]);
    assert!(desk.rows(&[row(9, 1)]).is_empty());
    let (_, ids) = batch(&desk.answer(publisher, vec![confirmed(8)]));
    assert_eq!(ids, [9]);
}

#[test]
fn a_row_that_was_sent_already_is_not_sent_again() {
    let mut desk = Desk::tailing(SETTINGS);
    assert_eq!(loaded(&desk.committed(&[7])), [7]);
    let sent = It {
        pending: false,
        ..row(7, 1)
    };
    assert!(desk.rows(&[sent]).is_empty());
    assert_eq!(desk.engine.snapshot().rows, 0);
}

#[test]
fn what_the_binlog_reports_waits_for_the_scan_that_catches_up() {
    let (mut desk, _) = Desk::new(SETTINGS);
    let first = Page {
        rows: vec![row(1, 1).read()],
        upto: 2,
        start: Some(Position::new("b.1", 4)),
        end: Some(Position::new("b.1", 9)),
        unreadable: None,
        read_to: 1,
        read_at: desk.now,
    };
    let out = desk.feed(Event::Page(first));
    let (publisher, ids) = batch(&out);
    assert_eq!(ids, [1]);
    assert!(desk.feed(Event::BinlogOpened).is_empty());
    assert!(
        desk.committed(&[3]).is_empty(),
        "3 may be of a key with an earlier row"
    );
    assert!(desk.answer(publisher, vec![confirmed(1)]).is_empty());
    let out = desk.page(&[row(2, 3)], 2);
    let loads: Vec<_> = out
        .iter()
        .filter(|command| matches!(command, Command::Load(_)))
        .collect();
    assert_eq!(loads.len(), 1, "the scan has ended: {out:?}");
    assert_eq!(desk.engine.state(), StateName::Tailing);
    let (_, ids) = batch(&out);
    assert_eq!(ids, [2]);
}

#[test]
fn a_route_that_returns_its_rows_is_probed_with_one_of_them_until_it_takes_it() {
    let mut desk = Desk::tailing(SETTINGS);
    let publisher = desk.publish(row(7, 1));
    let out = desk.answer(publisher, vec![Verdict::Returned("312 NO_ROUTE".into())]);
    assert_eq!(records(&out), [(7, Then::Explain)]);
    assert_eq!(loaded(&desk.committed(&[8])), [8]);
    assert!(desk.rows(&[row(8, 2)]).is_empty(), "its route is closed");
    assert_eq!(desk.route("r").map(|waiting| waiting.rows), Some(2));
    let other = It {
        route: "other",
        ..row(9, 3)
    };
    desk.publish(other);
    let out = desk.after(SECOND);
    assert_eq!(loaded(&out), [8], "another one probes than last time");
    let (prober, ids) = batch(&desk.rows(&[row(8, 2)]));
    assert_eq!((prober, ids), (SETTINGS.publishers, vec![8]));
    let out = desk.answer(prober, vec![confirmed(8)]);
    assert_eq!(loaded(&out), [7]);
    assert_eq!(desk.route("r"), None);
}

#[test]
fn a_message_that_fails_by_its_own_fault_is_tried_again_and_parked_and_then_the_next_of_its_key_goes()
 {
    let mut desk = Desk::tailing(SETTINGS);
    let publisher = desk.publish(row(7, 1));
    assert_eq!(loaded(&desk.committed(&[8])), [8]);
    assert!(desk.rows(&[row(8, 1)]).is_empty());
    let out = desk.answer(publisher, vec![Verdict::Invalid("headers".into())]);
    assert!(matches!(
        records(&out)[..],
        [(7, Then::Retry { attempts: 1, .. })]
    ));
    assert!(desk.feed(written(&[7])).is_empty());
    let out = desk.after(SECOND);
    assert_eq!(loaded(&out), [7]);
    let again = It {
        attempts: 1,
        ..row(7, 1)
    };
    let (publisher, _) = batch(&desk.rows(&[again]));
    let out = desk.answer(publisher, vec![Verdict::Invalid("headers".into())]);
    assert_eq!(records(&out), [(7, Then::Park { attempts: 2 })]);
    assert!(
        desk.after(SECOND).is_empty(),
        "it holds its key until that is written"
    );
    assert_eq!(loaded(&desk.feed(written(&[7]))), [8]);
}

#[test]
fn a_sweep_waits_for_the_stream_and_counts_what_that_did_not_report() {
    let mut desk = Desk::tailing(SETTINGS);
    let out = desk.after(SETTINGS.sweep_interval);
    assert!(matches!(
        &out[..],
        [Command::ReadPage(PageQuery {
            positions: true,
            ..
        })]
    ));
    assert!(desk.page(&[row(7, 1)], 7).is_empty());
    assert!(desk.engine.awaits_position());
    assert!(
        desk.feed(Event::BinlogAt(Position::new("b.1", 8)))
            .is_empty()
    );
    let out = desk.feed(Event::BinlogAt(Position::new("b.1", 9)));
    assert_eq!(loaded(&out), [7]);
    let mut out = Vec::new();
    let rows = vec![row(7, 1).read()];
    let read_at = desk.now;
    desk.engine
        .handle(Event::Rows(Rows { rows, read_at }), desk.now, &mut out);
    let missed = |command: &Command| matches!(command, Command::Report(Report::MissedByBinlog(1)));
    assert!(out.iter().any(missed), "{out:?}");
    assert_eq!(batch(&out).1, [7]);
}

#[test]
fn a_stream_that_does_not_reach_a_position_of_its_server_is_broken() {
    let mut desk = Desk::tailing(SETTINGS);
    desk.after(SETTINGS.sweep_interval);
    assert!(desk.page(&[], 0).is_empty());
    assert!(desk.after(9 * SECOND).is_empty());
    let out = desk.after(SECOND);
    assert!(matches!(
        &out[..],
        [
            Command::CloseBinlog,
            Command::ReadPage(PageQuery { fence: true, .. })
        ]
    ));
    assert_eq!(desk.engine.state(), StateName::CatchingUp);
}

#[test]
fn while_a_stream_is_being_opened_scans_find_new_rows() {
    let (mut desk, _) = Desk::new(SETTINGS);
    desk.page(&[], 0);
    for id in 1..=20 {
        let out = desk.after(SETTINGS.poll_interval);
        let scans = |command: &Command| matches!(command, Command::ReadPage(query) if !query.fence);
        assert!(out.iter().any(scans), "{out:?}");
        let (publisher, ids) = batch(&desk.page(&[row(id, id)], id));
        assert_eq!(ids, [id]);
        desk.answer(publisher, vec![confirmed(id)]);
        desk.feed(Event::Tick);
    }
    let end = BinlogEnd {
        why: "no answer in time".into(),
        timed_out: true,
    };
    desk.feed(Event::BinlogEnded(end));
    assert_eq!(desk.engine.snapshot().why, "no answer in time");
    assert_eq!(desk.engine.state(), StateName::Polling);
}

#[test]
fn a_row_that_is_nacked_alone_while_its_route_takes_others_is_at_fault_itself() {
    let settings = Settings {
        attempts_max: 1,
        ..SETTINGS
    };
    let mut desk = Desk::tailing(settings);
    let mut publisher = desk.publish(row(7, 1));
    let mut other = 100;
    for _ in 0..4 {
        assert!(
            records(&desk.answer(publisher, vec![Verdict::Nacked]))
                .iter()
                .all(|(_, then)| *then == Then::Explain)
        );
        other += 1;
        assert_eq!(loaded(&desk.committed(&[other])), [other]);
        assert!(desk.rows(&[row(other, other)]).is_empty());
        assert_eq!(loaded(&desk.after(SECOND)), [other]);
        let (prober, _) = batch(&desk.rows(&[row(other, other)]));
        let out = desk.answer(prober, vec![confirmed(other)]);
        assert_eq!(loaded(&out), [7]);
        publisher = batch(&desk.rows(&[row(7, 1)])).0;
    }
    let out = desk.answer(publisher, vec![Verdict::Nacked]);
    assert_eq!(records(&out), [(7, Then::Park { attempts: 1 })]);
    assert_eq!(desk.route("r"), None, "the route goes on");
}

#[test]
fn rows_that_would_wait_stay_in_the_table_when_the_index_is_full_and_others_flow() {
    let settings = Settings {
        index_bytes: 8 * ROW_BYTES,
        ..SETTINGS
    };
    let mut desk = Desk::tailing(settings);
    let delayed = |id| It {
        wait: Some(100 * SECOND),
        ..row(id, id)
    };
    for id in 1..=20 {
        assert_eq!(loaded(&desk.committed(&[id])), [id]);
        desk.rows(&[delayed(id)]);
    }
    let snapshot = desk.engine.snapshot();
    assert!(snapshot.overflowed && snapshot.rows < 8, "{snapshot:?}");
    desk.publish(row(30, 30));
    assert_eq!(loaded(&desk.committed(&[31])), [31]);
    desk.rows(&[row(31, 20)]);
    assert_eq!(
        desk.engine.in_flight(),
        1,
        "an earlier row of the key of 31 is in the table"
    );
}

#[test]
fn a_position_that_was_reached_before_is_not_waited_for_on_an_idle_server() {
    let mut desk = Desk::tailing(SETTINGS);
    for sweep in 0..2 {
        let out = desk.after(SETTINGS.sweep_interval);
        assert!(matches!(&out[..], [Command::ReadPage(_)]), "{out:?}");
        assert!(desk.page(&[], 0).is_empty());
        assert_eq!(desk.engine.awaits_position(), sweep == 0);
        desk.feed(Event::BinlogAt(Position::new("b.1", 9)));
    }
    assert!(desk.after(Duration::from_secs(9)).is_empty());
    assert_eq!(desk.engine.state(), StateName::Tailing);
}
