//! Where rows go: batches to the lanes, their answers to the marker.

use std::time::Instant;

use anyhow::anyhow;
use tokio::sync::mpsc;

use crate::effects::Effects;
use crate::observe::metrics::Source;
use crate::publish::publisher_task::{Done, Outcome};
use crate::session::{MARKS_MAX, Session};
use crate::wires::Busy;
use crate::writeback::marker_task::{MARK_MAX, Record, Write, Written};

impl Session<'_> {
    pub(crate) fn feed_lanes(&mut self) -> anyhow::Result<()> {
        if self.blocked || self.closing.is_some() || self.unwritten() >= MARKS_MAX {
            return Ok(());
        }
        let since = Instant::now();
        for (number, lane) in self.wires.lanes.iter_mut().enumerate() {
            if lane.busy.is_some() {
                continue;
            }
            let Some(batch) = self.dispatch.queue.next_batch(number) else {
                continue;
            };
            for source in [Source::Binlog, Source::Sweep] {
                let rows = batch.iter().filter(|item| item.source == source).count();
                self.metrics.published(source, rows as u64);
            }
            let oldest = batch.iter().filter_map(|item| item.committed).min();
            lane.busy = Some(Busy { since, oldest });
            lane.batches
                .try_send(batch)
                .map_err(|_| anyhow!("lane {number} is gone"))?;
        }
        Ok(())
    }

    pub(crate) fn feed_marker(&mut self) {
        while !(self.records.is_empty() && self.marks.is_empty()) {
            let permit = match self.wires.writes.try_reserve() {
                Ok(permit) => permit,
                // If the marker is gone, its task tells why.
                Err(
                    mpsc::error::TrySendError::Full(()) | mpsc::error::TrySendError::Closed(()),
                ) => {
                    return;
                }
            };
            let write = if self.marks.is_empty() {
                let Some(record) = self.records.pop_front() else {
                    return;
                };
                Write::Record(record)
            } else {
                let rest = self.marks.split_off(self.marks.len().min(MARK_MAX));
                Write::Sent(std::mem::replace(&mut self.marks, rest))
            };
            self.writing += write.count();
            permit.send(write);
        }
    }

    /// Orders can't flow while nothing can be marked: what is sent would have to be remembered.
    pub(crate) fn show_jam(&mut self, now: Instant) {
        let rows = self.unwritten();
        let change = self.jam.look(rows >= MARKS_MAX, now);
        self.metrics.set_refused(&self.refused);
        let unread = self.read_refused.as_ref();
        let unread = unread.map(|why| format!("the table can't be read, it is tried again: {why}"));
        let refused: Vec<String> = self.refused.detail().into_iter().chain(unread).collect();
        let refused = (!refused.is_empty()).then(|| refused.join("; "));
        if let Some(true) = change {
            tracing::error!(rows, "confirmed rows can't be marked, intake stops");
        }
        let (ready, detail) = match (self.jam.is_there(), refused) {
            (true, refused) => {
                let why = refused.unwrap_or_else(|| "is the table locked?".into());
                let stopped = "rows are confirmed and can't be marked, intake stops";
                (false, format!("{rows} {stopped}: {why}"))
            }
            (false, Some(refused)) => (true, format!("connected; {refused}")),
            (false, None) => (true, "connected".into()),
        };
        if detail != self.database_shown {
            self.readiness.set("database", ready, detail.clone());
            self.database_shown = detail;
        }
    }

    pub(crate) fn on_done(&mut self, done: Done, now: Instant) {
        let lane = self.wires.lanes.get_mut(done.lane);
        let busy = lane.and_then(|lane| lane.busy.take());
        let (lost, closed) = match &done.outcome {
            Outcome::Lost(why) => (Some(why.clone()), None),
            Outcome::Closed { text, .. } => (None, Some(text.clone())),
            _ => (None, None),
        };
        let done = self.excuse(done, busy);
        let effects = self.dispatch.done(&done, rand::random(), now);
        self.take_effects(effects, now);
        if let Some(why) = closed {
            tracing::warn!(
                reason = why,
                rows = done.items.len(),
                "the broker closed a channel"
            );
        }
        if let Some(why) = lost {
            self.close(why, now);
        }
    }

    /// A blocked connection answers nobody: that is no route's fault. Neither is it when the block
    /// ended while the batch was out.
    fn excuse(&self, mut done: Done, busy: Option<Busy>) -> Done {
        let since = busy.map(|busy| busy.since);
        let was_blocked = self.blocked || self.unblocked_at.is_some_and(|end| Some(end) >= since);
        if was_blocked && matches!(done.outcome, Outcome::TimedOut { .. }) {
            done.outcome = Outcome::TimedOut {
                answered: vec![true; done.items.len()],
            };
        }
        done
    }

    fn take_effects(&mut self, effects: Effects, now: Instant) {
        for reason in effects.refused {
            self.metrics.failed(reason);
        }
        for source in [Source::Binlog, Source::Sweep] {
            let rows = effects.sent.iter().filter(|(_, of, _)| *of == source);
            self.metrics.confirmed(source, rows.count() as u64);
        }
        for (mark, _, committed) in effects.sent {
            if let Some(committed) = committed {
                let took = now.saturating_duration_since(committed).as_secs_f64();
                self.metrics.commit_to_confirm.observe(took);
            }
            self.told.forget(mark.id);
            self.marks.push(mark);
        }
        for failure in effects.failed {
            self.metrics.failed(failure.reason);
            self.told.forget(failure.row.id);
            let (id, reason) = (failure.row.id.id, failure.reason.name());
            tracing::warn!(id, reason, attempts = failure.attempts, next = ?failure.next,
                error = failure.text, "a message failed");
            self.records.push_back(Record::Failed(failure));
        }
        for sample in effects.samples {
            // One that waits by itself must be written for its time.
            let row = sample.row.id;
            if !self.told.is_news(row, sample.reason, &sample.text) && sample.wait.is_none() {
                continue;
            }
            let (id, reason) = (sample.row.id.id, sample.reason.name());
            tracing::warn!(
                id,
                reason,
                error = sample.text,
                "a route is closed, its rows wait"
            );
            self.records.push_back(Record::Sample(sample));
        }
    }

    pub(crate) fn on_written(&mut self, written: Written, now: Instant) {
        self.writing -= written.finished;
        if written.finished > 0 || !written.rows.is_empty() {
            self.jam.written();
        }
        self.metrics.marked.inc_by(written.marked);
        self.metrics.unmarked.inc_by(written.missed);
        self.refused = written.refused;
        self.dispatch.written(written.rows, now);
        if let Some(row) = written.given_up {
            self.dispatch.flights.remove(&row);
        }
    }

    /// What waits to be written down.
    pub(crate) fn unwritten(&self) -> usize {
        self.marks.len() + self.records.len() + self.refused.marks
    }

    /// Nobody waits for a probe that may get no answer: its row stays pending.
    pub(crate) fn is_drained(&self) -> bool {
        let mut lanes = self.wires.lanes.iter().enumerate();
        let slow = |number| self.dispatch.queue.is_slow(number);
        let idle = lanes.all(|(number, lane)| lane.busy.is_none() || slow(number));
        idle && self.marks.is_empty() && self.records.is_empty() && self.writing == 0
    }
}
