//! Operators, and people who write to the table by hand.

use super::binlog::Seen;
use super::database::{Change, DISCARDED, PARKED, PENDING, SENT, Stored};
use super::{Happening, World};
use relay::engine::Event;

use crate::faults::{Episode, Fault};
use crate::queue::SECOND;
use crate::rng::{Rng, index, mix};

impl World {
    /// A statement of an operator, or of somebody with a database client.
    pub(super) fn operate(&mut self, episode: Episode) {
        let server = self.primary;
        if !self.servers[server].up || self.servers[server].read_only || self.writers.held {
            return;
        }
        let mut rng = Rng::new(episode.salt, 0);
        let wanted = match episode.fault {
            Fault::Retry | Fault::Discard => PARKED,
            Fault::SetBack => SENT,
            _ => PENDING,
        };
        let share = rng.pick(&[1, 10, 100]);
        let rows = self.servers[server].rows.iter();
        let mut chosen: Vec<(u64, Stored)> = rows
            .filter(|(id, row)| row.status == wanted && mix(episode.salt ^ **id) % 100 < share)
            .map(|(id, row)| (*id, *row))
            .collect();
        chosen.truncate(50);
        let ids: Vec<u64> = chosen.iter().map(|(id, _)| *id).collect();
        if ids.is_empty() || self.servers[server].is_locked(&ids) {
            return;
        }
        self.coverage.fault(episode.fault);
        let (seen, changes) = self.statement(episode.fault, chosen, &mut rng);
        self.commit(server, seen, changes);
    }

    fn statement(
        &self,
        fault: Fault,
        rows: Vec<(u64, Stored)>,
        rng: &mut Rng,
    ) -> (Seen, Vec<Change>) {
        let now = self.queue.now();
        let ids: Vec<u64> = rows.iter().map(|(id, _)| *id).collect();
        let delay = i64::try_from(rng.below(5 * SECOND)).expect("it is small");
        let next = rng.percent(50).then_some(self.database_time() + delay);
        let route = rng.below(self.scenario.routes);
        let change = |(id, row): (u64, Stored)| {
            let row = Stored {
                touched: true,
                since: now,
                ..row
            };
            let changed = match fault {
                Fault::Retry | Fault::SetBack => Stored {
                    status: PENDING,
                    attempts: 0,
                    next: None,
                    ..row
                },
                Fault::Discard => Stored {
                    status: DISCARDED,
                    ..row
                },
                Fault::SetNext => Stored { next, ..row },
                Fault::Delete => return Change::Delete(id),
                _ => Stored {
                    route,
                    version: row.version + 1,
                    ..row
                },
            };
            Change::Put(id, changed)
        };
        let seen = match fault {
            Fault::Retry | Fault::SetBack => Seen::Rows(ids),
            _ => Seen::Nothing,
        };
        (seen, rows.into_iter().map(change).collect())
    }

    /// An operator pauses, or resumes.
    pub(super) fn pause(&mut self, episode: Episode, on: bool) {
        if on {
            self.coverage.fault(episode.fault);
        }
        if episode.fault == Fault::PauseAll {
            self.pauses.whole = on;
        } else {
            let first = self.routes[index(episode.salt % self.scenario.routes)].clone();
            if on {
                self.pauses.routes.insert(first);
            } else {
                self.pauses.routes.remove(&first);
            }
        }
        for id in self.sessions() {
            let wait = self.rng.below(SECOND);
            let event = Event::Pauses(self.pauses.clone());
            self.deliver_in_order(id, wait, event);
        }
    }

    /// Pauses are read again and again: a later answer never comes before an earlier one.
    fn deliver_in_order(&mut self, id: super::SessionId, wait: u64, event: Event) {
        let at = self.queue.now() + wait;
        let session = self.processes[id.process]
            .session
            .as_mut()
            .expect("it is in the list");
        session.pauses_at = session.pauses_at.max(at);
        let at = session.pauses_at;
        self.queue.at(at, Happening::Deliver(id, Box::new(event)));
    }
}
