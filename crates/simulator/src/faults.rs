//! Every kind of fault that the world can inject, and when it does.

use crate::queue::{Micros, SECOND};
use crate::rng::Rng;

macro_rules! faults {
    ($($(#[$doc:meta])* $name:ident $scope:ident $seconds:literal,)*) => {
        /// A kind of fault, or of unusual but legal traffic.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
        pub(crate) enum Fault { $($(#[$doc])* $name,)* }

        impl Fault {
            /// All kinds.
            pub(crate) const ALL: &'static [Self] = &[$(Self::$name,)*];

            /// Its name.
            pub(crate) fn name(self) -> &'static str {
                match self { $(Self::$name => stringify!($name),)* }
            }

            /// Whom it may delay.
            pub(crate) fn scope(self) -> Scope {
                match self { $(Self::$name => Scope::$scope,)* }
            }

            /// The longest time that it lasts, in seconds; 0 is a moment.
            pub(crate) fn seconds(self) -> u64 {
                match self { $(Self::$name => $seconds,)* }
            }
        }
    };
}

/// Whom a fault may delay: everything else has to flow while it lasts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Scope {
    /// Every row.
    All,
    /// The rows of a route.
    Route,
    /// The rows that it touches, and no other: nothing may starve because of it.
    Rows,
}

faults! {
    /// Transactions that roll back, and leave gaps in the ids.
    Rollback Rows 20,
    /// Transactions with ROLLBACK TO, as rows or as a doubt.
    Savepoint Rows 20,
    /// XA transactions: a doubt at their end.
    Xa Rows 20,
    /// INSERT with UPDATE or DELETE in one transaction.
    InsertDelete Rows 20,
    /// Rows that are inserted with another status than pending.
    OtherStatus Rows 20,
    /// Rows with `next_attempt_at` in the future.
    Delayed Rows 20,
    /// Very many delayed rows at once.
    DelayedCrowd Rows 0,
    /// Rows of very many keys and routes at once.
    RouteCrowd Rows 0,
    /// More rows than the relay can send for a while.
    Flood All 10,
    /// Many rows of one key at once.
    Burst Rows 0,
    /// Transactions that stay open for seconds while later ids commit.
    LongTransaction Rows 20,
    /// Events that can't be read: a doubt.
    Hidden Rows 20,
    /// Rows written with `sql_log_bin=0`: the binlog knows nothing of them.
    Unlogged Rows 20,
    /// A lost acknowledgement of semi-sync: commits are in the binlog and not visible for seconds.
    SemiSync All 5,
    /// Events reach the relay up to a second late.
    BinlogLate Rows 20,
    /// The stream ends.
    BinlogEnds Rows 0,
    /// Streams can't be opened.
    BinlogRefused Rows 30,
    /// Opening hangs until it times out.
    BinlogHangs Rows 30,
    /// The stream stands still without an error.
    BinlogStall Rows 0,
    /// RESET: positions start again, and open streams stand still.
    BinlogReset Rows 0,
    /// All but the newest file are purged.
    BinlogPurge Rows 0,
    /// The position and the fence can't be had.
    NoPosition Rows 20,
    /// Reads take up to 300 ms.
    SlowReads All 20,
    /// A read is lost: the session ends.
    LostRead All 1,
    /// Somebody holds a lock on the table.
    TableLocked All 10,
    /// Writes are refused and put off.
    WritesRefused All 15,
    /// Writes of some rows are refused and put off.
    RowLocks All 15,
    /// Records are given up.
    RecordsGivenUp Rows 15,
    /// Writes take up to 500 ms.
    SlowWrites All 10,
    /// The server is read-only.
    ReadOnly All 10,
    /// The server is restarted.
    DatabaseRestart All 8,
    /// A replica that lags becomes the primary; the old one is gone.
    Failover All 0,
    /// The same, and the old one stays reachable by the same name.
    TwoServers All 5,
    /// The database's clock jumps.
    ClockJump All 0,
    /// SIGSTOP of a leading process.
    ProcessPause All 10,
    /// SIGKILL of a leading process.
    ProcessCrash All 0,
    /// SIGTERM of a leading process.
    Drain All 0,
    /// The connection to the broker is lost.
    ConnectionLost All 5,
    /// The broker blocks publishers.
    Blocked All 10,
    /// Confirms take up to a second.
    SlowConfirms All 10,
    /// A returned message that is not of the batch.
    StrayReturn All 0,
    /// Routes without a binding.
    Unroutable Route 25,
    /// Bindings that come and go every second.
    Flapping Route 25,
    /// Exchanges that do not exist: 404.
    NoExchange Route 25,
    /// Routes that are forbidden: 403.
    Forbidden Route 25,
    /// Routes without confirms.
    Silent Route 25,
    /// Queues that are full: nack.
    Full Route 25,
    /// Rows that can't be messages.
    InvalidRow Rows 20,
    /// Rows that are larger than the broker takes: 406.
    LargeRow Rows 20,
    /// Rows over which the channel is closed, or the publisher panics.
    PoisonRow Rows 20,
    /// Rows over which the connection is closed.
    FatalRow All 20,
    /// Rows that are nacked for ever while their route is healthy.
    NackedRow Rows 20,
    /// An operator pauses the relay.
    PauseAll All 10,
    /// An operator pauses routes.
    PauseRoute Route 20,
    /// An operator sends parked rows again.
    Retry Rows 0,
    /// An operator discards parked rows.
    Discard Rows 0,
    /// Somebody sets sent rows back to pending.
    SetBack Rows 0,
    /// Somebody changes `next_attempt_at` of pending rows.
    SetNext Rows 0,
    /// Somebody deletes pending rows.
    Delete Rows 0,
    /// Somebody changes route or payload of pending rows.
    Change Rows 0,
    /// TRUNCATE: ids start again.
    Truncate All 0,
}

/// Which kinds are enabled, or under way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub(crate) struct FaultSet(u64);

impl FaultSet {
    /// Is it in?
    pub(crate) fn has(self, fault: Fault) -> bool {
        self.0 & (1 << fault as u64) != 0
    }

    /// With it.
    #[must_use]
    pub(crate) fn with(self, fault: Fault) -> Self {
        Self(self.0 | (1 << fault as u64))
    }

    /// Without it.
    #[must_use]
    pub(crate) fn without(self, fault: Fault) -> Self {
        Self(self.0 & !(1 << fault as u64))
    }

    /// Those that are in.
    pub(crate) fn iter(self) -> impl Iterator<Item = Fault> {
        Fault::ALL
            .iter()
            .copied()
            .filter(move |fault| self.has(*fault))
    }

    /// Every seed has its own mixture: a few kinds, many, or only those that must not delay anybody else.
    pub(crate) fn draw(seed: u64) -> Self {
        let mut rng = Rng::new(seed, 1);
        let style = rng.below(10);
        let mut set = Self::default();
        match rng.below(30) {
            0 => set = set.with(Fault::Flood).with(Fault::WritesRefused),
            1 => set = set.with(Fault::RouteCrowd).with(Fault::Unroutable),
            _ => {}
        }
        for &fault in Fault::ALL {
            let local = fault.scope() != Scope::All;
            let percent = match style {
                0..=2 if local => 20,
                0..=2 => 0,
                3..=5 => 10,
                6..=8 => 25,
                _ => 50,
            };
            if rng.percent(percent) {
                set = set.with(fault);
            }
        }
        set
    }
}

/// One time at which a fault is under way.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Episode {
    /// What.
    pub(crate) fault: Fault,
    /// From when.
    pub(crate) start: Micros,
    /// Until when.
    pub(crate) end: Micros,
    /// Where its own random numbers come from.
    pub(crate) salt: u64,
}

/// When each enabled fault happens, all of them before `until`.
pub(crate) fn plan(seed: u64, enabled: FaultSet, until: Micros) -> Vec<Episode> {
    let mut episodes = Vec::new();
    for fault in enabled.iter() {
        let mut rng = Rng::new(seed, 100 + fault as u64);
        let rare = matches!(fault, Fault::Failover | Fault::TwoServers);
        for _ in 0..rng.range(1, if rare { 1 } else { 4 }) {
            let start = rng.below(until);
            let longest = (fault.seconds() * SECOND).min(until - start);
            let end = start + rng.below(longest + 1);
            let salt = rng.next();
            episodes.push(Episode {
                fault,
                start,
                end,
                salt,
            });
        }
    }
    if enabled.has(Fault::Flood) && enabled.has(Fault::WritesRefused) {
        let (start, end) = (until / 4, until / 4 + 12 * SECOND);
        for fault in [Fault::Flood, Fault::WritesRefused] {
            episodes.push(Episode {
                fault,
                start,
                end,
                salt: 0,
            });
        }
    }
    if enabled.has(Fault::RouteCrowd) && enabled.has(Fault::Unroutable) {
        let closed = (Fault::Unroutable, until / 4, until);
        let crowd = (Fault::RouteCrowd, until / 4 + SECOND, until / 4 + SECOND);
        for (fault, start, end) in [closed, crowd] {
            episodes.push(Episode {
                fault,
                start,
                end,
                salt: 0,
            });
        }
    }
    episodes.sort_by_key(|episode| (episode.start, episode.fault));
    episodes
}
