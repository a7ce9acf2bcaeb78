//! How much may be taken in: every row in memory has a place that was free before.

use crate::config::Order;
use crate::pass::Room;
use crate::session::{MARKS_MAX, Session};

/// Batches' worth of rows that may wait for each lane.
const BATCHES_AHEAD: usize = 4;

impl Session<'_> {
    /// Room for rows in the queue. A broker that blocks, or marks that pile up, take it away.
    pub(crate) fn room(&self) -> Room {
        if self.blocked || self.unwritten() >= MARKS_MAX {
            return Room { rows: 0, bytes: 0 };
        }
        let queue = &self.dispatch.queue;
        Room {
            rows: self.rows_max().saturating_sub(queue.rows()),
            bytes: self.bytes_max().saturating_sub(queue.bytes()),
        }
    }

    /// A quarter of it is the tail's alone: a backlog must not keep new rows out.
    pub(crate) fn room_for_pass(&self) -> Room {
        let room = self.room();
        Room {
            rows: room.rows.saturating_sub(self.rows_max() / 4),
            bytes: room.bytes.saturating_sub(self.bytes_max() / 4),
        }
    }

    fn rows_max(&self) -> usize {
        self.config.lanes * self.config.batch.rows * BATCHES_AHEAD
    }

    fn bytes_max(&self) -> usize {
        self.config.buffer_bytes / 2
    }

    pub(crate) fn takes_from_tail(&self) -> bool {
        let loading = self.config.order == Order::Key && self.passes.is_loading();
        let room = self.room();
        self.takes_in() && !loading && room.rows > 0 && room.bytes > 0
    }
}
