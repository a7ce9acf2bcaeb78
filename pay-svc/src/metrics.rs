//! The metrics of this service, by their contract names.

use prometheus::core::Collector;
use prometheus::{
    Gauge, Histogram, HistogramOpts, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts,
    Registry,
};

use crate::refusals::Record;
use crate::settle::{ALREADY_PAID, IGNORED};

/// Rows are counted up to here, so that a gauge never costs a full scan.
pub const ROWS_COUNTED_MAX: i64 = 100_000;

const RECEIVED: &str = "inbox_received_total";
const DUPLICATES: &str = "inbox_duplicates_total";
const PROCESSED: &str = "inbox_processed_total";
const FAILED: &str = "inbox_failed_total";
const REFUSED: &str = "inbox_records_refused_total";
const PRUNED: &str = "inbox_pruned_total";
const PRUNE_SKIPPED: &str = "inbox_prune_skipped_rows";
const PENDING_ROWS: &str = "inbox_pending_rows";
const PARKED_ROWS: &str = "inbox_parked_rows";
const OLDEST_PENDING: &str = "inbox_oldest_pending_age_seconds";
const OLDEST_PARKED: &str = "inbox_oldest_parked_age_seconds";
const ORDER_TO_PAYMENT: &str = "order_to_payment_seconds";

const LABEL_OUTCOME: &str = "outcome";
const LABEL_CLASS: &str = "class";
const LABEL_RECORD: &str = "record";
const LABEL_REASON: &str = "reason";

/// Values of the label `outcome`.
const OUTCOMES: [&str; 4] = ["captured", "declined", ALREADY_PAID, IGNORED];
/// Values of the label `class`: of failed tries, and of messages that are stored parked.
const CLASSES: [&str; 9] = [
    "malformed",
    "unknown_type",
    "provider_error",
    "provider_unavailable",
    "provider_timeout",
    "settle",
    "bad_message_id",
    "id_conflict",
    "truncated",
];

/// From a local round trip to an hour's outage.
const ORDER_TO_PAYMENT_BUCKETS: [f64; 16] = [
    0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 900.0, 3600.0,
];

/// Messages that are left behind, by why.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Skipped {
    /// No time of theirs is usable.
    pub no_time: u64,
    /// The database refuses to delete them, by a foreign key or a trigger.
    pub refused: u64,
}

/// Everything this service counts. Clones share the values.
#[derive(Debug, Clone)]
pub struct Metrics {
    /// Deliveries stored, duplicates included.
    pub received: IntCounter,
    /// Deliveries of messages that were already there.
    pub duplicates: IntCounter,
    /// Messages processed, by outcome.
    pub processed: IntCounterVec,
    /// Failed tries, by class; also messages that were stored already parked.
    pub failed: IntCounterVec,
    /// Records of messages that a table beside the inbox refused.
    pub refused: IntCounterVec,
    /// Processed and discarded messages deleted after their retention.
    pub pruned: IntCounter,
    /// Messages that the last round of pruning left behind, by why.
    prune_skipped: IntGaugeVec,
    /// Rows with status 1.
    pub pending_rows: IntGauge,
    /// Rows with status 3.
    pub parked_rows: IntGauge,
    /// Age of the oldest row with status 1, 0 without any.
    pub oldest_pending_age: Gauge,
    /// Age of the oldest row with status 3, 0 without any.
    pub oldest_parked_age: Gauge,
    /// From the placing of an order to its payment.
    pub order_to_payment: Histogram,
}

impl Metrics {
    /// Makes and registers the metrics.
    ///
    /// # Errors
    /// A name that is already registered.
    pub fn register(registry: &Registry) -> prometheus::Result<Self> {
        let saturates = format!("Counting stops at {ROWS_COUNTED_MAX}.");
        let order_to_payment =
            HistogramOpts::new(ORDER_TO_PAYMENT, "From placing an order to its payment.")
                .buckets(ORDER_TO_PAYMENT_BUCKETS.to_vec());
        let counter = |name, help| add(registry, IntCounter::new(name, help)?);
        let counters = |name, help, label| {
            let opts = Opts::new(name, help);
            add(registry, IntCounterVec::new(opts, &[label])?)
        };
        let rows = |name, what| {
            let help = format!("{what} {saturates}");
            add(registry, IntGauge::new(name, help)?)
        };
        let age = |name, help| add(registry, Gauge::new(name, help)?);
        let metrics = Self {
            received: counter(RECEIVED, "Deliveries stored, duplicates included.")?,
            duplicates: counter(DUPLICATES, "Deliveries of a known message.")?,
            processed: counters(PROCESSED, "Messages processed.", LABEL_OUTCOME)?,
            failed: counters(
                FAILED,
                "Failed tries, and messages that were stored parked.",
                LABEL_CLASS,
            )?,
            refused: counters(
                REFUSED,
                "Records that a table beside the inbox refused.",
                LABEL_RECORD,
            )?,
            pruned: counter(
                PRUNED,
                "Processed and discarded messages deleted after PAY_RETENTION.",
            )?,
            prune_skipped: prune_skipped(registry)?,
            pending_rows: rows(PENDING_ROWS, "Messages received, not processed.")?,
            parked_rows: rows(PARKED_ROWS, "Messages that a person must look at.")?,
            oldest_pending_age: age(
                OLDEST_PENDING,
                "Age of the oldest message not processed, 0 if none.",
            )?,
            oldest_parked_age: age(
                OLDEST_PARKED,
                "Age of the oldest parked message, 0 if none.",
            )?,
            order_to_payment: add(registry, Histogram::with_opts(order_to_payment)?)?,
        };
        metrics.start_labels();
        Ok(metrics)
    }

    /// A counter that appears with its first failure shows no increase by it.
    fn start_labels(&self) {
        for outcome in OUTCOMES {
            self.processed.with_label_values(&[outcome]).inc_by(0);
        }
        for record in Record::ALL {
            self.refused.with_label_values(&[record.name()]).inc_by(0);
        }
        for class in CLASSES {
            self.failed.with_label_values(&[class]).inc_by(0);
        }
        self.set_skipped(Skipped::default());
    }

    /// Shows what pruning has left behind.
    pub fn set_skipped(&self, skipped: Skipped) {
        for (reason, rows) in [("no_time", skipped.no_time), ("refused", skipped.refused)] {
            let rows = i64::try_from(rows).unwrap_or(i64::MAX);
            self.prune_skipped.with_label_values(&[reason]).set(rows);
        }
    }
}

fn prune_skipped(registry: &Registry) -> prometheus::Result<IntGaugeVec> {
    let opts = Opts::new(
        PRUNE_SKIPPED,
        "Messages that the last round of pruning left behind.",
    );
    add(registry, IntGaugeVec::new(opts, &[LABEL_REASON])?)
}

fn add<C: Collector + Clone + 'static>(registry: &Registry, metric: C) -> prometheus::Result<C> {
    registry.register(Box::new(metric.clone()))?;
    Ok(metric)
}
