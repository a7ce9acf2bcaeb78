//! What the engine shows of itself: metrics, readiness, `relay status` and the console are written from
//! this, and nothing is steered by it.

use std::time::Instant;

use super::event::Refused;
use super::route::Route;

/// The engine as it is now.
#[derive(Clone, Debug)]
pub struct Snapshot {
    /// The state by name.
    pub state: StateName,
    /// Since when.
    pub since: Instant,
    /// Why it is in this state, where that is not its ordinary way; empty otherwise.
    pub why: String,
    /// A binlog stream is open.
    pub is_streaming: bool,
    /// How late the rows are that the binlog reported.
    pub lag: Lag,
    /// Rows read and not yet marked sent: being loaded, loaded, with the broker, unmarked, or failing.
    pub in_flight: usize,
    /// Rows in the index.
    pub rows: usize,
    /// Rows whose time has not come.
    pub delayed: usize,
    /// Some pending rows are in the table alone, since the index is full.
    pub overflowed: bool,
    /// Open and paused routes with the number of rows that wait for each, the fullest first; at most
    /// [`ROUTES_SHOWN`].
    pub routes: Vec<WaitingRoute>,
    /// Confirmed rows and records that are not written yet.
    pub unwritten: usize,
    /// Confirmed rows can't be marked, so nothing is published.
    pub stalled: bool,
    /// Writes that the database refuses.
    pub refused: Refused,
    /// Why the table can't be read now.
    pub table_refused: Option<String>,
    /// Why the broker blocks publishers.
    pub blocked: Option<String>,
    /// Bytes of index, queues and payloads, an estimate from above.
    pub memory: usize,
}

/// Routes in a snapshot.
pub const ROUTES_SHOWN: usize = 50;

/// A route whose rows wait.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WaitingRoute {
    /// The route.
    pub route: Route,
    /// Rows that wait for it.
    pub rows: u64,
    /// By an operator.
    pub paused: bool,
}

/// The states by name; the label `phase`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum StateName {
    /// The first whole scan is being made; what the binlog reports waits behind it.
    CatchingUp,
    /// The table is level, and the binlog stream is being opened: scans find new rows.
    AwaitingBinlog,
    /// The binlog reports new rows; sweeps are the safety net.
    Tailing,
    /// Scans alone find new rows.
    Polling,
    /// An operator has paused the whole relay.
    Paused,
    /// Stopping: what is on its way is settled and marked.
    Draining,
    /// The broker is gone: what it still answers is settled and marked.
    Closing,
}

impl StateName {
    /// All of them.
    pub const ALL: [Self; 7] = [
        Self::CatchingUp,
        Self::AwaitingBinlog,
        Self::Tailing,
        Self::Polling,
        Self::Paused,
        Self::Draining,
        Self::Closing,
    ];

    /// Label value.
    pub const fn name(self) -> &'static str {
        match self {
            Self::CatchingUp => "catching_up",
            Self::AwaitingBinlog => "awaiting_binlog",
            Self::Tailing => "tailing",
            Self::Polling => "polling",
            Self::Paused => "paused",
            Self::Draining => "draining",
            Self::Closing => "closing",
        }
    }
}

/// How late the rows are that the binlog reported.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Lag {
    /// Rows wait that the binlog does not report: the table alone knows how late they are.
    #[default]
    InTable,
    /// The commit of the oldest row that is reported and not confirmed, if any.
    Reported(Option<Instant>),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn label_values_are_those_of_the_metrics() {
        let names = [
            "catching_up",
            "awaiting_binlog",
            "tailing",
            "polling",
            "paused",
            "draining",
            "closing",
        ];
        assert_eq!(StateName::ALL.map(StateName::name), names);
    }
}
