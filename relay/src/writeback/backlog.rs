//! Which write is next. No IO.

use std::collections::VecDeque;
use std::time::Instant;

use tokio::sync::mpsc;

use super::MARK_MAX;
use super::failure_record::cut;
use super::later::{Later, Load, Put, Weigh};
use crate::engine::{Record, Write};
use crate::publish::confirms::Confirmed;

/// Marks put off; with more of them no new writes are taken, and the engine stops to publish.
const MARKS_MAX: usize = 8192;
/// Records put off, in number and in bytes. The row of one that is dropped is tried again by a later
/// scan.
const RECORDS_MAX: usize = 1 << 16;
const RECORDS_BYTES: usize = 16 << 20;
/// New writes after which a record that is due has its turn: it may be that new ones never end.
const NEW_MAX: u32 = 64;

/// What was put off, and what is new.
#[derive(Debug, Default)]
pub(super) struct Backlog {
    pub(super) marks: Later<Vec<Confirmed>>,
    pub(super) records: Later<Record>,
    /// It is the table that is locked, so no new write could pass either.
    pub(super) table_locked: bool,
    new_marks: VecDeque<Confirmed>,
    new_records: VecDeque<Record>,
    /// New writes since a record that was put off had its turn.
    new: u32,
}

pub(super) enum Next {
    Marks(Put<Vec<Confirmed>>),
    Record(Put<Record>),
    /// Until then, or until something new comes where that is taken.
    Wait {
        until: Option<Instant>,
        takes: bool,
    },
    /// There will be nothing new any more.
    End,
}

impl Backlog {
    /// Marks that are due again, new marks, a new record, or a record that is due again.
    pub(super) fn next(&mut self, writes: &mut mpsc::Receiver<Write>, now: Instant) -> Next {
        if let Some(marks) = self.marks.pop_due(now) {
            return Next::Marks(marks);
        }
        if self.new >= NEW_MAX
            && let Some(record) = self.pop_record(now)
        {
            return Next::Record(record);
        }
        let takes = !self.table_locked && self.marks.load().marks < MARKS_MAX;
        if takes {
            let is_open = self.take_all(writes);
            if let Some(new) = self.pop_new() {
                return new;
            }
            if !is_open {
                return Next::End;
            }
        }
        if let Some(record) = self.pop_record(now) {
            return Next::Record(record);
        }
        let due = self.marks.next_due(now).into_iter();
        let until = due.chain(self.records.next_due(now)).min();
        Next::Wait { until, takes }
    }

    /// A new one.
    pub(super) fn take(&mut self, write: Write) {
        match write {
            Write::Sent(marks) => self.new_marks.extend(marks),
            Write::Record(mut record) => {
                record.text = cut(record.text);
                self.new_records.push_back(record);
            }
        }
    }

    /// What is there. False when nothing will come any more.
    fn take_all(&mut self, writes: &mut mpsc::Receiver<Write>) -> bool {
        loop {
            match writes.try_recv() {
                Ok(write) => self.take(write),
                Err(mpsc::error::TryRecvError::Empty) => return true,
                Err(mpsc::error::TryRecvError::Disconnected) => return false,
            }
        }
    }

    /// Marks first: as long as one is missing, its message goes out again after a new start.
    fn pop_new(&mut self) -> Option<Next> {
        let next = if self.new_marks.is_empty() {
            Next::Record(Put::new(self.new_records.pop_front()?))
        } else {
            let count = self.new_marks.len().min(MARK_MAX);
            Next::Marks(Put::new(self.new_marks.drain(..count).collect()))
        };
        self.new = self.new.saturating_add(1);
        Some(next)
    }

    fn pop_record(&mut self, now: Instant) -> Option<Put<Record>> {
        self.new = 0;
        self.records.pop_due(now)
    }

    pub(super) fn is_full(&self) -> bool {
        let load = self.records.load();
        load.failures + load.samples >= RECORDS_MAX || load.bytes >= RECORDS_BYTES
    }
}

