//! The relay's metrics: every name and label value in one place.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, PoisonError};

use prometheus::core::Collector;
use prometheus::{
    Gauge, Histogram, HistogramOpts, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts,
    Registry,
};

use crate::engine::{Mode, ROUTES_SHOWN, Reason, Refused, Source, StateName, WaitingRoute};

/// The state of the process; the label `phase`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Another relay holds the lock, or the database can't be reached.
    Standby,
    /// The lock is held; broker and database are being connected.
    Connecting,
    /// A session works, and its engine is in this state.
    Session(StateName),
    /// Stopped.
    Stopped,
}

impl Phase {
    fn all() -> impl Iterator<Item = Self> {
        let states = StateName::ALL.into_iter().map(Self::Session);
        [Self::Standby, Self::Connecting, Self::Stopped]
            .into_iter()
            .chain(states)
    }

    /// Label value.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Standby => "standby",
            Self::Connecting => "connecting",
            Self::Session(state) => state.name(),
            Self::Stopped => "stopped",
        }
    }
}

/// Sent rows that clean-up leaves behind, by why.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Skipped {
    /// No time of theirs is usable.
    pub no_time: u64,
    /// The database refuses to delete them.
    pub refused: u64,
    /// Somebody holds a lock on them.
    pub locked: u64,
    /// One alone took too long.
    pub slow: u64,
}

impl Skipped {
    /// Adds those of another page.
    pub fn add(&mut self, other: Self) {
        self.no_time += other.no_time;
        self.refused += other.refused;
        self.locked += other.locked;
        self.slow += other.slow;
    }

    /// The larger numbers of both.
    #[must_use]
    pub fn max(self, other: Self) -> Self {
        Self {
            no_time: self.no_time.max(other.no_time),
            refused: self.refused.max(other.refused),
            locked: self.locked.max(other.locked),
            slow: self.slow.max(other.slow),
        }
    }
}

/// `pending_rows` and `parked_rows` stop counting here.
pub const ROWS_COUNTED_MAX: u32 = 100_000;

/// Half a millisecond to a minute: the floor is about one millisecond.
const COMMIT_TO_CONFIRM_BUCKETS: [f64; 20] = [
    0.0005, 0.00075, 0.001, 0.00125, 0.0015, 0.002, 0.0025, 0.003, 0.004, 0.005, 0.0075, 0.01,
    0.025, 0.05, 0.1, 0.25, 1.0, 5.0, 20.0, 60.0,
];

/// All metrics, prefix `outbox_relay_`.
#[derive(Clone)]
#[expect(
    missing_docs,
    reason = "each field is named and explained where it is registered"
)]
pub struct Metrics {
    pub pending_rows: IntGauge,
    pub parked_rows: IntGauge,
    pub oldest_pending_age: Gauge,
    pub oldest_parked_age: Gauge,
    pub binlog_lag: Gauge,
    pub commit_to_confirm: Histogram,
    pub marked: IntCounter,
    pub in_flight: IntGauge,
    pub leader: IntGauge,
    pub broker_connected: IntGauge,
    pub broker_blocked: IntGauge,
    pub binlog_connected: IntGauge,
    pub missed_by_binlog: IntCounter,
    pub undecodable_events: IntCounter,
    pub paused: IntGauge,
    pub paused_routes: IntGauge,
    pub cleaned: IntCounter,
    pub unmarked: IntCounter,
    published: IntCounterVec,
    confirmed: IntCounterVec,
    failed: IntCounterVec,
    phase: IntGaugeVec,
    waiting_rows: IntGaugeVec,
    mode: IntGaugeVec,
    refused_records: IntGaugeVec,
    skipped_rows: IntGaugeVec,
    pub row_gauges_read: Gauge,
    pub canary: Gauge,
    pub canary_age: Gauge,
    /// The routes that `waiting_rows` shows.
    shown: Arc<Mutex<HashSet<[String; 2]>>>,
}

struct Register<'a>(&'a Registry);

type Registered<T> = Result<T, prometheus::Error>;

