//! Where rows come from: the tail, the passes, and how the two take turns.

mod turns;

use std::time::{Duration, Instant};

use svc_kit::backoff::Backoff;

use crate::config::{Mode, Order};
use crate::observe::metrics::Phase;
use crate::pass::Summary;
use crate::session::Session;
use crate::source::binlog::position::Position;
use crate::source::binlog::reader_task::Arrival;
use crate::source::binlog::tail::{self, BinlogOf, Tail, TailState};
use crate::source::binlog::transaction::{Committed, Doubt, Group};
use crate::source::table::Page;
use crate::wires::End;

/// A tail that does not reach a position that the server has shown is broken: after a RESET the
/// dump thread of either server stays connected, without an error, and never delivers again.
const TAIL_BROKEN_AFTER: Duration = Duration::from_secs(10);
/// A server that hides everything makes the relay a poller, not a storm.
const HIDDEN_PASS_EVERY: Duration = Duration::from_secs(1);
const REOPEN_MIN: Duration = Duration::from_millis(100);
const REOPEN_MAX: Duration = Duration::from_secs(10);

/// How rows are found at the moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    CatchingUp,
    Tailing,
    Polling,
}

impl Way {
    fn at_first(mode: Mode) -> Self {
        match mode {
            Mode::Cdc => Self::CatchingUp,
            Mode::Poll => Self::Polling,
        }
    }
}

/// The turns of tail and passes.
pub struct Intake {
    way: Way,
    pub(crate) tail: TailState,
    next_pass: Instant,
    hidden_pass_at: Instant,
    reopen: Backoff,
    reopen_at: Instant,
    /// The tail starts before the catch-up's last pass; past this it brings nothing twice.
    already_sent_until: Option<Position>,
    /// Where the tail was when the page at hand was asked for.
    tail_at_ask: Option<Position>,
    /// What the tail brings was committed after this.
    committed_after: Option<Instant>,
}

impl Intake {
    /// At the start of a session.
    pub fn new(mode: Mode, now: Instant) -> Self {
        Self {
            way: Way::at_first(mode),
            tail: TailState::Closed,
            next_pass: now,
            hidden_pass_at: now,
            reopen: Backoff::new(REOPEN_MIN, REOPEN_MAX),
            reopen_at: now,
            already_sent_until: None,
            tail_at_ask: None,
            committed_after: None,
        }
    }

    pub(crate) fn phase(&self) -> Phase {
        match self.way {
            Way::CatchingUp => Phase::CatchingUp,
            Way::Tailing => Phase::Tailing,
            Way::Polling => Phase::Polling,
        }
    }
}

