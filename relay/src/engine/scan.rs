//! Table scans: the one way to find rows that the binlog does not report.
//!
//! While the binlog stream is open, a page is *verified* before anything of it is believed: the position
//! after the page was read is waited for, so whatever the stream was about to report has been reported,
//! and what is left is what it will not report.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use rustc_hash::FxHashSet;

use super::admission::{Admission, By};
use super::command::{Command, PageQuery, Report};
use super::event::{BinlogEnd, Page, Read};
use super::index::Stage;
use super::position::Position;
use super::state::{Binlog, State};
use super::{Engine, Mode};

/// A scan that found little rests this many times as long as the database took for it, so that reading a
/// table full of waiting rows takes a tenth of a core at the most. What the scan waited for, room or the
/// stream, is not counted.
const REST_FACTOR: u32 = 9;
const REST_MAX: Duration = Duration::from_secs(30);
/// So many new rows in one scan are much: more have come meanwhile.
const MANY: usize = 1000;
/// Most rows in a page.
const PAGE_ROWS: usize = 1000;
/// What came along with a page and waited longer than this for room is read again.
const PAYLOADS_FRESH: Duration = Duration::from_secs(1);
/// A stream that does not reach a position that the server has shown is broken: after a RESET the dump
/// thread of either server stays connected, without an error, and never delivers again.
const STREAM_BROKEN_AFTER: Duration = Duration::from_secs(10);

/// What becomes of the rows that a scan meets and the index does not have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// They are indexed: nothing else reports rows, or what it reports waits until the scan has ended.
    Whole,
    /// They are read again behind all that the stream has reported before.
    Sweep,
}

#[derive(Debug)]
enum Step {
    Reading,
    /// The page at hand waits for the stream.
    Verifying {
        wanted: Position,
        deadline: Instant,
    },
    Admitting,
}

#[derive(Debug)]
struct Scan {
    kind: Kind,
    /// It ends as soon as the index has no room: it is made between two others, when there is room again
    /// for rows that the last one had to leave.
    fills: bool,
    fence: bool,
    positions: bool,
    began: Instant,
    queried_at: Instant,
    /// How long the database took for all pages so far.
    reading: Duration,
    step: Step,
    page: VecDeque<Read>,
    read_at: Instant,
    after: u64,
    upto: Option<u64>,
    is_last_page: bool,
    /// New rows.
    found: usize,
    /// Rows that have left the index, or whose failure was written, since the page at hand was queried: it
    /// may show them as they were.
    changed: FxHashSet<u64>,
}

/// Scans, one after the other.
#[derive(Debug)]
pub(super) struct Scans {
    current: Option<Scan>,
    /// A page is being read, be it of a scan that is cancelled.
    is_reading: bool,
    pub(super) number: u32,
    pub(super) next_at: Instant,
    rest_until: Instant,
    /// The last scan has left rows for want of room in the index.
    wants_room: bool,
}

impl Scans {
    pub(super) fn new(now: Instant) -> Self {
        Self {
            current: None,
            is_reading: false,
            number: 0,
            next_at: now,
            rest_until: now,
            wants_room: false,
        }
    }

    pub(super) fn is_idle(&self) -> bool {
        self.current.is_none()
    }

    /// The scan at hand counts for nothing. A page that is being read is dropped when it comes.
    pub(super) fn cancel(&mut self) {
        self.current = None;
    }

    pub(super) fn row_has_changed(&mut self, id: u64) {
        if let Some(scan) = &mut self.current {
            scan.changed.insert(id);
        }
    }

    /// Is a scan being made that indexes what it meets?
    pub(super) fn is_whole(&self) -> bool {
        let scan = self.current.as_ref();
        scan.is_some_and(|scan| scan.kind == Kind::Whole)
    }

    pub(super) fn awaits_position(&self) -> bool {
        let step = self.current.as_ref().map(|scan| &scan.step);
        matches!(step, Some(Step::Verifying { .. }))
    }

    #[cfg(test)]
    pub(super) fn is_reading(&self) -> bool {
        self.is_reading
    }