impl Register<'_> {
    fn add<C: Collector + Clone + 'static>(&self, collector: Registered<C>) -> Registered<C> {
        let collector = collector?;
        self.0.register(Box::new(collector.clone()))?;
        Ok(collector)
    }

    fn gauge(&self, name: &str, help: &str) -> Registered<IntGauge> {
        self.add(IntGauge::new(full(name), help))
    }

    fn seconds(&self, name: &str, help: &str) -> Registered<Gauge> {
        self.add(Gauge::new(full(name), help))
    }

    fn counter(&self, name: &str, help: &str) -> Registered<IntCounter> {
        self.add(IntCounter::new(full(name), help))
    }

    fn latency(&self) -> Registered<Histogram> {
        let opts = HistogramOpts::new(
            full("commit_to_confirm_seconds"),
            "Commit in the database to confirm by the broker, rows that the binlog reported",
        );
        let opts = opts.buckets(COMMIT_TO_CONFIRM_BUCKETS.to_vec());
        self.add(Histogram::with_opts(opts))
    }

    fn refused(&self) -> Registered<IntGaugeVec> {
        self.gauges(
            "refused_records",
            &["kind"],
            "Writes that are tried again, since the database refuses them or somebody holds a lock: mark, failure or sample",
        )
    }

    fn skipped(&self) -> Registered<IntGaugeVec> {
        self.gauges(
            "cleanup_skipped_rows",
            &["reason"],
            "Sent rows that the last walk of clean-up left behind: no_time, refused, locked or slow",
        )
    }

    fn counters(&self, name: &str, label: &str, help: &str) -> Registered<IntCounterVec> {
        self.add(IntCounterVec::new(Opts::new(full(name), help), &[label]))
    }

    fn gauges(&self, name: &str, labels: &[&str], help: &str) -> Registered<IntGaugeVec> {
        self.add(IntGaugeVec::new(Opts::new(full(name), help), labels))
    }
}

fn full(name: &str) -> String {
    format!("outbox_relay_{name}")
}

impl Metrics {
    /// Registers all of them, each label value at 0.
    ///
    /// # Errors
    /// A name that is taken: a bug.
    pub fn register(registry: &Registry) -> Result<Self, prometheus::Error> {
        let r = Register(registry);
        let metrics = Self {
            pending_rows: r.gauge("pending_rows", "Rows not sent yet; counts to 100000")?,
            parked_rows: r.gauge(
                "parked_rows",
                "Rows a person must look at; counts to 100000",
            )?,
            oldest_pending_age: r.seconds(
                "oldest_pending_age_seconds",
                "Age of the oldest pending row by the database's clock, 0 if none",
            )?,
            oldest_parked_age: r.seconds(
                "oldest_parked_age_seconds",
                "Age of the oldest parked row by the database's clock, 0 if none",
            )?,
            binlog_lag: r.seconds(
                "binlog_lag_seconds",
                "Now minus the commit time of the oldest event not yet confirmed, 0 if none",
            )?,
            commit_to_confirm: r.latency()?,
            marked: r.counter("marked_total", "Rows marked sent")?,
            in_flight: r.gauge("in_flight", "Rows read and not yet marked sent")?,
            leader: r.gauge("leader", "1 while this process holds the lock")?,
            broker_connected: r.gauge("broker_connected", "1 while connected to RabbitMQ")?,
            broker_blocked: r.gauge("broker_blocked", "1 while RabbitMQ blocks publishers")?,
            binlog_connected: r.gauge("binlog_connected", "1 while the binlog stream is open")?,
            missed_by_binlog: r.counter(
                "missed_by_binlog_total",
                "Rows a sweep found that the binlog should have reported; 0 in a sound system",
            )?,
            undecodable_events: r.counter(
                "undecodable_events_total",
                "Binlog events that touch the outbox and could not be decoded; the table was scanned",
            )?,
            paused: r.gauge("paused", "1 while an operator has paused the whole relay")?,
            paused_routes: r.gauge("paused_routes", "Routes that an operator has paused")?,
            cleaned: r.counter("cleaned_total", "Sent rows deleted after RELAY_RETENTION")?,
            unmarked: r.counter(
                "mark_missed_total",
                "Confirmed rows whose mark found them changed or gone",
            )?,
            published: r.counters("published_total", "source", "Messages given to the broker")?,
            confirmed: r.counters(
                "confirmed_total",
                "source",
                "Messages confirmed by the broker",
            )?,
            failed: r.counters("failed_total", "reason", "Publishes that failed")?,
            phase: r.gauges("phase", &["phase"], "1 for the state the relay is in")?,
            waiting_rows: r.gauges(
                "waiting_rows",
                &["exchange", "routing_key"],
                "Rows waiting for a route that is closed; the 50 fullest",
            )?,
            refused_records: r.refused()?,
            skipped_rows: r.skipped()?,
            mode: r.gauges("mode", &["mode"], "1 for RELAY_MODE: cdc or poll")?,
            row_gauges_read: r.seconds(
                "row_gauges_read_seconds",
                "Time that the last reading of the row gauges took at the database",
            )?,
            canary: r.seconds("canary_seconds", "INSERT of the last canary to its return")?,
            canary_age: r.seconds(
                "canary_age_seconds",
                "Time that a canary is late, 0 if none",
            )?,
            shown: Arc::default(),
        };
        metrics.start_labels();
        Ok(metrics)
    }

