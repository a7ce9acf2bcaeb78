//! A server's binlog, and a relay's stream from it.

use std::sync::Arc;

use relay::engine::position::Position;

use crate::queue::Micros;

/// What a transaction looks like to the relay.
#[derive(Clone, Debug)]
pub(crate) enum Seen {
    /// It added these rows, or set them back to pending.
    Rows(Vec<u64>),
    /// It hides something.
    Doubt,
    /// Nothing of interest: the relay's own marks and records, the fence, other tables.
    Nothing,
}

/// An entry of the binlog.
#[derive(Clone, Debug)]
pub(crate) struct Entry {
    pub(crate) seen: Seen,
    pub(crate) committed: Micros,
    /// When a stream can have it.
    pub(crate) available: Micros,
}

/// A binlog. An epoch ends with a RESET.
#[derive(Debug)]
pub(crate) struct Log {
    pub(crate) epoch: u64,
    file: u64,
    name: Arc<str>,
    offset: u64,
    entries: Vec<(Entry, Position)>,
    /// Entries before it are purged.
    purged: usize,
}

fn name(file: u64) -> Arc<str> {
    format!("binlog.{file:06}").into()
}

impl Log {
    pub(crate) fn new(file: u64) -> Self {
        Self {
            epoch: 0,
            file,
            name: name(file),
            offset: 4,
            entries: Vec::new(),
            purged: 0,
        }
    }

    /// Where it ends.
    pub(crate) fn end(&self) -> Position {
        Position::new(Arc::clone(&self.name), self.offset)
    }

    pub(crate) fn append(&mut self, entry: Entry) {
        self.offset += match &entry.seen {
            Seen::Rows(ids) => 200 + 300 * ids.len() as u64,
            Seen::Doubt | Seen::Nothing => 150,
        };
        if self.offset > 200_000 {
            self.rotate();
            self.offset += 150;
        }
        let end = self.end();
        self.entries.push((entry, end));
    }

    /// Begins a new file.
    pub(crate) fn rotate(&mut self) {
        self.file += 1;
        self.name = name(self.file);
        self.offset = 4;
    }

    /// RESET: everything is gone, and positions begin again.
    pub(crate) fn reset(&mut self) {
        self.epoch += 1;
        self.file = 1;
        self.name = name(1);
        self.offset = 4;
        self.entries.clear();
        self.purged = 0;
    }

    /// Drops all files but the newest.
    pub(crate) fn purge(&mut self) {
        self.rotate();
        self.purged = self.entries.len();
    }

    /// The entry with this number.
    pub(crate) fn get(&self, number: usize) -> Option<&(Entry, Position)> {
        self.entries.get(number)
    }

    /// The number of the first entry after `position`, or why it can't be read from there.
    pub(crate) fn seek(&self, position: &Position) -> Result<usize, &'static str> {
        let number = self.entries.partition_point(|(_, end)| end <= position);
        if number < self.purged {
            return Err("1236: could not find the file: it is purged");
        }
        if *position > self.end() {
            return Err("1236: the position is beyond the end of the file");
        }
        Ok(number)
    }
}

/// A relay's stream.
#[derive(Debug)]
pub(crate) struct Stream {
    /// Distinguishes answers to a dropped attempt from those to this one.
    pub(crate) number: u64,
    pub(crate) open: bool,
    pub(crate) epoch: u64,
    /// The next entry.
    pub(crate) next: usize,
    /// Everything up to here has been handed over.
    pub(crate) at: Position,
    /// It never delivers again.
    pub(crate) frozen: bool,
    /// The position that was last handed over, and when.
    pub(crate) said: Option<(Position, Micros)>,
}
