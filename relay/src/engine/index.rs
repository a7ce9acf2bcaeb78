//! The pending rows that the engine knows: what each is waiting for, and which is the first of its key.

use std::collections::btree_map::{BTreeMap, Entry as Slot};
use std::collections::{BTreeSet, hash_map};
use std::ops::Bound;
use std::time::Instant;

use rustc_hash::{FxHashMap, FxHashSet};

use super::breaker::RouteId;
use super::event::Head;

/// What a row costs in the index, in bytes: its entry, its place by key, and the room that these keep free
/// (measured with a million rows of a key each: 175 to 220, by how full the hash table is).
pub(super) const ROW_BYTES: usize = 224;

/// Where a row is on its way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stage {
    /// Behind an earlier row of its key.
    Waiting,
    /// The first of its key; its time has not come.
    Delayed,
    /// The first of its key; its route takes no rows.
    Blocked,
    /// It may go, and its payload is to be loaded.
    Ready,
    /// Its payload is being loaded.
    Loading,
    /// Its payload is here.
    Loaded,
    /// With a publisher.
    Out,
    /// Confirmed, and its mark is being written. It keeps nobody waiting.
    Confirmed,
    /// Its failure is being written; `parks` when it is not tried again.
    Failing { parks: bool },
}

impl Stage {
    /// It can be read anew and placed anew at any time.
    pub(super) fn is_idle(self) -> bool {
        matches!(
            self,
            Self::Waiting | Self::Delayed | Self::Blocked | Self::Ready
        )
    }

    /// It is not with a publisher, and nothing of it is being written: it can be removed at any time.
    pub(super) fn is_removable(self) -> bool {
        self.is_idle() || matches!(self, Self::Loading | Self::Loaded)
    }

    fn number(self) -> usize {
        match self {
            Self::Waiting => 0,
            Self::Delayed => 1,
            Self::Blocked => 2,
            Self::Ready => 3,
            Self::Loading => 4,
            Self::Loaded => 5,
            Self::Out => 6,
            Self::Confirmed => 7,
            Self::Failing { .. } => 8,
        }
    }
}

/// A pending row.
#[derive(Clone, Debug)]
pub(super) struct Entry {
    pub(super) key: u64,
    pub(super) tag: u64,
    pub(super) route: RouteId,
    pub(super) attempts: u32,
    pub(super) bytes: usize,
    pub(super) stage: Stage,
    /// It was reported again while it could not be read anew.
    pub(super) again: bool,
    /// The scan that met it last, or was at hand when it came.
    pub(super) seen: u32,
    /// Its time, if that is still to come.
    pub(super) due: Option<Instant>,
    /// Its commit, if the binlog reported it.
    pub(super) committed: Option<Instant>,
}

impl Entry {
    /// A row that was just read. It waits until it is placed.
    pub(super) fn new(head: &Head, key: u64, route: RouteId, due: Option<Instant>) -> Self {
        Self {
            key,
            tag: head.tag,
            route,
            attempts: head.attempts,
            bytes: head.bytes,
            stage: Stage::Waiting,
            again: false,
            seen: 0,
            due,
            committed: None,
        }
    }
}

/// The rows of a key. Nearly all keys have one.
#[derive(Debug)]
struct OfKey {
    first: u64,
    /// Higher than the first; none is empty.
    #[expect(clippy::box_collection, reason = "8 bytes a key instead of 24")]
    others: Option<Box<BTreeSet<u64>>>,
}

impl OfKey {
    fn of(first: u64) -> Self {
        let others = None;
        Self { first, others }
    }

    fn add(&mut self, id: u64) {
        let other = self.first.max(id);
        self.first = self.first.min(id);
        if other != self.first {
            self.others.get_or_insert_default().insert(other);
        }
    }

    /// Removes a row; true if it was the last one.
    fn remove(&mut self, id: u64) -> bool {
        let Some(others) = &mut self.others else {
            return self.first == id;
        };
        if id != self.first {
            others.remove(&id);
        } else if let Some(next) = others.pop_first() {
            self.first = next;
        }
        if others.is_empty() {
            self.others = None;
        }
        false
    }

    #[cfg(debug_assertions)]
    fn has(&self, id: u64) -> bool {
        let mut others = self.others.iter();
        self.first == id || others.any(|others| others.contains(&id))
    }
}

#[derive(Debug, Default)]
struct ByKey(FxHashMap<u64, OfKey>);

impl ByKey {
    fn enter(&mut self, key: u64, id: u64) {
        match self.0.entry(key) {
            hash_map::Entry::Vacant(slot) => {
                slot.insert(OfKey::of(id));
            }
            hash_map::Entry::Occupied(slot) => slot.into_mut().add(id),
        }
    }

    fn leave(&mut self, key: u64, id: u64) {
        if let hash_map::Entry::Occupied(mut slot) = self.0.entry(key)
            && slot.get_mut().remove(id)
        {
            slot.remove();
        }
    }
}

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Index {
    rows: BTreeMap<u64, Entry>,
    /// All but the confirmed ones.
    by_key: ByKey,
    /// Those of [`Stage::Delayed`].
    delayed: BTreeSet<(Instant, u64)>,
    /// Keys with a row of [`Stage::Out`].
    out_keys: FxHashSet<u64>,
    counts: [usize; 9],
}