    fn start_labels(&self) {
        for source in [Source::Binlog, Source::Sweep] {
            self.published.with_label_values(&[source.name()]).inc_by(0);
            self.confirmed.with_label_values(&[source.name()]).inc_by(0);
        }
        for reason in Reason::ALL {
            self.failed.with_label_values(&[reason.name()]).inc_by(0);
        }
        self.set_phase(Phase::Standby);
        self.set_refused(&Refused::default());
        self.set_skipped(Skipped::default());
    }

    /// Shows what clean-up has left behind.
    pub fn set_skipped(&self, skipped: Skipped) {
        for (reason, rows) in [
            ("no_time", skipped.no_time),
            ("refused", skipped.refused),
            ("locked", skipped.locked),
            ("slow", skipped.slow),
        ] {
            let rows = i64::try_from(rows).unwrap_or(i64::MAX);
            self.skipped_rows.with_label_values(&[reason]).set(rows);
        }
    }

    /// Shows what waits because the database refuses it.
    pub fn set_refused(&self, refused: &Refused) {
        for (kind, writes) in [
            ("mark", refused.marks),
            ("failure", refused.failures),
            ("sample", refused.samples),
        ] {
            let writes = i64::try_from(writes).unwrap_or(i64::MAX);
            self.refused_records.with_label_values(&[kind]).set(writes);
        }
    }

    /// Counts a message given to the broker.
    pub fn published(&self, source: Source, count: u64) {
        self.published
            .with_label_values(&[source.name()])
            .inc_by(count);
    }

    /// Counts a message confirmed by the broker.
    pub fn confirmed(&self, source: Source, count: u64) {
        self.confirmed
            .with_label_values(&[source.name()])
            .inc_by(count);
    }

    /// Counts a failed publish.
    pub fn failed(&self, reason: Reason) {
        self.failed.with_label_values(&[reason.name()]).inc();
    }

    /// Shows the state of the process.
    pub fn set_phase(&self, now: Phase) {
        for phase in Phase::all() {
            self.phase
                .with_label_values(&[phase.name()])
                .set(i64::from(phase == now));
        }
    }

    /// Shows how rows are to be found, so that polling can be distinguished from having to poll.
    pub fn set_mode(&self, mode: Mode) {
        for (one, name) in [(Mode::Cdc, "cdc"), (Mode::Poll, "poll")] {
            let shown = i64::from(one == mode);
            self.mode.with_label_values(&[name]).set(shown);
        }
    }

    /// Shows the routes whose rows wait, the fullest first. What is shown already stays while it is
    /// replaced: a scrape in between must not see nothing.
    pub fn set_waiting(&self, routes: &[WaitingRoute]) {
        let mut shown = self.shown.lock().unwrap_or_else(PoisonError::into_inner);
        let mut old = std::mem::take(&mut *shown);
        for WaitingRoute { route, rows, .. } in routes.iter().take(ROUTES_SHOWN) {
            let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
            let labels = [text(&route.exchange), text(&route.routing_key)];
            let rows = i64::try_from(*rows).unwrap_or(i64::MAX);
            self.waiting_rows.with_label_values(&labels).set(rows);
            old.remove(&labels);
            shown.insert(labels);
        }
        for labels in old {
            // It is there, as nobody else removes any.
            drop(self.waiting_rows.remove_label_values(&labels));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::route::Route;

    #[test]
    fn waiting_routes_are_replaced_one_by_one() {
        let metrics = Metrics::register(&Registry::new()).unwrap();
        let waiting = |name: &str, rows| WaitingRoute {
            route: Route::new(b"x", name.as_bytes()),
            rows,
            paused: false,
        };
        let shown = |name: &str| {
            let samples = metrics.waiting_rows.collect().remove(0);
            let of_route = samples.get_metric().iter().find(|metric| {
                let labels = metric.get_label();
                labels.iter().any(|label| label.value() == name)
            });
            of_route.map(|metric| metric.get_gauge().get_value())
        };
        metrics.set_waiting(&[waiting("a", 1), waiting("b", 2)]);
        metrics.set_waiting(&[waiting("b", 3), waiting("c", 4)]);
        assert_eq!(
            [shown("a"), shown("b"), shown("c")],
            [None, Some(3.0), Some(4.0)]
        );
        let many: Vec<_> = (0..60).map(|n| waiting(&format!("r{n}"), 1)).collect();
        metrics.set_waiting(&many);
        assert_eq!([shown("r49"), shown("r50")], [Some(1.0), None]);
        metrics.set_waiting(&[]);
        assert_eq!([shown("b"), shown("c"), shown("r0")], [None; 3]);
    }
}
