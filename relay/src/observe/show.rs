//! Metrics, readiness and log, written from what the engine reports and from its snapshot.

use std::time::Instant;

use svc_kit::admin::Readiness;

use super::metrics::{Metrics, Phase};
use crate::engine::{Report, Snapshot, StateName};
use crate::pause::{INTAKE, Pauses};
use crate::source::binlog::transaction::Doubt;

/// See the module.
pub struct Show<'a> {
    metrics: &'a Metrics,
    readiness: &'a Readiness,
    state: Option<StateName>,
    /// What readiness says of database and binlog.
    database: String,
    binlog: String,
    broker: Option<String>,
}

impl<'a> Show<'a> {
    /// Nothing is shown yet.
    pub fn new(metrics: &'a Metrics, readiness: &'a Readiness) -> Self {
        Self {
            metrics,
            readiness,
            state: None,
            database: String::new(),
            binlog: String::new(),
            broker: None,
        }
    }

    /// Is this the state that is shown?
    pub fn is_of(&self, state: StateName) -> bool {
        self.state == Some(state)
    }

    /// Rows on their way.
    pub fn in_flight(&self, rows: usize) {
        self.metrics
            .in_flight
            .set(i64::try_from(rows).unwrap_or(i64::MAX));
    }

    /// The engine as it is now.
    pub fn snapshot(&mut self, snapshot: &Snapshot, pauses: &Pauses) {
        if !self.is_of(snapshot.state) {
            self.state = Some(snapshot.state);
            tracing::info!(state = snapshot.state.name(), why = snapshot.why, "state");
            self::pauses(pauses, self.readiness, self.metrics);
            if snapshot.state == StateName::Draining {
                self.readiness.set(INTAKE, false, "draining");
            }
        }
        self.metrics.set_phase(Phase::Session(snapshot.state));
        self.metrics
            .binlog_connected
            .set(i64::from(snapshot.is_streaming));
        self.metrics.set_waiting(&snapshot.routes);
        self.metrics.set_refused(&snapshot.refused);
        self.metrics
            .broker_blocked
            .set(i64::from(snapshot.blocked.is_some()));
        self.binlog(snapshot);
        self.database(snapshot);
        if self.broker != snapshot.blocked {
            let detail = snapshot.blocked.as_ref();
            let detail = detail.map_or_else(
                || "connected".into(),
                |why| format!("blocked by the broker: {why}"),
            );
            self.readiness
                .set("broker", snapshot.blocked.is_none(), detail);
            self.broker.clone_from(&snapshot.blocked);
        }
    }

    /// Orders flow whichever way rows are found, so no way clears readiness.
    fn binlog(&mut self, snapshot: &Snapshot) {
        let mut detail = snapshot.state.name().to_owned();
        match snapshot.state {
            _ if snapshot.why.is_empty() => {}
            StateName::AwaitingBinlog => detail = format!("{detail}: {}", snapshot.why),
            _ => detail = format!("{detail}, the binlog can't be read: {}", snapshot.why),
        }
        if self.binlog != detail {
            self.readiness.set("binlog", true, detail.clone());
            self.binlog = detail;
        }
    }

    /// Orders can't flow while nothing can be marked: what is sent would have to be remembered.
    fn database(&mut self, snapshot: &Snapshot) {
        let unread = snapshot.table_refused.as_ref();
        let unread = unread.map(|why| format!("the table can't be read, it is tried again: {why}"));
        let refused: Vec<String> = snapshot
            .refused
            .detail()
            .into_iter()
            .chain(unread)
            .collect();
        let refused = (!refused.is_empty()).then(|| refused.join("; "));
        let detail = match (snapshot.stalled, refused) {
            (true, refused) => {
                let rows = snapshot.unwritten;
                let why = refused.unwrap_or_else(|| "is the table locked?".into());
                format!("{rows} rows are confirmed and can't be marked, intake stops: {why}")
            }
            (false, Some(refused)) => format!("connected; {refused}"),
            (false, None) => "connected".into(),
        };
        if self.database != detail {
            self.readiness
                .set("database", !snapshot.stalled, detail.clone());
            self.database = detail;
        }
    }

