//! The numbers of the live view, from the database and the relay's metrics.

use std::{
    cell::RefCell,
    collections::VecDeque,
    time::{Duration, Instant},
};

use e2e::{
    shop::Shop,
    stage::{Stage, client},
};
use sqlx::MySqlPool;

use crate::histogram::{Histogram, Lasting};

/// Over how long the live quantiles are taken.
const WINDOW: Duration = Duration::from_secs(5);
const LATENCY: &str = "outbox_relay_commit_to_confirm_seconds";

/// One look at the whole path.
#[derive(Clone, Debug)]
pub(crate) struct Snapshot {
    pub(crate) placed: usize,
    pub(crate) pending: i64,
    pub(crate) sent: i64,
    pub(crate) paid: i64,
    /// Deliveries of messages that were known already.
    pub(crate) duplicates: i64,
    /// Commit to confirm over the last seconds.
    pub(crate) recent: Histogram,
}

/// Where the numbers come from.
pub(crate) struct Figures<'a> {
    pool: &'a MySqlPool,
    shop: &'a Shop,
    client: reqwest::Client,
    metrics_url: String,
    latency: RefCell<Latency>,
}

#[derive(Default)]
struct Latency {
    lasting: Lasting,
    /// Sums of the last seconds, the oldest first.
    recent: VecDeque<(Instant, Histogram)>,
}

impl<'a> Figures<'a> {
    pub(crate) fn new(stage: &'a Stage, shop: &'a Shop) -> anyhow::Result<Self> {
        Ok(Self {
            pool: &stage.pool,
            shop,
            client: client()?,
            metrics_url: format!("{}/metrics", stage.relay.admin),
            latency: RefCell::default(),
        })
    }

    /// Looks at everything.
    pub(crate) async fn look(&self) -> anyhow::Result<Snapshot> {
        let (pending, sent, paid, duplicates) = sqlx::query_as::<_, (i64, i64, i64, i64)>(
            "SELECT (SELECT COUNT(*) FROM orders.outbox WHERE status = 1), \
                    (SELECT COUNT(*) FROM orders.outbox WHERE status = 2), \
                    (SELECT COUNT(*) FROM payments.payments), \
                    (SELECT CAST(COALESCE(SUM(deliveries - 1), 0) AS SIGNED) FROM payments.inbox)",
        )
        .fetch_one(self.pool)
        .await?;
        self.latency().await;
        let recent = self.latency.borrow().recent();
        Ok(Snapshot {
            placed: self.shop.placed(),
            pending,
            sent,
            paid,
            duplicates,
            recent,
        })
    }

    /// Commit to confirm since the relay's first start. A relay that is down adds nothing.
    pub(crate) async fn latency(&self) -> Histogram {
        let text = async {
            self.client
                .get(&self.metrics_url)
                .send()
                .await?
                .text()
                .await
        }
        .await;
        let mut latency = self.latency.borrow_mut();
        if let Ok(text) = text {
            latency.add(Histogram::parse(&text, LATENCY));
        }
        latency.sum()
    }
}

impl Latency {
    fn add(&mut self, now: Histogram) {
        let sum = self.lasting.update(now);
        self.recent.push_back((Instant::now(), sum));
        while self.recent.len() > 2 && self.recent[1].0.elapsed() > WINDOW {
            self.recent.pop_front();
        }
    }

    fn sum(&self) -> Histogram {
        self.recent
            .back()
            .map(|(_, sum)| sum.clone())
            .unwrap_or_default()
    }

    fn recent(&self) -> Histogram {
        let oldest = self
            .recent
            .front()
            .map(|(_, sum)| sum.clone())
            .unwrap_or_default();
        self.sum().since(&oldest)
    }
}
