//! Do confirmed rows pile up because none of them can be marked? No IO, no clock.

use std::time::{Duration, Instant};

/// As full as may be, and nothing written for this long: a marker that is merely slow writes several
/// times a second.
const JAMMED_AFTER: Duration = Duration::from_secs(3);

/// How it has been so far.
#[derive(Debug, Default)]
pub(crate) struct Jam {
    /// Full, and nothing written since.
    since: Option<Instant>,
    told: bool,
}

impl Jam {
    /// A look from time to time; tells when it has come (true) or gone (false).
    pub(crate) fn look(&mut self, full: bool, now: Instant) -> Option<bool> {
        let since = full.then(|| *self.since.get_or_insert(now));
        self.since = since;
        // What is written makes room: until it does, a write alone is no end.
        let jammed = since.is_some_and(|since| self.told || now >= since + JAMMED_AFTER);
        (std::mem::replace(&mut self.told, jammed) != jammed).then_some(jammed)
    }

    /// It has come, and not gone yet.
    pub(crate) fn is_there(&self) -> bool {
        self.told
    }

    /// Something was written.
    pub(crate) fn written(&mut self) {
        self.since = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_has_come_when_it_is_full_and_nothing_is_written_and_gone_with_the_first_room() {
        let mut jam = Jam::default();
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        assert_eq!(jam.look(true, at(0)), None);
        jam.written();
        assert_eq!(jam.look(true, at(4)), None, "slow, but it writes");
        assert_eq!(jam.look(true, at(6)), None);
        assert_eq!(jam.look(true, at(7)), Some(true));
        jam.written();
        assert_eq!(jam.look(true, at(8)), None, "told already");
        assert_eq!(jam.look(false, at(9)), Some(false));
        assert_eq!(jam.look(true, at(10)), None, "another one");
        assert_eq!(jam.look(false, at(20)), None);
    }
}