impl Weigh for Vec<Confirmed> {
    fn load(&self) -> Load {
        Load {
            marks: self.len(),
            ..Load::default()
        }
    }
}

impl Weigh for Record {
    fn load(&self) -> Load {
        let (failures, samples) = match self.is_failure() {
            true => (1, 0),
            false => (0, 1),
        };
        Load {
            failures,
            samples,
            bytes: size_of::<Put<Self>>() + self.message_id.len() + self.text.len(),
            marks: 0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::{Reason, Then};
    use crate::publish::confirms::{Answer, Published, Verdict, settle};

    fn marks(count: u64) -> Vec<Confirmed> {
        let published = (0..count).map(|id| Published {
            id,
            message_id: "m",
            answer: Answer::Ack,
        });
        let verdicts = settle(&published.collect::<Vec<_>>(), Vec::new()).unwrap();
        let confirmed = verdicts.into_iter().map(|verdict| match verdict {
            Verdict::Confirmed(confirmed) => confirmed,
            other => panic!("{other:?}"),
        });
        confirmed.collect()
    }

    fn record(id: u64, text: usize) -> Record {
        Record {
            id,
            message_id: id.to_string(),
            reason: Reason::Nack,
            text: "x".repeat(text),
            then: Then::Explain,
        }
    }

    #[test]
    fn marks_go_before_records_and_as_many_at_once_as_one_statement_takes() {
        let mut backlog = Backlog::default();
        let (sender, mut writes) = mpsc::channel(3);
        sender.try_send(Write::Record(record(7, 1))).unwrap();
        for _ in 0..2 {
            let some = marks(MARK_MAX as u64 - 1);
            sender.try_send(Write::Sent(some)).unwrap();
        }
        drop(sender);
        let mut next = || match backlog.next(&mut writes, Instant::now()) {
            Next::Marks(some) => some.what.len(),
            Next::Record(_) => 0,
            Next::Wait { .. } => unreachable!("nothing was put off"),
            Next::End => usize::MAX,
        };
        let turns = std::array::from_fn(|_| next());
        assert_eq!(turns, [MARK_MAX, MARK_MAX - 2, 0, usize::MAX]);
    }

    #[test]
    fn a_record_that_is_due_has_its_turn_while_new_writes_never_end() {
        let mut backlog = Backlog::default();
        backlog.records.put_off(record(1, 1), 0);
        backlog.records.put_off(record(2, 1), 0);
        let (sender, mut writes) = mpsc::channel(1);
        let mut turns = Vec::new();
        for turn in 0..200_u32 {
            drop(sender.try_send(Write::Sent(marks(1))));
            if matches!(backlog.next(&mut writes, Instant::now()), Next::Record(_)) {
                turns.push(turn);
            }
        }
        assert_eq!(turns, [NEW_MAX, 2 * NEW_MAX + 1]);
    }

    #[test]
    fn records_are_kept_up_to_a_number_and_a_size() {
        let mut backlog = Backlog::default();
        let mut kept = 0;
        while !backlog.is_full() {
            backlog.records.put_off(record(kept, 4000), 1);
            kept += 1;
        }
        assert!((3000..4200).contains(&kept), "{kept}");
        backlog.records.drain();
        assert!(!backlog.is_full());
    }

    #[test]
    fn nothing_new_is_taken_while_the_table_is_locked() {
        let mut backlog = Backlog {
            table_locked: true,
            ..Backlog::default()
        };
        let (sender, mut writes) = mpsc::channel(1);
        sender.try_send(Write::Sent(marks(1))).unwrap();
        let next = backlog.next(&mut writes, Instant::now());
        assert!(matches!(
            next,
            Next::Wait {
                takes: false,
                until: None
            }
        ));
        backlog.table_locked = false;
        let next = backlog.next(&mut writes, Instant::now());
        assert!(matches!(next, Next::Marks(_)));
    }
}
