//! What a session is connected with, inside and outside.

use std::time::Instant;

use svc_kit::admin::Readiness;
use svc_kit::signals::Shutdown;
use svc_kit::systemd::Systemd;
use svc_kit::tasks::Tasks;
use tokio::sync::{mpsc, watch};

use crate::leadership::lock::Leadership;
use crate::leadership::server_identity::ServerId;
use crate::observe::metrics::Metrics;
use crate::observe::row_gauges::TailLag;
use crate::pause::Pauses;
use crate::publish::connection::BrokerNews;
use crate::publish::publisher_task::Done;
use crate::queue::Item;
use crate::source::table::{Answer, Ask};
use crate::writeback::marker_task::{Write, Written};

/// Why a session ended.
#[derive(Debug)]
pub enum End {
    /// SIGTERM, and everything on its way is confirmed and marked.
    Drained,
    /// The second SIGTERM, or the drain took too long.
    CutOff,
    /// Another relay may be active.
    LeaseLost(String),
    /// This server is not to be relied on, whatever its lock says: it refuses writes, or the
    /// database's name leads to several servers.
    GiveUp(String),
    /// A connection or a task failed: start again.
    Failed(anyhow::Error),
}

/// What the outside tells a session.
pub struct Outside {
    /// SIGTERM, and the end of patience.
    pub stop: Shutdown,
    /// The lock.
    pub leadership: watch::Receiver<Leadership>,
    /// To the gauges.
    pub lag: watch::Sender<TailLag>,
    /// Told each time the machine turns.
    pub systemd: Systemd,
}

impl Outside {
    /// The machine has turned: whoever watches over it may know.
    pub fn tell_turn(&self, metrics: &Metrics, readiness: &Readiness) {
        let phase = metrics.phase().name();
        self.systemd
            .turned(&format!("{phase}: {}", readiness.summary()));
    }
}

/// A batch that a lane has.
#[derive(Clone, Copy, Debug)]
pub struct Busy {
    /// When it was given to the lane.
    pub since: Instant,
    /// Its oldest commit, if the binlog brought any of it.
    pub oldest: Option<Instant>,
}

/// A lane's inlet, and what it is busy with.
pub struct LaneHandle {
    /// Batches; the lane holds one at a time.
    pub batches: mpsc::Sender<Vec<Item>>,
    /// The batch it has.
    pub busy: Option<Busy>,
}

/// The ends of the session's tasks.
pub struct Wires {
    /// The tasks themselves: one that ends before the session is an error.
    pub tasks: Tasks,
    /// Lanes.
    pub lanes: Vec<LaneHandle>,
    /// From the lanes.
    pub done: mpsc::Receiver<Done>,
    /// To the marker.
    pub writes: mpsc::Sender<Write>,
    /// From the marker.
    pub written: mpsc::Receiver<Written>,
    /// To the table reader.
    pub asks: mpsc::Sender<Ask>,
    /// From the table reader.
    pub answers: mpsc::Receiver<Answer>,
    /// From the broker's connection.
    pub news: mpsc::Receiver<BrokerNews>,
    /// Where lock, table reader and marker are: the binlog must be this server's too.
    pub server: ServerId,
    /// What is paused at the start.
    pub pauses: Pauses,
}

impl Wires {
    /// Ends the lanes in order: each closes its channel before the connection is closed.
    pub async fn end_lanes(&mut self) {
        let mut running = self.lanes.len();
        self.lanes.clear();
        while running > 0 {
            let Some(ended) = self.tasks.join_next().await else {
                return;
            };
            running -= usize::from(ended.name == LANE);
        }
    }
}

/// The name of every lane's task.
pub const LANE: &str = "lane";
