//! The others around the relay's memory: the table, the broker, the marker.

use std::time::Duration;

use super::*;

impl World {
    /// The table is read.
    pub(super) fn read(&mut self) {
        if self.answer.is_some() {
            return;
        }
        self.answer = match self.ask.take() {
            None => None,
            Some(Ask::Page(ask)) => Some(Answer::Page(self.page(&ask), ask.positions)),
            Some(Ask::Rows(ids)) => {
                let pending = |id| {
                    Some(&self.rows[usize::try_from(id).unwrap() - 1])
                        .filter(|stored| stored.status == 1)
                };
                let rows = ids.into_iter().filter_map(pending);
                let rows = rows.map(|stored| (stored.row.clone(), stored.attempts));
                Some(Answer::Rows(rows.collect()))
            }
        };
    }

    pub(super) fn page(&self, ask: &PageAsk) -> Page {
        let visible = self.rows.iter().filter(|stored| stored.committed);
        let highest = visible.clone().map(|stored| stored.row.id).max();
        let upto = ask.upto.unwrap_or(highest.unwrap_or(0));
        // Some pages look at a few ids only, pending or not.
        let end = match ask.after % 2 {
            1 => upto.min(ask.after + PAGE as u64),
            _ => upto,
        };
        let heads: Vec<Head> = visible
            .filter(|s| s.status == 1 && s.row.id > ask.after && s.row.id <= end)
            .take(PAGE)
            .map(|stored| Head {
                id: RowId::new(stored.row.id, &stored.row.message_id),
                key: key_hash(&stored.row.aggregate_type, &stored.row.aggregate_id),
                route: Route::of(&stored.row),
                wait: stored
                    .next_at
                    .and_then(|at| at.checked_duration_since(self.now)),
                bytes: 0,
                relived: stored.attempts > 0 || stored.next_at.is_some(),
            })
            .collect();
        // Some rows are too large to come along.
        let small = heads.iter().filter(|head| ask.small && head.id.id % 3 != 0);
        let small = small.map(|head| &self.rows[usize::try_from(head.id.id).unwrap() - 1]);
        let small: Vec<_> = small.map(|s| (s.row.clone(), s.attempts)).collect();
        let last_id = heads.last().map(|head| head.id.id);
        let read_to = last_id.filter(|_| heads.len() >= PAGE).unwrap_or(end);
        Page {
            heads,
            small,
            upto,
            read_to,
            start: (ask.upto.is_none() && ask.positions).then(|| position(self.log.len())),
            end: None,
            unreadable: None,
            read_at: self.now,
        }
    }

    /// What was read arrives; the position behind a page is as late as can be.
    pub(super) fn hand(&mut self) {
        match self.answer.take() {
            None => {}
            Some(Answer::Page(mut page, positions)) => {
                page.end = positions.then(|| position(self.log.len()));
                let never = self.now + Duration::from_hours(1);
                self.passes.page(page, never, self.now);
                if self.order == Order::None
                    && self.catching_up
                    && self.tail.is_none()
                    && let Some(from) = self.passes.start().cloned()
                {
                    self.open_tail(&from);
                }
            }
            Some(Answer::Rows(rows)) => {
                let asked = self.passes.loaded(self.now);
                self.dispatch.loaded(&asked, rows, self.now);
            }
        }
    }

    /// The broker answers a batch.
    pub(super) fn answer(&mut self, lane: usize, seed: u64) {
        let Some(items) = self.lanes[lane].take() else {
            return;
        };
        let outcome = self.outcome(&items, seed);
        let done = Done {
            lane,
            items,
            outcome,
        };
        let dice = f64::from(u8::try_from(seed & 0xff).unwrap()) / 255.0;
        let effects = self.dispatch.done(&done, dice, self.now);
        self.take(effects);
    }

    pub(super) fn outcome(&mut self, items: &[Item], seed: u64) -> Outcome {
        let kinds: Vec<Kind> = items
            .iter()
            .map(|item| self.stored(item.row.id).kind)
            .collect();
        let broker = |world: &Self, item: &Item| world.routes[usize::from(item.row.routing_key[0])];
        for (kind, code) in [(Kind::Bomb, 501), (Kind::TooLarge, 406)] {
            if kinds.contains(&kind) {
                // Some of the others may have been taken before.
                self.deliver_some(items, seed);
                let text = code.to_string();
                return Outcome::Closed { code, text };
            }
        }
        if items
            .iter()
            .any(|item| broker(self, item) == Broker::Silent)
        {
            self.deliver_some(items, seed);
            let answered = items
                .iter()
                .map(|item| broker(self, item) != Broker::Silent);
            let answered = answered.collect();
            return Outcome::TimedOut { answered };
        }
        let mut verdicts = Vec::new();
        for (item, kind) in items.iter().zip(kinds) {
            verdicts.push(match (kind, broker(self, item)) {
                (Kind::Invalid, _) => Verdict::Invalid("no".into()),
                (_, Broker::Returns) => Verdict::Returned("312 NO_ROUTE".into()),
                (_, Broker::Refuses) => Verdict::Nacked,
                _ => {
                    self.deliver(item.row.id);
                    Verdict::Confirmed
                }
            });
        }
        Outcome::Settled(verdicts)
    }

    pub(super) fn deliver_some(&mut self, items: &[Item], seed: u64) {
        for item in items {
            let id = item.row.id;
            let stored = self.stored(id);
            let deliverable = matches!(stored.kind, Kind::Good | Kind::Delayed);
            let taken = matches!(
                self.routes[usize::from(item.row.routing_key[0])],
                Broker::Takes | Broker::Silent
            );
            if deliverable && taken && luck(seed, id) {
                self.deliver(id);
            }
        }
    }

    pub(super) fn deliver(&mut self, id: u64) {
        let now = self.now;
        let stored = self.stored(id);
        assert!(
            stored.next_at.is_none_or(|at| at <= now),
            "{id} before its time"
        );
        if std::mem::replace(&mut stored.delivered, true) || self.order == Order::None {
            return;
        }
        let key = self.stored(id).row.aggregate_id.clone();
        let before = self.rows.iter().filter(|other| other.row.id < id);
        for other in before.filter(|other| other.row.aggregate_id == key) {
            let gone = other.delivered || other.status == 3;
            assert!(gone, "{id} overtook {} of its key", other.row.id);
        }
    }

    pub(super) fn take(&mut self, effects: Effects) {
        let sent = effects.sent.into_iter();
        for (mark, ..) in sent {
            self.confirmed.insert(mark.id);
            self.writes.push_back(Write::Sent(mark.id));
        }
        self.writes
            .extend(effects.failed.into_iter().map(Write::Failed));
        let samples = effects.samples.into_iter();
        let waits = samples.filter_map(|sample| Some(Write::Wait(sample.row.id, sample.wait?)));
        self.writes.extend(waits);
    }

    /// The marker commits.
    pub(super) fn mark(&mut self) {
        let now = self.now;
        let Some(write) = self.writes.pop_front() else {
            return;
        };
        let id = match write {
            Write::Sent(id) => {
                self.stored(id.id).status = 2;
                id
            }
            Write::Failed(failure) => {
                let stored = self.stored(failure.row.id.id);
                stored.attempts = failure.attempts;
                match failure.next {
                    Next::Retry(wait) => stored.next_at = Some(now + wait),
                    Next::Park => stored.status = 3,
                }
                failure.row.id
            }
            Write::Wait(id, wait) => {
                self.stored(id.id).next_at = Some(now + wait);
                id
            }
        };
        self.told.push_back(id);
    }
}
