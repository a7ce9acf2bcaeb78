//! How much may be taken in: every row in memory has a place that was free before.

use crate::config::Order;
use crate::observe::metrics::Source;
use crate::pass::Room;
use crate::session::{MARKS_MAX, Session};
use crate::source::table::PAGE;

/// Full batches that may wait while as many as may be are on their way.
const BATCHES_AHEAD: usize = 2;
/// And however small a batch is: some pages, so that the next one is read while these go.
const ROWS_AHEAD_MIN: usize = 4 * PAGE;

impl Session<'_> {
    /// Room for rows of a source in the queue. A broker that blocks, or marks that pile up, take it
    /// away. A quarter is the other source's alone: neither must a backlog keep new rows out, nor
    /// these the rows that only a pass can bring.
    pub(crate) fn room(&self, source: Source) -> Room {
        if self.blocked || self.unwritten() >= MARKS_MAX {
            return Room { rows: 0, bytes: 0 };
        }
        let queue = &self.dispatch.queue;
        let own = queue.load(source);
        let free = |max: usize, all: usize, own: usize| {
            let share = max - max / 4;
            max.saturating_sub(all).min(share.saturating_sub(own))
        };
        let rows_max = (self.config.batch.rows * BATCHES_AHEAD).max(ROWS_AHEAD_MIN);
        Room {
            rows: free(rows_max, queue.rows(), own.rows),
            bytes: free(self.config.buffer_bytes / 2, queue.bytes(), own.bytes),
        }
    }

    pub(crate) fn takes_from_tail(&self) -> bool {
        let loading = self.config.order == Order::Key && self.passes.is_loading();
        let room = self.room(Source::Binlog);
        self.takes_in() && !loading && room.rows > 0 && room.bytes > 0
    }
}
