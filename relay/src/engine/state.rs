//! The states, and how the binlog stream and operators move the engine from one to the other.

use std::time::{Duration, Instant};

use super::command::{Command, End, Report};
use super::event::{BinlogEnd, Pauses};
use super::position::Position;
use super::snapshot::StateName;
use super::{Engine, Mode};

/// A server that hides everything makes the relay a poller, not a storm.
const HIDDEN_SCAN_EVERY: Duration = Duration::from_secs(1);
const REOPEN_MIN: Duration = Duration::from_millis(100);
/// After a stream that did not open in time: the next one will hardly do so at once.
const REOPEN_TIMED_OUT_MIN: Duration = Duration::from_secs(2);
const REOPEN_MAX: Duration = Duration::from_secs(10);
/// Patience with publishers and writer once the broker is gone.
const CLOSING_MAX: Duration = Duration::from_secs(3);

/// What the engine is doing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum State {
    /// A whole scan after a fence is due or being made. It indexes what it meets; what the binlog
    /// reports meanwhile waits until it has ended, since its order is not known before.
    CatchingUp { binlog: Binlog },
    /// The table is level, and the stream is being opened: scans find new rows until it is.
    AwaitingBinlog,
    /// The binlog reports new rows, and sweeps look for what it did not report.
    Tailing,
    /// Scans alone find new rows: by the setting, or until the stream is to be opened again.
    Polling { reopen_at: Option<Instant> },
    /// An operator has paused the whole relay: nothing is taken in.
    Paused,
    /// Nothing is taken in; the engine ends when all is settled and marked.
    Draining,
    /// The broker is gone; the same, but not for long.
    Closing { why: String, deadline: Instant },
}

/// The stream while the engine catches up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Binlog {
    /// It is opened once the scan has its first page, and with it a position.
    Closed,
    Opening,
    Open,
}

impl State {
    pub(super) fn at_first(mode: Mode) -> Self {
        match mode {
            Mode::Cdc => Self::CatchingUp {
                binlog: Binlog::Closed,
            },
            Mode::Poll => Self::Polling { reopen_at: None },
        }
    }

    pub(super) fn name(&self) -> StateName {
        match self {
            Self::CatchingUp { .. } => StateName::CatchingUp,
            Self::AwaitingBinlog => StateName::AwaitingBinlog,
            Self::Tailing => StateName::Tailing,
            Self::Polling { .. } => StateName::Polling,
            Self::Paused => StateName::Paused,
            Self::Draining => StateName::Draining,
            Self::Closing { .. } => StateName::Closing,
        }
    }

    /// Are rows taken in?
    pub(super) fn takes_in(&self) -> bool {
        match self {
            Self::CatchingUp { .. }
            | Self::AwaitingBinlog
            | Self::Tailing
            | Self::Polling { .. } => true,
            Self::Paused | Self::Draining | Self::Closing { .. } => false,
        }
    }

    /// Is a binlog stream open?
    pub(super) fn is_streaming(&self) -> bool {
        matches!(
            self,
            Self::Tailing
                | Self::CatchingUp {
                    binlog: Binlog::Open
                }
        )
    }

    fn is_opening(&self) -> bool {
        matches!(
            self,
            Self::AwaitingBinlog
                | Self::CatchingUp {
                    binlog: Binlog::Opening
                }
        )
    }
}

/// When the stream is opened, and how often.
#[derive(Debug)]
pub(super) struct Stream {
    /// The highest position that the server has shown since it was opened.
    pub(super) highest: Option<Position>,
    /// Everything up to here has been reported.
    pub(super) reached: Option<Position>,
    opened_at: Option<Instant>,
    /// Failures in a row.
    failures: u32,
    hidden_scan_at: Instant,
}

impl Stream {
    pub(super) fn new(now: Instant) -> Self {
        Self {
            highest: None,
            reached: None,
            opened_at: None,
            failures: 0,
            hidden_scan_at: now,
        }
    }

    /// The server has shown this position; false if it had shown a higher one before.
    pub(super) fn has_shown(&mut self, position: &Position) -> bool {
        let before = self.highest.as_ref();
        let forwards = before.is_none_or(|highest| highest <= position);
        if forwards {
            self.highest = Some(position.clone());
        }
        forwards
    }
}

impl Engine {
    pub(super) fn enter(&mut self, state: State, why: &str, now: Instant) {
        if self.state.name() != state.name() || self.why != why {
            self.since = now;
            why.clone_into(&mut self.why);
        }
        self.state = state;
    }

    /// A scan that begins has shown where the binlog is: everything that is committed from there on is
    /// reported by the stream, and everything before is visible to the scan.
    pub(super) fn open_binlog(&mut self, from: Position, now: Instant, out: &mut Vec<Command>) {
        let closed = State::CatchingUp {
            binlog: Binlog::Closed,
        };
        if self.state == closed {
            self.stream.highest = Some(from.clone());
            self.stream.reached = None;
            self.stream.opened_at = None;
            let why = self.why.clone();
            let binlog = Binlog::Opening;
            self.enter(State::CatchingUp { binlog }, &why, now);
            out.push(Command::OpenBinlog(from));
        }
    }

