//! What has to be written to the table, and what is being written.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use super::command::{Record, Write};
use super::event::{Refused, Written};
use crate::publish::confirms::Confirmed;

/// Confirmed rows and records that wait to be written; above it nothing new is published.
pub const UNWRITTEN_MAX: usize = 8192;
/// Rows in one UPDATE. MariaDB makes a subquery of a list of 1,000 literals; of parameters it does not.
pub(super) const MARKS_MAX: usize = 1024;
/// Marks are collected for so long: with one UPDATE a row the marks cost the database more than all else
/// that the relay does. A crash repeats what was not marked, so this is a part of that bound.
const COLLECT: Duration = Duration::from_millis(100);
/// As full as may be, and nothing written for this long: a writer that is merely slow writes several
/// times a second.
const STALLED_AFTER: Duration = Duration::from_secs(3);

/// See the module.
#[derive(Debug, Default)]
pub(super) struct WriteLedger {
    marks: Vec<Confirmed>,
    first_mark_at: Option<Instant>,
    records: VecDeque<Record>,
    /// Given to the writer and not reported yet.
    writing: usize,
    refused: Refused,
    /// Full, and nothing written since.
    full_since: Option<Instant>,
    stalled: bool,
}

impl WriteLedger {
    pub(super) fn confirmed(&mut self, mark: Confirmed, now: Instant) {
        self.first_mark_at.get_or_insert(now);
        self.marks.push(mark);
    }

    pub(super) fn record(&mut self, record: Record) {
        self.records.push_back(record);
    }

    /// What is not written yet.
    pub(super) fn unwritten(&self) -> usize {
        self.marks.len() + self.records.len() + self.writing
    }

    pub(super) fn is_full(&self) -> bool {
        self.unwritten() >= UNWRITTEN_MAX
    }

    pub(super) fn is_stalled(&self) -> bool {
        self.stalled
    }

    pub(super) fn refused(&self) -> &Refused {
        &self.refused
    }

    /// The next write. `flush`: marks need not be collected any longer.
    pub(super) fn next(&mut self, flush: bool, now: Instant) -> Option<Write> {
        let collected = self.first_mark_at.is_some_and(|at| now >= at + COLLECT);
        let due = flush || collected || self.marks.len() >= MARKS_MAX || !self.records.is_empty();
        if due && !self.marks.is_empty() {
            let rest = self.marks.split_off(self.marks.len().min(MARKS_MAX));
            let marks = std::mem::replace(&mut self.marks, rest);
            self.first_mark_at = self.first_mark_at.filter(|_| !self.marks.is_empty());
            self.writing += marks.len();
            return Some(Write::Sent(marks));
        }
        let record = self.records.pop_front()?;
        self.writing += 1;
        Some(Write::Record(record))
    }

    /// When the next write is due, or a look at whether there is a stall.
    pub(super) fn deadline(&self) -> Option<Instant> {
        let collect = self.first_mark_at.map(|at| at + COLLECT);
        let stall = self.full_since.filter(|_| !self.stalled);
        let stall = stall.map(|since| since + STALLED_AFTER);
        collect.into_iter().chain(stall).min()
    }

    pub(super) fn written(&mut self, written: &Written) {
        debug_assert!(
            written.finished <= self.writing,
            "more is written than was to be"
        );
        self.writing = self.writing.saturating_sub(written.finished);
        self.refused.clone_from(&written.refused);
        if written.finished > 0 || !written.rows.is_empty() {
            self.full_since = None;
        }
    }

    /// Whether a stall has begun (true) or ended (false) since the last look.
    pub(super) fn look(&mut self, now: Instant) -> Option<bool> {
        self.full_since = match self.is_full() {
            true => Some(*self.full_since.get_or_insert(now)),
            false => None,
        };
        // What is written makes room: until it does, a write alone is no end.
        let since = self.full_since;
        let stalled = since.is_some_and(|since| self.stalled || now >= since + STALLED_AFTER);
        (std::mem::replace(&mut self.stalled, stalled) != stalled).then_some(stalled)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::publish::confirms::{Answer, Published, Verdict, settle};

    fn mark(id: u64) -> Confirmed {
        let message = Published {
            id,
            message_id: "m",
            answer: Answer::Ack,
        };
        match settle(&[message], Vec::new()).unwrap().pop() {
            Some(Verdict::Confirmed(confirmed)) => confirmed,
            _ => unreachable!("an ack confirms"),
        }
    }

    #[test]
    fn a_stall_begins_when_it_is_full_and_nothing_is_written_and_ends_with_the_first_room() {
        let mut ledger = WriteLedger::default();
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        for id in 0..UNWRITTEN_MAX as u64 {
            ledger.confirmed(mark(id), start);
        }
        while ledger.next(true, start).is_some() {}
        let one = Written {
            rows: vec![1],
            ..Written::default()
        };
        assert_eq!(ledger.look(at(0)), None);
        ledger.written(&one);
        assert_eq!(ledger.look(at(4)), None, "slow, but it writes");
        assert_eq!(ledger.look(at(6)), None);
        assert_eq!(ledger.look(at(7)), Some(true));
        ledger.written(&one);
        assert_eq!(ledger.look(at(8)), None, "reported already");
        ledger.written(&Written { finished: 1, ..one });
        assert_eq!(ledger.look(at(9)), Some(false));
    }

    #[test]
    fn marks_are_collected_but_for_a_record_or_a_full_list() {
        let mut ledger = WriteLedger::default();
        let start = Instant::now();
        ledger.confirmed(mark(1), start);
        assert!(ledger.next(false, start).is_none());
        assert_eq!(ledger.deadline(), Some(start + COLLECT));
        assert!(matches!(
            ledger.next(false, start + COLLECT),
            Some(Write::Sent(_))
        ));
        assert_eq!(ledger.deadline(), None);
        for id in 0..=MARKS_MAX as u64 {
            ledger.confirmed(mark(id), start);
        }
        assert!(
            matches!(ledger.next(false, start), Some(Write::Sent(marks)) if marks.len() == MARKS_MAX)
        );
        assert!(ledger.next(false, start).is_none());
        assert!(matches!(ledger.next(true, start), Some(Write::Sent(marks)) if marks.len() == 1));
    }
}