    /// Bytes of the page at hand that count against the buffer.
    pub(super) fn memory(&self) -> usize {
        let page = self.current.iter().flat_map(|scan| &scan.page);
        let rows = page.filter(|read| read.row.is_some());
        rows.map(|read| read.head.bytes).sum()
    }
}

impl Engine {
    /// When something of a scan is due.
    pub(super) fn scan_deadline(&self) -> Option<Instant> {
        match &self.scans.current {
            None if self.scans.is_reading => None,
            None => self.next_scan_at(),
            Some(scan) => match scan.step {
                Step::Verifying { deadline, .. } => Some(deadline),
                Step::Reading | Step::Admitting => None,
            },
        }
    }

    fn next_scan_at(&self) -> Option<Instant> {
        let whole = self.next_whole_scan_at()?;
        Some(if self.may_fill() {
            self.now.min(whole)
        } else {
            whole
        })
    }

    /// Is there room again for what the last scan had to leave?
    fn may_fill(&self) -> bool {
        let catches_up = matches!(self.state, State::CatchingUp { .. });
        self.scans.wants_room && !catches_up && self.has_room_for_waiting()
    }

    fn next_whole_scan_at(&self) -> Option<Instant> {
        let rested = self.scans.next_at.max(self.scans.rest_until);
        match &self.state {
            State::CatchingUp { .. } => Some(self.scans.next_at),
            State::AwaitingBinlog => Some(rested),
            State::Polling { reopen_at } => {
                Some(reopen_at.map_or(rested, |reopen| rested.min(reopen.max(self.scans.next_at))))
            }
            State::Tailing if self.overflow.is_empty() => Some(rested),
            State::Tailing => Some(self.scans.rest_until.min(rested)),
            State::Paused | State::Draining | State::Closing { .. } => None,
        }
    }

    /// Goes on with the scan at hand as far as it can, and begins the next one when it is due.
    pub(super) fn advance_scan(&mut self, now: Instant, out: &mut Vec<Command>) {
        loop {
            let Some(scan) = &self.scans.current else {
                let due = self.next_scan_at().is_some_and(|at| now >= at);
                if due && !self.scans.is_reading {
                    self.begin_scan(now, out);
                }
                return;
            };
            match &scan.step {
                Step::Reading => return,
                Step::Verifying { deadline, .. } => {
                    if now < *deadline {
                        return;
                    }
                    if self.takes_transactions() {
                        self.binlog_broken("it does not reach a position of its server", now, out);
                    } else {
                        self.extend_verifying(now);
                        return;
                    }
                }
                Step::Admitting => {
                    if !self.admit_page(now) {
                        return;
                    }
                    if self
                        .scans
                        .current
                        .as_ref()
                        .is_some_and(|scan| scan.is_last_page)
                    {
                        self.end_scan(now);
                    } else if self.has_room_for_page() {
                        return self.read_page(now, out);
                    } else {
                        return;
                    }
                }
            }
        }
    }

    /// Nothing was taken from the stream: that is not the stream's fault.
    fn extend_verifying(&mut self, now: Instant) {
        if let Some(scan) = &mut self.scans.current
            && let Step::Verifying { deadline, .. } = &mut scan.step
        {
            *deadline = now + STREAM_BROKEN_AFTER;
        }
    }

    fn begin_scan(&mut self, now: Instant, out: &mut Vec<Command>) {
        if let State::Polling {
            reopen_at: Some(at),
        } = self.state
            && now >= at
        {
            let binlog = Binlog::Closed;
            let why = self.why.clone();
            self.enter(State::CatchingUp { binlog }, &why, now);
        }
        let fills = self.next_whole_scan_at().is_some_and(|at| now < at);
        let (kind, fence, positions) = match self.state {
            State::CatchingUp { .. } => (Kind::Whole, true, true),
            State::Tailing => {
                let fence = !fills && (!self.overflow.is_empty() || !self.arrivals.is_empty());
                (Kind::Sweep, fence, true)
            }
            _ => (Kind::Whole, false, false),
        };
        self.scans.number = self.scans.number.wrapping_add(1);
        self.scans.wants_room = false;
        self.overflow.scan_began();
        if !fills {
            self.routes.scan_began();
        }
        self.scans.current = Some(Scan {
            kind,
            fills,
            fence,
            positions,
            began: now,
            queried_at: now,
            reading: Duration::ZERO,
            step: Step::Reading,
            page: VecDeque::new(),
            read_at: now,
            after: 0,
            upto: None,
            is_last_page: false,
            found: 0,
            changed: FxHashSet::default(),
        });
        self.read_page(now, out);
    }