    pub(super) fn on_binlog_opened(&mut self, now: Instant) {
        if !self.state.is_opening() {
            return;
        }
        self.stream.opened_at = Some(now);
        if self.scans.is_idle() && self.state == State::AwaitingBinlog {
            self.tail(now);
        } else {
            // What the stream reports waits until the scan at hand has ended.
            let binlog = Binlog::Open;
            self.enter(State::CatchingUp { binlog }, "", now);
        }
    }

    pub(super) fn tail(&mut self, now: Instant) {
        self.enter(State::Tailing, "", now);
        self.scans.next_at = now + self.settings.sweep_interval;
    }

    pub(super) fn on_binlog_ended(&mut self, end: BinlogEnd, now: Instant, out: &mut Vec<Command>) {
        if self.state.is_streaming() || self.state.is_opening() {
            self.binlog_away(end, now, out);
        }
    }

    /// The binlog can't be read for now: scans alone, and another try later.
    pub(super) fn binlog_away(&mut self, end: BinlogEnd, now: Instant, out: &mut Vec<Command>) {
        let BinlogEnd { why, timed_out } = end;
        let was_sound = self.stream.opened_at.take();
        if was_sound.is_some_and(|at| now.saturating_duration_since(at) > REOPEN_MAX) {
            self.stream.failures = 0;
        }
        let min = if timed_out {
            REOPEN_TIMED_OUT_MIN
        } else {
            REOPEN_MIN
        };
        let wait = min
            .saturating_mul(1 << self.stream.failures.min(10))
            .min(REOPEN_MAX);
        self.stream.failures += 1;
        let retry_at = now + wait.mul_f64(1.0 - self.jitter.next() / 4.0);
        // What was reported and not read is met by the next scan, in order.
        self.catch_up(now, now, out);
        let reopen_at = Some(retry_at);
        self.enter(State::Polling { reopen_at }, &why, now);
        out.push(Command::Report(Report::BinlogAway { why, retry_at }));
    }

    /// As at the start: a whole scan after a fence, and the stream is opened anew behind it.
    pub(super) fn catch_up(&mut self, at: Instant, now: Instant, out: &mut Vec<Command>) {
        out.push(Command::CloseBinlog);
        self.scans.cancel();
        self.clear_arrivals();
        self.enter(State::at_first(self.settings.mode), "", now);
        self.scans.next_at = at;
    }

    pub(super) fn clear_arrivals(&mut self) {
        self.arrivals.clear();
        if let Some(loading) = &mut self.loading {
            loading.arrivals = 0;
        }
    }

    /// What is hidden has an unknown key, and may have changed the table's shape.
    pub(super) fn on_doubt(&mut self, now: Instant, out: &mut Vec<Command>) {
        if self.state.is_streaming() {
            let at = self.stream.hidden_scan_at.max(now);
            self.stream.hidden_scan_at = at + HIDDEN_SCAN_EVERY;
            self.catch_up(at, now, out);
        }
    }

    pub(super) fn binlog_broken(
        &mut self,
        why: &'static str,
        now: Instant,
        out: &mut Vec<Command>,
    ) {
        out.push(Command::Report(Report::BinlogBroken(why)));
        self.catch_up(now, now, out);
    }

    /// Everything that operators have paused.
    ///
    /// A paused relay keeps its connections and its lock; what the broker has is confirmed and marked,
    /// and then it holds nothing. Resumed, it finds its rows as at the start of a session.
    pub(super) fn on_pauses(&mut self, new: Pauses, now: Instant, out: &mut Vec<Command>) {
        if matches!(self.state, State::Draining | State::Closing { .. }) {
            return;
        }
        let old = std::mem::replace(&mut self.pauses, new);
        for route in self.pauses.routes.difference(&old.routes) {
            self.routes.pause(route);
        }
        for route in old.routes.difference(&self.pauses.routes) {
            let released = self.routes.resume(route);
            self.released.extend(released);
        }
        match (old.whole, self.pauses.whole) {
            (false, true) => {
                self.catch_up(now, now, out);
                self.forget_idle();
                self.enter(State::Paused, "", now);
            }
            (true, false) => self.catch_up(now, now, out),
            (false, false) | (true, true) => {}
        }
        self.place_released(now);
    }

    pub(super) fn on_drain(&mut self, now: Instant, out: &mut Vec<Command>) {
        if matches!(self.state, State::Draining | State::Closing { .. }) {
            return;
        }
        self.catch_up(now, now, out);
        self.forget_idle();
        self.enter(State::Draining, "", now);
    }

    /// Every publisher will say of its batch that the connection is lost, and whether something in the
    /// batch is to blame; confirmed rows are still marked.
    pub(super) fn on_broker_lost(&mut self, why: String, now: Instant, out: &mut Vec<Command>) {
        if matches!(self.state, State::Closing { .. }) {
            return;
        }
        self.catch_up(now, now, out);
        let deadline = now + CLOSING_MAX;
        let state = State::Closing {
            why: why.clone(),
            deadline,
        };
        self.enter(state, &why, now);
    }

    /// Is the session over?
    pub(super) fn end(&self, now: Instant) -> Option<End> {
        let settled = self.queue.is_idle() && self.ledger.unwritten() == 0;
        match &self.state {
            State::Draining if settled => Some(End::Drained),
            State::Closing { why, deadline } if settled || now >= *deadline => {
                Some(End::BrokerLost(why.clone()))
            }
            _ => None,
        }
    }
}