impl Session<'_> {
    pub(crate) fn on_page(&mut self, page: Page, now: Instant) {
        let backwards = page.end.is_some() && page.end < self.intake.tail_at_ask;
        let unreadable = page.unreadable.clone();
        self.passes.page(page, now + TAIL_BROKEN_AFTER, now);
        if let Some(why) = unreadable {
            return self.poll_instead(&why, now);
        }
        if backwards && self.intake.tail.is_open() {
            tracing::error!("the binlog went backwards: it was reset; opening another stream");
            self.catch_up(now);
        }
        if self.config.order == Order::None
            && self.intake.way == Way::CatchingUp
            && let Some(from) = self.passes.start().cloned()
            && self.intake.tail.is_closed()
        {
            self.open_tail_at(from);
        }
    }

    /// A page is asked for: the server's position can't be before the tail's after this.
    pub(crate) fn note_tail_position(&mut self) {
        self.intake.tail_at_ask = match &self.intake.tail {
            TailState::Open(tail) => Some(tail.position.borrow().clone()),
            TailState::Closed | TailState::Opening(_) => None,
        };
    }

    /// Looks whether the tail has come as far as the page at hand needs, and whether it still comes.
    pub(crate) fn check_tail(&mut self, now: Instant) {
        let takes = self.takes_from_tail();
        let Some((wanted, deadline)) = self.passes.awaited() else {
            return;
        };
        let wanted = wanted.clone();
        let tail = match &mut self.intake.tail {
            TailState::Open(tail) => tail,
            TailState::Opening(_) => return self.passes.extend(now + TAIL_BROKEN_AFTER),
            TailState::Closed => return self.passes.unverifiable(true),
        };
        if tail.has_passed(&wanted) {
            tail.ahead = None;
            if self
                .intake
                .already_sent_until
                .as_ref()
                .is_some_and(|until| *until <= wanted)
            {
                self.intake.already_sent_until = None;
                self.dispatch.clear_already_sent();
            }
            self.passes.verified();
        } else if !takes {
            // Nothing was taken from it: that is not the tail's fault.
            self.passes.extend(now + TAIL_BROKEN_AFTER);
        } else if now >= deadline {
            tracing::error!(%wanted, "the binlog stream is dead: it does not reach a position that \
                the server has shown; opening another");
            self.catch_up(now);
        }
    }

    pub(crate) fn on_arrival(&mut self, arrival: Arrival, now: Instant) {
        if let TailState::Open(tail) = &mut self.intake.tail
            && let Some(ahead) = &mut tail.ahead
        {
            *ahead = ahead.saturating_sub(1);
        }
        let (at, after) = (arrival.at, arrival.after);
        let Group {
            rows,
            deferred,
            committed,
            doubt,
        } = arrival.group;
        if let Some(doubt) = doubt {
            self.on_doubt(&doubt, now);
            return;
        }
        let committed = self.commit_instant(committed, at);
        // Groups come in the order of their commits, and an idle stream has brought all there were:
        // that holds when the server's clock was set, and what its clock says does not.
        let committed = committed.max(after.unwrap_or(committed));
        let committed = committed.max(self.intake.committed_after.unwrap_or(committed));
        self.intake.committed_after = Some(committed);
        for row in rows {
            self.dispatch.tail(row, committed, now);
        }
        for row in deferred {
            self.dispatch.tail_deferred(&row, now);
        }
    }

    /// When the group was committed, by our clock.
    ///
    /// MariaDB tells whole seconds only. A fresh second is as good as now, which is when the event
    /// arrived: it does so within 0.05 ms of the commit.
    fn commit_instant(&self, committed: Committed, at: Instant) -> Instant {
        let Some(clock) = self.clock else { return at };
        match committed {
            Committed::Micros(micros) => clock.instant_of(micros.cast_signed(), at),
            Committed::Seconds(seconds) => {
                let end_of_second = clock.instant_of((i64::from(seconds) + 1) * 1_000_000, at);
                if at - end_of_second < Duration::from_secs(1) {
                    at
                } else {
                    end_of_second
                }
            }
        }
    }

    fn on_doubt(&mut self, doubt: &Doubt, now: Instant) {
        match doubt {
            Doubt::Undecodable(what) => {
                self.metrics.undecodable_events.inc();
                tracing::warn!(
                    what,
                    "the binlog hides something from the relay, reading the table"
                );
            }
            Doubt::Unvouched(what) => tracing::debug!(what, "reading the table instead"),
            Doubt::TooLarge => tracing::info!("a transaction over the buffer, reading the table"),
        }
        // What is hidden has an unknown key, and may have changed the table's shape.
        self.catch_up_hidden(now);
    }

    fn catch_up_hidden(&mut self, now: Instant) {
        let at = self.intake.hidden_pass_at.max(now);
        self.intake.hidden_pass_at = at + HIDDEN_PASS_EVERY;
        self.catch_up(at);
    }

    /// As at the start: back to passes; the tail is opened anew behind them.
    pub(crate) fn catch_up(&mut self, at: Instant) {
        self.intake.tail = TailState::Closed;
        self.metrics.binlog_connected.set(0);
        self.passes.unverifiable(false);
        self.intake.already_sent_until = None;
        self.dispatch.clear_already_sent();
        self.intake.way = Way::at_first(self.config.mode);
        self.intake.next_pass = at;
        self.show_way("");
    }

    pub(crate) fn on_pass_ended(&mut self, pass: Summary, now: Instant) {
        if pass.plan.probes_only {
            return self.dispatch.held.find_probe();
        }
        if pass.cut_short {
            self.dispatch.held.find_probe();
        } else {
            let fenced = pass.plan.fence || self.intake.way == Way::Polling;
            self.dispatch.held.pass_ended(pass.number, fenced);
        }
        self.metrics.set_waiting(&self.dispatch.held.waiting());
        match self.intake.way {
            Way::CatchingUp if self.config.order == Order::None => {
                self.intake.next_pass = self.intake.next_pass.max(now);
            }
            Way::CatchingUp => {
                self.intake.next_pass = self.intake.next_pass.max(now);
                if let (Some(sent), Some(from), false) = (pass.sent, pass.start, pass.cut_short) {
                    self.dispatch.set_already_sent(sent);
                    self.intake.already_sent_until = pass.end;
                    self.open_tail_at(from);
                }
            }
            Way::Tailing => {
                self.intake.next_pass = now + self.config.sweep_interval;
            }
            Way::Polling => {
                self.intake.next_pass = now + self.config.poll_interval;
                if self.config.mode == Mode::Cdc && now >= self.intake.reopen_at {
                    self.catch_up(now);
                }
            }
        }
    }

    fn open_tail_at(&mut self, from: Position) {
        let (table, reader) = (self.config.table.clone(), self.config.reader);
        let bytes = self.config.buffer_bytes / 2;
        let binlog = BinlogOf {
            table,
            reader,
            server: self.wires.server.clone(),
        };
        let opening = tail::open(binlog, from, bytes);
        self.intake.tail = TailState::Opening(svc_kit::tasks::unit(opening));
    }

    /// Returns why the session can't go on, if it can't.
    pub(crate) fn on_tail_opened(
        &mut self,
        opened: anyhow::Result<Tail>,
        now: Instant,
    ) -> Option<End> {
        match opened {
            Ok(tail) => {
                tracing::info!(position = %*tail.position.borrow(), "tailing the binlog");
                self.intake.tail = TailState::Open(tail);
                self.metrics.binlog_connected.set(1);
                self.intake.way = Way::Tailing;
                self.intake.next_pass = now + self.config.sweep_interval;
                self.show_way("");
            }
            Err(err) if tail::is_elsewhere(&err) => return Some(End::GiveUp(format!("{err:#}"))),
            Err(err) => self.poll_instead(&format!("{err:#}"), now),
        }
        None
    }

    /// The binlog can't be read for now: passes alone, and another try later.
    fn poll_instead(&mut self, why: &str, now: Instant) {
        let wait = self.intake.reopen.next();
        tracing::error!(error = why, retry_in = ?wait, "the binlog can't be read, polling stands in");
        self.metrics.binlog_connected.set(0);
        self.intake.tail = TailState::Closed;
        self.intake.already_sent_until = None;
        self.dispatch.clear_already_sent();
        self.passes.unverifiable(true);
        self.intake.way = Way::Polling;
        self.intake.reopen_at = now + wait;
        self.intake.next_pass = now;
        self.show_way(&format!(", the binlog can't be read: {why}"));
    }

    pub(crate) fn on_tail_ended(&mut self, why: &str, now: Instant) {
        let TailState::Open(tail) = &self.intake.tail else {
            return;
        };
        if tail.opened.elapsed() > REOPEN_MAX {
            self.intake.reopen.reset();
        }
        self.poll_instead(why, now);
    }
}
