//! The lock that makes one relay the active one.

use super::SessionId;
use crate::queue::{Micros, SECOND};

/// The server frees the lock so long after its holder's last statement.
pub(crate) const WAIT_TIMEOUT: Micros = 5 * SECOND;
/// A lease ends so long after the last answered ping was sent.
pub(crate) const LEASE: Micros = 3 * SECOND;
/// Between two pings.
pub(crate) const PING_EVERY: Micros = SECOND;

/// A lock of a server.
#[derive(Debug, Default)]
pub(crate) struct Lock {
    holder: Option<SessionId>,
    until: Micros,
}

impl Lock {
    /// GET_LOCK without waiting.
    pub(crate) fn take(&mut self, who: SessionId, now: Micros) -> bool {
        if self.holder.is_some() && self.until > now {
            return false;
        }
        self.holder = Some(who);
        self.until = now + WAIT_TIMEOUT;
        true
    }

    /// Is it still the holder's? If it is, it stays so for a while.
    pub(crate) fn ping(&mut self, who: SessionId, now: Micros) -> bool {
        let held = self.holder == Some(who) && self.until > now;
        if held {
            self.until = now + WAIT_TIMEOUT;
        }
        held
    }

    /// The holder's connection is closed.
    pub(crate) fn release(&mut self, who: SessionId) {
        if self.holder == Some(who) {
            self.holder = None;
        }
    }

    /// All connections are gone.
    pub(crate) fn reset(&mut self) {
        *self = Self::default();
    }
}
