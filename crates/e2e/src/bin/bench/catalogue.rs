//! The keys, in the order in which they are measured.

use anyhow::{Context as _, bail};
use futures::future::LocalBoxFuture;

use crate::{
    figures::{Figures, number},
    keys,
    scene::Scene,
};

/// One line of the results.
pub(crate) struct Key {
    /// Its name in results.json.
    pub(crate) name: &'static str,
    /// Of `raw` and `product`.
    pub(crate) unit: &'static str,
    /// What `ratio`, product ÷ raw, is to be.
    pub(crate) target: &'static str,
    /// Whether the worse of two servers is the one with the lower ratio.
    pub(crate) more_is_better: bool,
    /// Measures it on one server.
    pub(crate) measure: Measure,
}

impl Key {
    /// One line for the reader.
    pub(crate) fn line(&self, figures: &Figures) -> String {
        let verdict = match figures.met {
            Some(true) => ", target met",
            Some(false) => ", target MISSED",
            None => "",
        };
        format!(
            "raw {}, product {} {}, ratio {:.2} ({}{verdict})",
            number(figures.raw),
            number(figures.product),
            self.unit,
            figures.ratio,
            self.target
        )
    }
}

/// A key's function: rounds of raw and product, and a ledger check.
pub(crate) type Measure = for<'a> fn(&'a Scene<'a>) -> LocalBoxFuture<'a, anyhow::Result<Figures>>;

/// All keys. A new one is a file in `keys` and an entry here.
pub(crate) const ALL: &[Key] = &[
    Key {
        name: "relay_drain_quorum",
        unit: "messages/s",
        target: "ratio ≥ 0.70, goal 0.80",
        more_is_better: true,
        measure: |scene| Box::pin(keys::relay_drain::quorum(scene)),
    },
    Key {
        name: "relay_cpu",
        unit: "CPU s per million messages",
        target: "ratio ≤ 2",
        more_is_better: false,
        measure: |scene| Box::pin(keys::relay_drain::cpu(scene)),
    },
    Key {
        name: "relay_drain_classic",
        unit: "messages/s",
        target: "ratio ≥ 0.90",
        more_is_better: true,
        measure: |scene| Box::pin(keys::relay_drain::classic(scene)),
    },
    Key {
        name: "relay_latency_idle",
        unit: "ms, p50 commit to arrival",
        target: "p50 ≤ 1.4×, p99 ≤ 2×",
        more_is_better: false,
        measure: |scene| Box::pin(keys::relay_latency::idle(scene)),
    },
    Key {
        name: "relay_steady",
        unit: "ms, p50 at 2,000 rows/s",
        target: "p50 ≤ raw + 0.5 ms",
        more_is_better: false,
        measure: |scene| Box::pin(keys::relay_steady::steady(scene)),
    },
    Key {
        name: "relay_growth",
        unit: "messages/s",
        target: "ratio ≥ 0.95, start ≤ 1.5×",
        more_is_better: true,
        measure: |scene| Box::pin(keys::relay_growth::growth(scene)),
    },
    Key {
        name: "relay_memory",
        unit: "MiB resident",
        target: "idle ≤ 20, backlog ≤ 64",
        more_is_better: false,
        measure: |scene| Box::pin(keys::relay_memory::memory(scene)),
    },
    Key {
        name: "relay_foreign",
        unit: "outbox rows/s",
        target: "≤ 2 µs a foreign event",
        more_is_better: true,
        measure: |scene| Box::pin(keys::relay_foreign::foreign(scene)),
    },
    Key {
        name: "mark_amplification",
        unit: "binlog bytes a mark",
        target: "reported",
        more_is_better: false,
        measure: |scene| Box::pin(keys::mark_amplification::amplification(scene)),
    },
    Key {
        name: "order_http",
        unit: "orders/s",
        target: "MySQL ≥ 3, MariaDB ≥ 1.5, p99 ≤ 4×",
        more_is_better: true,
        measure: |scene| Box::pin(keys::order_http::http(scene)),
    },
    Key {
        name: "pay_consume",
        unit: "messages/s",
        target: "ratio ≥ 4",
        more_is_better: true,
        measure: |scene| Box::pin(keys::pay_consume::consume(scene)),
    },
    Key {
        name: "whole_path",
        unit: "orders/s",
        target: "ratio ≥ 0.8",
        more_is_better: true,
        measure: |scene| Box::pin(keys::whole_path::whole(scene)),
    },
];

/// The keys of a list with commas; all for an empty one.
pub(crate) fn choose(only: &str) -> anyhow::Result<Vec<&'static Key>> {
    let names: Vec<&str> = only.split(',').map(str::trim).collect();
    if names.iter().all(|name| name.is_empty()) {
        return Ok(ALL.iter().collect());
    }
    let mut chosen = Vec::new();
    for name in names.into_iter().filter(|name| !name.is_empty()) {
        let found = ALL.iter().find(|key| key.name == name);
        chosen.push(found.with_context(|| {
            let all: Vec<&str> = ALL.iter().map(|key| key.name).collect();
            format!("no key {name:?}; there are: {}", all.join(" "))
        })?);
    }
    if chosen.is_empty() {
        bail!("no key in {only:?}");
    }
    Ok(chosen)
}