    /// Rows of a backlog that are loaded already go first: read any earlier, the next ones would come
    /// without payloads and be read twice.
    fn has_room_for_page(&self) -> bool {
        self.rows_room() >= PAGE_ROWS || !self.scans.is_whole()
    }

    fn read_page(&mut self, now: Instant, out: &mut Vec<Command>) {
        let has_room = self.payload_room() >= self.settings.buffer_bytes / 4;
        let Some(scan) = &mut self.scans.current else {
            return;
        };
        scan.step = Step::Reading;
        scan.queried_at = now;
        scan.changed.clear();
        self.scans.is_reading = true;
        out.push(Command::ReadPage(PageQuery {
            after: scan.after,
            upto: scan.upto,
            fence: scan.fence,
            positions: scan.positions,
            payloads: scan.kind == Kind::Whole && has_room,
        }));
    }

    pub(super) fn on_page(&mut self, page: Page, now: Instant, out: &mut Vec<Command>) {
        self.scans.is_reading = false;
        self.table_refused = None;
        let Some(scan) = &mut self.scans.current else {
            return;
        };
        scan.reading += now.saturating_duration_since(scan.queried_at);
        let is_first = scan.upto.is_none();
        scan.upto = Some(page.upto);
        scan.after = page.read_to;
        scan.is_last_page = page.read_to >= page.upto;
        scan.page = page.rows.into();
        scan.read_at = page.read_at;
        scan.step = Step::Admitting;
        if is_first {
            self.arrivals.scan_began(page.upto);
        }
        if is_first && scan.fence && page.unreadable.is_none() {
            self.arrivals.fenced(scan.began, now);
        }
        if let (Kind::Sweep, Some(wanted)) = (scan.kind, page.end.clone()) {
            // On an idle server the stream was there before, and reports no further position.
            if self.stream.reached.as_ref() < Some(&wanted) {
                let deadline = now + STREAM_BROKEN_AFTER;
                scan.step = Step::Verifying { wanted, deadline };
            }
        }
        if let Some(why) = page.unreadable.filter(|_| self.settings.mode == Mode::Cdc) {
            let timed_out = false;
            return self.binlog_away(BinlogEnd { why, timed_out }, now, out);
        }
        if let Some(start) = page.start {
            self.open_binlog(start, now, out);
        }
        if let Some(end) = page.end
            && !self.stream.has_shown(&end)
            && self.state.is_streaming()
        {
            self.binlog_broken(
                "its server's position went backwards: it was reset",
                now,
                out,
            );
        }
    }

    pub(super) fn on_position(&mut self, position: &Position) {
        // One that is lower than the server's own is merely late.
        self.stream.has_shown(position);
        self.stream.reached = Some(position.clone());
        if let Some(scan) = &mut self.scans.current
            && let Step::Verifying { wanted, .. } = &scan.step
            && position >= wanted
        {
            scan.step = Step::Admitting;
        }
    }

