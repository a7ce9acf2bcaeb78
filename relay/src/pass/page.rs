//! Working through the page at hand. No IO.

use std::time::{Duration, Instant};

use outbox::row::Row;

use super::{Current, Room, SENT_MAX};
use crate::dispatch::{Dispatch, Head, Take};
use crate::queue::RowId;

/// What came along with a page and waited longer than this for room is read again.
const SMALL_FRESH: Duration = Duration::from_secs(1);

impl Current {
    /// The rows of the page that may go, up to the room there is. One row larger than all the room
    /// goes when nothing else is asked for. With them, the rows themselves if they came along: those
    /// that did and those that did not are never mixed, since both keep their order.
    pub(super) fn admit(
        &mut self,
        dispatch: &mut Dispatch,
        room: Room,
        now: Instant,
        missed: &mut u64,
    ) -> (Vec<Head>, Vec<(Row, u32)>) {
        if now.saturating_duration_since(self.read_at) > SMALL_FRESH {
            self.small.clear();
        }
        let mut asked: Vec<Head> = Vec::with_capacity(room.rows.min(self.page.len()));
        let mut whole = Vec::with_capacity(room.rows.min(self.small.len()));
        let mut bytes = 0;
        while let Some(head) = self.page.front() {
            let next = bytes + head.bytes;
            if asked.len() >= room.rows || (next > room.bytes && !asked.is_empty()) {
                break;
            }
            let id = head.id.id;
            while self.small.pop_front_if(|(row, _)| row.id < id).is_some() {}
            let is_small = self.small.front().is_some_and(|(row, _)| row.id == id);
            if !asked.is_empty() && is_small == whole.is_empty() {
                break;
            }
            let wait_until = head
                .wait
                .map(|wait| self.read_at + wait)
                .filter(|until| *until > now);
            match dispatch.admit(head, wait_until, now) {
                Take::Send {
                    missed: unexplained,
                } => {
                    *missed += u64::from(unexplained && self.plan.count_missed);
                    bytes = next;
                    if let Some(head) = self.page.pop_front() {
                        self.remember(head.id);
                        self.taken += 1;
                        asked.push(head);
                        whole.extend(self.small.pop_front_if(|_| is_small));
                    }
                }
                Take::Skip => {
                    self.page.pop_front();
                }
            }
        }
        (asked, whole)
    }

    fn remember(&mut self, id: RowId) {
        if self.sent.len() >= SENT_MAX {
            self.sent_too_many = true;
        } else {
            self.sent.insert(id);
        }
    }
}