impl Index {
    pub(super) fn len(&self) -> usize {
        self.rows.len()
    }

    pub(super) fn get(&self, id: u64) -> Option<&Entry> {
        self.rows.get(&id)
    }

    /// To change what no set depends on.
    pub(super) fn get_mut(&mut self, id: u64) -> Option<&mut Entry> {
        self.rows.get_mut(&id)
    }

    pub(super) fn count(&self, stage: Stage) -> usize {
        self.counts[stage.number()]
    }

    /// Rows that are going, or could.
    pub(super) fn in_flight(&self) -> usize {
        self.counts[Stage::Loading.number()..].iter().sum()
    }

    /// Rows that wait for something that can last.
    pub(super) fn waiting(&self) -> usize {
        self.counts[..Stage::Ready.number()].iter().sum()
    }

    /// Adds a row as [`Stage::Waiting`].
    pub(super) fn insert(&mut self, id: u64, entry: Entry) {
        debug_assert_eq!(entry.stage, Stage::Waiting);
        self.by_key.enter(entry.key, id);
        self.counts[Stage::Waiting.number()] += 1;
        if let Slot::Vacant(slot) = self.rows.entry(id) {
            slot.insert(entry);
        } else {
            debug_assert!(false, "row {id} is in the index already");
        }
    }

    pub(super) fn remove(&mut self, id: u64) -> Option<Entry> {
        self.set_stage(id, Stage::Waiting);
        let entry = self.rows.remove(&id)?;
        self.counts[Stage::Waiting.number()] -= 1;
        self.by_key.leave(entry.key, id);
        Some(entry)
    }

    /// Moves a row to another stage. A delayed row has its `due` set before.
    pub(super) fn set_stage(&mut self, id: u64, stage: Stage) {
        let Some(entry) = self.rows.get_mut(&id) else {
            return;
        };
        let before = std::mem::replace(&mut entry.stage, stage);
        self.counts[before.number()] -= 1;
        self.counts[stage.number()] += 1;
        let key = entry.key;
        match (before, entry.due) {
            (Stage::Delayed, Some(due)) => {
                self.delayed.remove(&(due, id));
            }
            (Stage::Out, _) => {
                self.out_keys.remove(&key);
            }
            (Stage::Confirmed, _) => {
                self.by_key.enter(key, id);
            }
            _ => {}
        }
        match (stage, entry.due) {
            (Stage::Delayed, Some(due)) => {
                self.delayed.insert((due, id));
            }
            (Stage::Out, _) => {
                self.out_keys.insert(key);
            }
            (Stage::Confirmed, _) => {
                self.by_key.leave(key, id);
            }
            _ => {}
        }
    }

    /// The first row of a key that is not confirmed.
    pub(super) fn head(&self, key: u64) -> Option<u64> {
        self.by_key.0.get(&key).map(|rows| rows.first)
    }

    /// The row of a key behind `id`.
    pub(super) fn behind(&self, key: u64, id: u64) -> Option<u64> {
        let rows = self.by_key.0.get(&key)?;
        if rows.first > id {
            return Some(rows.first);
        }
        let behind = (Bound::Excluded(id), Bound::Unbounded);
        rows.others.as_ref()?.range(behind).next().copied()
    }

    /// Is a row of the key with a publisher?
    pub(super) fn is_out(&self, key: u64) -> bool {
        self.out_keys.contains(&key)
    }

    /// When the next delayed row is due.
    pub(super) fn next_due(&self) -> Option<Instant> {
        self.delayed.first().map(|(due, _)| *due)
    }

    /// A delayed row whose time has come.
    pub(super) fn due(&self, now: Instant) -> Option<u64> {
        let (due, id) = self.delayed.first()?;
        (*due <= now).then_some(*id)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (u64, &Entry)> {
        self.rows.iter().map(|(id, entry)| (*id, entry))
    }

    /// Panics when what is known twice differs.
    #[cfg(debug_assertions)]
    pub(super) fn check(&self) {
        let mut counts = [0; 9];
        for (id, entry) in &self.rows {
            counts[entry.stage.number()] += 1;
            let of_key = self.by_key.0.get(&entry.key);
            let listed = of_key.is_some_and(|rows| rows.has(*id));
            assert_eq!(listed, entry.stage != Stage::Confirmed, "row {id} by key");
            let delayed = entry
                .due
                .is_some_and(|due| self.delayed.contains(&(due, *id)));
            assert_eq!(delayed, entry.stage == Stage::Delayed, "row {id} by time");
            if entry.stage == Stage::Out {
                assert!(self.is_out(entry.key), "row {id} is out");
            }
        }
        assert_eq!(counts, self.counts);
        assert_eq!(
            self.out_keys.len(),
            self.count(Stage::Out),
            "one row of a key is out"
        );
    }
}