    /// Takes in the page at hand; false when there is no room for all of it.
    fn admit_page(&mut self, now: Instant) -> bool {
        let Some(mut scan) = self.scans.current.take() else {
            return true;
        };
        let is_fresh = now.saturating_duration_since(scan.read_at) < PAYLOADS_FRESH;
        let mut has_room = true;
        while let Some(read) = scan.page.front() {
            let id = read.head.id;
            if scan.changed.contains(&id) {
                if let Some(entry) = self.index.get_mut(id) {
                    entry.seen = self.scans.number;
                }
                scan.page.pop_front();
                continue;
            }
            let stage = self.index.get(id).map(|entry| entry.stage);
            if stage.is_some_and(Stage::is_removable) && self.is_another(&read.head) {
                self.remove(id, now);
            } else if stage.is_some() {
                if let Some(read) = scan.page.pop_front() {
                    self.meet(read, scan.read_at, now);
                }
                continue;
            }
            let key = self.key_of(&read.head);
            if scan.kind == Kind::Sweep && !self.overflow.holds(key) {
                self.arrivals.swept(id, now);
                scan.found += 1;
                scan.page.pop_front();
                continue;
            }
            match self.admit(&read.head, By::Scan, scan.read_at, now) {
                Admission::NoRoom => {
                    has_room = false;
                    break;
                }
                Admission::Left => {
                    self.scans.wants_room = true;
                    if scan.fills {
                        scan.page.clear();
                        scan.is_last_page = true;
                    } else {
                        if let Some(read) = scan.page.pop_front() {
                            self.overflow_row(&read.head, true);
                        }
                    }
                }
                Admission::Admitted => {
                    scan.found += 1;
                    let row = scan.page.pop_front().and_then(|read| read.row);
                    let has_room = self.payload_room() > 0 && self.rows_room() > 0;
                    let row = row.filter(|_| is_fresh && has_room);
                    self.place(id, row, now);
                }
            }
        }
        if !has_room {
            // While the page waits, its payloads must not take the room of those that would go before it.
            for read in &mut scan.page {
                read.row = None;
            }
        }
        self.scans.current = Some(scan);
        has_room
    }

    /// A page shows a row that the index has.
    fn meet(&mut self, read: Read, read_at: Instant, now: Instant) {
        let number = self.scans.number;
        let Some(entry) = self.index.get_mut(read.head.id) else {
            return;
        };
        entry.seen = number;
        let is_another = entry.tag != read.head.tag;
        match entry.stage {
            stage if stage.is_idle() => self.refresh(&read.head, read_at, now),
            _ => entry.again |= is_another,
        }
    }

    fn end_scan(&mut self, now: Instant) {
        let Some(scan) = self.scans.current.take() else {
            return;
        };
        if scan.fills {
            return;
        }
        // Without a stream nothing could overtake, so no fence is needed to know what is level.
        if scan.fence || !self.state.is_streaming() {
            self.overflow.scan_ended();
        }
        self.forget_unseen(scan.upto.unwrap_or(0), now);
        self.routes.scan_ended();
        let rest = match scan.found >= MANY {
            true => Duration::ZERO,
            false => scan.reading.saturating_mul(REST_FACTOR).min(REST_MAX),
        };
        self.scans.rest_until = now + rest;
        match &self.state {
            State::CatchingUp { binlog } => match binlog {
                Binlog::Open => self.tail(now),
                Binlog::Opening => {
                    self.enter(
                        State::AwaitingBinlog,
                        "the binlog stream is being opened",
                        now,
                    );
                    self.scans.next_at = now + self.settings.poll_interval;
                }
                // More was reported meanwhile than can be remembered.
                Binlog::Closed => self.scans.next_at = now,
            },
            State::Tailing => self.scans.next_at = now + self.settings.sweep_interval,
            _ => self.scans.next_at = now + self.settings.poll_interval,
        }
    }

    /// Rows that a whole scan has not met are no longer pending.
    fn forget_unseen(&mut self, upto: u64, now: Instant) {
        let number = self.scans.number;
        let unseen = self
            .index
            .iter()
            .filter(|(id, entry)| *id <= upto && entry.seen != number && entry.stage.is_idle());
        for id in unseen.map(|(id, _)| id).collect::<Vec<_>>() {
            self.remove(id, now);
        }
    }

    pub(super) fn report_missed(&mut self, out: &mut Vec<Command>) {
        let missed = std::mem::take(&mut self.missed);
        if missed > 0 {
            out.push(Command::Report(Report::MissedByBinlog(missed)));
        }
    }
}
