//! A database server: its outbox table as reads see it, its commits that are not visible yet, its
//! binlog, and the lock that it grants.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use super::binlog::{Entry, Log};
use super::leadership::Lock;
use crate::queue::Micros;

/// `outbox.status`: pending.
pub(crate) const PENDING: u8 = 1;
/// `outbox.status`: sent.
pub(crate) const SENT: u8 = 2;
/// `outbox.status`: parked.
pub(crate) const PARKED: u8 = 3;
/// `outbox.status`: discarded.
pub(crate) const DISCARDED: u8 = 4;

/// A row of the table. Its message is an index into the world's messages, and never changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Stored {
    pub(crate) message: u32,
    pub(crate) key: u64,
    pub(crate) route: u64,
    pub(crate) status: u8,
    pub(crate) attempts: u32,
    /// `next_attempt_at` by the database's clock.
    pub(crate) next: Option<i64>,
    /// `sent_at` is set.
    pub(crate) sent: bool,
    /// `last_error` is set.
    pub(crate) error: bool,
    /// Changes of route or payload by hand.
    pub(crate) version: u32,
    pub(crate) bytes: u64,
    /// When it became pending, or was changed by hand.
    pub(crate) since: Micros,
    /// Somebody changed it by hand: the order of its key is not kept for it.
    pub(crate) touched: bool,
}

/// What a transaction does to a row.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Change {
    /// Inserts or replaces it.
    Put(u64, Stored),
    /// Deletes it.
    Delete(u64),
    /// Deletes all, and ids start again.
    Truncate,
}

/// A commit that reads do not see yet.
#[derive(Debug)]
struct Limbo {
    visible: Micros,
    changes: Vec<Change>,
}

/// A server.
#[derive(Debug)]
pub(crate) struct Server {
    /// The rows that reads see.
    pub(crate) rows: BTreeMap<u64, Stored>,
    /// Those of them that are pending.
    pub(crate) pending: BTreeSet<u64>,
    /// The same by key.
    pub(crate) by_key: BTreeMap<u64, BTreeSet<u64>>,
    /// When a pending row of the key last stopped being the first.
    pub(crate) progress: BTreeMap<u64, Micros>,
    /// When it was last truncated: ids began again.
    pub(crate) truncated: Option<Micros>,
    limbo: VecDeque<Limbo>,
    last_visible: Micros,
    pub(crate) log: Log,
    /// The next `AUTO_INCREMENT` id.
    pub(crate) next_id: u64,
    pub(crate) up: bool,
    pub(crate) read_only: bool,
    pub(crate) lock: Lock,
}

impl Server {
    pub(crate) fn new(file: u64) -> Self {
        Self {
            rows: BTreeMap::new(),
            pending: BTreeSet::new(),
            by_key: BTreeMap::new(),
            progress: BTreeMap::new(),
            truncated: None,
            limbo: VecDeque::new(),
            last_visible: 0,
            log: Log::new(file),
            next_id: 1,
            up: true,
            read_only: false,
            lock: Lock::default(),
        }
    }

    /// Commits: the changes are in the binlog now, and visible after `delay`, in the binlog's order.
    /// Returns when they are visible.
    pub(crate) fn commit(
        &mut self,
        now: Micros,
        delay: Micros,
        entry: Entry,
        changes: Vec<Change>,
    ) -> Micros {
        self.log.append(entry);
        self.commit_unlogged(now, delay, changes)
    }

    /// The same without a trace in the binlog.
    pub(crate) fn commit_unlogged(
        &mut self,
        now: Micros,
        delay: Micros,
        changes: Vec<Change>,
    ) -> Micros {
        let visible = self.last_visible.max(now + delay);
        self.last_visible = visible;
        self.limbo.push_back(Limbo { visible, changes });
        visible
    }

    /// Makes visible what is due, and returns it.
    pub(crate) fn appear(&mut self, now: Micros) -> Vec<Change> {
        let mut appeared = Vec::new();
        while self.limbo.front().is_some_and(|limbo| limbo.visible <= now) {
            let limbo = self.limbo.pop_front().expect("there is one");
            for change in &limbo.changes {
                self.apply(*change, now);
            }
            appeared.extend(limbo.changes);
        }
        appeared
    }

    /// When the last commit until now is visible.
    pub(crate) fn settled_at(&self) -> Micros {
        self.last_visible
    }

    /// Is no commit on its way to being visible?
    pub(crate) fn is_settled(&self) -> bool {
        self.limbo.is_empty()
    }

    /// Does a commit that is not visible yet hold a lock on one of them?
    pub(crate) fn is_locked(&self, ids: &[u64]) -> bool {
        self.limbo
            .iter()
            .flat_map(|limbo| &limbo.changes)
            .any(|change| match change {
                Change::Put(id, _) | Change::Delete(id) => ids.contains(id),
                Change::Truncate => true,
            })
    }

    fn apply(&mut self, change: Change, now: Micros) {
        match change {
            Change::Put(id, mut row) => {
                let before = self.rows.get(&id).copied();
                if before.is_none_or(|before| before.status != row.status) || row.since > now {
                    row.since = now;
                }
                self.rows.insert(id, row);
                self.next_id = self.next_id.max(id + 1);
                self.index(id, before, Some(row), now);
            }
            Change::Delete(id) => {
                let before = self.rows.remove(&id);
                self.index(id, before, None, now);
            }
            Change::Truncate => {
                self.rows.clear();
                self.pending.clear();
                self.by_key.clear();
                self.progress.clear();
                self.next_id = 1;
                self.truncated = Some(now);
            }
        }
    }

    fn index(&mut self, id: u64, before: Option<Stored>, after: Option<Stored>, now: Micros) {
        let was = before.filter(|row| row.status == PENDING);
        let is = after.filter(|row| row.status == PENDING);
        match (was, is) {
            (Some(row), None) => {
                self.pending.remove(&id);
                if let Some(ids) = self.by_key.get_mut(&row.key) {
                    ids.remove(&id);
                    if ids.is_empty() {
                        self.by_key.remove(&row.key);
                    }
                }
                self.progress.insert(row.key, now);
            }
            (None, Some(row)) => {
                self.pending.insert(id);
                self.by_key.entry(row.key).or_default().insert(id);
            }
            _ => {}
        }
    }

    /// Highest visible id.
    pub(crate) fn highest(&self) -> u64 {
        self.rows.keys().next_back().copied().unwrap_or(0)
    }

    /// A replica of it that lags by the changes that are still on their way and by `lost` of its rows:
    /// the newest ids are missing, and marks are missing of those in `unmarked`.
    pub(crate) fn replica(&self, file: u64, lost: usize, unmarked: &[u64]) -> Self {
        let mut replica = Self::new(file);
        let kept = self.rows.len().saturating_sub(lost);
        for (&id, &row) in self.rows.iter().take(kept) {
            let mut row = row;
            if row.status == SENT && unmarked.contains(&id) {
                row.status = PENDING;
            }
            replica.apply(Change::Put(id, row), row.since);
        }
        replica
    }
}
