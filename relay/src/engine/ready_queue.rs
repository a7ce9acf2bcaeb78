//! Rows that may go, and which publisher takes them.
//!
//! Any idle publisher takes what is next: a new row should find one and not wait for the answers of
//! others. There are two lines: what the binlog reported goes first, so that new rows are not late for a
//! backlog.

use std::collections::VecDeque;

use super::Settings;
use super::breaker::{Pace, SLOW_PUBLISHERS};

/// Rows on their way at once, in full batches and with however many publishers: one with the broker while
/// the answers of the other come in. More of them make the broker no faster, and cost the relay more
/// processor time a row.
const BATCHES_OUT_MAX: usize = 2;
/// Bytes on their way at once, in full batches: a few messages that are large must not keep all others
/// from going.
const BATCH_BYTES_OUT_MAX: usize = 4;
/// Publishers that may be busy with a backlog at once. Two hide each other's round trip; with more of a
/// backlog at the broker a new row only waits longer there.
const OLD_PUBLISHERS_MAX: usize = 2;
/// And for the same reason only this part of a batch is of a backlog.
const OLD_SHARE: usize = 4;
/// Publishers for prompt probes.
const PROMPT_PUBLISHERS: usize = 1;
const _: () = assert!(PROMPT_PUBLISHERS + SLOW_PUBLISHERS == super::PROBE_PUBLISHERS);

/// What may be with the broker together with a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Isolation {
    /// Anything.
    Shared,
    /// Batches of other publishers: it probes a route, in a batch and with a publisher of its own. A
    /// route that never answers would take the answers of its batch along, and the publisher's time.
    Probe(Pace),
    /// Nothing but slow probes: it was in a batch that the broker answered by closing, or has failed
    /// before.
    Solo,
}

/// A row in a line.
#[derive(Clone, Copy, Debug)]
pub(super) struct Queued {
    pub(super) id: u64,
    pub(super) bytes: usize,
    /// Found by a scan.
    pub(super) old: bool,
}

/// What a publisher has.
#[derive(Clone, Debug)]
pub(super) struct Batch {
    pub(super) rows: Vec<Queued>,
    pub(super) isolation: Isolation,
    bytes: usize,
    has_old: bool,
}

impl Batch {
    fn new(rows: Vec<Queued>, isolation: Isolation) -> Self {
        Self {
            bytes: rows.iter().map(|row| row.bytes).sum(),
            has_old: rows.iter().any(|row| row.old),
            rows,
            isolation,
        }
    }
}

/// See the module.
#[derive(Debug)]
pub(super) struct ReadyQueue {
    shared: usize,
    rows_max: usize,
    bytes_max: usize,
    fresh: VecDeque<Queued>,
    old: VecDeque<Queued>,
    prompt: VecDeque<Queued>,
    slow: VecDeque<Queued>,
    solo: VecDeque<Queued>,
    /// The last one that went with nothing beside it was a solo row: others have a turn first.
    others_turn: bool,
    busy: Vec<Option<Batch>>,
}

impl ReadyQueue {
    pub(super) fn new(settings: &Settings) -> Self {
        let publishers = settings.publishers + super::PROBE_PUBLISHERS;
        Self {
            shared: settings.publishers,
            rows_max: settings.batch_rows,
            bytes_max: settings.batch_bytes,
            fresh: VecDeque::new(),
            old: VecDeque::new(),
            prompt: VecDeque::new(),
            slow: VecDeque::new(),
            solo: VecDeque::new(),
            others_turn: false,
            busy: (0..publishers).map(|_| None).collect(),
        }
    }

    pub(super) fn push(&mut self, row: Queued, isolation: Isolation) {
        match isolation {
            Isolation::Shared if row.old => self.old.push_back(row),
            Isolation::Shared => self.fresh.push_back(row),
            Isolation::Probe(Pace::Prompt) => self.prompt.push_back(row),
            Isolation::Probe(Pace::Slow) => self.slow.push_back(row),
            Isolation::Solo => self.solo.push_back(row),
        }
    }

    /// Forgets all that wait.
    pub(super) fn clear(&mut self) {
        let lines = [
            &mut self.fresh,
            &mut self.old,
            &mut self.prompt,
            &mut self.slow,
            &mut self.solo,
        ];
        for line in lines {
            line.clear();
        }
    }

    pub(super) fn publishers(&self) -> usize {
        self.busy.len()
    }

    /// The rows with a publisher.
    pub(super) fn out(&self) -> impl Iterator<Item = &Queued> {
        self.busy.iter().flatten().flat_map(|batch| &batch.rows)
    }

    /// The rows that wait for a publisher in the two lines.
    pub(super) fn lines(&self) -> impl Iterator<Item = &Queued> {
        self.fresh.iter().chain(&self.old)
    }

    /// Is nothing with a publisher whose answer is waited for at the end?
    pub(super) fn is_idle(&self) -> bool {
        let promptly = self.busy.iter().flatten();
        let mut promptly = promptly.filter(|batch| batch.isolation != Isolation::Probe(Pace::Slow));
        promptly.next().is_none()
    }