    /// What operators have paused or resumed.
    pub fn pauses(&self, old: &Pauses, new: &Pauses) {
        for (route, pause) in &new.routes {
            if !old.routes.contains_key(route) {
                tracing::warn!(%route, actor = pause.actor, reason = pause.reason,
                    "a route is paused, its rows wait");
            }
        }
        for route in old
            .routes
            .keys()
            .filter(|route| !new.routes.contains_key(*route))
        {
            tracing::info!(%route, "a route is resumed");
        }
        match (&old.whole, &new.whole) {
            (None, Some(pause)) => {
                let (actor, reason) = (&pause.actor, &pause.reason);
                tracing::warn!(actor, reason, "the relay is paused, intake stops");
            }
            (Some(_), None) => tracing::info!("the relay is resumed"),
            (None, None) | (Some(_), Some(_)) => {}
        }
        self::pauses(new, self.readiness, self.metrics);
    }

    /// The binlog hides something.
    pub fn doubt(&self, doubt: &Doubt) {
        match doubt {
            Doubt::Undecodable(what) => {
                self.metrics.undecodable_events.inc();
                tracing::warn!(what, "the binlog hides something, the table is scanned");
            }
            Doubt::Unvouched(what) => tracing::debug!(what, "the table is scanned"),
            Doubt::TooLarge(what) => tracing::info!(what, "the table is scanned"),
        }
    }

    /// What the engine reports.
    pub fn report(&self, report: Report) {
        let metrics = self.metrics;
        match report {
            Report::Confirmed { source, took } => {
                metrics.confirmed(source, 1);
                if let Some(took) = took {
                    metrics.commit_to_confirm.observe(took.as_secs_f64());
                }
            }
            Report::Published { source, rows } => metrics.published(source, rows as u64),
            Report::Failed(record) => {
                metrics.failed(record.reason);
                tracing::warn!(id = record.id, reason = record.reason.name(), then = ?record.then,
                    error = record.text, "a message failed");
            }
            Report::Refused(reason) => metrics.failed(reason),
            Report::RouteClosed(record) => {
                tracing::warn!(
                    id = record.id,
                    reason = record.reason.name(),
                    error = record.text,
                    "a route is closed, its rows wait"
                );
            }
            Report::RouteOpened(route) => tracing::info!(%route, "a route is open, its rows go"),
            Report::MissedByBinlog(rows) => metrics.missed_by_binlog.inc_by(rows),
            Report::ChannelClosed { why, rows } => {
                tracing::warn!(reason = why, rows, "the broker closed a channel");
            }
            Report::BinlogBroken(why) => {
                tracing::error!(why, "the binlog stream is dead; opening another");
            }
            Report::BinlogAway { why, retry_at } => {
                let retry_in = retry_at.saturating_duration_since(Instant::now());
                tracing::error!(
                    error = why,
                    ?retry_in,
                    "the binlog can't be read, polling stands in"
                );
            }
            Report::WriteStall(true) => {
                tracing::error!("confirmed rows can't be marked, intake stops");
            }
            Report::WriteStall(false) => tracing::info!("confirmed rows are marked again"),
        }
    }

    /// For the process manager.
    pub fn readiness(&self) -> &Readiness {
        self.readiness
    }
}

/// Shows what is paused in readiness and metrics.
pub fn pauses(pauses: &Pauses, readiness: &Readiness, metrics: &Metrics) {
    metrics.paused.set(i64::from(pauses.whole.is_some()));
    let routes = i64::try_from(pauses.routes.len()).unwrap_or(i64::MAX);
    metrics.paused_routes.set(routes);
    readiness.set(INTAKE, pauses.whole.is_none(), pauses.detail());
}