    /// The next batch for this publisher, if it is idle. `may_go` says of a row whether it may still go;
    /// one that may not is dropped. Call [`ReadyQueue::done`] when the batch comes back.
    pub(super) fn next_batch(
        &mut self,
        publisher: usize,
        mut may_go: impl FnMut(u64) -> bool,
    ) -> Option<Batch> {
        if self.busy.get(publisher)?.is_some() || self.solo_is_out() {
            return None;
        }
        let solo_waits = !self.solo.is_empty() && !self.others_turn;
        let batch = if publisher >= self.shared + PROMPT_PUBLISHERS {
            one(&mut self.slow, &mut may_go, Isolation::Probe(Pace::Slow))
        } else if solo_waits {
            self.next_solo(publisher, &mut may_go)
        } else if publisher >= self.shared {
            one(
                &mut self.prompt,
                &mut may_go,
                Isolation::Probe(Pace::Prompt),
            )
        } else {
            self.next_shared(&mut may_go)
        };
        let batch = batch?;
        self.busy[publisher] = Some(batch.clone());
        Some(batch)
    }

    fn solo_is_out(&self) -> bool {
        let mut out = self.busy.iter().flatten();
        out.any(|batch| batch.isolation == Isolation::Solo)
    }

    /// A solo row goes alone in the whole process: an error that closes the connection can then be nobody
    /// else's. A slow probe does not count: the broker has taken that message before.
    fn next_solo(
        &mut self,
        publisher: usize,
        may_go: &mut impl FnMut(u64) -> bool,
    ) -> Option<Batch> {
        if publisher >= self.shared || !self.is_idle() {
            return None;
        }
        self.others_turn = true;
        one(&mut self.solo, may_go, Isolation::Solo)
    }

    fn next_shared(&mut self, may_go: &mut impl FnMut(u64) -> bool) -> Option<Batch> {
        // After one solo row the others have one turn. Nothing was beside it, so they have room then.
        self.others_turn = false;
        if !self.may_more_go() {
            return None;
        }
        let mut taken = Taken::default();
        let old_rows = self.rows_max.div_ceil(OLD_SHARE);
        // One publisher has something of the backlog, however many new rows there are.
        match self.publishers_with_old() {
            0 => {
                self.take(Line::Old, old_rows, &mut taken, may_go);
                self.take(Line::Fresh, self.rows_max, &mut taken, may_go);
            }
            1..OLD_PUBLISHERS_MAX => {
                self.take(Line::Fresh, self.rows_max, &mut taken, may_go);
                self.take(Line::Old, old_rows, &mut taken, may_go);
            }
            _ => self.take(Line::Fresh, self.rows_max, &mut taken, may_go),
        }
        (!taken.rows.is_empty()).then(|| Batch::new(taken.rows, Isolation::Shared))
    }

    fn take(
        &mut self,
        line: Line,
        rows_max: usize,
        taken: &mut Taken,
        may_go: &mut impl FnMut(u64) -> bool,
    ) {
        let bytes_max = self.bytes_max;
        let line = match line {
            Line::Fresh => &mut self.fresh,
            Line::Old => &mut self.old,
        };
        while let Some(next) = line.front() {
            let full = taken.rows.len() >= rows_max || taken.bytes + next.bytes > bytes_max;
            if full && !taken.rows.is_empty() {
                return;
            }
            if may_go(next.id) {
                taken.bytes += next.bytes;
                taken.rows.push(*next);
            }
            line.pop_front();
        }
    }

    /// A publisher waits until there is room for a full batch: with any room taken at once, a backlog
    /// would go in ever smaller batches.
    fn may_more_go(&self) -> bool {
        let shared = self.busy.iter().take(self.shared).flatten();
        let (rows, bytes) = shared.fold((0, 0), |(rows, bytes), batch| {
            (rows + batch.rows.len(), bytes + batch.bytes)
        });
        let rows_max = self.rows_max.saturating_mul(BATCHES_OUT_MAX - 1);
        let bytes_max = self.bytes_max.saturating_mul(BATCH_BYTES_OUT_MAX - 1);
        // However small a batch is, the backlog does not take all there is.
        rows <= rows_max.max(OLD_PUBLISHERS_MAX) && bytes <= bytes_max
    }

    fn publishers_with_old(&self) -> usize {
        let shared = self.busy.iter().take(self.shared).flatten();
        shared.filter(|batch| batch.has_old).count()
    }

    /// A batch has come back.
    pub(super) fn done(&mut self, publisher: usize) -> Option<Batch> {
        self.busy.get_mut(publisher)?.take()
    }
}

#[derive(Clone, Copy)]
enum Line {
    Fresh,
    Old,
}

#[derive(Default)]
struct Taken {
    rows: Vec<Queued>,
    bytes: usize,
}

fn one(
    line: &mut VecDeque<Queued>,
    may_go: &mut impl FnMut(u64) -> bool,
    isolation: Isolation,
) -> Option<Batch> {
    while let Some(row) = line.pop_front() {
        if may_go(row.id) {
            return Some(Batch::new(vec![row], isolation));
        }
    }
    None
}
